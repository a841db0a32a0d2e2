"""docket (pydocket): a task adds the next one; a counter in Redis joins a fan."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from docket import Docket, Worker
from redis.asyncio import Redis

from benchmarks.peers.peer import IO_SECONDS, Peer, Waiting, bounded, burn

URL = os.environ["BENCH_REDIS_URL"]
WAIT = timedelta(seconds=120)
#: Its pool refuses more than 100 connections, of which each wait takes one, and a task up to two.
AT_ONCE = 40

docket = Docket(name="bench", url=URL)
counters = Redis.from_url(URL)


async def one(n: Any) -> Any:
    return n


async def chain(n: int, key: str) -> None:
    await docket.add(chain2)(n, key)


async def chain2(n: int, key: str) -> None:
    await docket.add(one, key=key)(n)


async def fan(width: int, key: str) -> None:
    await docket.add_many([docket.call(child)(width, key) for _ in range(width)])


async def child(width: int, key: str) -> None:
    if await counters.incr("fan:" + key) == width:
        await docket.add(one, key=key)(width)


async def io(n: int) -> int:
    await asyncio.sleep(IO_SECONDS)
    return n


async def cpu(n: int) -> int:
    burn()
    return n


TASKS: dict[str, Any] = {"one": one, "echo": one, "io": io, "cpu": cpu, "chain": chain, "fan": fan}


class Adapter(Peer):
    """Waits by `get_result`; for the last of a chain or a fan, once it is known."""

    async def open(self) -> None:
        await docket.__aenter__()
        self._prefix, self._ids = os.urandom(4).hex(), itertools.count()
        for task in (*TASKS.values(), chain2, child):
            docket.register(task)

    async def close(self) -> None:
        await docket.__aexit__(None, None, None)

    async def start(self, kind: str, value: Any) -> Waiting:
        if kind in ("chain", "fan"):
            key = f"{self._prefix}{next(self._ids)}"
            await docket.add(TASKS[kind])(value, key)
            return self._last(key)
        execution = await docket.add(TASKS[kind])(value)
        return execution.get_result(timeout=WAIT)

    async def start_many(self, kind: str, values: Sequence[Any]) -> Waiting:
        if kind in ("chain", "fan"):
            starts = [lambda v=value: self.start(kind, v) for value in values]
            waiting = await bounded(starts, AT_ONCE)
            return bounded([lambda w=each: w for each in waiting], AT_ONCE)
        executions = await docket.add_many([docket.call(TASKS[kind])(value) for value in values])
        return bounded([lambda e=each: e.get_result(timeout=WAIT) for each in executions], AT_ONCE)

    async def _last(self, key: str) -> Any:
        while (execution := await docket.get_execution(key)) is None:  # noqa: ASYNC110 - not known yet
            await asyncio.sleep(0.001)
        return await execution.get_result(timeout=WAIT)


async def main() -> None:
    async with docket:
        for task in (*TASKS.values(), chain2, child):
            docket.register(task)
        check = timedelta(milliseconds=5)
        async with Worker(docket, concurrency=AT_ONCE, minimum_check_interval=check) as worker:
            await worker.run_forever()


if __name__ == "__main__":
    asyncio.run(main())
