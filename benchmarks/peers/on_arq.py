"""arq: a step enqueues the next one; a counter in Redis joins a fan."""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import Any

import uvloop
from arq.connections import RedisSettings, create_pool
from arq.jobs import Job
from arq.worker import Worker

from benchmarks.peers.peer import IO_SECONDS, Peer, Waiting, bounded, burn

SERVER = RedisSettings.from_dsn(os.environ["BENCH_REDIS_URL"])
POLL_SECONDS = 0.001


async def one(ctx: dict[str, Any], n: Any) -> Any:
    return n


async def chain(ctx: dict[str, Any], n: int, job: str) -> None:
    await ctx["redis"].enqueue_job("chain2", n, job)


async def chain2(ctx: dict[str, Any], n: int, job: str) -> None:
    await ctx["redis"].enqueue_job("one", n, _job_id=job)


async def fan(ctx: dict[str, Any], width: int, job: str) -> None:
    await bounded([lambda: ctx["redis"].enqueue_job("child", width, job)] * width)


async def child(ctx: dict[str, Any], width: int, job: str) -> None:
    if await ctx["redis"].incr("fan:" + job) == width:
        await ctx["redis"].enqueue_job("one", width, _job_id=job)


async def io(ctx: dict[str, Any], n: int) -> int:
    await asyncio.sleep(IO_SECONDS)
    return n


async def cpu(ctx: dict[str, Any], n: int) -> int:
    burn()
    return n


class Adapter(Peer):
    """Results are polled by their keys: `Job.result` refuses the id of a job that is not queued yet."""

    async def open(self) -> None:
        self._pool = await create_pool(SERVER)
        self._prefix, self._ids = os.urandom(4).hex(), itertools.count()

    async def close(self) -> None:
        await self._pool.aclose()

    async def start(self, kind: str, value: Any) -> Waiting:
        job = f"{self._prefix}{next(self._ids)}"
        if kind in ("chain", "fan"):
            await self._pool.enqueue_job(kind, value, job)
        else:
            await self._pool.enqueue_job("one" if kind == "echo" else kind, value, _job_id=job)
        return self._result(Job(job, self._pool))

    async def _result(self, job: Job) -> Any:
        while (info := await job.result_info()) is None:  # noqa: ASYNC110 - as arq does it
            await asyncio.sleep(POLL_SECONDS)
        return info.result


def main() -> None:
    asyncio.set_event_loop(uvloop.new_event_loop())
    functions = [one, chain, chain2, fan, child, io, cpu]
    Worker(functions, redis_settings=SERVER, max_jobs=200, poll_delay=0.01).run()


if __name__ == "__main__":
    main()
