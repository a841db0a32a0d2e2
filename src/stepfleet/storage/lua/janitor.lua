-- janitor.lua: removes what only the dead left: consumers without work, leases, tombstones, old ended runs.
--
-- KEYS  leases, workers, ended runs, then streams.
-- ARGV  group, age in ms after which the dead are forgotten (tombstones: 24 times that), retention in ms, lease in ms.
-- Returns how many consumers were removed.
-- Invariant: a consumer with pending rows stays (XGROUP DELCONSUMER would lose them for good), and so does its lease;
-- without one, nobody would ever look at these rows.

local leases, group, age, removed = KEYS[1], ARGV[1], ARGV[2] + 0, 0
local busy = {}                   -- consumers with pending rows

-- Whether nobody lives under this name: buried, long silent, or without a lease.
local function dead(consumer)
  local score = tonumber(rc('ZSCORE', leases, consumer) or nil)
  return not score or score < 0 or (score > 0 and score <= now_ms() - age)
end

for s = 4, #KEYS do
  local ok, consumers = pcall(rc, 'XINFO', 'CONSUMERS', KEYS[s], group)
  if ok then
    for _, row in ipairs(consumers) do
      local about = {}
      for i = 1, #row, 2 do about[row[i]] = row[i + 1] end
      if about.pending + 0 > 0 then
        busy[about.name] = true
        -- A read that arrives behind the hand-back, or a lease that Redis lost: the owner has one lease to come back.
        if about.name ~= 'returned' then
          rc('ZADD', leases, 'NX', string.format('%.0f', now_ms() + ARGV[4]), about.name)
        end
      elseif about.name ~= 'returned' and about.idle + 0 > age and dead(about.name) then
        rc('XGROUP', 'DELCONSUMER', KEYS[s], group, about.name)
        removed = removed + 1
      end
    end
  end
end
for _, consumer in ipairs(rc('HKEYS', KEYS[2])) do
  if dead(consumer) then rc('HDEL', KEYS[2], consumer) end
end
-- A lease that ran out long ago and has nothing to reclaim would only make every worker look for it.
for _, consumer in ipairs(rc('ZRANGEBYSCORE', leases, 1, string.format('%.0f', now_ms() - age))) do
  if not busy[consumer] then rc('ZREM', leases, consumer) end
end
rc('ZREMRANGEBYSCORE', leases, string.format('%.0f', 24 * age - now_ms()), '(0')
rc('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now_ms() - ARGV[3]))
return removed
