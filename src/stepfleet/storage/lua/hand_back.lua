-- hand_back.lua: a worker returns deliveries that it will not finish, and last of all leaves.
--
-- KEYS  leases, workers, then the streams.
-- ARGV  group, me, 'stays' or 'leaves', then stream index, entry id for each delivery to return.
-- Returns how many were returned.
-- Invariant: a returned delivery keeps its counter; every worker takes it at once; a consumer with pending rows stays.

local group, me = ARGV[1], ARGV[2]
local returned = 0
for i = 4, #ARGV, 2 do
  local stream, entry = KEYS[ARGV[i] + 2], ARGV[i + 1]
  if #rc('XPENDING', stream, group, entry, entry, 1, me) > 0 then
    rc('XCLAIM', stream, group, 'returned', 0, entry, 'JUSTID')
    returned = returned + 1
  end
end
if returned > 0 then rc('ZADD', KEYS[1], 0, 'returned') end
if ARGV[3] == 'stays' then return returned end

local left_over = 0
for s = 3, #KEYS do
  local ok, rows = pcall(rc, 'XPENDING', KEYS[s], group, '-', '+', 1, me)
  if ok and #rows == 0 then
    rc('XGROUP', 'DELCONSUMER', KEYS[s], group, me)
  elseif ok then
    left_over = left_over + 1
  end
end
-- Rows that Redis delivered and this process never saw are reclaimed when the lease runs out.
if left_over == 0 then rc('ZREM', KEYS[1], me) end
rc('HDEL', KEYS[2], me)
return returned
