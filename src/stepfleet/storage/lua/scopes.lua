-- scopes.lua (part of commit.lua): deliveries that are counted together, and what is emitted when none is left.
--
-- A scope is a hash: `open`, how many deliveries are pending in it, and for each stream that it has to tell (by label)
-- the delivery to emit there, once. What is gathered for it stands in a list, as held deliveries do.

local function scope_words()
  -- Emits what a scope has for a stream, if it still has it. It is pending around the scope, where it was counted
  -- before.
  local function release(scope, s, hold)
    local element = rc('HGET', scope, LABEL[s])
    if not element then return end
    rc('HDEL', scope, LABEL[s])
    local before = born
    local did, _, record = parts(element)
    emit(s, hold, 1, 1, { did, record })
    born = before
  end

  -- scope, n, n times (stream, delivery, record)
  local opening = {
    size = 2, n = 1, each = 3,
    check = function(j)
      pending[key_at(j)] = 0
      look(key_at(j))
    end,
    write = function(j)
      local scope, values = key_at(j), { 'open', 0 }
      for x = j + 2, j - 1 + 3 * A[j + 1], 3 do
        local s = A[x] + 0
        values[#values + 1] = LABEL[s]
        values[#values + 1] = held(s, A[x + 1], A[x + 2])
      end
      write_all('HSET', scope, values)
      made(scope)
    end,
  }

  -- scope, list, waiters' stream, stream, hold list, quota (0: none), type, k, k times (delivery, record)
  local gathering = {
    size = 8, n = 7, each = 2,
    check = function(j)
      planned = planned + A[j + 7]
      rc('HLEN', key_at(j))
      look_at_list(key_at(j + 1))
      if A[j + 5] ~= '0' then room(A[j + 3] + 0, A[j + 4] + 0, 1) end
    end,
    write = function(j)
      local scope, list, inbox, s = key_at(j), key_at(j + 1), A[j + 2] + 0, A[j + 3] + 0
      local quota, k = A[j + 5] + 0, A[j + 7] + 0
      diverted = inbox > 0 and awaited(A[j + 6])
      if diverted then return emit(inbox, 0, k, j + 8) end
      if rc('HEXISTS', scope, LABEL[s]) == 0 then return end
      local values = {}
      for x = j + 8, j + 6 + 2 * k, 2 do values[#values + 1] = held(s, A[x], A[x + 1]) end
      local length = append(list, values)
      if quota > 0 and length >= quota then
        rc('LTRIM', list, 0, quota - 1)
        release(scope, s, A[j + 4] + 0)
      end
    end,
  }

  -- scope, by, n, n times (stream, hold list): what was emitted since it began to count, and `by`, are pending in the
  -- scope; when nothing is, it ends and emits what it still has
  local tallying = {
    size = 3, n = 2, each = 2,
    check = function(j)
      local scope = key_at(j)
      if pending[scope] == nil then
        local n = rc('HGET', scope, 'open')
        pending[scope] = n and whole(n)
      end
      if pending[scope] and pending[scope] + A[j + 1] <= 0 then
        for x = j + 3, j + 1 + 2 * A[j + 2], 2 do room(A[x] + 0, A[x + 1] + 0, 1) end
      end
    end,
    write = function(j)
      local scope, by = key_at(j), born + A[j + 1]
      born = 0
      if not pending[scope] or rc('HINCRBY', scope, 'open', by) > 0 then return end
      for x = j + 3, j + 1 + 2 * A[j + 2], 2 do release(scope, A[x] + 0, A[x + 1] + 0) end
      unregister(scope)
    end,
  }

  -- guard, waiters' stream (0: nobody can wait), stream, hold list, list of a joined delivery, delivery, record, n,
  -- n times (list, how many of its deliveries make a joined one), its own list first: the delivery that completes a set
  -- is emitted, and the set stands in a list of its own
  local pairing = {
    size = 8, n = 7, each = 2,
    check = function(j)
      if A[j] + 0 > 0 then look_at_effects(A[j] + 0) else planned = planned + 1 end
      for x = j + 8, j + 6 + 2 * A[j + 7], 2 do look_at_list(key_at(x)) end
      rc('LLEN', key_at(j + 4))
      can_register()
      room(A[j + 2] + 0, A[j + 3] + 0, 1)
    end,
    write = function(j)
      local guard, inbox, s, own = A[j] + 0, A[j + 1] + 0, A[j + 2] + 0, key_at(j + 8)
      diverted = inbox > 0 and awaited(type_of(s))
      if not first_time(guard, A[j + 5]) then return end
      if diverted then return emit(inbox, 0, 1, j + 5) end
      append(own, { held(s, A[j + 5], A[j + 6]) })
      for x = j + 8, j + 6 + 2 * A[j + 7], 2 do
        if rc('LLEN', key_at(x)) < A[x + 1] + 0 then return end
      end
      local set = {}
      for x = j + 8, j + 6 + 2 * A[j + 7], 2 do
        for _ = 1, A[x + 1] do set[#set + 1] = rc('LPOP', key_at(x)) end
      end
      append(key_at(j + 4), set)
      emit(s, A[j + 3] + 0, 1, j + 5)
    end,
  }

  return {
    pair = pairing,
    ['also pair'] = also(pairing),
    open = opening,
    gather = gathering,
    ['also gather'] = also(gathering),
    tally = tallying,
    -- What is emitted from here on belongs to the scopes that are tallied behind it.
    within = { size = 0, write = function() born = 0 end },
  }
end
