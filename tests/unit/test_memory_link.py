"""A connection to the server in this process: a reader hears of what it waits for, and of nothing else."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from stepfleet.embedded.memory import MemoryLink, memory_fleet
from stepfleet.storage.link import Arg

AFTER = ("STREAMS", "mine", "beside", "0", "0")


def links() -> tuple[MemoryLink, MemoryLink]:
    fleet = memory_fleet()
    return cast("tuple[MemoryLink, MemoryLink]", (fleet.link("reads"), fleet.link("writes")))


async def test_a_write_to_one_of_its_streams_wakes_a_reader() -> None:
    for stream in ("mine", "beside"):
        reads, writes = links()
        reading = asyncio.create_task(reads.read(("XREAD",), AFTER, block=30))
        await asyncio.sleep(0)
        await writes.call("XADD", stream, "*", "f", "v")
        async with asyncio.timeout(20):
            ((name, rows),) = await reading
        assert (name.decode(), len(rows)) == (stream, 1)


async def test_writes_to_other_keys_cost_a_reader_no_call() -> None:
    reads, writes = links()
    reading = asyncio.create_task(reads.read(("XREAD",), AFTER, block=30))
    while not reads.calls_made:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)
    for _ in range(20):
        await writes.call("XADD", "elsewhere", "*", "f", "v")
    assert reads.calls_made == 1
    reads.interrupt()
    async with asyncio.timeout(20):
        assert not await reading


async def test_a_write_while_it_looks_is_not_missed() -> None:
    reads, writes = links()
    look, looks = reads.call, 0

    async def call(*command: Arg, timeout: float = 5.0) -> Any:
        nonlocal looks
        looks += 1
        found = await look(*command, timeout=timeout)
        if looks == 1:
            await writes.call("XADD", "mine", "*", "f", "v")
        return found

    reads.call = call  # type: ignore[method-assign]
    async with asyncio.timeout(20):
        assert await reads.read(("XREAD",), AFTER, block=30)


async def test_a_reader_that_is_given_up_is_forgotten() -> None:
    reads, writes = links()
    reading = asyncio.create_task(reads.read(("XREAD",), AFTER, block=30))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])
    await writes.call("XADD", "mine", "*", "f", "v")
    async with asyncio.timeout(20):
        assert await reads.read(("XREAD",), AFTER, block=30)
