-- apply.lua (part of commit.lua): applies one commit, word by word.

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

return apply
