-- beat.lua: extends the lease of one worker process, and the edit locks that its steps hold.
--
-- KEYS  leases, workers, then the locks.
-- ARGV  consumer, lease in ms, what the worker tells of itself, then one token per lock.
-- Returns {0} when a tombstone stands at the consumer's name: others took its work, it has to take a new name. Else
--         {1, now, leases that ran out, tombstones, 1 if work was handed back}: what there is to reclaim.
-- Invariant: a lease that ran out comes back to life only while nobody has buried it.

local leases, me, lease = KEYS[1], ARGV[1], ARGV[2]
local score = rc('ZSCORE', leases, me)
if score and tonumber(score) < 0 then return { 0 } end

rc('ZADD', leases, string.format('%.0f', now_ms() + lease), me)
rc('HSET', KEYS[2], me, ARGV[3])
for i = 3, #KEYS do
  -- A lock of a wrong type is its run's misfortune, not this worker's.
  local ok, holder = pcall(rc, 'GET', KEYS[i])
  if ok and holder == ARGV[i + 1] then rc('PEXPIRE', KEYS[i], lease) end
end
return {
  1, now_ms(), rc('ZCOUNT', leases, 1, now_ms()), rc('ZCOUNT', leases, '-inf', '(0'),
  rc('ZSCORE', leases, 'returned') and 1 or 0,
}
