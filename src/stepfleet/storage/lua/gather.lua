-- gather.lua (part of cut.lua and commit.lua): everything that is recorded of one run at this moment. Reads only.

-- of: names of the run's keys (run, open, parked, store, further), of the timers and their data, what the names of all
-- streams begin with, and the id of the run; counted(name): whether a list is only counted.
local function gather(of, counted)
  local record, open_, parked = rc('HGETALL', of.run), rc('HGETALL', of.open), rc('HGETALL', of.parked)
  local entries, timers, further = {}, {}, {}

  local function add_timer(member)
    local due = rc('ZSCORE', of.timers, member)
    if not due then return end
    timers[#timers + 1] = member
    timers[#timers + 1] = string.format('%.0f', math.max(0, tonumber(due) - now_ms()))
    timers[#timers + 1] = rc('HGET', of.timer_data, member) or ''
  end

  local function add_entry(delivery, label, entry)
    local rows = rc('XRANGE', of.streams .. rc('HGET', of.run, 'workflow') .. ':' .. label, entry, entry)
    if #rows == 0 then return end
    entries[#entries + 1] = delivery
    entries[#entries + 1] = label
    entries[#entries + 1] = entry
    entries[#entries + 1] = rows[1][2][6]
  end

  for x = 1, #open_, 2 do
    local delivery, where = open_[x], open_[x + 1]
    local entry, label = string.match(where, '^stream (%S+) (%S+)')
    -- A timer is named after what it is for.
    local why, number = string.match(where, '^timer (%S+) (%S+) %S+$')
    if entry then add_entry(delivery, label, entry) end
    if why then add_timer(of.id .. '/' .. delivery .. '/' .. why .. '/' .. number) end
  end

  for _, key in ipairs(rc('SMEMBERS', of.further)) do
    local name, kind = string.sub(key, #of.run + 2), rc('TYPE', key).ok
    local content
    if kind == 'hash' then
      content = rc('HGETALL', key)
    elseif kind == 'list' and counted(name) then
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
  return { record, open_, parked, rc('HGETALL', of.store), entries, timers, further }
end
