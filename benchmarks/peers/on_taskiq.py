"""taskiq with Redis streams: a step starts the next one; a counter in Redis joins a fan."""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import Any

from redis.asyncio import Redis
from taskiq import AsyncTaskiqTask
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.peers.peer import IO_SECONDS, Peer, Waiting, bounded, burn

URL = os.environ["BENCH_REDIS_URL"]
POLL_SECONDS = 0.001
WAIT_SECONDS = 120

results = RedisAsyncResultBackend(URL, result_ex_time=3600)
broker = RedisStreamBroker(URL, consumer_id="0").with_result_backend(results)
counters = Redis.from_url(URL)


@broker.task
async def one(n: Any) -> Any:
    return n


@broker.task
async def chain(n: int, job: str) -> None:
    await chain2.kiq(n, job)


@broker.task
async def chain2(n: int, job: str) -> None:
    await one.kicker().with_task_id(job).kiq(n)


@broker.task
async def fan(width: int, job: str) -> None:
    await bounded([lambda: child.kiq(width, job)] * width)


@broker.task
async def child(width: int, job: str) -> None:
    if await counters.incr("fan:" + job) == width:
        await one.kicker().with_task_id(job).kiq(width)


@broker.task
async def io(n: int) -> int:
    await asyncio.sleep(IO_SECONDS)
    return n


@broker.task
async def cpu(n: int) -> int:
    burn()
    return n


TASKS: dict[str, Any] = {"one": one, "echo": one, "io": io, "cpu": cpu, "chain": chain, "fan": fan}


class Adapter(Peer):
    """Results are polled each millisecond (its default is 200)."""

    async def open(self) -> None:
        await broker.startup()
        self._prefix, self._ids = os.urandom(4).hex(), itertools.count()

    async def close(self) -> None:
        await broker.shutdown()

    async def start(self, kind: str, value: Any) -> Waiting:
        job = f"{self._prefix}{next(self._ids)}"
        if kind in ("chain", "fan"):
            await TASKS[kind].kiq(value, job)
        else:
            await TASKS[kind].kicker().with_task_id(job).kiq(value)
        return self._result(job)

    async def _result(self, job: str) -> Any:
        task: AsyncTaskiqTask[Any] = AsyncTaskiqTask(job, results)
        result = await task.wait_result(check_interval=POLL_SECONDS, timeout=WAIT_SECONDS)
        return result.return_value
