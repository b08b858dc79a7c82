-- Creates a session: never overwrites one, and keeps the user at no more than their maximum.
--
-- KEYS  1 record  2 state  3 index  4 epoch, then record and state of each known member
-- ARGV  1 record  2 id  3 now  4 absolute limit  5 idle limit  6 maximum  7 evict the oldest ("1") or refuse ("0")
--       8 life of a dead mark  9 number of known members, their ids, then the state's fields and values
-- →     {"created", epoch, evicted ids…} | {"taken"} | {"full"} | {"members", ids…}: pass these and call again
local now = tonumber(ARGV[3])
local known = tonumber(ARGV[9])

-- Reads first: Redis keeps the writes of a script that fails half-way.
local record = redis.call('GET', KEYS[1])
local state_exists = redis.call('EXISTS', KEYS[2]) == 1
local epoch = tonumber(redis.call('GET', KEYS[4]) or '0')
if record or state_exists then
  -- A repeated call whose first answer was lost finds its own session. It writes what stands there, so that a WAIT after
  -- it says something about the first time too: to a new connection that wrote nothing, any replica is good enough.
  if record == ARGV[1] and state_exists then
    redis.call('PEXPIREAT', KEYS[1], ARGV[4])
    return {'created', epoch}
  end
  return {'taken'}
end
local members = redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. ARGV[3], '+inf')
local gone, evicted = {}, {}
if #members >= tonumber(ARGV[6]) then
  local same = #members == known
  for i = 1, known do
    same = same and members[i] == ARGV[9 + i]
  end
  if not same then
    return {'members', unpack(members)}
  end
  local alive = {}
  for i = 1, known do
    local state = redis.call('HMGET', KEYS[4 + 2 * i], 'idle', 'dead', 'created')
    if state[1] and not state[2] and tonumber(state[1]) > now then
      alive[#alive + 1] = {i, tonumber(state[3])}
    else
      gone[#gone + 1] = i
    end
  end
  local surplus = #alive - tonumber(ARGV[6]) + 1
  if surplus > 0 and ARGV[7] == '0' then
    return {'full'}
  end
  -- The index is in the order of absolute limits; who configures shorter ones must not see the newest go first.
  table.sort(alive, function(one, other)
    return one[2] < other[2] or one[2] == other[2] and one[1] < other[1]
  end)
  for n = 1, surplus do
    evicted[n] = alive[n][1]
  end
end
local index_ttl = redis.call('PTTL', KEYS[3])
local epoch_ttl = redis.call('PTTL', KEYS[4])

-- Then writes, in the order epoch, dead mark, delete, index.
local absolute = tonumber(ARGV[4])
if epoch_ttl >= 0 and now + epoch_ttl < absolute then
  redis.call('PEXPIREAT', KEYS[4], ARGV[4])
end
local answer = {'created', epoch}
for _, i in ipairs(evicted) do
  redis.call('HSET', KEYS[4 + 2 * i], 'dead', '1')
  redis.call('PEXPIRE', KEYS[4 + 2 * i], ARGV[8])
  redis.call('DEL', KEYS[3 + 2 * i])
  redis.call('ZREM', KEYS[3], ARGV[9 + i])
  answer[#answer + 1] = ARGV[9 + i]
end
for _, i in ipairs(gone) do
  redis.call('DEL', KEYS[3 + 2 * i], KEYS[4 + 2 * i])
  redis.call('ZREM', KEYS[3], ARGV[9 + i])
end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', ARGV[3])
redis.call('SET', KEYS[1], ARGV[1], 'PXAT', ARGV[4])
redis.call('HSET', KEYS[2], 'epoch', epoch, unpack(ARGV, 10 + known))
redis.call('PEXPIREAT', KEYS[2], ARGV[5])
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[2])
if index_ttl < 0 or now + index_ttl < absolute then
  redis.call('PEXPIREAT', KEYS[3], ARGV[4])
end
return answer
