"""The hand-made ceiling: what Python and Redis allow at most with this shape, and no guarantees at all.

One stream, one group. Workers read up to 100 entries, run each step as a task, as users need it, and commit
what is done in one Lua call: next entries added, the result of every step recorded by id, that of a run
told to its producer, entries acknowledged and deleted. The producer adds entries in pipelines of 100 and reads
the results of its runs by their ids from a stream of its own.
There are two of it. One reads, works and commits in turn: what the goals are measured against. In the other one
reading and committing overlap on two connections, and calls are packed by hiredis: the most that is possible.
Left out: fence, slots, retries, recovery, time-outs, typed events, anything public.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any

import hiredis
import msgpack
import redis.asyncio as redis
import uvloop

from benchmarks.peers.peer import IO_SECONDS, Peer, Waiting, burn, gathered

STREAM = "{c}:work"
BATCH = 100
#: Results are kept for an hour, as queues do.
KEPT_SECONDS = 3600

#: For every message: its entry, the messages that follow (packed), and where its result goes, if it ends a run:
#: id, reply stream, value; or, if it is one of a fan: the counter, its end and the message that joins.
COMMIT = f"""
local call, stream, done = redis.call, KEYS[1], {{}}
for i = 1, #ARGV, 5 do
  done[#done + 1] = ARGV[i]
  local next, id, to, value = ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  if id ~= 'fan' then call('SET', '{{c}}:result:' .. id, value, 'EX', {KEPT_SECONDS}) end
  if next ~= '' then
    for _, message in ipairs(cmsgpack.unpack(next)) do call('XADD', stream, '*', 'd', message) end
  elseif id == 'fan' then
    local at = string.find(to, '/')
    local counter = string.sub(to, at + 1)
    if call('INCR', counter) == tonumber(string.sub(to, 1, at - 1)) then
      call('DEL', counter)
      call('XADD', stream, '*', 'd', value)
    end
  else
    call('XADD', to, 'MAXLEN', '~', 20000, '*', 'i', id, 'v', value)
  end
end
call('XACK', stream, 'g', unpack(done))
call('XDEL', stream, unpack(done))
return #done
"""

pack = msgpack.packb


def follow(*messages: list[Any]) -> bytes:
    """Pack the messages that follow, as Redis' Lua reads them."""
    return pack([pack(message) for message in messages], use_bin_type=False)


async def do(message: list[Any]) -> tuple[Any, ...]:
    """Run one step: the messages that follow, and where its result goes."""
    step, run, reply, value = message[:4]
    match step:
        case "chain":
            return (follow(["chain2", run, reply, value]), run, "", "")
        case "chain2":
            return (follow(["one", run, reply, value]), run, "", "")
        case "fan":
            join = pack(["one", run, reply, value])
            child = ["child", f"{value}/{{c}}:fan:{run}", join, None]
            return (follow(*[child] * value), run, "", "")
        case "child":
            return ("", "fan", run, reply)
        case "io":
            await asyncio.sleep(IO_SECONDS)
        case "cpu":
            burn()
    return ("", run, reply, pack(value))


async def group(url: str) -> tuple[redis.Redis, str]:
    """Return a client, and the name of the script, once stream and group are there."""
    client = redis.Redis.from_url(url, protocol=2)
    try:
        await client.xgroup_create(STREAM, "g", "0", mkstream=True)
    except redis.ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise
    return client, await client.script_load(COMMIT)


async def in_turn(url: str) -> None:
    """Read a batch, run its steps, commit it, read the next one: with redis-py as it is."""
    client, sha = await group(url)
    me = str(os.getpid())
    while True:
        found = await client.xreadgroup("g", me, {STREAM: ">"}, count=BATCH, block=2000)
        for _, entries in found:
            messages = [msgpack.unpackb(fields[b"d"]) for _, fields in entries]
            results = await asyncio.gather(*map(do, messages))
            done: list[Any] = []
            for (entry, _), result in zip(entries, results, strict=True):
                done += (entry, *result)
            await client.evalsha(sha, 1, STREAM, *done)


class Overlapping:
    """Reads, works and commits at the same time; what is done during a commit goes with the next one."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._done: list[Any] = []
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(BATCH)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        client, sha = await group(self._url)
        reads, writes = (client.connection_pool.make_connection() for _ in range(2))
        await asyncio.gather(reads.connect(), writes.connect())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(reads))
            tasks.create_task(self._commit(writes, sha))

    async def _read(self, link: Any) -> None:
        me = str(os.getpid())
        while True:
            call = ("XREADGROUP", "GROUP", "g", me, "COUNT", BATCH, "BLOCK", 2000)
            await link.send_packed_command([hiredis.pack_command((*call, "STREAMS", STREAM, ">"))])
            for _, entries in await link.read_response(timeout=5) or ():
                for entry, fields in entries:
                    await self._slots.acquire()
                    task = asyncio.create_task(self._work(entry, msgpack.unpackb(fields[1])))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0)

    async def _work(self, entry: bytes, message: list[Any]) -> None:
        result = await do(message)
        self._done += (entry, *result)
        self._slots.release()
        self._wake.set()

    async def _commit(self, link: Any, sha: str) -> None:
        while True:
            await self._wake.wait()
            batch, self._done = self._done, []
            self._wake.clear()
            call = hiredis.pack_command(("EVALSHA", sha, 1, STREAM, *batch))
            await link.send_packed_command([call])
            await link.read_response()


class Adapter(Peer):
    """The producer of the ceiling."""

    async def open(self) -> None:
        self._client = redis.Redis.from_url(self.url, protocol=2)
        self._prefix, self._ids = os.urandom(4).hex(), itertools.count()
        self._reply = "{c}:replies:" + self._prefix
        self._waiting: dict[bytes, asyncio.Future[Any]] = {}
        self._reader = asyncio.create_task(self._read_replies())

    async def close(self) -> None:
        self._reader.cancel()
        await self._client.aclose()

    async def start(self, kind: str, value: Any) -> Waiting:
        message, waiting = self._new(kind, value)
        await self._client.xadd(STREAM, {"d": message})
        return waiting

    async def start_many(self, kind: str, values: Sequence[Any]) -> Waiting:
        waiting: list[Waiting] = []
        for chunk in (values[at : at + BATCH] for at in range(0, len(values), BATCH)):
            packed: list[bytes] = []
            for value in chunk:
                message, future = self._new(kind, value)
                waiting.append(future)
                packed.append(hiredis.pack_command(("XADD", STREAM, "*", "d", message)))
            link = await self._client.connection_pool.get_connection()
            await link.send_packed_command([b"".join(packed)])
            for _ in packed:
                await link.read_response()
            await self._client.connection_pool.release(link)
        return gathered(waiting)

    def _new(self, kind: str, value: Any) -> tuple[bytes, asyncio.Future[Any]]:
        run = f"{self._prefix}{next(self._ids)}"
        future = self._waiting[run.encode()] = asyncio.get_running_loop().create_future()
        step = "one" if kind == "echo" else kind
        return pack([step, run, self._reply, value]), future

    async def _read_replies(self) -> None:
        link = self._client.connection_pool.make_connection()
        await link.connect()
        last: bytes | str = "0"
        while True:
            call = ("XREAD", "COUNT", 1000, "BLOCK", 2000, "STREAMS", self._reply, last)
            await link.send_packed_command([hiredis.pack_command(call)])
            for _, entries in await link.read_response(timeout=5) or ():
                for entry, fields in entries:
                    self._waiting.pop(fields[1]).set_result(msgpack.unpackb(fields[3]))
                    last = entry


if __name__ == "__main__":
    address = os.environ["BENCH_REDIS_URL"]
    uvloop.run(Overlapping(address).run() if "overlapping" in sys.argv else in_turn(address))
