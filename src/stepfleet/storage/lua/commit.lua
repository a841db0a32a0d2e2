-- commit.lua: applies many commits in one call, each completely or not at all.
--
-- A commit is a fence (the proof that it may act), expectations (what it relies on that others can move) and
-- words (what it writes). The script knows streams, slots, buffers and timers; it does not know what a step is.
--
-- The loader puts prelude, batch, slots, fences, expectations and words in front of this file.
--
-- KEYS  every key of the call, each named below by its index.
-- ARGV  group, consumer, number of streams;
--       per stream: key, label, slot field, slot limit (0: none), ceiling over all runs (0: none) and, if it has one,
--       the keys of its gauge, of the gauge's queue and of the stream where a run is woken;
--       per commit: length, run, open, keys (indexes), run id, fence and its arguments, number of expectations,
--       expectations, words.
-- Returns one answer per commit, checked in this order:
--       gone         not mine, or already committed: drop everything
--       exists       (new run) the id is taken by a start with other arguments
--       unknown-run  the run's record is gone; the entry is acknowledged
--       over         the run has ended; the entry is acknowledged
--       parking      the run has ended and keeps its pending work: commit again with `park`
--       conflict     an expectation moved (with what moved): decide again
--       broken       a key of the run has a wrong type: nothing more is done for this run
--       refused      Redis refused the first write (memory, replica): send it again later
--       applied      done, or done before
-- Invariant: a fence is read before anything is written, the first write removes work from `open` (so a full Redis
-- still drains), and a commit that was answered `applied` answers `gone` or `applied` when it is sent again.

local function apply(i, stop)
  run, open, keys, run_id = K[A[i + 1] + 0], K[A[i + 2] + 0], A[i + 3] + 0, A[i + 4]
  opened, diverted, missing, appends = {}, false, nil, {}
  local fence, j = FENCE[A[i + 5]], i + 6
  local refusal = fence.prove(j)
  if refusal then return refusal end

  local at = j
  j = j + fence.size
  if A[i + 5] == 'new' then
    j = j + A[at + 2]
    fields = {}
  elseif A[i + 5] == 'stray' then
    fields = {}
  else
    fields = rc('HMGET', run, 'status', 'deadline', 'waiting')
    if fields[1] ~= 'running' then
      local parks = fields[1] and fence == FENCE.entry and rc('HGET', run, 'parks') == '1'
      if parks and A[j + 1] ~= 'park' then return 'parking' end
      if fields[1] and A[j + 1] == 'park' then WORD.park(j + 2) end
      if A[j + 1] == 'wake' then vacate(A[j + 2] + 0) end
      fence.drop(at)
      return fields[1] and 'over' or 'unknown-run'
    end
  end

  local expectations = A[j] + 0
  j = j + 1
  for _ = 1, expectations do
    j, refusal = EXPECT[A[j]](j + 1)
    if refusal then return refusal end
  end

  fence.settle(at)
  while j < stop do j = WORD[A[j]](j + 1) end
  if #opened > 0 then write_all('HSET', open, opened) end
  return missing and 'applied ' .. missing or 'applied'
end

local answers, i = {}, first_commit
while i <= #A do
  local stop = i + A[i]
  local ok, answer = pcall(apply, i, stop)
  if not ok then
    local text = error_text(answer)
    answer = string.find(text, 'WRONGTYPE', 1, true) and 'broken' or ('refused ' .. text)
  end
  answers[#answers + 1] = answer
  i = stop
end
for s, entries in pairs(deletions) do write_all('XDEL', STREAM[s], entries) end
return answers
