-- emits.lua (part of commit.lua): the words that add deliveries, one by one or joined.

local function key_at(j) return K[A[j] + 0] end

-- Appends to the public stream, under the next number.
local function publish(events, keep, entry, seqs)
  local seq = rc('HINCRBY', run, 'seq', 1)
  local words = { 'XADD', events, 'MAXLEN', '~', keep, seq .. '-0', 'd', entry }
  if seqs then words[9], words[10] = 'seqs', seqs end
  if not pcall(rc, unpack(words)) then
    -- A stranger's entry stands above: it goes on behind that one, and readers see a gap.
    local last = rc('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
    seq = string.match(last and last[1] or '0', '^%d+') + 1
    rc('HSET', run, 'seq', string.format('%.0f', seq))
    words[6] = string.format('%.0f-0', seq)
    rc(unpack(words))
  end
  return seq
end

-- Read phase: a list that may get its first element.
local function look_at_list(list)
  local n = rc('LLEN', list)
  if n == 0 then can_register() end
  return n
end

local function append(list, values)
  local length = 0
  for first = 1, #values, CHUNK do
    length = rc('RPUSH', list, unpack(values, first, math.min(first + CHUNK - 1, #values)))
  end
  if length == #values and length > 0 then register(list) end
  return length
end

local function type_of(s) return string.match(LABEL[s], '^[^:]*') end

-- Read phase: the early effects of a delivery. Before the first of them it has to be open: those of one that was
-- settled are gone, and would be carried out again. A key of them ends with the delivery's 22 characters.
local function look_at_effects(guard)
  local effects = K[guard]
  if not sizes[effects] then
    look(effects)
    if sizes[effects] == 0 and rc('HEXISTS', open, string.sub(effects, -22)) == 0 then late = true end
  end
end

-- Read phase: what is published gets the next number.
local function look_at_public(events)
  rc('XLEN', events)
  whole(fields[6])
end

-- Whether a delivery is added for the first time, with a guard. The guard remembers which way an event went: its
-- repetition must not go the other one as well.
local function first_time(guard, did)
  if guard == 0 then return true end
  if rc('HSETNX', K[guard], did, diverted and 'w' or '') == 1 then
    made(K[guard])
    guarded = guarded + 1
    return true
  end
  if rc('HGET', K[guard], did) == 'w' then diverted = true end
  return false
end

-- guard, waiters' stream (0: nobody can wait), stream, hold list, k, k times (delivery, record)
local function emitting()
  return {
    size = 5, n = 4, each = 2,
    check = function(j)
      local guard, s, hold = A[j] + 0, A[j + 2] + 0, A[j + 3] + 0
      if guard > 0 then
        look_at_effects(guard)
      elseif A[j + 5] ~= settled then
        planned = planned + A[j + 4]
      end
      if hold > 0 then room(s, hold, A[j + 4] + 0) end
    end,
    write = function(j)
      local guard, inbox, s, hold, k = A[j] + 0, A[j + 1] + 0, A[j + 2] + 0, A[j + 3] + 0, A[j + 4] + 0
      diverted = inbox > 0 and awaited(type_of(s))
      if diverted then s, hold = inbox, 0 end
      if guard == 0 then return emit(s, hold, k, j + 5, A, inbox == 0) end
      for x = j + 5, j + 3 + 2 * k, 2 do
        if first_time(guard, A[x]) then emit(s, hold, 1, x) end
      end
    end,
  }
end

-- The same event for a further stream: only where the first was not diverted.
local function also(word)
  return {
    size = word.size, n = word.n, each = word.each, check = word.check,
    write = function(j) if not diverted then word.write(j) end end,
  }
end
