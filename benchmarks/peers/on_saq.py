"""SAQ: a step enqueues the next one; a counter in Redis joins a fan."""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import Any

import uvloop
from saq import Queue, Worker

from benchmarks.peers.peer import IO_SECONDS, Peer, Waiting, bounded, burn

queue = Queue.from_url(os.environ["BENCH_REDIS_URL"])
WAIT_SECONDS = 120


async def one(ctx: dict[str, Any], *, n: Any) -> Any:
    return n


async def chain(ctx: dict[str, Any], *, n: int, job: str) -> None:
    await queue.enqueue("chain2", n=n, job=job)


async def chain2(ctx: dict[str, Any], *, n: int, job: str) -> None:
    await queue.enqueue("one", key=job, n=n)


async def fan(ctx: dict[str, Any], *, n: int, job: str) -> None:
    await bounded([lambda: queue.enqueue("child", n=n, job=job)] * n)


async def child(ctx: dict[str, Any], *, n: int, job: str) -> None:
    if await queue.redis.incr("fan:" + job) == n:
        await queue.enqueue("one", key=job, n=n)


async def io(ctx: dict[str, Any], *, n: int) -> int:
    await asyncio.sleep(IO_SECONDS)
    return n


async def cpu(ctx: dict[str, Any], *, n: int) -> int:
    burn()
    return n


class Adapter(Peer):
    """Waits by its pub/sub, subscribed before the job is enqueued, then reads the job."""

    async def open(self) -> None:
        await queue.connect()
        self._prefix, self._ids = os.urandom(4).hex(), itertools.count()

    async def close(self) -> None:
        await queue.disconnect()

    async def start(self, kind: str, value: Any) -> Waiting:
        key = f"{self._prefix}{next(self._ids)}"
        waiting = asyncio.create_task(self._result(key))
        await asyncio.sleep(0)
        if kind in ("chain", "fan"):
            await queue.enqueue(kind, n=value, job=key)
        else:
            await queue.enqueue("one" if kind == "echo" else kind, key=key, n=value)
        return waiting

    async def _result(self, key: str) -> Any:
        async def ended(_: str, status: Any) -> bool:
            return getattr(status, "value", status) == "complete"

        await queue.listen([key], ended, timeout=WAIT_SECONDS)
        job = await queue.job(key)
        return job.result if job else None


async def main() -> None:
    functions = [one, chain, chain2, fan, child, io, cpu]
    await queue.connect()
    await Worker(queue, functions=functions, concurrency=100).start()


if __name__ == "__main__":
    uvloop.run(main())
