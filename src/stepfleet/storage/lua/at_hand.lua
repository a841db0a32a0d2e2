-- at_hand.lua (part of commit.lua): what is at hand while one commit is applied word by word.

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

-- Where what follows a fence, an expectation or a word begins; `n` is where it says how many of `each` it has more.
local function after(part, j)
  return j + part.size + (part.n and part.each * A[j + part.n] or 0)
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
