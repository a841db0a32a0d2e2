-- further_words.lua (part of commit.lua): what only some commits write.
--
-- The layout of a word is in words.lua.

local function further_words()
  -- A tree of texts and numbers as one text: `<length>:<text>`, and `[` items `]`.
  local function written(value)
    if type(value) ~= 'table' then
      local text = tostring(value)
      return #text .. ':' .. text
    end
    local parts_ = {}
    for x = 1, #value do parts_[x] = written(value[x]) end
    return '[' .. table.concat(parts_) .. ']'
  end

  -- list, stream, hold list, length, waiters' stream: the staged deliveries become held ones, and what fits is let go.
  -- Awaited ones go to the waiters; the same events for a further stream (`again`) do not.
  local function unstaging(again)
    local function sorted_out(list, k, inbox)
      local left = {}
      for first = 0, k - 1, CHUNK do
        for _, element in ipairs(rc('LRANGE', list, first, first + CHUNK - 1)) do
          local did, label, record = parts(element)
          if not did or not awaited(string.match(label, '^[^:]*')) then
            left[#left + 1] = element
          elseif not again then
            enter(inbox, LABEL[inbox], did, record)
            born = born + 1
          end
        end
      end
      rc('DEL', list)
      return left
    end

    return {
      size = 5,
      check = function(j)
        planned = planned + A[j + 3]
        room(A[j + 1] + 0, A[j + 2] + 0, A[j + 3] + 0)
        waiting[key_at(j + 2)] = rc('LLEN', key_at(j + 2))
        can_register()
      end,
      write = function(j)
        local list, s, hold, k, inbox = key_at(j), A[j + 1] + 0, key_at(j + 2), A[j + 3] + 0, A[j + 4] + 0
        local before = waiting[hold]
        if fields[3] and fields[3] ~= '0' then
          local left = sorted_out(list, k, inbox)
          k = #left
          append(hold, left)
        elseif before == 0 then
          rc('RENAME', list, hold)
          register(hold)
        else
          for first = 0, k - 1, CHUNK do rc('RPUSH', hold, unpack(rc('LRANGE', list, first, first + CHUNK - 1))) end
          rc('DEL', list)
        end
        born = born + k
        waiting[hold] = before + k
        refill(s, hold, rc('HINCRBY', run, SLOT[s], k))
      end,
    }
  end

  return {
    -- events, kept, guard, entry, n, n fields: says which published entries this execution did not repeat
    mark = {
      size = 5, n = 4, each = 1,
      check = function(j)
        look_at_public(key_at(j))
        look(key_at(j + 2))
      end,
      write = function(j)
        local repeated, stale = {}, {}
        for x = j + 5, j + 4 + A[j + 4] do repeated[A[x]] = true end
        local sent = rc('HGETALL', key_at(j + 2))
        for x = 1, #sent, 2 do
          local seq = tonumber(sent[x + 1])
          if seq and not repeated[sent[x]] then stale[#stale + 1] = seq end
        end
        if #stale > 0 then
          table.sort(stale)
          publish(key_at(j), A[j + 1], A[j + 3], table.concat(stale, ','))
        end
      end,
    },
    -- buffer, list, type, event
    append = {
      size = 4,
      check = function(j)
        if rc('LLEN', key_at(j + 1)) == 0 then can_register() end
      end,
      write = function(j)
        local buffer, list = key_at(j), key_at(j + 1)
        if not table.remove(appends, 1) then return end
        if rc('HINCRBY', buffer, 'version', 1) == 1 then
          register(buffer)
          register(list)
        end
        if asked[buffer] then rc('HSET', buffer, 'quota', asked[buffer]) end
        rc('HINCRBY', buffer, 'n:' .. A[j + 2], 1)
        rc('RPUSH', list, A[j + 3])
      end,
    },
    -- buffer, list, version: the version goes on, so that an old reading never fits a new content
    take = {
      size = 3,
      check = function(j)
        rc('LLEN', key_at(j + 1))
        if A[j + 2] == '0' then can_register() end
      end,
      write = function(j)
        rc('DEL', key_at(j), key_at(j + 1))
        rc('HSET', key_at(j), 'version', A[j + 2] + 1)
        if A[j + 2] == '0' then
          register(key_at(j))
          register(key_at(j + 1))
        end
      end,
    },
    -- list, first (1: begin anew), stream, k, k times (delivery, record)
    stage = {
      size = 4, n = 3, each = 2,
      check = function(j)
        rc('LLEN', key_at(j))
        can_register()
      end,
      write = function(j)
        local list, s, values = key_at(j), A[j + 2] + 0, {}
        if A[j + 1] == '1' then rc('DEL', list) end
        for x = j + 4, j + 2 + 2 * A[j + 3], 2 do values[#values + 1] = held(s, A[x], A[x + 1]) end
        write_all('RPUSH', list, values)
        if A[j + 1] == '1' then register(list) end
      end,
    },
    unstage = unstaging(false),
    ['also unstage'] = unstaging(true),
    -- zset, data, member
    untimer = {
      size = 3,
      write = function(j)
        rc('ZREM', key_at(j), A[j + 2])
        rc('HDEL', key_at(j + 1), A[j + 2])
      end,
    },
    -- hash, field, value
    put = {
      size = 3,
      check = function(j) look(key_at(j)) end,
      write = function(j)
        rc('HSET', key_at(j), A[j + 1], A[j + 2])
        made(key_at(j))
      end,
    },
    -- hash, field
    drop = {
      size = 2,
      check = function(j) rc('HLEN', key_at(j)) end,
      write = function(j) rc('HDEL', key_at(j), A[j + 1]) end,
    },
    -- key
    erase = { size = 1, write = function(j) rc('DEL', key_at(j)) end },
    -- key that was registered
    discard = { size = 1, write = function(j) unregister(key_at(j)) end },
    -- field of the run's record, by how much
    count = {
      size = 2,
      check = function(j) whole(rc('HGET', run, A[j])) end,
      write = function(j) rc('HINCRBY', run, A[j], A[j + 1]) end,
    },
    -- list, value, how many are kept
    push = {
      size = 3,
      check = function(j) if rc('LLEN', key_at(j)) == 0 then can_register() end end,
      write = function(j)
        if rc('RPUSH', key_at(j), A[j + 1]) == 1 then register(key_at(j)) end
        rc('LTRIM', key_at(j), -A[j + 2], -1)
      end,
    },
    -- list, value
    pull = {
      size = 2,
      check = function(j) rc('LLEN', key_at(j)) end,
      write = function(j) rc('LREM', key_at(j), 1, A[j + 1]) end,
    },
    -- stream, how many are kept, row: with the last public sequence, and with where deliveries went until here
    tell = {
      size = 3,
      check = function(j)
        local rows = key_at(j)
        if not sizes[rows] then sizes[rows] = rc('XLEN', rows) end
        if sizes[rows] == 0 then can_register() end
      end,
      write = function(j)
        local rows, seq = key_at(j), rc('HGET', run, 'seq') or '0'
        rc('XADD', rows, 'MAXLEN', '~', A[j + 1], '*', 'd', A[j + 2], 's', seq, 'o', table.concat(opened, '\n'))
        made(rows)
      end,
    },
    -- stream, entry, delivery, hold list, times: it goes on without its slot and its place, as one that Redis has
    -- delivered so often
    lend = {
      size = 5,
      check = function(j)
        lent = is_lent(A[j + 2])
        if lent then return end
        waiting[key_at(j + 3)] = rc('LLEN', key_at(j + 3))
        local counts = rc('HMGET', run, 'lent', SLOT[A[j] + 0])
        whole(counts[1])
        whole(counts[2])
      end,
      write = function(j)
        local s, entry = A[j] + 0, A[j + 1]
        rc('XCLAIM', STREAM[s], group, consumer, 0, entry, 'RETRYCOUNT', A[j + 4], 'JUSTID')
        if lent then return end
        rc('HSET', open, A[j + 2], 'stream ' .. entry .. ' ' .. LABEL[s] .. ' lent')
        rc('HINCRBY', run, 'lent', 1)
        refill(s, key_at(j + 3), rc('HINCRBY', run, SLOT[s], -1))
        if CEILING[s] > 0 then
          places(s)
          lend_place(s, entry)
          vacate(s)
        end
      end,
    },
    -- stream, entry, times: so often has Redis delivered it
    recount = {
      size = 3,
      write = function(j)
        local s = A[j] + 0
        rc('XCLAIM', STREAM[s], group, consumer, 0, A[j + 1], 'RETRYCOUNT', A[j + 2], 'JUSTID')
      end,
    },
    -- set, record of the run that owns it, its keys: this run belongs to it
    join = {
      size = 3,
      check = function(j)
        for _, key in ipairs({ key_at(j), key_at(j + 2) }) do sizes[key] = rc('SCARD', key) end
      end,
      write = function(j)
        rc('SADD', key_at(j), run_id)
        if sizes[key_at(j)] == 0 then
          rc('SADD', key_at(j + 2), key_at(j))
          rc('HSET', key_at(j + 1), 'further', 1, 'joined', 1)
        end
      end,
    },
    -- set, n, n members: they belong to it no more
    leave = {
      size = 2, n = 1, each = 1,
      check = function(j) rc('SCARD', key_at(j)) end,
      write = function(j)
        local last = j + 1 + A[j + 1]
        for first = j + 2, last, CHUNK do
          rc('SREM', key_at(j), unpack(A, first, math.min(first + CHUNK - 1, last)))
        end
      end,
    },
    -- hash, field, value: a stored value; versions never come again, not even behind a removal
    write = {
      size = 3,
      check = function(j)
        look(key_at(j))
        whole(rc('HGET', run, 'writes'))
      end,
      write = function(j)
        rc('HSET', key_at(j), A[j + 1], rc('HINCRBY', run, 'writes', 1) .. ':' .. A[j + 2])
        made(key_at(j))
      end,
    },
    -- lock, token, ttl in ms
    lock = { size = 3, write = function(j) rc('SET', key_at(j), A[j + 1], 'PX', A[j + 2]) end },
    -- lock, token
    unlock = {
      size = 2,
      check = function(j) rc('GET', key_at(j)) end,
      write = function(j) if rc('GET', key_at(j)) == A[j + 1] then rc('DEL', key_at(j)) end end,
    },
    -- stream, hold list: a place under the ceiling was reserved for this run
    wake = {
      size = 2,
      check = function(j)
        if not fields[1] then return end
        waiting[key_at(j + 1)] = rc('LLEN', key_at(j + 1))
        whole(rc('HGET', run, SLOT[A[j] + 0]))
      end,
      write = function(j)
        local s = A[j] + 0
        reserve(s, -1)
        if fields[1] == 'running' then
          rc('HDEL', run, 'queued' .. string.sub(SLOT[s], 2))
          refill(s, key_at(j + 1), (rc('HGET', run, SLOT[s]) or 0) + 0)
        end
        vacate(s)
      end,
    },
    -- set, queue, how many: this run takes a place in the set, or waits in the queue and holds what it emits until then
    place = {
      size = 3,
      check = function(j)
        closed = rc('SCARD', key_at(j)) >= A[j + 2] + 0
        closed = rc('LLEN', key_at(j + 1)) > 0 or closed
      end,
      write = function(j)
        if closed then
          rc('RPUSH', key_at(j + 1), A[j + 2] .. ' ' .. run_id)
        else
          rc('SADD', key_at(j), run_id)
        end
        rc('HSET', run, 'limit', A[j + 2], 'admitted', closed and 0 or 1)
      end,
    },
    -- stream, hold list: this run has got its place, and what it holds may go
    admit = {
      size = 2,
      check = function(j)
        waiting[key_at(j + 1)] = rc('LLEN', key_at(j + 1))
        whole(rc('HGET', run, SLOT[A[j] + 0]))
      end,
      write = function(j)
        closed = false
        rc('HSET', run, 'admitted', 1)
        refill(A[j] + 0, key_at(j + 1), (rc('HGET', run, SLOT[A[j] + 0]) or 0) + 0)
      end,
    },
    -- hash, stream, entry: a delivery of an ended run is kept as long as its run
    park = {
      size = 3,
      check = function(j) rc('HLEN', key_at(j)) end,
      write = function(j)
        local s = A[j + 1] + 0
        local entry = rc('XRANGE', STREAM[s], A[j + 2], A[j + 2])[1]
        if not entry then return end
        local did, record = entry[2][4], entry[2][6]
        rc('HDEL', open, did)
        rc('HSET', key_at(j), did, LABEL[s] .. '\n' .. record)
        rc('HSET', open, did, 'parked ' .. LABEL[s])
        for _, key in ipairs({ key_at(j), open }) do rc('PEXPIRE', key, math.max(1, rc('PTTL', run))) end
      end,
    },
    -- hash, delivery, stream label and record: what a timer of an ended run would have emitted is kept as well
    save = {
      size = 3,
      check = function(j) rc('HLEN', key_at(j)) end,
      write = function(j)
        rc('HDEL', open, A[j + 1])
        rc('HSET', key_at(j), A[j + 1], A[j + 2])
        rc('HSET', open, A[j + 1], 'parked')
        for _, key in ipairs({ key_at(j), open }) do rc('PEXPIRE', key, math.max(1, rc('PTTL', run))) end
      end,
    },
    -- list, how many are kept, what it is about, parked, store, timers, their data, what all streams begin with: what
    -- is recorded of the run at this moment
    remember = {
      size = 8,
      check = function(j)
        rc('LLEN', key_at(j))
        can_register()
      end,
      write = function(j)
        write_opened()
        local of = {
          run = run, open = open, parked = key_at(j + 3), store = key_at(j + 4), further = K[keys],
          timers = key_at(j + 5), timer_data = key_at(j + 6), streams = A[j + 7], id = run_id,
        }
        -- What was remembered before is no part of it.
        local cut = gather(of, function(name) return name == 'checkpoints' end)
        if rc('RPUSH', key_at(j), written(A[j + 2]) .. written(cut)) == 1 then register(key_at(j)) end
        rc('LTRIM', key_at(j), -A[j + 1], -1)
      end,
    },
    -- stream, entry: it is in nobody's hands any more
    withdraw = {
      size = 2,
      check = function(j) rc('XLEN', STREAM[A[j] + 0]) end,
      write = function(j) acknowledge(A[j] + 0, A[j + 1]) end,
    },
    -- key, key: what another run left becomes this run's
    adopt = {
      size = 2,
      check = function(j)
        rc('EXISTS', key_at(j + 1))
        can_register()
      end,
      write = function(j)
        if rc('EXISTS', key_at(j)) == 0 then return end
        rc('RENAME', key_at(j), key_at(j + 1))
        rc('PERSIST', key_at(j + 1))
        register(key_at(j + 1))
      end,
    },
    -- stream, how many are kept, n, n times (field or value)
    log = {
      size = 3, n = 2, each = 1,
      write = function(j)
        rc('XADD', key_at(j), 'MAXLEN', '~', A[j + 1], '*', unpack(A, j + 3, j + 2 + A[j + 2]))
      end,
    },
  }
end
