"""redflow: a workflow per run, executed by one worker; each step is recorded."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from redflow import StartWorkerOptions, create_client, set_default_client, start_worker, workflow

from benchmarks.peers.peer import IO_SECONDS, Peer, Waiting, bounded, burn

URL = os.environ["BENCH_REDIS_URL"]
WAIT_MS = 120_000
#: Its pool refuses too many connections, of which each start and each wait takes some.
AT_ONCE = 20


async def hand_on(n: Any) -> Any:
    return n


async def sleep(n: int) -> int:
    await asyncio.sleep(IO_SECONDS)
    return n


async def compute(n: int) -> int:
    burn()
    return n


@workflow("one")
async def one(ctx: Any) -> Any:
    return await ctx.step.run("one", hand_on, ctx.input["n"])


@workflow("chain")
async def chain(ctx: Any) -> Any:
    first = await ctx.step.run("one", hand_on, ctx.input["n"])
    second = await ctx.step.run("two", hand_on, first)
    return await ctx.step.run("three", hand_on, second)


@workflow("io")
async def io(ctx: Any) -> Any:
    return await ctx.step.run("one", sleep, ctx.input["n"])


@workflow("cpu")
async def cpu(ctx: Any) -> Any:
    return await ctx.step.run("one", compute, ctx.input["n"])


FLOWS: dict[str, Any] = {"one": one, "echo": one, "chain": chain, "io": io, "cpu": cpu}


class Adapter(Peer):
    """Runs are awaited by their handles."""

    async def open(self) -> None:
        set_default_client(create_client(app="bench", url=URL))

    async def start(self, kind: str, value: Any) -> Waiting:
        handle = await FLOWS[kind].run({"n": value})
        return handle.result(timeout_ms=WAIT_MS)

    async def start_many(self, kind: str, values: Sequence[Any]) -> Waiting:
        starts = [lambda v=value: self.start(kind, v) for value in values]
        waiting = await bounded(starts, AT_ONCE)
        return bounded([lambda w=each: w for each in waiting], AT_ONCE)


async def main() -> None:
    set_default_client(create_client(app="bench", url=URL))
    await start_worker(StartWorkerOptions(app="bench", url=URL, concurrency=AT_ONCE))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
