-- commit.lua: applies many commits in one call, each completely or not at all.
--
-- A commit is a fence (the proof that it may act), expectations (what it relies on that others can move) and
-- words (what it writes). The script knows streams, slots, buffers and timers; it does not know what a step is.
--
-- The loader puts prelude, batch, slots, fences, expectations, emits, scopes and words in front of this file.
--
-- KEYS  every key of the call, each named below by its index.
-- ARGV  group, consumer, deliveries that a run may have in all, stream to take from (its row; 0: none), number of
--       streams;
--       per stream: key, label, slot field, slot limit (0: none), ceiling over all runs (0: none) and, if it has one,
--       the keys of its gauge, of the gauge's queue and of the stream where a run is woken, the number of streams
--       under the same ceiling, and their keys;
--       per commit: length, run, open, keys (indexes), run id, fence and its arguments, number of expectations,
--       expectations, words.
-- Returns one answer per commit, checked in this order:
--       gone         not mine, or already committed: drop everything
--       exists       (new run) the id is taken by a start with other arguments
--       unknown-run  the run's record is gone; the entry is acknowledged
--       over         the run has ended; the entry is acknowledged
--       parking      the run has ended and keeps its pending work: commit again with `park`
--       conflict     an expectation moved (with what moved): decide again
--       rewound      Redis has lost what it confirmed of this delivery before: run its step again
--       full         a limit is reached (runs that are live, waits of a run; `full deliveries`: deliveries of a run)
--       broken       a key of the run has a wrong type or content: nothing was written; or a hold list had an element
--                    that is none: everything but that was
--       refused      Redis refused the first write (memory, replica), or one of this run before: send it again later
--       applied      done, or done before; with the number of events that a buffer lacks after an append
--       Behind them, if a stream to take from was named and all were applied, at most one new entry of it: the consumer
--       has it now, as if it had read it.
-- Invariant: everything is read before anything is written; the first write of what is under way needs no memory (so
-- a full Redis still drains); a commit that was answered `applied` answers `gone` or `applied` when it is sent again.

-- A commit of a run that is no longer live.
local function settle_late(fence, at, j)
  local ended, first = fields[1], A[j + 1]
  if ended and whole(rc('HGET', run, 'ended')) == 0 then error('the record is damaged') end
  if first == 'wake' then
    WORD.wake.write(j + 2)
  elseif first == 'park' and ended then
    WORD.park.check(j + 2)
    WORD.park.write(j + 2)
  elseif first == 'save' and ended then
    WORD.save.check(j + 2)
    WORD.save.write(j + 2)
  elseif ended and first ~= 'untimer' and fence.parks and rc('HGET', run, 'parks') == '1' then
    return 'parking'
  end
  fence.drop(at)
  return ended and 'over' or 'unknown-run'
end

-- Whether somebody wrote something else into the place of a run's record, or into it: no end and no live run.
local function has_no_record()
  if rc('TYPE', run).ok ~= 'hash' then return rc('EXISTS', run) == 1 end
  local found = rc('HMGET', run, 'status', 'started', 'ended')
  local is_sane = pcall(function() whole(found[2]) whole(found[3]) end)
  return found[1] and (not is_sane or (found[1] ~= 'running' and not found[3]))
end

local function read_run(kind, at)
  if kind == 'damaged' and has_no_record() then
    -- It may have had a place under a limit on runs.
    anew, fields = true, { 'running', nil, nil, '1' }
    return true
  end
  if kind == 'entry' then
    local slot = SLOT[A[at] + 0]
    fields = rc('HMGET', run, 'status', 'deadline', 'waiting', 'admitted', 'deliveries', 'seq', 'lent', slot)
  elseif kind == 'new' or kind == 'stray' then
    fields = {}
    return true
  else
    fields = rc('HMGET', run, 'status', 'deadline', 'waiting', 'admitted', 'deliveries', 'seq')
  end
  closed = fields[4] == '0'
  return fields[1] == 'running'
end

local function apply(i, stop)
  run, open, keys, run_id = K[A[i + 1] + 0], K[A[i + 2] + 0], A[i + 3] + 0, A[i + 4]
  opened, diverted, missing, appends, asked, closed, lent = {}, false, nil, {}, {}, false, false
  waiting, wanted, sizes, born, pending, planned, guarded, ending, settled = {}, {}, {}, 0, {}, 0, 0, false, nil
  damaged, unpublished, late, anew, spoiled = false, false, false, false, false
  local fence, at = FENCE[A[i + 5]], i + 6
  local refusal = fence.prove(at)
  if refusal then return refusal end

  local j = after(fence, at)
  if not read_run(A[i + 5], at) and not (fence.late and fields[1]) then return settle_late(fence, at, j) end
  local expectations = A[j] + 0
  j = j + 1
  for _ = 1, expectations do
    j, refusal = EXPECT[A[j]](j + 1)
    if refusal then return refusal end
  end
  fence.check(at)
  local words = j
  while j < stop do
    local word = WORD[A[j]]
    if word.check then word.check(j + 1) end
    j = after(word, j + 1)
  end
  if late then
    if fence.lost and fence.lost(at) then error('the index of pending work is damaged') end
    return 'gone'
  end
  if fence.counts then had() end
  if fence.bounded and fence.bounded(at) and had() + planned > most_deliveries then return 'full deliveries' end

  if fence.settle(at) == false then return 'gone' end
  j = words
  while j < stop do
    local word = WORD[A[j]]
    word.write(j + 1)
    j = after(word, j + 1)
  end
  write_opened()
  if fence.counts and guarded > 0 then rc('HINCRBY', run, 'deliveries', guarded) end
  if fence.finish then fence.finish(at) end
  if spoiled then return 'broken' end
  return missing and 'applied ' .. missing or 'applied'
end

local function answer_to(i, stop)
  local refused = halted[A[i + 4]]
  if refused then return refused end
  local ok, answer = pcall(apply, i, stop)
  if ok then return answer end
  local text = error_text(answer)
  if is_damage(text) then return 'broken' end
  -- A stream without its group was lost or removed: nothing in it is anybody's.
  if string.find(text, 'NOGROUP', 1, true) then return 'gone' end
  halted[A[i + 4]] = 'refused ' .. text
  return 'refused ' .. text
end

local answers, i = {}, first_commit
while i <= #A do
  local stop = i + A[i]
  answers[#answers + 1] = answer_to(i, stop)
  i = stop
end
for stream, entries in pairs(deletions) do write_all('XDEL', stream, entries) end
if taken_from > 0 and answers[#answers] == 'applied' then
  local ok, found = pcall(rc, 'XREADGROUP', 'GROUP', group, consumer, 'COUNT', 1, 'STREAMS', STREAM[taken_from], '>')
  if ok and found and found[1] then answers[#answers + 1] = found[1][2][1] end
end
return answers
