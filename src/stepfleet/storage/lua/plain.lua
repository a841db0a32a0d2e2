-- plain.lua (part of commit.lua): the commonest commits, straight ahead: a run that starts with one delivery, and a
-- delivery that is settled with one more, with the end of its run, or with one event of several that are collected.
-- Where deliveries of a step are held, one is let go, or one more is held.
--
-- What is not plain (a ceiling, a waiter, public events, the first or the last one of a list, ...) is left to the
-- interpreter, before anything is written; both write the same. A call whose commits are plain makes nothing of the
-- interpreter: 11 us instead of 51 before its first commit.
--
-- They differ only where a stranger wrote. A stream or a set that runs share and that has a wrong type is answered with
-- `broken` behind other first writes; and a delivery is held behind others whatever the type of the run's `:keys` is.
--
-- A commit begins at i: length, run, open, keys, run id, fence. At i + 6 the fence's arguments begin: of `new` digest,
-- live, n, n fields; of `entry` stream, entry, delivery, hold list (fences.lua). Behind them stand the number of
-- expectations, these (`room` and `quota`: expectations.lua) and the words, of which one begins at j: `deadline` and
-- `end` (words.lua), `emit` (emits.lua), `append` (further_words.lua).

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

-- Adds a delivery to a stream of a row's step, and writes where it is.
local function enter_plainly(s, label, open, run_id, did, record)
  local stream = label == LABEL[s] and STREAM[s] or string.sub(STREAM[s], 1, -1 - #LABEL[s]) .. label
  local entry = rc('XADD', stream, '*', 'r', run_id, 'i', did, 'd', record)
  rc('HSET', open, did, 'stream ' .. entry .. ' ' .. label)
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
  local s = A[j + 7] + 0
  local digest, taken = unpack(rc('HMGET', run, 'digest', SLOT[s]))
  if digest then return digest == A[i + 6] and 'applied' or 'exists' end
  -- A stranger counted.
  if taken then return end
  if rc('ZCARD', K[A[j + 2] + 0]) >= A[j + 3] + 0 then return 'full' end
  rc('HLEN', open)

  rc('HSET', run, 'digest', A[i + 6], 'started', now_ms(), 'deliveries', 1, SLOT[s], 1, unpack(A, fields, j - 1))
  rc('ZADD', live, '+inf', run_id)
  enter_plainly(s, LABEL[s], open, run_id, A[j + 10], A[j + 11])
  return 'applied'
end

-- Whether it is plain that a delivery of a step gives its slot back, and the held one that is let go then (nil: none is
-- held). n: deliveries in streams or held.
local function first_held(s, hold, n)
  local left = n > 1 and rc('LLEN', hold) or 0
  if left == 0 then return true, nil end
  local free = LIMIT[s] - (n - 1 - left)
  if free ~= 1 then return false end
  local element = rc('LINDEX', hold, 0)
  return string.find(element, '\n', 23, true) ~= nil, element
end

-- Whether it is plain that a step gets one more delivery, and whether that one waits, as others do already.
local function has_to_wait(s, hold, n)
  local left = n > 0 and rc('LLEN', hold) or 0
  local is_full = n - left >= LIMIT[s]
  -- The first one that is held needs more than a line in a list, and others would be let go before this one.
  if left == 0 then return not is_full, false end
  return is_full, true
end

-- How many events a buffer lacks behind one more of the only type that it waits for, and its version and count then;
-- nil: it is not plain, as with its first event and its last. j is where `quota` begins.
local function contribution(j)
  if A[j + 5] ~= '1' or A[j + 4] ~= A[j + 6] then return end
  local counts = rc('HMGET', K[A[j + 2] + 0], 'version', 'n:' .. A[j + 6])
  local version, have, need = whole(counts[1]), whole(counts[2]), A[j + 7] + 0
  if version < 1 or have < 1 or have + 1 >= need or rc('LLEN', K[A[j + 3] + 0]) == 0 then return end
  return need - have - 1, version + 1, have + 1
end

-- Which word is the last one of a commit that settles a delivery plainly, and where it and a `deadline` before it
-- begin: `end`, `emit` or `append` (of the event that its only expectation, a `quota`, is about); nil: it is not plain.
local function words_of(i, stop)
  local expects, quota, j = A[i + 10], i + 11, i + 11
  if A[quota] == 'quota' then j = quota + 6 + 2 * A[quota + 5] end
  local arming = A[j] == 'deadline' and j or nil
  if arming then j = j + 3 end
  local is_plain
  if A[j] == 'append' then
    -- It names the buffer, the list and the type as its quota does.
    local is_its_own = A[j + 1] == A[quota + 2] and A[j + 2] == A[quota + 3] and A[j + 3] == A[quota + 4]
    is_plain = expects == '1' and A[quota] == 'quota' and is_its_own and stop == j + 5
  elseif A[j] == 'end' then
    is_plain = expects == '0' and stop == j + 15 + A[j + 14]
  else
    -- The same delivery again, as for its next attempt, is no further one.
    is_plain = expects == '0' and is_plain_emit(j, stop) and A[j + 6] ~= A[i + 8]
  end
  if is_plain then return A[j], j, arming end
end

-- All that settling a delivery plainly needs to know, and writes nothing; nil and an answer, or no answer: it is not
-- plain.
local function look_at_settled(i, stop)
  local run, s, hold = K[A[i + 1] + 0], A[i + 6] + 0, A[i + 9] + 0
  if hold == 0 or CEILING[s] > 0 then return end
  local word, j, arming = words_of(i, stop)
  if not word then return end
  if not mine(s, A[i + 7]) then return nil, 'gone' end
  local next_ = word == 'emit' and A[j + 3] + 0 or nil
  -- Where no step is next, the counter of its own step stands in the place of the next one's, and is not used.
  local status, deadline, waiters, admitted, deliveries, seq, lent, n, further, joined, others = unpack(rc('HMGET', run,
    'status', 'deadline', 'waiting', 'admitted', 'deliveries', 'seq', 'lent', SLOT[s], 'further', 'joined',
    SLOT[next_ or s]))
  if status ~= 'running' or admitted == '0' or (lent and lent ~= '0') then return end
  if arming and deadline and not string.find(deadline, '^%?%d+$') then return end
  local missing, version, have
  if word == 'append' then
    missing, version, have = contribution(i + 11)
    if not missing then return end
  end
  n, deliveries, others = whole(n), whole(deliveries), whole(others)
  if n < 1 then return end
  local is_plain, going = first_held(s, K[hold], n)
  if not is_plain then return end
  local waits = false
  if word == 'end' then
    if admitted or seq or rc('XLEN', K[A[j + 2] + 0]) > 0 then return end
  elseif word == 'append' then
    if deliveries > most_deliveries then return end
  else
    if A[j + 2] ~= '0' and waiters and waiters ~= '0' then return end
    deliveries = deliveries + 1
    if deliveries > most_deliveries or (going and SLOT[s] == SLOT[next_]) then return end
    is_plain, waits = has_to_wait(next_, K[A[j + 4] + 0], others)
    if not is_plain then return end
    -- What comes back from a timer or a waiter has a row in `open`.
    if waits and A[j + 2] == '0' then return end
  end
  return {
    word = word, j = j, arming = arming, deadline = deadline, joined = joined, further = further,
    n = n, deliveries = deliveries, next_ = next_, others = others, going = going, waits = waits,
    missing = missing, version = version, have = have,
  }
end

local function settle_plainly(i, stop)
  local found, answer = look_at_settled(i, stop)
  if not found then return answer end
  local run, open, run_id, s, hold = K[A[i + 1] + 0], K[A[i + 2] + 0], A[i + 4], A[i + 6] + 0, K[A[i + 9] + 0]
  local j, next_, going, arming = found.j, found.next_, found.going, found.arming

  -- Nothing before here writes, nor does this line where its entry was added twice or the index is damaged.
  if rc('HDEL', open, A[i + 8]) == 0 then return end
  drop_entry(s, A[i + 7])
  if not next_ then
    rc('HSET', run, SLOT[s], found.n - 1, 'deliveries', found.deliveries)
  elseif SLOT[s] == SLOT[next_] then
    rc('HSET', run, 'deliveries', found.deliveries)
  else
    rc('HSET', run, SLOT[s], found.n - 1, SLOT[next_], found.others + 1, 'deliveries', found.deliveries)
  end
  if going then
    rc('LPOP', hold)
    local feed = string.find(going, '\n', 23, true)
    local did, label, record = string.sub(going, 1, 22), string.sub(going, 23, feed - 1), string.sub(going, feed + 1)
    enter_plainly(s, label, open, run_id, did, record)
  end
  if arming then arm(run, run_id, K[A[arming + 1] + 0], A[arming + 2], found.deadline) end
  if found.word == 'append' then
    rc('HSET', K[A[j + 1] + 0], 'version', found.version, 'n:' .. A[j + 3], found.have)
    rc('RPUSH', K[A[j + 2] + 0], A[j + 4])
    return 'applied ' .. found.missing
  elseif found.waits then
    rc('RPUSH', K[A[j + 4] + 0], A[j + 6] .. LABEL[next_] .. '\n' .. A[j + 7])
  elseif next_ then
    enter_plainly(next_, LABEL[next_], open, run_id, A[j + 6], A[j + 7])
  else
    close_run(j + 1, run, run_id, 1, found.joined)
    if found.further then rc('RPUSH', K[A[j + 6] + 0], run_id) end
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
