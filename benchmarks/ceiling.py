"""A hand-made loop with the same shape and none of the guarantees: what Python and Redis allow at most.

Streams, one Lua call per batch, nothing else: no fence, no slots, no retries, no recovery, no typed events.
Run as a process: `python benchmarks/ceiling.py URL`.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import Any

import msgpack
import redis.asyncio as redis

HOP = """
local i = 2
for n = 1, ARGV[1] do
  redis.call('XACK', KEYS[ARGV[i] + 0], 'g', ARGV[i + 1])
  redis.call('XDEL', KEYS[ARGV[i] + 0], ARGV[i + 1])
  redis.call('XADD', KEYS[ARGV[i] + 1], '*', 'd', ARGV[i + 2])
  i = i + 3
end
return 1
"""
#: Three hops and the stream that the producer reads results from.
STREAMS = ("{c}:1", "{c}:2", "{c}:3", "{c}:out")


async def main(url: str) -> None:
    reads, writes = redis.Redis.from_url(url), redis.Redis.from_url(url)
    for name in STREAMS[:3]:
        with suppress(redis.ResponseError):
            await reads.xgroup_create(name, "g", "0", mkstream=True)
    hop = writes.register_script(HOP)
    print("ready", flush=True)
    while True:
        reply: Any = await reads.xreadgroup(
            "g", "me", dict.fromkeys(STREAMS[:3], ">"), count=100, block=2000
        )
        args: list[Any] = []
        for name, entries in reply:
            index = STREAMS.index(name.decode()) + 1
            for entry, fields in entries:
                args += (index, entry, msgpack.packb(msgpack.unpackb(fields[b"d"])))
        if args:
            await hop(keys=STREAMS, args=[len(args) // 3, *args])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
