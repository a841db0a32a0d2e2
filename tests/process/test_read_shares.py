"""What a worker reads is shared among its streams: none starves, and one with much work is read fast."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stepfleet.core.commit import Route
from stepfleet.core.delivery import Record
from stepfleet.storage.consumer import BY_THEMSELVES, OVERLOOKED, Arrival, Consumer
from stepfleet.storage.keys import Keys
from stepfleet.storage.link import Link, connector
from stepfleet.wire import encode_record
from tests.support.servers import RedisServer, available_binaries

STREAMS = 40
ENTRIES = 500


class Streams:
    """Streams of forty steps and one consumer of them all."""

    def __init__(self, url: str) -> None:
        connect = connector(url)
        self.reading, self.link = Link(connect), Link(connect)
        self.keys = Keys("shares")
        self.routes = [Route("Flow", f"Type{number}", "step") for number in range(STREAMS)]
        self.consumer = Consumer(
            self.reading, self.link, self.keys, self.routes, consumer="host:1:abc"
        )

    async def add(self, number: int, count: int) -> None:
        route = self.routes[number]
        name = self.keys.stream(route.workflow, route.type, route.step)
        record = encode_record(Record("parent", "Type", b""))
        await self.link.calls(
            [("XADD", name, "*", "r", "run", "i", f"{n}", "d", record) for n in range(count)]
        )


@pytest.fixture(name="streams")
async def _streams(tmp_path: Path) -> AsyncIterator[Streams]:
    server = RedisServer(available_binaries()["redis"], tmp_path, appendonly=False)
    server.start()
    streams = Streams(server.url)
    await streams.consumer.create_groups()
    yield streams
    await streams.reading.close()
    await streams.link.close()
    server.stop()


@pytest.mark.parametrize("free", [1, 10, 39, 40, 100])
async def test_a_stream_with_much_work_does_not_starve_the_others(
    streams: Streams, free: int
) -> None:
    await streams.add(0, ENTRIES)
    for _ in range(4):
        assert _from(0, await streams.consumer.read(free))
    await streams.add(17, 1)
    reads = 0
    while not _from(17, await streams.consumer.read(free)):
        reads += 1
        # half of the small reads look at every stream in turn, and one of nine large ones
        assert reads <= (2 * STREAMS // free + 2 if free < STREAMS else BY_THEMSELVES)


async def test_reads_that_are_far_apart_are_of_all_streams(streams: Streams) -> None:
    await streams.add(0, ENTRIES)
    for _ in range(2):
        assert _from(0, await streams.consumer.read(100))
    await streams.add(17, 1)
    streams.consumer._looked -= OVERLOOKED
    assert _from(17, await streams.consumer.read(100))


async def test_one_stream_of_many_is_read_in_few_calls(streams: Streams) -> None:
    await streams.add(0, ENTRIES)
    before, read = streams.reading.calls_made, 0
    while read < ENTRIES:
        found = await streams.consumer.read(100)
        assert 0 < len(found) <= 100
        read += len(found)
    assert read == ENTRIES
    assert streams.reading.calls_made - before <= ENTRIES // 100 + 3


@pytest.mark.parametrize("free", [1, 10, 39])
async def test_a_few_places_are_filled_from_many_streams_in_one_call(
    streams: Streams, free: int
) -> None:
    await streams.add(STREAMS - 1, ENTRIES)
    before = streams.reading.calls_made
    assert len(await streams.consumer.read(free)) == free
    assert streams.reading.calls_made - before <= 3  # the script is loaded once


@pytest.mark.parametrize("free", [1, 10, 39])
async def test_no_more_is_read_than_can_start_at_once(streams: Streams, free: int) -> None:
    for number in range(STREAMS):
        await streams.add(number, 3)
    read = 0
    while read < 3 * STREAMS:
        found = await streams.consumer.read(free)
        assert 0 < len(found) <= free
        read += len(found)


async def test_of_brief_steps_more_is_read_than_can_start_at_once(streams: Streams) -> None:
    await streams.add(0, ENTRIES)
    await streams.consumer.read(100)
    brief = {"Type0"}

    def is_brief(route: Route) -> bool:
        return route.type in brief

    assert len(await streams.consumer.read(100, ahead=50, is_brief=is_brief)) == 150
    brief.clear()
    assert len(await streams.consumer.read(100, ahead=50, is_brief=is_brief)) == 100


async def test_a_worker_of_many_streams_is_woken_for_a_batch_of_brief_steps(
    streams: Streams,
) -> None:
    await streams.add(0, 2)
    assert len(await streams.consumer.read(100)) == 2
    woken = asyncio.create_task(
        streams.consumer.read(100, ahead=100, is_brief=lambda route: route.type == "Type0")
    )
    await asyncio.sleep(0)
    await streams.add(1, 60)
    assert len(await woken) == 60


def _from(number: int, arrivals: list[Arrival]) -> list[Arrival]:
    return [arrival for arrival in arrivals if arrival.route.type == f"Type{number}"]
