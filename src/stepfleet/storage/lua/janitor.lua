-- janitor.lua: removes what only the dead left: consumers without work, their tombstones, ended runs out of retention.
--
-- KEYS  leases, workers, ended runs, then streams.
-- ARGV  group, age in ms after which a tombstone goes, retention in ms.
-- Returns how many consumers were removed.
-- Invariant: a consumer with pending rows stays (XGROUP DELCONSUMER would lose them for good).

local leases, group, age, removed = KEYS[1], ARGV[1], ARGV[2] + 0, 0
for s = 4, #KEYS do
  local ok, consumers = pcall(rc, 'XINFO', 'CONSUMERS', KEYS[s], group)
  if ok then
    for _, row in ipairs(consumers) do
      local about = {}
      for i = 1, #row, 2 do about[row[i]] = row[i + 1] end
      local score = tonumber(rc('ZSCORE', leases, about.name) or nil)
      if about.pending + 0 == 0 and about.name ~= 'returned' and (not score or score < 0) and about.idle + 0 > age then
        rc('XGROUP', 'DELCONSUMER', KEYS[s], group, about.name)
        removed = removed + 1
      end
    end
  end
end
for _, consumer in ipairs(rc('HKEYS', KEYS[2])) do
  local score = tonumber(rc('ZSCORE', leases, consumer) or nil)
  if not score or score < 0 then rc('HDEL', KEYS[2], consumer) end
end
rc('ZREMRANGEBYSCORE', leases, string.format('%.0f', 24 * age - now_ms()), '(0')
rc('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now_ms() - ARGV[3]))
return removed
