-- fences.lua (part of commit.lua): the proofs that a commit may act.
--
-- kind -> size: number of its arguments; prove(j): nil when it holds, else the answer; check(j): reads what it will
-- write; settle(j): consumes it, as the first write of the commit (false: there was nothing to settle); drop(j):
-- consumes it when the run has ended; parks: it stands for work that an ended run may keep; late: it may act on a run
-- that has ended, and finish(j) comes last; lost(j): what it knows of its delivery is gone, and not because it was
-- settled; counts: what it adds is new; bounded(j): it is refused when its run has had
-- too many deliveries. j is where its arguments begin.

local function mine_or_gone(j)
  if not mine(A[j] + 0, A[j + 1]) then return 'gone' end
end

local function acknowledge(s, entry)
  occupy(s, -1)
  return_place(s, entry)
  drop_entry(s, entry)
  vacate(s)
end

-- Whether a delivery gave its slot away.
local function is_lent(did) return string.sub(rc('HGET', open, did) or '', -5) == ' lent' end

-- Whether a delivery of this step has a slot that the index of pending work does not explain: somebody removed that
-- index. Asked only where a delivery is missing in it. Without the hold list it can be told only where nothing is held
-- unless something is in a stream.
local function is_lost(s, hold)
  if LIMIT[s] == 0 or (not hold and (CEILING[s] > 0 or closed)) then return false end
  local taken = whole(rc('HGET', run, SLOT[s]))
  if taken == 0 or (hold and taken <= rc('LLEN', hold)) then return false end
  for _, where in ipairs(rc('HVALS', open)) do
    if string.match(where, '^stream %S+ [^:]*:(%S+)$') == string.sub(SLOT[s], 3) then return false end
  end
  return true
end

local function nothing() end

-- Deliveries that the run had until now. They are counted in a write that is made anyhow.
local function had() return whole(fields[5]) end

local function check_open() rc('HLEN', open) end

local function further_fences()
  local function fire(j)
    rc('ZREM', K[A[j] + 0], A[j + 2])
    rc('HDEL', K[A[j + 1] + 0], A[j + 2])
  end

  -- zset of ids, id, how many are kept
  local function is_known(j) if rc('ZSCORE', K[A[j] + 0], A[j + 1]) then return 'applied' end end

  local function remember(j)
    local n = rc('HINCRBY', run, 'operations', 1)
    rc('ZADD', K[A[j] + 0], n, A[j + 1])
    if n == 1 then register(K[A[j] + 0]) end
    rc('ZREMRANGEBYRANK', K[A[j] + 0], 0, -1 - A[j + 2])
  end

  return {
    -- a delivery whose run cannot be read; no key of the run is touched: stream, entry
    stray = {
      size = 2,
      prove = mine_or_gone,
      check = nothing,
      settle = function(j) acknowledge(A[j] + 0, A[j + 1]) end,
    },
    -- a timer that is due: zset, hash of its data, member
    timer = {
      size = 3, parks = true,
      prove = function(j) if not rc('ZSCORE', K[A[j] + 0], A[j + 2]) then return 'gone' end end,
      check = check_open,
      settle = fire, drop = fire,
    },
    -- a run past its deadline: zset of live runs
    overdue = {
      size = 1,
      prove = function(j)
        local deadline = rc('ZSCORE', K[A[j] + 0], run_id)
        if not deadline or tonumber(deadline) > now_ms() then return 'gone' end
      end,
      check = check_open,
      settle = nothing,
      drop = function(j) rc('ZREM', K[A[j] + 0], run_id) end,
    },
    -- something asked for once under an id of its own: zset of ids, id, how many are kept
    operation = {
      size = 3, counts = true,
      prove = is_known,
      check = function() check_open() can_register() end,
      settle = function(j)
        remember(j)
        guarded = planned
      end,
      bounded = function() return planned > 0 end,
      drop = nothing,
    },
    -- whoever asks, while the run is live
    control = { size = 0, prove = nothing, check = check_open, settle = nothing, drop = nothing },
    -- whoever ends a run of which a key is damaged: needs none of its keys
    damaged = {
      size = 0,
      prove = nothing,
      check = function() damaged = true end,
      settle = function()
        if not anew then return end
        rc('DEL', run)
        -- Whether it had further keys and children is not known any more: whoever tidies looks.
        rc('HSET', run, 'further', 1, 'joined', 1)
      end,
      drop = nothing,
    },
    -- whoever changes what is kept of a run, live or ended, once, and stays as long as its record: zset of ids, id, how
    -- many are kept, the key that is changed
    amend = {
      size = 4, late = true,
      prove = is_known,
      check = function()
        check_open()
        can_register()
        whole(rc('HGET', run, 'operations'))
      end,
      settle = nothing,
      -- Behind the words: a full Redis refuses what needs memory, and lets the rest pass.
      finish = function(j)
        remember(j)
        local left = rc('PTTL', run)
        if left < 0 then return end
        for _, key in ipairs({ K[A[j] + 0], K[A[j + 3] + 0], K[keys] }) do rc('PEXPIRE', key, math.max(1, left)) end
      end,
      drop = nothing,
    },
  }
end

local FENCE = lazily({
  -- a delivery that is settled: stream, entry, delivery, hold list of its step (0: it has no slot)
  entry = function() return {
    size = 4, parks = true, counts = true,
    prove = mine_or_gone,
    check = function(j)
      local hold = A[j + 3] + 0
      settled = A[j + 2]
      lent = hold > 0 and whole(fields[7]) ~= 0 and is_lent(A[j + 2])
      if hold > 0 and not lent and whole(fields[8]) > 1 then waiting[K[hold]] = rc('LLEN', K[hold]) end
    end,
    settle = function(j)
      local s, hold = A[j] + 0, A[j + 3] + 0
      local was_open = rc('HDEL', open, A[j + 2]) == 1
      if not was_open and hold > 0 and is_lost(s, K[hold]) then error('the index of pending work is damaged') end
      acknowledge(s, A[j + 1])
      -- Somebody added its entry twice. The other one gave the slot back; a wake-up is no delivery.
      if not was_open and A[j + 2] ~= '' then return false end
      if lent then
        rc('HINCRBY', run, 'lent', -1)
        guarded = planned
      elseif hold > 0 then
        local n = whole(fields[8]) - 1
        rc('HSET', run, SLOT[s], n, 'deliveries', had() + planned)
        refill(s, K[hold], n)
      end
    end,
    lost = function(j) return is_lost(A[j] + 0, K[A[j + 3] + 0]) end,
    -- Nothing but the end of its run, once there were too many; what others wait for goes on.
    bounded = function(j) return A[j + 3] + 0 > 0 and not ending end,
    drop = function(j) acknowledge(A[j] + 0, A[j + 1]) end,
  } end,
  -- an early effect of a delivery that goes on: stream, entry
  effect = function() return {
    size = 2, counts = true,
    prove = mine_or_gone,
    check = nothing,
    lost = function(j) return is_lost(A[j] + 0) end,
    -- Removes nothing. Behind a write that needs no memory a full Redis lets everything pass: what has begun goes on.
    settle = function() rc('HDEL', open, '') end,
    drop = nothing,
  } end,
  -- a run that does not exist yet: digest of its start, zset of live runs, number of fields, field, value, ...
  new = function() return {
    size = 3, n = 2, each = 1,
    prove = function(j)
      local digest = rc('HGET', run, 'digest')
      if digest then return digest == A[j] and 'applied' or 'exists' end
    end,
    check = check_open,
    settle = function(j)
      rc('HSET', run, 'digest', A[j], 'started', now_ms(), 'deliveries', planned, unpack(A, j + 3, j + 2 + A[j + 2]))
      rc('ZADD', K[A[j + 1] + 0], '+inf', run_id)
    end,
  } end,
}, function() return { further_fences() } end)
