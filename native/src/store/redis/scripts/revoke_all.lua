-- Ends all sessions of a user by raising their epoch, or all but one, which leaves the epoch as it is.
--
-- KEYS  1 epoch  2 index, then record and state of each known member
-- ARGV  1 what: "all", "others", or "again": a repetition that ends only what is older than the epoch of ARGV[2]
--       2 the id to keep, or that epoch  3 life of a dead mark  4 now  5 until when the epoch is kept
--       6 number of known members, their ids
-- →     {"revoked", epoch, ended ids…} | {"members", ids…}: nothing was written; pass these and call again
local what, known = ARGV[1], tonumber(ARGV[6])

local members = redis.call('ZRANGE', KEYS[2], 0, -1)
local same = #members == known
for i = 1, known do
  same = same and members[i] == ARGV[6 + i]
end
if not same then
  return {'members', unpack(members)}
end
local epoch = tonumber(redis.call('GET', KEYS[1]) or '0')
local epoch_ttl = redis.call('PTTL', KEYS[1])
local ending = {}
for i = 1, known do
  local state_epoch = redis.call('HGET', KEYS[2 + 2 * i], 'epoch')
  if what == 'all' or what == 'others' and members[i] ~= ARGV[2]
      or what == 'again' and (not state_epoch or tonumber(state_epoch) < tonumber(ARGV[2])) then
    ending[#ending + 1] = {i, state_epoch}
  end
end

if what ~= 'others' then
  if what == 'all' then
    epoch = epoch + 1
  else
    epoch = math.max(epoch, tonumber(ARGV[2]))
  end
  local keep_until = tonumber(ARGV[5])
  if epoch_ttl >= 0 then
    keep_until = math.max(keep_until, tonumber(ARGV[4]) + epoch_ttl)
  end
  redis.call('SET', KEYS[1], string.format('%.0f', epoch), 'PXAT', string.format('%.0f', keep_until))
end
if what == 'others' and #ending == 0 then
  -- It may be a repetition: a WAIT after it has to say something about the first time too.
  local index_ttl = redis.call('PTTL', KEYS[2])
  if index_ttl > 0 then
    redis.call('PEXPIRE', KEYS[2], index_ttl)
  end
end
for _, member in ipairs(ending) do
  if member[2] then
    redis.call('HSET', KEYS[2 + 2 * member[1]], 'dead', '1')
    redis.call('PEXPIRE', KEYS[2 + 2 * member[1]], ARGV[3])
  end
end
local answer = {'revoked', epoch}
for _, member in ipairs(ending) do
  if redis.call('DEL', KEYS[1 + 2 * member[1]]) == 1 then
    answer[#answer + 1] = members[member[1]]
  end
end
for _, member in ipairs(ending) do
  redis.call('ZREM', KEYS[2], members[member[1]])
end
return answer
