-- slots.lua (part of commit.lua): how many deliveries of a step may be in its streams, and the list of those that wait.
--
-- The slot counter of a run counts what is in the streams plus what is held, without those that lent their slot. Over
-- all runs nothing is counted: the places taken are the lengths of the step's streams plus the places reserved for runs
-- that are being woken, without those that were lent.

-- One commit moves at most this many deliveries into streams (5 us each); those beyond wait for the next slot to be
-- given back, so that a step with thousands of slots does not block Redis.
local MOST = 256

local busy = {}                   -- gauge -> places taken, once this call needs to know
local lending = {}                -- gauge -> places lent, the same

-- Read phase: a new key can be registered.
local function can_register()
  if not sizes[keys] then sizes[keys] = rc('SCARD', K[keys]) end
end

local function register(key)
  rc('SADD', K[keys], key)
  rc('HSET', run, 'further', 1)
end

local function unregister(key)
  rc('DEL', key)
  rc('SREM', K[keys], key)
end

-- Read phase: a hash that will be written.
local function look(hash)
  if not sizes[hash] then
    sizes[hash] = rc('HLEN', hash)
    if sizes[hash] == 0 then can_register() end
  end
end

-- Registers a hash when it has got its first field.
local function made(hash)
  if sizes[hash] == 0 then register(hash) end
  sizes[hash] = 1
end

-- Read phase: k more deliveries for a step; the keys of those that will wait can be written.
local function room(s, hold, k)
  local slot, list = SLOT[s], K[hold]
  -- A run that is being made has none.
  local n = wanted[slot] or whole(fields[1] and rc('HGET', run, slot))
  wanted[slot] = n + k
  if n + k > LIMIT[s] or CEILING[s] > 0 or closed then can_register() end
  if (n > 0 or k > LIMIT[s] or CEILING[s] > 0 or closed) and not waiting[list] then
    waiting[list] = rc('LLEN', list)
  end
end

local function places(s)
  local gauge = GAUGE[s]
  if not busy[gauge] then
    local n = mended(gauge, function()
      local counts = rc('HMGET', gauge, 'reserved', 'lent')
      lending[gauge] = whole(counts[2])
      return whole(counts[1]) - lending[gauge]
    end)
    for _, stream in ipairs(SIBLINGS[s]) do n = n + rc('XLEN', stream) - #(deletions[stream] or {}) end
    busy[gauge] = n
  end
  return busy[gauge]
end

-- Notes that places are taken (1) or given back (-1), before it is so.
local function occupy(s, by)
  if CEILING[s] > 0 then busy[GAUGE[s]] = places(s) + by end
end

local function reserve(s, by)
  occupy(s, by)
  if CEILING[s] == 0 then return end
  -- Less than none: the gauge began anew since this place was reserved.
  if rc('HINCRBY', GAUGE[s], 'reserved', by) < 0 then rc('HSET', GAUGE[s], 'reserved', 0) end
end

-- An entry gives its place under the ceiling to others while it stays in its stream, and what that means at its end.
local function lend_place(s, entry)
  if CEILING[s] == 0 or rc('HSETNX', GAUGE[s], 'lent:' .. LABEL[s] .. ':' .. entry, 1) == 0 then return end
  occupy(s, -1)
  lending[GAUGE[s]] = rc('HINCRBY', GAUGE[s], 'lent', 1)
end

local function return_place(s, entry)
  if CEILING[s] == 0 or lending[GAUGE[s]] == 0 then return end
  if rc('HDEL', GAUGE[s], 'lent:' .. LABEL[s] .. ':' .. entry) == 0 then return end
  lending[GAUGE[s]] = rc('HINCRBY', GAUGE[s], 'lent', -1)
  occupy(s, 1)
end

-- Whether one more fits under the ceiling over all runs; else this run is queued, once, for a place that gets free.
local function admitted(s)
  if CEILING[s] == 0 or places(s) < CEILING[s] then return true end
  if rc('HSETNX', run, 'queued' .. string.sub(SLOT[s], 2), 1) == 1 then
    mended(QUEUE[s], function() return rc('RPUSH', QUEUE[s], run_id) end)
  end
  return false
end

-- Reserves places that got free for the runs that wait longest, and wakes them.
local function vacate(s)
  while CEILING[s] > 0 and places(s) < CEILING[s] do
    local next_ = mended(QUEUE[s], function() return rc('LPOP', QUEUE[s]) end)
    if not next_ then return end
    reserve(s, 1)
    rc('XADD', ALARM[s], '*', 'r', next_, 'i', '', 'w', string.sub(SLOT[s], 3))
  end
end

-- The streams of a step differ in their labels only. What is held may belong to one that this code does not know.
local function beside(s, label)
  if label == LABEL[s] then return STREAM[s] end
  return string.sub(STREAM[s], 1, -1 - #LABEL[s]) .. label
end

local function enter(s, label, did, record)
  occupy(s, 1)
  local entry = rc('XADD', beside(s, label), '*', 'r', run_id, 'i', did, 'd', record)
  opened[#opened + 1] = did
  opened[#opened + 1] = 'stream ' .. entry .. ' ' .. label
end

-- Writes where the deliveries of this commit are now.
local function write_opened()
  if #opened > 0 then write_all('HSET', open, opened) end
  opened = {}
end

local function hold_back(hold, values)
  local length = 0
  for first = 1, #values, CHUNK do
    length = rc('RPUSH', hold, unpack(values, first, math.min(first + CHUNK - 1, #values)))
  end
  if length == #values then register(hold) end
  waiting[hold] = length
end

local function held(s, did, record) return did .. LABEL[s] .. '\n' .. record end

-- Delivery, label and record of something held; nil for what is none. An id has 22 characters, a label no line feed.
local function parts(element)
  local stop = string.find(element, '\n', 23, true)
  if not stop then
    spoiled = true
    return nil
  end
  return string.sub(element, 1, 22), string.sub(element, 23, stop - 1), string.sub(element, stop + 1)
end

-- Lets go what fits now that `n` deliveries are in the streams or held.
local function refill(s, hold, n)
  local left = waiting[hold] or 0
  local free = math.min(LIMIT[s] - (n - left), MOST)
  while not closed and left > 0 and free > 0 and admitted(s) do
    local did, label, record = parts(rc('LPOP', hold))
    if did then
      enter(s, label, did, record)
      free = free - 1
    end
    left = left - 1
  end
  waiting[hold] = left
end

-- k deliveries (id, record) from value j on: to the stream while slots are free and nobody waits, else to the hold
-- list. `back`: they come back from a timer or a waiter, of which `open` still tells.
local function emit(s, hold, k, j, from, back)
  from, born = from or A, born + k
  if LIMIT[s] == 0 then
    for x = j, j + 2 * k - 2, 2 do enter(s, LABEL[s], from[x], from[x + 1]) end
    return
  end
  local list, values = K[hold], {}
  local n = rc('HINCRBY', run, SLOT[s], k)
  local queue = (waiting[list] or 0) > 0
  local free = (queue or closed) and 0 or math.min(LIMIT[s] - n + k, MOST)
  for x = j, j + 2 * k - 2, 2 do
    if free > 0 and admitted(s) then
      enter(s, LABEL[s], from[x], from[x + 1])
      free = free - 1
    else
      free = 0
      values[#values + 1] = held(s, from[x], from[x + 1])
      if back then rc('HDEL', open, from[x]) end
    end
  end
  if #values > 0 then hold_back(list, values) end
  if queue then refill(s, list, n) end
end
