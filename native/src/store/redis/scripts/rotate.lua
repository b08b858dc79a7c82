-- The optimistic rotation: applies where the presented counter is the current one of a live session, as core's
-- `Rotate::apply` does. Never creates.
--
-- KEYS  1 record  2 state
-- ARGV  1 presented counter  2 now  3 now in six bytes  4 key id  5 device  6 idle time to live
-- →     {"rotated", state…} | {"state", state…}: nothing was written | {"missing"}
local FIELDS = {'n', 'key', 'times', 'c', 'retries', 'device', 'user', 'epoch', 'abs', 'idle', 'dead', 'client', 'ttl',
  'reissued'}
local state = redis.call('HMGET', KEYS[2], unpack(FIELDS))
if not state[1] or redis.call('EXISTS', KEYS[1]) == 0 and not state[11] then
  return {'missing'}
end
local presented, now, absolute = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(state[9])
if tonumber(state[1]) ~= presented or state[11] or now >= tonumber(state[10]) or now >= absolute
    or presented == 4294967295 then
  return {'state', unpack(state, 1, #FIELDS)}
end
-- A call that Redis got long after it was sent (it was frozen, and its client was told to ask again): the grace begins
-- now, or the client's repetition would pass for a reuse.
local superseded_at = ARGV[3]
local time = redis.call('TIME')
local here = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if here > now + 5000 then
  superseded_at = struct.pack('>I6', here)
end
state[1] = string.format('%.0f', presented + 1)
state[2] = ARGV[4]
state[3] = string.sub(superseded_at .. state[3], 1, 48)
state[4] = string.format('%.0f', math.max(tonumber(state[4]), presented))
state[5] = '0'
state[6] = ARGV[5]
state[14] = ''
state[10] = string.format('%.0f', math.min(now + tonumber(ARGV[6]), absolute))
redis.call('HSET', KEYS[2], 'n', state[1], 'key', state[2], 'times', state[3], 'c', state[4], 'retries', state[5],
  'device', state[6], 'idle', state[10], 'reissued', '')
redis.call('PEXPIREAT', KEYS[2], state[10])
return {'rotated', unpack(state, 1, #FIELDS)}
