-- Ends one session of a user. Repeating it is safe, and writes as long as the dead mark stands, so that a WAIT after it
-- says something about the first time too.
--
-- KEYS  1 record  2 state  3 index
-- ARGV  1 id  2 user  3 life of a dead mark
-- →     {"revoked", 1 when it ended now, 0 otherwise}
local state = redis.call('HMGET', KEYS[2], 'user', 'dead')
local theirs = state[1] == ARGV[2]
if not state[1] then
  theirs = redis.call('ZSCORE', KEYS[3], ARGV[1])
end
if not theirs then
  return {'revoked', 0}
end
if state[1] then
  redis.call('HSET', KEYS[2], 'dead', '1')
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
local ended = redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return {'revoked', ended}
