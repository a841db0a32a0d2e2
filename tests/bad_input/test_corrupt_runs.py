"""Corrupted data of one run stays its own trouble: the worker goes on, and the run is put aside by name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.errors import StoreError, WorkflowRuntimeError
from tests.conformance.conftest import FLEETS, place_url
from tests.conformance.place import Place
from tests.support.wait import eventually


class Go(Event):
    pass


class Held(Workflow, types=[Go]):
    """Goes on when somebody says so, so that its run can be damaged before."""

    go_on: asyncio.Event

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Go())
        await Held.go_on.wait()
        return StopEvent(result="done")


class Add(Workflow):
    @step
    async def add(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.get("n") + 1)


@pytest_asyncio.fixture(params=FLEETS)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    place = Place(place_url(request), f"b{id(request):x}")
    yield place
    await place.close()


async def test_a_key_of_a_wrong_type_ends_in_its_own_run(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    Held.go_on = asyncio.Event()
    await place.serve(Held)
    await place.serve(Add)
    damaged, sound = [await place.client.start(Held, run_id=name) for name in ("bad", "fine")]
    for handler in (damaged, sound):
        async for _ in handler.stream_events():
            break
    await place.call("DEL", place.keys.open("bad"))
    await place.call("SET", place.keys.open("bad"), "no hash any more")
    with pytest.raises(WorkflowRuntimeError, match="a key of run bad has a wrong type"):
        await damaged.ctx.store.set("go", value=True)
    Held.go_on.set()

    async def put_aside() -> bool:
        return await place.call("XLEN", place.keys.dead) == 1

    await eventually(put_aside, 10.0)
    assert await sound == "done"
    assert await (await place.client.start(Add, n=1)) == 2
    [[_, fields]] = await place.call("XRANGE", place.keys.dead, "-", "+")
    letter = dict(zip(fields[::2], fields[1::2], strict=True))
    assert letter[b"run"] == b"bad"
    assert letter[b"reason"] == b"broken run"
    assert "a key of the run has a wrong type" in caplog.text
    assert [record for record in caplog.records if record.levelno >= logging.CRITICAL] == []


async def test_a_record_that_is_no_hash_is_an_error_for_who_asks_for_that_run(
    place: Place,
) -> None:
    await place.serve(Add)
    await place.call("SET", place.keys.run("odd"), "x")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await place.client.handler("odd").status()
    assert await (await place.client.start(Add, n=1)) == 2


async def test_entries_that_are_no_deliveries_are_taken_out_and_the_next_is_run(
    place: Place,
) -> None:
    await place.serve(Add)
    assert await (await place.client.start(Add, n=1)) == 2
    stream = place.keys.stream("Add", "StartEvent", "add")
    await place.call("XADD", stream, "*", "nonsense", b"\xff\xfe")
    await place.call("XADD", stream, "*", "r", "nobody", "i", "d", "d", b"\x93\x01")
    assert await (await place.client.start(Add, n=2)) == 3

    async def empty() -> bool:
        return await place.call("XLEN", stream) == 0

    await eventually(empty, 10.0)


async def test_a_lost_group_is_made_again(place: Place) -> None:
    await place.serve(Add)
    assert await (await place.client.start(Add, n=1)) == 2
    stream = place.keys.stream("Add", "StartEvent", "add")
    await place.call("DEL", stream)
    assert await (await place.client.start(Add, n=2)) == 3
