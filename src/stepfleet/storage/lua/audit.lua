-- audit.lua: gives me again what Redis delivered to me and I never saw (a cut-off read, a lost reply).
--
-- KEYS  the streams.
-- ARGV  group, me, then stream index, entry id for each entry that is pending under my name and that I do not hold.
-- Returns {stream index, entry id, deliveries so far, fields, me} for each that still is. Counters stay as they are.

local group, me = ARGV[1], ARGV[2]
local found = {}
for i = 3, #ARGV, 2 do
  local s, entry = ARGV[i] + 0, ARGV[i + 1]
  local row = rc('XPENDING', KEYS[s], group, entry, entry, 1, me)[1]
  if row then
    rc('XCLAIM', KEYS[s], group, me, 0, entry, 'JUSTID')
    local content = rc('XRANGE', KEYS[s], entry, entry)[1]
    if content then
      found[#found + 1] = { s, entry, row[4], content[2], me }
    else
      rc('XACK', KEYS[s], group, entry)
    end
  end
end
return found
