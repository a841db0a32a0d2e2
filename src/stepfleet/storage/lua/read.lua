-- read.lua: reads new deliveries of many streams, all together no more than can start at once.
--
-- KEYS  the streams, in the order of their turn.
-- ARGV  group, me, how many at most.
-- Returns {stream index, {entry, ...}} for each that had any: one of each stream first, then what is left of the room.
-- Invariant: XREADGROUP by itself limits the entries of each stream, and not their sum.

local group, me, left = ARGV[1], ARGV[2], ARGV[3] + 0
local taken, read = {}, {}        -- stream index -> entries; what is returned

local function take(s)
  local found = rc('XREADGROUP', 'GROUP', group, me, 'COUNT', 1, 'STREAMS', KEYS[s], '>')
  if not found or not found[1] then return false end
  if not taken[s] then
    taken[s] = {}
    read[#read + 1] = { s, taken[s] }
  end
  taken[s][#taken[s] + 1] = found[1][2][1]
  left = left - 1
  return true
end

local turn = {}
for s = 1, #KEYS do turn[s] = s end
while left > 0 and #turn > 0 do
  local more = {}
  for _, s in ipairs(turn) do
    if left > 0 and take(s) then more[#more + 1] = s end
  end
  turn = more
end
return read
