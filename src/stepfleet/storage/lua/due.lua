-- due.lua: what is due by Redis' clock. Reads only; each is fired by a commit that has the timer as its fence.
--
-- KEYS  timers, their data, live runs by deadline.
-- ARGV  how many at most.
-- Returns {now, {member, data, ...}, {run, ...}, ms until the next one (-1: none)}.

local timers, data, live, most = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local members = rc('ZRANGEBYSCORE', timers, '-inf', now_ms(), 'LIMIT', 0, most)
local fired = {}
for _, member in ipairs(members) do
  fired[#fired + 1] = member
  fired[#fired + 1] = rc('HGET', data, member) or ''
end
local overdue = rc('ZRANGEBYSCORE', live, '-inf', now_ms(), 'LIMIT', 0, most)
local next_ = -1
for _, key in ipairs({ timers, live }) do
  local first = rc('ZRANGEBYSCORE', key, '(' .. string.format('%.0f', now_ms()), '(+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  if first[2] then
    local left = math.max(0, tonumber(first[2]) - now_ms())
    if next_ < 0 or left < next_ then next_ = left end
  end
end
return { now_ms(), fired, overdue, next_ }
