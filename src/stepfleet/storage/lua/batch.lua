-- batch.lua (part of commit.lua): the arguments of one call, and what is at hand while one commit is applied.

local A, K = ARGV, KEYS
local group, consumer, most_deliveries, taken_from, streams = A[1], A[2], A[3] + 0, A[4] + 0, A[5] + 0
local STREAM, LABEL, SLOT, LIMIT = {}, {}, {}, {}
local CEILING, GAUGE, QUEUE, ALARM, SIBLINGS = {}, nil, nil, nil, nil
local run, open, keys, run_id     -- of the commit at hand
local fields                      -- its run's status, deadline, number of open waiters, `admitted`, deliveries so far,
                                  -- last public sequence and, of an entry, number of lent slots, slot counter
local closed                      -- its run waits for admission: whatever it emits is held
local lent                        -- its entry gave its slot away before
local opened                      -- field, value, ... to write to `open` at its end
local diverted                    -- its last event went to the waiters' stream only
local missing                     -- events that a buffer still lacks after its append
local appends                     -- what its expectations allow it to append, in order; and how many by buffer and type
local asked                       -- buffer that gets its first event -> type, quota, ... that complete it
local waiting                     -- hold list -> its length, where it matters
local wanted                      -- slot field -> what the counter comes to with the deliveries that it emits
local sizes                       -- hash or set -> its number of members before this commit
local born                        -- deliveries that it added since it began to count
local settled                     -- the delivery that it settles: when it is emitted again, it is no further one
local planned                     -- deliveries that it will add to those that its run ever had
local guarded                     -- of those with a guard: how many it did add
local ending                      -- it ends the run
local damaged                     -- a key of its run is damaged, and it ends the run without that
local anew                        -- the run's record itself is damaged: its end writes another one
local spoiled                     -- it came upon something that is none behind its first writes
local unpublished                 -- its end stands in the run's record only
local late                        -- its delivery was settled before, by another entry of the same delivery
local pending                     -- scope -> deliveries pending in it before this commit, false: no such scope
local deletions = {}              -- stream -> entry ids, deleted in bulk at the end: XDEL alone costs twice as much
local halted = {}                 -- run -> why Redis refused a commit of it: those behind must not overtake it

local first_commit = 6
for s = 1, streams do
  local i = first_commit
  STREAM[s], LABEL[s], SLOT[s], LIMIT[s], CEILING[s] = K[A[i] + 0], A[i + 1], A[i + 2], A[i + 3] + 0, A[i + 4] + 0
  first_commit = i + 5
  if CEILING[s] > 0 then
    if not GAUGE then GAUGE, QUEUE, ALARM, SIBLINGS = {}, {}, {}, {} end
    GAUGE[s], QUEUE[s], ALARM[s], SIBLINGS[s] = K[A[i + 5] + 0], K[A[i + 6] + 0], K[A[i + 7] + 0], {}
    first_commit = i + 9 + A[i + 8]
    for x = i + 9, first_commit - 1 do SIBLINGS[s][x - i - 8] = K[A[x] + 0] end
  end
end

-- Where what follows a fence, an expectation or a word begins; `n` is where it says how many of `each` it has more.
local function after(part, j)
  return j + part.size + (part.n and part.each * A[j + part.n] or 0)
end

-- A counter of a run (false or nil: 0); an error that is answered with `broken` when somebody wrote something else
-- there: Redis would refuse to count on only behind the first writes.
local function whole(counter)
  if not counter then return 0 end
  if not string.find(counter, '^%-?%d+$') or #counter > 16 then error('not an integer') end
  return counter + 0
end

-- Whether an error says that somebody wrote something else there: a key of another type, a number that is none, a
-- stranger's entry. Asking again would find the same.
local function is_damage(text)
  local signs = { 'WRONGTYPE', 'attempt to', 'equal or smaller', 'not an integer', 'overflow', 'is damaged' }
  for _, sign in ipairs(signs) do
    if string.find(text, sign, 1, true) then return true end
  end
  return false
end

-- What `use` makes of a key that runs share. It begins anew when somebody damaged it: no run may fail by that.
local function mended(key, use)
  local ok, found = pcall(use)
  if ok then return found end
  if not is_damage(error_text(found)) then error(found) end
  rc('DEL', key)
  return use()
end

-- A table whose entries are made when they are needed first, each by its maker; those that have none, all together. A
-- call needs few of them: to make all takes 50 us, and those with a maker 5 us.
local function lazily(makers, others)
  local made_together
  return setmetatable({}, { __index = function(entries, name)
    local found = makers[name] and makers[name]()
    if not found then
      made_together = made_together or others()
      for _, more in ipairs(made_together) do found = found or more[name] end
    end
    entries[name] = found
    return found
  end })
end
