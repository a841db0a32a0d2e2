-- erase.lua: deletes an ended run with all of its keys.
--
-- KEYS  run, ended runs, then the run's other keys.
-- ARGV  run id.
-- Returns 1, or 0 when there is no such run or it is live: then nothing is deleted.
-- Invariant: a live run keeps its keys.

if rc('HEXISTS', KEYS[1], 'ended') == 0 then return 0 end
rc('ZREM', KEYS[2], ARGV[1])
rc('UNLINK', KEYS[1])
for i = 3, #KEYS do rc('UNLINK', KEYS[i]) end
return 1
