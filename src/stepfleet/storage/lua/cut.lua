-- cut.lua: everything that is recorded of one run, as it stands at one moment. Reads only.
--
-- KEYS  run, open, parked, store, further keys, timers, their data.
-- ARGV  run id, what the names of all streams begin with, prefix of the keys of the run, then names behind that prefix
--       whose lists are only counted.
-- Returns {record, open, parked, store, entries, timers, further}: hashes as they are; entries as {delivery, label,
--       entry, record, ...}; timers as {member, ms left, data, ...}; further keys as {name, type, content, ...}, where
--       the content of a list that is only counted is its length.

local run_id, streams, prefix = ARGV[1], ARGV[2], ARGV[3]
local record, open, parked = rc('HGETALL', KEYS[1]), rc('HGETALL', KEYS[2]), rc('HGETALL', KEYS[3])
local entries, timers, further = {}, {}, {}

local function add_timer(member)
  local due = rc('ZSCORE', KEYS[6], member)
  if not due then return end
  timers[#timers + 1] = member
  timers[#timers + 1] = string.format('%.0f', math.max(0, tonumber(due) - now_ms()))
  timers[#timers + 1] = rc('HGET', KEYS[7], member) or ''
end

local function add_entry(delivery, label, entry)
  local rows = rc('XRANGE', streams .. rc('HGET', KEYS[1], 'workflow') .. ':' .. label, entry, entry)
  if #rows == 0 then return end
  entries[#entries + 1] = delivery
  entries[#entries + 1] = label
  entries[#entries + 1] = entry
  entries[#entries + 1] = rows[1][2][6]
end

for x = 1, #open, 2 do
  local delivery, where = open[x], open[x + 1]
  local entry, label = string.match(where, '^stream (%S+) (%S+)')
  -- A timer is named after what it is for.
  local why, number = string.match(where, '^timer (%S+) (%S+) %S+$')
  if entry then add_entry(delivery, label, entry) end
  if why then add_timer(run_id .. '/' .. delivery .. '/' .. why .. '/' .. number) end
end

local function only_counted(name)
  for x = 4, #ARGV do
    if string.sub(name, 1, #ARGV[x]) == ARGV[x] then return true end
  end
  return false
end

for _, key in ipairs(rc('SMEMBERS', KEYS[5])) do
  local name, kind = string.sub(key, #prefix + 1), rc('TYPE', key).ok
  local content
  if kind == 'hash' then
    content = rc('HGETALL', key)
  elseif kind == 'list' and only_counted(name) then
    content = rc('LLEN', key)
  elseif kind == 'list' then
    content = rc('LRANGE', key, 0, -1)
  end
  if content then
    further[#further + 1] = name
    further[#further + 1] = kind
    further[#further + 1] = content
  end
end
return { record, open, parked, rc('HGETALL', KEYS[4]), entries, timers, further }
