-- words.lua (part of commit.lua): what most commits write.
--
-- word -> size: number of its arguments (with n, each: see `after`); check(j): reads every key of the run that it will
-- write, so that a wrong type shows before anything is written; write(j). j is where its arguments begin.

-- This run leaves the set of places or the queue for them; whoever waits longest gets what is free, and an alarm.
local function give_up_place(set, queue, alarms)
  if rc('SREM', set, run_id) == 0 then rc('LREM', queue, 1, (rc('HGET', run, 'limit') or '') .. ' ' .. run_id) end
  while true do
    local limit, next_ = string.match(rc('LINDEX', queue, 0) or '', '^(%d+) (.+)$')
    if not limit or rc('SCARD', set) >= limit + 0 then return end
    rc('LPOP', queue)
    rc('SADD', set, next_)
    rc('XADD', alarms, '*', 'r', next_, 'i', '', 'w', '')
  end
end

-- Of a record that begins anew, the public stream knows how far it was.
local function recount_public(events)
  local last = rc('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
  if last then rc('HSET', run, 'seq', string.match(last[1], '^%d+')) end
end

local WORD
WORD = lazily({
  emit = emitting,
  also = function() return also(WORD.emit) end,
  -- events, how many are kept, guard, field, entry
  publish = function() return {
    size = 5,
    check = function(j)
      look_at_public(key_at(j))
      if A[j + 2] + 0 > 0 then look_at_effects(A[j + 2] + 0) end
    end,
    write = function(j)
      local guard, field = A[j + 2] + 0, A[j + 3]
      if guard > 0 and rc('HGET', K[guard], field) then return end
      local seq = publish(key_at(j), A[j + 1], A[j + 4])
      if guard > 0 then
        rc('HSET', K[guard], field, seq)
        made(K[guard])
      end
    end,
  } end,
  -- zset, data, member, delay in ms, data
  timer = function() return {
    size = 5,
    write = function(j)
      rc('ZADD', key_at(j), now_ms() + A[j + 3], A[j + 2])
      rc('HSET', key_at(j + 1), A[j + 2], A[j + 4])
    end,
  } end,
  -- delivery, where it is
  note = function() return {
    size = 2,
    write = function(j)
      opened[#opened + 1] = A[j]
      opened[#opened + 1] = A[j + 1]
    end,
  } end,
  -- field of `open`, execution, number: one more of its early commits was applied
  early = function() return {
    size = 3,
    write = function(j)
      local _, calls = early(j)
      opened[#opened + 1] = A[j]
      opened[#opened + 1] = A[j + 1] .. ' ' .. A[j + 2] .. ' ' .. calls + 1
    end,
  } end,
  -- zset of live runs, age of this execution in ms: the budget runs from the earliest execution that is known
  deadline = function() return {
    size = 2,
    check = function()
      if not fields[2] or string.find(fields[2], '^%?%d+$') then return end
      whole(fields[2])
      whole(rc('HGET', run, 'timeout'))
    end,
    write = function(j)
      -- The record of a run that is being made was written just now.
      arm(run, run_id, key_at(j), A[j + 1], fields[2] or (not fields[1] and rc('HGET', run, 'deadline')))
    end,
  } end,
  -- status, events, live, ended, ends, tidy, set and queue of places, stream for the alarms of the queue (0: not
  -- known), retention in ms, ends kept, keep pending work (0 or 1), entry, n, n fields
  ['end'] = function() return {
    size = 14, n = 13, each = 1,
    check = function(j)
      ending = true
      if not damaged then
        look_at_public(key_at(j + 1))
      elseif not pcall(look_at_public, key_at(j + 1)) then
        unpublished = true
      end
      if fields[4] and A[j + 6] ~= '0' then
        -- One run ends in an error by them, and not every run of its workflow.
        local look_at_shared = damaged and mended or function(_, use) return use() end
        look_at_shared(key_at(j + 6), function() return rc('SCARD', key_at(j + 6)) end)
        look_at_shared(key_at(j + 7), function() return rc('LLEN', key_at(j + 7)) end)
        rc('XLEN', key_at(j + 8))
      end
    end,
    write = function(j)
      local retention = A[j + 9]
      if anew and not unpublished then recount_public(key_at(j + 1)) end
      local more = rc('HMGET', run, 'seq', 'further', 'joined')
      close_run(j, run, run_id, (tonumber(more[1] or 0) or 0) + 1, more[3])
      if more[1] and not unpublished then publish(key_at(j + 1), '1000000', A[j + 12]) end
      if more[1] or unpublished then
        rc('PEXPIRE', key_at(j + 1), retention)
      end
      if more[2] then rc('RPUSH', key_at(j + 5), run_id) end
      if fields[4] and A[j + 6] ~= '0' then give_up_place(key_at(j + 6), key_at(j + 7), key_at(j + 8)) end
      write_opened()
      rc('PEXPIRE', run, retention)
      rc('PEXPIRE', open, retention)
    end,
  } end,
}, function() return { scope_words(), further_words() } end)
