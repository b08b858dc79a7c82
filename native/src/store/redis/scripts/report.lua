-- Notes what a gateway reports, until its lease ends, and answers what all live ones report. Redis' own clock is the
-- only one that counts.
--
-- KEYS  1 reports
-- ARGV  1 gateway  2 its report; empty: only asks  3 lease in milliseconds
-- →     {"reports", gateway, report, …}
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local all = redis.call('HGETALL', KEYS[1])

local answer = {'reports'}
local over = {}
for i = 1, #all, 2 do
  local until_text, report = string.match(all[i + 1], '^(%d+) (.*)$')
  if all[i] == ARGV[1] and ARGV[2] ~= '' then
    -- Replaced below.
  elseif until_text and tonumber(until_text) > now then
    answer[#answer + 1] = all[i]
    answer[#answer + 1] = report
  else
    over[#over + 1] = all[i]
  end
end
if ARGV[2] ~= '' then
  answer[#answer + 1] = ARGV[1]
  answer[#answer + 1] = ARGV[2]
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f %s', now + tonumber(ARGV[3]), ARGV[2]))
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  for _, gateway in ipairs(over) do
    redis.call('HDEL', KEYS[1], gateway)
  end
end
return answer
