-- plain.lua (part of commit.lua): the commonest commits, straight ahead: a run that starts with one delivery, and a
-- delivery that is settled with one more or with the end of its run.
--
-- What is not plain (a list of held deliveries, a ceiling, a waiter, a public event, ...) is left to the interpreter,
-- before anything is written; both write the same. A call whose commits are plain makes nothing of the interpreter:
-- 11 us instead of 51 for a call before its first commit.

-- An end's entry of up to this many bytes goes with its announcement, which saves whoever waits a read: 0.67 commands
-- per step of a three-step chain. Every program that waits for any run gets it, so it is short.
local SHORT = 512

-- The deadline of a run counts from the earliest execution that is known: `age` in ms. `armed` is what its record has.
local function arm(run, run_id, live, age, armed)
  if not armed then return end
  local unarmed = string.match(armed, '^%?(%d+)$')
  local budget = unarmed or rc('HGET', run, 'timeout')
  local deadline = now_ms() - age + budget
  if unarmed or deadline < armed + 0 then
    rc('HSET', run, 'deadline', deadline)
    rc('ZADD', live, deadline, run_id)
  end
end

-- Writes that a run has ended, and tells those who wait for it. j is where the arguments of `end` begin.
local function close_run(j, run, run_id, seq, joined)
  local entry, now = A[j + 12], now_ms()
  -- First what needs no memory: a full Redis lets runs end.
  rc('ZREM', K[A[j + 2] + 0], run_id)
  rc('HSET', run, 'status', A[j], 'ended', now, 'parks', A[j + 11], 'entry', entry,
    unpack(A, j + 14, j + 13 + A[j + 13]))
  rc('ZADD', K[A[j + 3] + 0], now, run_id)
  local told = { 'r', run_id, 's', A[j] }
  if #entry <= SHORT then told = { 'r', run_id, 's', A[j], 'q', seq, 'e', entry } end
  if joined then told[#told + 1], told[#told + 2] = 'j', 1 end
  rc('XADD', K[A[j + 4] + 0], 'MAXLEN', '~', A[j + 10], '*', unpack(told))
end

-- Adds the delivery of an `emit` to its stream, and writes where it is. j is where the arguments of the word begin.
local function enter_plainly(j, open, run_id)
  local s, did = A[j + 2] + 0, A[j + 5]
  local entry = rc('XADD', STREAM[s], '*', 'r', run_id, 'i', did, 'd', A[j + 6])
  rc('HSET', open, did, 'stream ' .. entry .. ' ' .. LABEL[s])
end

-- Whether the last word is an `emit` of one delivery without a guard, for a step with slots and without a ceiling.
local function is_plain_emit(j, stop)
  if A[j] ~= 'emit' or A[j + 1] ~= '0' or A[j + 5] ~= '1' or stop ~= j + 8 then return false end
  local s = A[j + 3] + 0
  return LIMIT[s] > 0 and CEILING[s] == 0
end

local function start_plainly(i, stop)
  local run, open, run_id, live = K[A[i + 1] + 0], K[A[i + 2] + 0], A[i + 4], K[A[i + 7] + 0]
  local fields = i + 9
  local j = fields + A[i + 8]
  if A[j] ~= '1' or A[j + 1] ~= 'room' or not is_plain_emit(j + 4, stop) then return end
  local digest = rc('HGET', run, 'digest')
  if digest then return digest == A[i + 6] and 'applied' or 'exists' end
  if rc('ZCARD', live) >= A[j + 3] + 0 then return 'full' end
  rc('HLEN', open)

  rc('HSET', run, 'digest', A[i + 6], 'started', now_ms(), 'deliveries', 1, SLOT[A[j + 7] + 0], 1,
    unpack(A, fields, j - 1))
  rc('ZADD', live, '+inf', run_id)
  enter_plainly(j + 5, open, run_id)
  return 'applied'
end

local function settle_plainly(i, stop)
  local run, open, run_id = K[A[i + 1] + 0], K[A[i + 2] + 0], A[i + 4]
  local s, entry, did, hold, j = A[i + 6] + 0, A[i + 7], A[i + 8], A[i + 9] + 0, i + 11
  if hold == 0 or CEILING[s] > 0 or A[i + 10] ~= '0' then return end
  local arming = A[j] == 'deadline' and j
  if arming then j = j + 3 end
  local ends, next_ = A[j] == 'end' and j + 15 + A[j + 14] == stop, nil
  if not ends then
    if not is_plain_emit(j, stop) or A[j + 6] == did then return end
    next_ = A[j + 3] + 0
  end
  if not mine(s, entry) then return 'gone' end
  local status, deadline, waiters, admitted, deliveries, seq, lent, n, further, joined, others = unpack(rc('HMGET', run,
    'status', 'deadline', 'waiting', 'admitted', 'deliveries', 'seq', 'lent', SLOT[s], 'further', 'joined',
    ends and 'further' or SLOT[next_]))
  if status ~= 'running' or admitted == '0' or whole(lent) ~= 0 then return end
  if arming and deadline and not string.find(deadline, '^%?%d+$') then return end
  n, deliveries = whole(n), whole(deliveries)
  if n > 1 and rc('LLEN', K[hold]) > 0 then return end
  if ends then
    if admitted or seq or rc('XLEN', K[A[j + 2] + 0]) > 0 then return end
  else
    if A[j + 2] ~= '0' and waiters and waiters ~= '0' then return end
    others, deliveries = whole(others), deliveries + 1
    if others >= LIMIT[next_] or deliveries > most_deliveries then return end
    if others > 0 and rc('LLEN', K[A[j + 4] + 0]) > 0 then return end
  end

  -- Else its entry was added twice, or the index is damaged.
  if rc('HDEL', open, did) == 0 then return end
  drop_entry(s, entry)
  if ends then
    rc('HSET', run, SLOT[s], n - 1, 'deliveries', deliveries)
  elseif SLOT[s] == SLOT[next_] then
    rc('HSET', run, 'deliveries', deliveries)
  else
    rc('HSET', run, SLOT[s], n - 1, SLOT[next_], others + 1, 'deliveries', deliveries)
  end
  if arming then arm(run, run_id, K[A[arming + 1] + 0], A[arming + 2], deadline) end
  if not ends then
    enter_plainly(j + 1, open, run_id)
  else
    close_run(j + 1, run, run_id, 1, joined)
    if further then rc('RPUSH', K[A[j + 6] + 0], run_id) end
    rc('PEXPIRE', run, A[j + 10])
    rc('PEXPIRE', open, A[j + 10])
  end
  return 'applied'
end

-- The answer to a commit; nil: it is not plain, and nothing was written.
local function plain(i, stop)
  local fence = A[i + 5]
  if fence == 'entry' then return settle_plainly(i, stop) end
  if fence == 'new' then return start_plainly(i, stop) end
end
