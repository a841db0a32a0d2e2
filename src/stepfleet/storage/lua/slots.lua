-- slots.lua (part of commit.lua): how many deliveries of a step may be in its streams, and the list of those that wait.
--
-- The slot counter of a run counts what is in the streams plus what is held; the gauge counts, over all runs, what is
-- in the streams. A delivery that waits for the gauge leaves its run's id in the gauge's queue.

-- One commit moves at most this many deliveries into streams (5 us each); those beyond wait for the next slot to be
-- given back, so that a step with thousands of slots does not block Redis.
local MOST = 256

local function register(key)
  rc('SADD', K[keys], key)
  rc('HSET', run, 'further', 1)
end

local function enter(s, did, record)
  local entry = rc('XADD', STREAM[s], '*', 'r', run_id, 'i', did, 'd', record)
  opened[#opened + 1] = did
  opened[#opened + 1] = 'stream ' .. entry .. ' ' .. LABEL[s]
end

-- Takes one place under the ceiling over all runs, or queues this run for the next one that gets free.
local function admitted(s)
  if CEILING[s] == 0 then return true end
  if rc('HINCRBY', GAUGE[s], 'taken', 1) <= CEILING[s] then return true end
  rc('HINCRBY', GAUGE[s], 'taken', -1)
  rc('RPUSH', QUEUE[s], run_id)
  return false
end

-- Gives one place under the ceiling back: to the longest waiting run, which is woken, or to all.
local function vacate(s)
  if CEILING[s] == 0 then return end
  local waiting = rc('LPOP', QUEUE[s])
  if waiting then
    rc('XADD', ALARM[s], '*', 'r', waiting, 'i', '', 'w', string.sub(SLOT[s], 3))
  else
    rc('HINCRBY', GAUGE[s], 'taken', -1)
  end
end

local function hold_back(s, hold, values)
  local length = 0
  for first = 1, #values, CHUNK do
    length = rc('RPUSH', hold, unpack(values, first, math.min(first + CHUNK - 1, #values)))
  end
  if length == #values then register(hold) end
end

local function held(s, did, record) return did .. LABEL[s] .. '\n' .. record end

-- Lets one held delivery go to its stream. An id has 22 characters, a label no line feed.
local function let_go(hold)
  local element = rc('LPOP', hold)
  local stop = string.find(element, '\n', 23, true)
  if not INDEX then
    INDEX = {}
    for s = 1, streams do INDEX[LABEL[s]] = s end
  end
  enter(INDEX[string.sub(element, 23, stop - 1)], string.sub(element, 1, 22), string.sub(element, stop + 1))
end

-- Lets go what fits now that `n` deliveries are running or held.
local function refill(s, hold, n)
  if n <= 0 then return end
  local waiting = rc('LLEN', hold)
  local free = math.min(LIMIT[s] - (n - waiting), MOST)
  while waiting > 0 and free > 0 and admitted(s) do
    let_go(hold)
    waiting, free = waiting - 1, free - 1
  end
end

-- k deliveries (id, record) from ARGV j on: to the stream while slots are free, else to the hold list.
local function emit(s, hold, k, j)
  local free = k
  if LIMIT[s] > 0 then
    free = math.min(LIMIT[s] - rc('HINCRBY', run, SLOT[s], k) + k, MOST)
  end
  local waiting = {}
  for x = j, j + 2 * k - 2, 2 do
    if free > 0 and admitted(s) then
      enter(s, A[x], A[x + 1])
      free = free - 1
    else
      waiting[#waiting + 1] = held(s, A[x], A[x + 1])
    end
  end
  if #waiting > 0 then hold_back(s, K[hold], waiting) end
end
