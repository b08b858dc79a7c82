-- A write that core decided on, made only where the state is still the one it decided about. Never creates, and never
-- brings back an ended session.
--
-- KEYS  1 record  2 state
-- ARGV  1 expected counter  2 expected retries  3 idle limit, then the changed fields and values
-- →     {"rotated", state…} | {"state", state…}: nothing was written | {"missing"}
local FIELDS = {'n', 'key', 'times', 'c', 'retries', 'device', 'user', 'epoch', 'abs', 'idle', 'dead', 'client', 'ttl',
  'reissued'}
local state = redis.call('HMGET', KEYS[2], unpack(FIELDS))
if not state[1] or redis.call('EXISTS', KEYS[1]) == 0 and not state[11] then
  return {'missing'}
end
if state[1] ~= ARGV[1] or state[5] ~= ARGV[2] or state[11] then
  return {'state', unpack(state, 1, #FIELDS)}
end
redis.call('HSET', KEYS[2], unpack(ARGV, 4))
-- What a confirmation raised meanwhile stays.
if tonumber(state[4]) > tonumber(redis.call('HGET', KEYS[2], 'c')) then
  redis.call('HSET', KEYS[2], 'c', state[4])
end
redis.call('PEXPIREAT', KEYS[2], ARGV[3])
return {'rotated', unpack(redis.call('HMGET', KEYS[2], unpack(FIELDS)), 1, #FIELDS)}
