-- expectations.lua (part of commit.lua): what a commit relies on that others can move. Read only.
--
-- Each returns where the next one begins and, when it does not hold, the answer with what moved.

-- Whether an open waiter wants events of a type: they are matched in Python before anything else.
local function awaited(type_)
  if not fields[3] or fields[3] == '0' then return false end
  local counts = rc('HMGET', run, 'waiting:' .. type_, 'waiting:*')
  return (counts[1] or '0') ~= '0' or (counts[2] or '0') ~= '0'
end

local function version_of(key) return rc('HGET', key, 'version') or '0' end

local function moved(buffer, list, version)
  return 'conflict ' .. buffer .. ' ' .. version .. ' ' .. rc('LLEN', K[list])
end

-- The early commits of an execution that were applied: number of the last one, how many. At j: field of `open`,
-- execution.
local function early(j)
  local execution, last, calls = string.match(rc('HGET', open, A[j]) or '', '^(%S+) (%d+) (%d+)$')
  if execution ~= A[j + 1] then return 0, 0 end
  return last + 0, calls + 0
end

local function further_expectations()
  return {
    -- hash, field: it is there
    has = function(j)
      if rc('HEXISTS', K[A[j] + 0], A[j + 1]) == 0 then return j + 2, 'conflict' end
      return j + 2
    end,
    -- field, value: the run's record has this value ('' for none)
    is = function(j)
      if (rc('HGET', run, A[j]) or '') ~= A[j + 1] then return j + 2, 'conflict' end
      return j + 2
    end,
    -- hash, number of its fields (-1: any), n, n times (field, value; '' for none): it is as it was read
    same = function(j)
      local hash, fields_, n = K[A[j] + 0], A[j + 1] + 0, A[j + 2] + 0
      local next_ = j + 3 + 2 * n
      if fields_ >= 0 and rc('HLEN', hash) ~= fields_ then return next_, 'conflict' end
      for x = j + 3, next_ - 2, 2 do
        if (rc('HGET', hash, A[x]) or '') ~= A[x + 1] then return next_, 'conflict' end
      end
      return next_
    end,
    -- limit: fewer steps of the run wait
    ['few-waits'] = function(j)
      if whole(fields[3]) >= A[j] + 0 then return j + 1, 'full' end
      return j + 1
    end,
    -- record of another run: it is live
    live = function(j)
      if rc('HGET', K[A[j] + 0], 'status') ~= 'running' then return j + 1, 'over' end
      return j + 1
    end,
    -- name, buffer, list, version: nobody appended or released since
    version = function(j)
      local version = version_of(K[A[j + 1] + 0])
      whole(version)
      if version ~= A[j + 3] then return j + 4, moved(A[j], A[j + 2] + 0, version) end
      return j + 4
    end,
    -- name, buffer, list, type, n, n times (type, quota): one more event of this type does not complete the buffer
    quota = function(j)
      local buffer, own, n = K[A[j + 1] + 0], A[j + 3], A[j + 4] + 0
      local next_, lacks, fits, empty, names = j + 5 + 2 * n, 0, false, true, { 'version' }
      for x = j + 5, next_ - 2, 2 do names[#names + 1] = 'n:' .. A[x] end
      local counts = rc('HMGET', buffer, unpack(names))
      whole(counts[1])
      for x = j + 5, next_ - 2, 2 do
        -- What this commit adds to the buffer itself counts as well.
        local added = appends[buffer .. '\n' .. A[x]] or 0
        local have, need = whole(counts[(x - j - 1) / 2]) + added, A[x + 1] + 0
        if have > 0 then empty = false end
        if A[x] == own and have < need then have, fits = have + 1, true end
        if have < need then lacks = lacks + need - have end
      end
      if fits and lacks == 0 then return next_, moved(A[j], A[j + 2] + 0, counts[1] or '0') end
      if fits then appends[buffer .. '\n' .. own] = (appends[buffer .. '\n' .. own] or 0) + 1 end
      appends[#appends + 1], missing = fits, lacks
      -- The first event of a buffer leaves what it waits for, for whoever looks.
      if fits and empty then asked[buffer] = table.concat(A, ' ', j + 5, next_ - 1) end
      return next_
    end,
    -- list, length: a staged result is whole
    staged = function(j)
      if rc('LLEN', K[A[j] + 0]) ~= A[j + 1] + 0 then return j + 2, 'conflict' end
      return j + 2
    end,
    -- hash, field, version ('' for none): a stored value is the one that was read
    value = function(j)
      local stored = rc('HGET', K[A[j] + 0], A[j + 1])
      if (stored and string.match(stored, '^%d+') or '') ~= A[j + 2] then return j + 3, 'conflict' end
      return j + 3
    end,
    -- lock, token: free, or mine already
    free = function(j)
      local holder = rc('GET', K[A[j] + 0])
      if holder and holder ~= A[j + 1] then return j + 2, 'conflict ' .. rc('PTTL', K[A[j] + 0]) end
      return j + 2
    end,
    -- lock, token: mine
    locked = function(j)
      if rc('GET', K[A[j] + 0]) ~= A[j + 1] then return j + 2, 'conflict' end
      return j + 2
    end,
    -- field of `open`, execution, number: this early commit, and with it any later one, was not applied yet
    unapplied = function(j)
      if early(j) >= A[j + 2] + 0 then return j + 3, 'applied' end
      return j + 3
    end,
    -- field of `open`, execution, how many: none of so many early commits is lost
    counted = function(j)
      local _, calls = early(j)
      if calls < A[j + 2] + 0 then return j + 3, 'rewound' end
      return j + 3
    end,
    -- guard, delivery: it went ahead, and is not lost
    kept = function(j)
      if rc('HEXISTS', K[A[j] + 0], A[j + 1]) == 0 then return j + 2, 'rewound' end
      return j + 2
    end,
  }
end

local EXPECT = lazily({
  -- zset of live runs, limit: there are fewer
  room = function()
    return function(j)
      if rc('ZCARD', K[A[j] + 0]) >= A[j + 1] + 0 then return j + 2, 'full' end
      return j + 2
    end
  end,
}, function() return { further_expectations() } end)
