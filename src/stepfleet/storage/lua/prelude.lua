-- prelude.lua: what every script shares; the loader puts it in front of each of them.
-- A script sees Redis only through `rc`, the clock only through `now_ms`, and never sets a global.

local rc = redis.call

-- unpack() fails beyond about 8,000 values, so variadic commands go out in chunks of this many.
local CHUNK = 4000

local clock
-- Redis' own clock in whole milliseconds, read once a script: every timer and lease is in this time.
local function now_ms()
  if not clock then
    local t = rc('TIME')
    clock = t[1] * 1000 + math.floor(t[2] / 1000)
  end
  return clock
end

-- One variadic write of a long list of values, in chunks. `pairs_` keeps field and value together.
local function write_all(command, key, values)
  for first = 1, #values, CHUNK do
    rc(command, key, unpack(values, first, math.min(first + CHUNK - 1, #values)))
  end
end

-- The text of an error caught by pcall: a table on Redis 7, a string before, an object on fakeredis.
local function error_text(e)
  if type(e) == 'table' and e.err then return e.err end
  return tostring(e)
end
