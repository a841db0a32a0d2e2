-- cut.lua: everything that is recorded of one run, as it stands at one moment. Reads only.
--
-- KEYS  run, open, parked, store, further keys, timers, their data.
-- ARGV  run id, what the names of all streams begin with, then names behind that of the run whose lists are only
--       counted.
-- Returns {record, open, parked, store, entries, timers, further}: hashes as they are; entries as {delivery, label,
--       entry, record, ...}; timers as {member, ms left, data, ...}; further keys as {name, type, content, ...}, where
--       the content of a list that is only counted is its length.

local of = {
  run = KEYS[1], open = KEYS[2], parked = KEYS[3], store = KEYS[4], further = KEYS[5], timers = KEYS[6],
  timer_data = KEYS[7], id = ARGV[1], streams = ARGV[2],
}

local function counted(name)
  for x = 3, #ARGV do
    if string.sub(name, 1, #ARGV[x]) == ARGV[x] then return true end
  end
  return false
end

return gather(of, counted)
