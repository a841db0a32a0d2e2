-- reclaim.lua: takes over deliveries of consumers that handed them back or whose lease ran out. Moves ownership only.
--
-- KEYS  leases, then the streams to look at.
-- ARGV  group, me, how many at most, whether those lost once may be among them (1), whether one lost more often may be
--       (1), until when dead consumers may be buried (0: not at all), lease in ms.
-- Returns {stream index (from 1), entry id, deliveries so far, fields, previous owner} for each.
-- Invariant: the delivery counter rises only when a buried consumer had the delivery; handed-back ones keep it; when
-- the clock has jumped beyond what the caller expects, nobody is buried; one that was lost more than once is taken
-- without any other that was lost.

local leases, group, me = KEYS[1], ARGV[1], ARGV[2]
local left, may_lost_once, may_suspect = ARGV[3] + 0, ARGV[4] == '1', ARGV[5] == '1'
local may_bury = now_ms() <= ARGV[6] + 0
local taken, lost_once, suspect = {}, false, nil

-- Whether the deliveries of this consumer may be taken: 'returned', 'dead' or nil.
local function standing(consumer)
  if consumer == 'returned' then return consumer end
  if consumer == me then return nil end
  local score = tonumber(rc('ZSCORE', leases, consumer) or nil)
  if not score then
    -- Redis lost the lease, not necessarily the worker: it has one lease to come back.
    rc('ZADD', leases, string.format('%.0f', now_ms() + ARGV[7]), consumer)
    return nil
  end
  if score < 0 then return may_bury and 'dead' or nil end
  if score > 0 and score <= now_ms() and may_bury then
    rc('ZADD', leases, string.format('%.0f', -now_ms()), consumer)
    return 'dead'
  end
end

local function take(s, row, owner, how)
  local entry, deliveries = row[1], row[4] + 0
  if how == 'returned' then
    rc('XCLAIM', KEYS[s], group, me, 0, entry, 'JUSTID')
  else
    deliveries = deliveries + 1
    rc('XCLAIM', KEYS[s], group, me, 0, entry)
  end
  local found = rc('XRANGE', KEYS[s], entry, entry)[1]
  if found then
    taken[#taken + 1] = { s - 1, entry, deliveries, found[2], owner }
    left = left - 1
  else
    rc('XACK', KEYS[s], group, entry)
  end
end

for s = 2, #KEYS do
  local ok, summary = pcall(rc, 'XPENDING', KEYS[s], group)
  if ok and summary[1] > 0 then
    for _, consumer in ipairs(summary[4]) do
      local how = left > 0 and standing(consumer[1])
      if how then
        for _, row in ipairs(rc('XPENDING', KEYS[s], group, '-', '+', 1000, consumer[1])) do
          local losses = row[4] - (how == 'dead' and 0 or 1)
          if losses >= 2 then
            suspect = suspect or { s, row, consumer[1], how }
          elseif left > 0 and (losses < 1 or may_lost_once) then
            lost_once = lost_once or losses == 1
            take(s, row, consumer[1], how)
          end
        end
      end
    end
  end
end
-- Behind those lost once, which are many and end sooner or later: one more death makes suspects of them.
if suspect and may_suspect and left > 0 and not lost_once then take(unpack(suspect)) end
return taken
