-- batch.lua (part of commit.lua): the arguments of one call, and what is at hand while one commit is applied.

local A, K = ARGV, KEYS
local group, consumer, streams = A[1], A[2], A[3] + 0
local STREAM, LABEL, SLOT, LIMIT = {}, {}, {}, {}
local CEILING, GAUGE, QUEUE, ALARM = {}, {}, {}, {}
local INDEX                       -- label -> stream, made when something held is let go
local run, open, keys, run_id     -- of the commit at hand
local fields                      -- its run's status, deadline and number of open waiters
local opened                      -- field, value, ... to write to `open` at its end
local diverted                    -- its last event went to the waiters' stream only
local missing                     -- events that a buffer still lacks after its append
local appends                     -- buffers that its expectations allow it to append to
local deletions = {}              -- stream -> entry ids, deleted in bulk at the end: XDEL alone costs twice as much

local first_commit = 4
for s = 1, streams do
  local i = first_commit
  STREAM[s], LABEL[s], SLOT[s], LIMIT[s], CEILING[s] = K[A[i] + 0], A[i + 1], A[i + 2], A[i + 3] + 0, A[i + 4] + 0
  first_commit = i + 5
  if CEILING[s] > 0 then
    GAUGE[s], QUEUE[s], ALARM[s] = K[A[i + 5] + 0], K[A[i + 6] + 0], K[A[i + 7] + 0]
    first_commit = i + 8
  end
end
