-- Raises the highest generation that an access token was seen with. Never creates.
--
-- KEYS  1 record  2 state
-- ARGV  1 generation
-- →     1 when it was raised, 0 otherwise
local state = redis.call('HMGET', KEYS[2], 'n', 'c', 'dead')
if not state[1] or state[3] then
  return 0
end
-- A token cannot have been seen that was never issued.
local seen = math.min(tonumber(ARGV[1]), tonumber(state[1]))
if seen <= tonumber(state[2]) then
  return 0
end
redis.call('HSET', KEYS[2], 'c', string.format('%.0f', seen))
return 1
