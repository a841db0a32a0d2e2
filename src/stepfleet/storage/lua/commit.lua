-- commit.lua: applies many commits in one call, each completely or not at all.
--
-- A commit is a fence (the proof that it may act), expectations (what it relies on that others can move) and
-- words (what it writes). The script knows streams, slots, buffers and timers; it does not know what a step is.
--
-- The loader puts prelude, batch and plain in front of this file, and the interpreter: a function around all the rest.
--
-- KEYS  every key of the call, each named below by its index.
-- ARGV  group, consumer, deliveries that a run may have in all, stream to take from (its row; 0: none), number of
--       streams;
--       per stream: key, label, slot field, slot limit (0: none), ceiling over all runs (0: none) and, if it has one,
--       the keys of its gauge, of the gauge's queue and of the stream where a run is woken, the number of streams
--       under the same ceiling, and their keys;
--       per commit: length, run, open, keys (indexes), run id, fence and its arguments, number of expectations,
--       expectations, words.
--       All of it comes as one msgpack array of strings where the server has cmsgpack (fakeredis has not).
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

local apply

local function answer_to(i, stop)
  local refused = halted[A[i + 4]]
  if refused then return refused end
  local ok, answer = pcall(plain, i, stop)
  if ok and not answer then
    apply = apply or interpreter()
    ok, answer = pcall(apply, i, stop)
  end
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
