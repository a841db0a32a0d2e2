"""The commit script with and without its straight way, under a clock of its own, and all that it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from stepfleet.storage.keys import GROUP
from stepfleet.storage.scripts import script
from tests.scripts.rig import Rig

#: The first time of a rig in ms, and how much later each call is.
BEGIN: Final = 1_700_000_000_000
STEP_MS: Final = 7

#: In place of the prelude's `rc`: the time is the last key, so entries that two rigs add are equal.
#: `hits` tells of each commit whether it was applied straight ahead (1), left to the interpreter (0),
#: or broke off (e).
_CLOCK: Final = """
local ticks, added, hits = tonumber(KEYS[#KEYS]), 0, ''
local function rc(name, ...)
  if name == 'TIME' then return { math.floor(ticks / 1000), ticks % 1000 * 1000 } end
  if name ~= 'XADD' then return redis.call(name, ...) end
  local args = { ... }
  for x = 1, #args do
    if args[x] == '*' then
      added = added + 1
      args[x] = string.format('%.0f-%d', ticks, added)
      break
    end
  end
  return redis.call(name, unpack(args))
end
"""

#: Every key of a rig with its type, its content and how long it lives on in ms.
_CONTENT: Final = """
local read = {
  hash = function(key) return redis.call('HGETALL', key) end,
  list = function(key) return redis.call('LRANGE', key, 0, -1) end,
  set = function(key) return redis.call('SMEMBERS', key) end,
  zset = function(key) return redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end,
  string = function(key) return redis.call('GET', key) end,
  stream = function(key) return redis.call('XRANGE', key, '-', '+') end,
}
local found = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  local kind = redis.call('TYPE', key).ok
  local pending = false
  if kind == 'stream' then
    local ok, rows = pcall(redis.call, 'XPENDING', key, ARGV[2], '-', '+', 1000)
    pending = ok and rows.err == nil and rows or 'no group'
    -- How long it is idle is no matter of the script.
    if ok and rows.err == nil then for _, row in ipairs(rows) do row[3] = 0 end end
  end
  found[#found + 1] = { key, kind, read[kind](key), pending, redis.call('PTTL', key) }
end
return found
"""


@cache
def _source(*, straight: bool) -> str:
    source = script("commit").source
    call = "local ok, answer = pcall(plain, i, stop)\n"
    told = "hits = hits .. (not ok and 'e' or answer and '1' or '0')\n"
    for text, other in (
        ("local rc = redis.call\n", _CLOCK),
        (call, call + told if straight else "local ok, answer = true, nil\n"),
        ("\nreturn answers\n", "\nanswers[#answers + 1] = hits\nreturn answers\n"),
    ):
        assert source.count(text) == 1, text
        source = source.replace(text, other)
    return source


class OneWay(Rig):
    """A rig with a clock of its own, whose script has its straight way or has only the interpreter."""

    def __init__(self, client: Any, kind: str, *, straight: bool) -> None:
        super().__init__(client, kind)
        self._straight = straight
        self.ticks = BEGIN
        #: Of the commits of the last call: which were applied straight ahead (1), which were not (0).
        self.hits = ""

    def script(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Runs a script."""
        if name != "commit":
            return super().script(name, keys, args)
        self.ticks += STEP_MS
        source = _source(straight=self._straight)
        *answers, hits = self.client.eval(source, len(keys) + 1, *keys, self.ticks, *args)
        self.hits = hits.decode()
        return answers

    def content(self) -> dict[str, str]:
        """Returns everything under every key, pending entries too, and the minutes that it lives on."""
        tag = self.keys.tag
        rows = self.client.eval(_CONTENT, 0, f"{tag}:*".replace("{", "[{]"), GROUP)
        found: dict[str, str] = {}
        for name, kind, content, pending, ttl_ms in rows:
            if kind == b"hash":
                content = sorted(zip(content[::2], content[1::2], strict=True))
            if kind == b"set":
                content = sorted(content)
            minutes = ttl_ms if ttl_ms < 0 else round(ttl_ms / 60_000)
            text = str((kind.decode(), content, pending, minutes)).replace(tag, "")
            found[name.decode().removeprefix(tag)] = text
        return found
