-- words.lua (part of commit.lua): what a commit writes. Each returns where the next one begins.

local function publish(events, keep, entry, seqs)
  local seq = rc('HINCRBY', run, 'seq', 1)
  if seqs then
    rc('XADD', events, 'MAXLEN', '~', keep, seq .. '-0', 'd', entry, 'seqs', seqs)
  else
    rc('XADD', events, 'MAXLEN', '~', keep, seq .. '-0', 'd', entry)
  end
  return seq
end

-- Whether an effect under this field is new; a guard of 0 asks nothing.
local function first_time(guard, field, value)
  if guard == 0 then return true end
  return rc('HSETNX', K[guard], field, value) == 1
end

local WORD
WORD = {
  -- guard, waiters' stream (0: nobody can wait), stream, hold list, k, k times (delivery, record)
  emit = function(j)
    local guard, inbox, s, hold, k = A[j] + 0, A[j + 1] + 0, A[j + 2] + 0, A[j + 3] + 0, A[j + 4] + 0
    local next_ = j + 5 + 2 * k
    diverted = inbox > 0 and awaited(s)
    if diverted then s, hold = inbox, 0 end
    if guard == 0 then
      emit(s, hold, k, j + 5)
    else
      for x = j + 5, next_ - 2, 2 do
        if first_time(guard, A[x], '') then emit(s, hold, 1, x) end
      end
    end
    return next_
  end,
  -- the same event for a further stream: only where the first was not diverted
  also = function(j)
    if diverted then return j + 5 + 2 * A[j + 4] end
    local next_ = WORD.emit(j)
    return next_
  end,
  -- events, how many are kept, guard, field, entry
  publish = function(j)
    local guard, field = A[j + 2] + 0, A[j + 3]
    if guard == 0 or not rc('HGET', K[guard], field) then
      local seq = publish(K[A[j] + 0], A[j + 1], A[j + 4])
      if guard > 0 then rc('HSET', K[guard], field, seq) end
    end
    return j + 5
  end,
  -- events, kept, guard, entry, n, n fields: says which published entries this execution did not repeat
  mark = function(j)
    local n, repeated, stale = A[j + 4] + 0, {}, {}
    for x = j + 5, j + 4 + n do repeated[A[x]] = true end
    local sent = rc('HGETALL', K[A[j + 2] + 0])
    for x = 1, #sent, 2 do
      if sent[x + 1] ~= '' and not repeated[sent[x]] then stale[#stale + 1] = sent[x + 1] + 0 end
    end
    if #stale > 0 then
      table.sort(stale)
      publish(K[A[j] + 0], A[j + 1], A[j + 3], table.concat(stale, ','))
    end
    return j + 5 + n
  end,
  -- buffer, list, type, event
  append = function(j)
    local buffer = K[A[j] + 0]
    if appends[buffer] then
      if rc('HINCRBY', buffer, 'version', 1) == 1 then
        register(buffer)
        register(K[A[j + 1] + 0])
      end
      rc('HINCRBY', buffer, 'n:' .. A[j + 2], 1)
      rc('RPUSH', K[A[j + 1] + 0], A[j + 3])
    end
    return j + 4
  end,
  -- buffer, list, version: the version goes on, so that an old reading never fits a new content
  take = function(j)
    rc('DEL', K[A[j] + 0], K[A[j + 1] + 0])
    if rc('HSET', K[A[j] + 0], 'version', A[j + 2] + 1) == 1 and A[j + 2] == '0' then register(K[A[j] + 0]) end
    return j + 3
  end,
  -- list, first (1: begin anew), stream, k, k times (delivery, record)
  stage = function(j)
    local list, s, k = K[A[j] + 0], A[j + 2] + 0, A[j + 3] + 0
    if A[j + 1] == '1' then rc('DEL', list) end
    local values = {}
    for x = j + 4, j + 2 + 2 * k, 2 do values[#values + 1] = held(s, A[x], A[x + 1]) end
    write_all('RPUSH', list, values)
    if A[j + 1] == '1' then register(list) end
    return j + 4 + 2 * k
  end,
  -- list, stream, hold list, length: the staged deliveries become held ones, and what fits is let go
  unstage = function(j)
    local list, s, hold, k = K[A[j] + 0], A[j + 1] + 0, K[A[j + 2] + 0], A[j + 3] + 0
    if rc('EXISTS', hold) == 0 then
      rc('RENAME', list, hold)
      register(hold)
    else
      for first = 0, k - 1, CHUNK do rc('RPUSH', hold, unpack(rc('LRANGE', list, first, first + CHUNK - 1))) end
      rc('DEL', list)
    end
    refill(s, hold, rc('HINCRBY', run, SLOT[s], k))
    return j + 4
  end,
  -- zset, data, member, delay in ms, data
  timer = function(j)
    rc('ZADD', K[A[j] + 0], now_ms() + A[j + 3], A[j + 2])
    rc('HSET', K[A[j + 1] + 0], A[j + 2], A[j + 4])
    return j + 5
  end,
  -- zset, data, member
  untimer = function(j)
    rc('ZREM', K[A[j] + 0], A[j + 2])
    rc('HDEL', K[A[j + 1] + 0], A[j + 2])
    return j + 3
  end,
  -- hash, field, value
  put = function(j)
    if rc('HSET', K[A[j] + 0], A[j + 1], A[j + 2]) == 1 and rc('HLEN', K[A[j] + 0]) == 1 then register(K[A[j] + 0]) end
    return j + 3
  end,
  -- hash, field
  drop = function(j)
    rc('HDEL', K[A[j] + 0], A[j + 1])
    return j + 2
  end,
  -- key
  erase = function(j)
    rc('DEL', K[A[j] + 0])
    return j + 1
  end,
  -- field of the run's record, by how much
  count = function(j)
    rc('HINCRBY', run, A[j], A[j + 1])
    return j + 2
  end,
  -- list, value, how many are kept
  push = function(j)
    if rc('RPUSH', K[A[j] + 0], A[j + 1]) == 1 then register(K[A[j] + 0]) end
    rc('LTRIM', K[A[j] + 0], -A[j + 2], -1)
    return j + 3
  end,
  -- list, value
  pull = function(j)
    rc('LREM', K[A[j] + 0], 1, A[j + 1])
    return j + 2
  end,
  -- delivery, where it is
  note = function(j)
    opened[#opened + 1] = A[j]
    opened[#opened + 1] = A[j + 1]
    return j + 2
  end,
  -- hash, field, value: a stored value with the next version
  write = function(j)
    local stored = rc('HGET', K[A[j] + 0], A[j + 1])
    local version = stored and string.match(stored, '^%d+') + 1 or 1
    rc('HSET', K[A[j] + 0], A[j + 1], version .. ':' .. A[j + 2])
    if version == 1 and rc('HLEN', K[A[j] + 0]) == 1 then register(K[A[j] + 0]) end
    return j + 3
  end,
  -- lock, token, ttl in ms
  lock = function(j)
    rc('SET', K[A[j] + 0], A[j + 1], 'PX', A[j + 2])
    return j + 3
  end,
  -- lock, token
  unlock = function(j)
    if rc('GET', K[A[j] + 0]) == A[j + 1] then rc('DEL', K[A[j] + 0]) end
    return j + 2
  end,
  -- zset of live runs, age of this execution in ms: the budget runs from the first execution of the run
  deadline = function(j)
    local budget = fields[2] and string.match(fields[2], '^%?(%d+)$')
    if budget then
      local deadline = now_ms() - A[j + 1] + budget
      rc('HSET', run, 'deadline', deadline)
      rc('ZADD', K[A[j] + 0], deadline, run_id)
    end
    return j + 2
  end,
  -- stream, hold list: a place under the ceiling was kept for this run
  wake = function(j)
    local s, hold = A[j] + 0, K[A[j + 1] + 0]
    local n, waiting = (rc('HGET', run, SLOT[s]) or 0) + 0, rc('LLEN', hold)
    if waiting > 0 and n - waiting < LIMIT[s] then let_go(hold) else vacate(s) end
    return j + 2
  end,
  -- hash, stream, entry: a delivery of an ended run is kept
  park = function(j)
    local entry = rc('XRANGE', STREAM[A[j + 1] + 0], A[j + 2], A[j + 2])[1]
    if entry then
      if rc('HSET', K[A[j] + 0], entry[2][4], LABEL[A[j + 1] + 0] .. '\n' .. entry[2][6]) == 1 then
        register(K[A[j] + 0])
      end
    end
    return j + 3
  end,
  -- stream, how many are kept, n, n times (field or value)
  log = function(j)
    rc('XADD', K[A[j] + 0], 'MAXLEN', '~', A[j + 1], '*', unpack(A, j + 3, j + 2 + A[j + 2]))
    return j + 3 + A[j + 2]
  end,
  -- status, events, live, ended, ends, tidy, retention in ms, ends kept, keep pending work (0 or 1), entry, n, n fields
  ['end'] = function(j)
    local events, retention, n = K[A[j + 1] + 0], A[j + 6], A[j + 10] + 0
    rc('HSET', run, 'status', A[j], 'ended', now_ms(), 'parks', A[j + 8], 'entry', A[j + 9],
      unpack(A, j + 11, j + 10 + n))
    rc('ZREM', K[A[j + 2] + 0], run_id)
    rc('ZADD', K[A[j + 3] + 0], now_ms(), run_id)
    rc('XADD', K[A[j + 4] + 0], 'MAXLEN', '~', A[j + 7], '*', 'r', run_id, 's', A[j])
    local more = rc('HMGET', run, 'seq', 'further')
    if more[1] then
      publish(events, '1000000', A[j + 9])
      rc('PEXPIRE', events, retention)
    end
    if more[2] then rc('RPUSH', K[A[j + 5] + 0], run_id) end
    rc('PEXPIRE', run, retention)
    rc('PEXPIRE', open, retention)
    return j + 11 + n
  end,
}
