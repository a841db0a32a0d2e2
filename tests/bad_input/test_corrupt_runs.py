"""Corrupted data of one run stays its own trouble: the worker goes on, and the run is put aside by name."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio

from stepfleet import (
    Context,
    Event,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    step,
)
from stepfleet.errors import DecodeError, StoreError, WorkflowError, WorkflowRuntimeError
from stepfleet.events import HumanResponseEvent
from stepfleet.storage.inspector import Inspector
from tests.conformance.conftest import FLEETS, place_url
from tests.conformance.place import Place
from tests.support.wait import eventually


class Go(Event):
    pass


class Done(Event):
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
    with pytest.raises(
        WorkflowRuntimeError, match="a key of run bad is damaged: `stepfleet doctor`"
    ):
        await damaged.ctx.store.set("go", value=True)
    Held.go_on.set()

    async def put_aside() -> bool:
        return await place.call("XLEN", place.keys.dead) == 1

    await eventually(put_aside, 20.0)
    with pytest.raises(
        WorkflowRuntimeError,
        match="run bad cannot go on, a key of it is damaged: `stepfleet doctor` names what is wrong, "
        "`stepfleet runs delete bad` removes the run",
    ):
        await damaged
    assert await sound == "done"
    assert await (await place.client.start(Add, n=1)) == 2
    [[_, fields]] = await place.call("XRANGE", place.keys.dead, "-", "+")
    letter = dict(zip(fields[::2], fields[1::2], strict=True))
    assert letter[b"run"] == b"bad"
    assert letter[b"reason"].startswith(b"a key of the run is damaged: `stepfleet doctor` names")
    assert "a key of the run has a wrong type" in caplog.text
    assert [record for record in caplog.records if record.levelno >= logging.CRITICAL] == []


async def test_a_record_that_is_no_hash_is_an_error_for_who_asks_for_that_run(
    place: Place,
) -> None:
    await place.serve(Add)
    await place.call("SET", place.keys.run("odd"), "x")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await place.client.handler("odd").status()
    with pytest.raises(DecodeError, match="the record of run odd is damaged"):
        await place.client.handler("odd", workflow=Add)
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

    await eventually(empty, 20.0)


async def test_a_lost_group_is_made_again(place: Place) -> None:
    await place.serve(Add)
    assert await (await place.client.start(Add, n=1)) == 2
    stream = place.keys.stream("Add", "StartEvent", "add")
    await place.call("DEL", stream)
    assert await (await place.client.start(Add, n=2)) == 3


# -- every key of a run, each in two ways --------------------------------------------------------------


class Item(Event):
    n: int


class Rich(Workflow, types=[Go]):
    """Stands still with a wait and its timer, a buffer, held items, public events and a store."""

    go_on: asyncio.Event

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
        await ctx.store.set("kept", 1)
        ctx.write_event_to_stream(Go())
        for n in range(3):
            ctx.send_event(Item(n=n))

    @step(num_workers=1)
    async def work(self, ctx: Context, ev: Item) -> Done:
        if ev.n:
            await Rich.go_on.wait()
            await ctx.store.set("kept", ev.n)
        return Done()

    @step
    async def join(self, ctx: Context, ev: Done) -> StopEvent | None:
        return StopEvent() if ctx.collect_events(ev, [Done] * 3) else None

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.wait_for_event(HumanResponseEvent, timeout=600)
        return StopEvent()


PARTS = ("", ":open", ":hold", ":buf", ":wait", ":store", ":events", ":keys", "timers")
#: No msgpack, no UTF-8 and no number.
GARBAGE = b"\x93\x01\xc1"


async def spoil(place: Place, part: str, how: str) -> list[str]:
    """Makes keys of the run `bad` be of another type, or hold garbage; returns their names."""
    if part == "timers":
        names = [place.keys.timer_data]
    else:
        own = place.keys.run("bad") + part
        names = [own] if not part else [n for n in await place.run_keys() if n.startswith(own)]
    for name in names:
        kind = (await place.call("TYPE", name)).decode()
        if how == "type" and part != "timers":
            await place.call("DEL", name)
            await place.call("SET", name, "x")
        elif kind == "hash":
            for field in await place.call("HKEYS", name):
                await place.call("HSET", name, field, GARBAGE)
        elif kind == "list":
            for index in range(await place.call("LLEN", name)):
                await place.call("LSET", name, index, GARBAGE)
        elif kind == "stream":
            await place.call("XADD", name, "*", "x", GARBAGE)
        elif kind == "set":
            await place.call("SADD", name, GARBAGE)
    return names


@pytest.mark.parametrize("how", ["type", "content"])
@pytest.mark.parametrize("part", PARTS)
async def test_whatever_of_a_run_is_damaged_the_others_go_on_and_it_can_be_removed(
    place: Place, caplog: pytest.LogCaptureFixture, part: str, how: str
) -> None:
    Rich.go_on = asyncio.Event()
    await place.serve(Rich)
    await place.serve(Add)
    bad = await place.client.start(Rich, run_id="bad")

    async def stands_still() -> bool:
        keys = " ".join(await place.run_keys())
        return all(word in keys for word in (":wait", ":buf", ":hold:work", ":store", ":events"))

    await eventually(stands_still, 20.0)
    spoiled = await spoil(place, part, how)
    assert spoiled
    Rich.go_on.set()
    if part != ":buf":  # whose run the answer would end well
        with suppress(WorkflowError, ValueError):
            await bad.send_event(HumanResponseEvent(word="yes"))
    for n in range(20):
        assert await (await place.client.start(Add, n=n)) == n + 1

    if how == "type" and part in (":open", ":buf", ":events"):
        with pytest.raises(
            WorkflowRuntimeError, match="run bad cannot go on, a key of it is damaged"
        ):
            await bad
    if part in ("", ":hold"):
        with pytest.raises(
            WorkflowRuntimeError, match="run bad cannot go on, a key of it is damaged"
        ):
            await bad

    link = place.new_fleet("operator").link("test")
    inspector = Inspector(link, place.keys)
    listed = {run_id: record async for run_id, record in inspector.runs()}
    if not part:  # written anew
        assert (listed["bad"].status, listed["bad"].workflow) == ("failed", "Rich")
    elif how == "type" and part not in ("timers", ":keys"):
        gone = [name for name in spoiled if await place.call("EXISTS", name) == 0]
        assert gone or (await inspector.damaged()).keys() == {"bad"}
    assert len(listed) >= 20
    await inspector.delete_damaged("bad")
    await link.close()
    assert [name for name in await place.run_keys() if ":run:bad" in name] == []
    assert await (await place.client.start(Add, n=1)) == 2
    assert all(not task.done() for _, task in place.workers)
    strange = [one for one in caplog.records if one.levelno >= logging.CRITICAL]
    strange += [one for one in caplog.records if "never retrieved" in one.getMessage()]
    assert strange == []
    # what can never succeed is not tried for ever
    assert "redis refuses to write" not in caplog.text


async def test_a_run_whose_index_of_pending_work_was_removed_fails_as_soon_as_work_of_it_is_done(
    place: Place,
) -> None:
    Held.go_on = asyncio.Event()
    await place.serve(Held)
    bad = await place.client.start(Held, run_id="bad")
    async for _ in bad.stream_events():
        break
    await place.call("DEL", place.keys.open("bad"))
    Held.go_on.set()
    with pytest.raises(WorkflowRuntimeError, match="run bad cannot go on, a key of it is damaged"):
        await bad
    assert (await bad.status()).status == "failed"


class Speaks(Workflow, types=[Go]):
    """Publishes when it is told to, and stays."""

    go_on: asyncio.Event

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for _ in range(2):
            ctx.write_event_to_stream(Go())
            await Speaks.go_on.wait()
        return StopEvent(result="done")


@pytest.mark.parametrize("how", ["type", "content"])
async def test_who_reads_damaged_public_events_is_told_and_nobody_else(
    place: Place, how: str
) -> None:
    Speaks.go_on = asyncio.Event()
    await place.serve(Speaks)
    bad, sound = [await place.client.start(Speaks, run_id=name) for name in ("bad", "fine")]
    begun = {"bad": asyncio.Event(), "fine": asyncio.Event()}

    async def read(handler: WorkflowHandler) -> list[str]:
        seen: list[str] = []
        async for event in handler.stream_events():
            seen.append(type(event).__name__)
            begun[handler.run_id].set()
        return seen

    reading = [asyncio.create_task(read(handler)) for handler in (bad, sound)]
    await asyncio.gather(*(event.wait() for event in begun.values()))
    key = place.keys.events("bad")
    if how == "type":
        await place.call("DEL", key)
        await place.call("SET", key, "x")
    else:
        await place.call("XADD", key, "*", "d", GARBAGE)
    with pytest.raises(
        DecodeError,
        match=f"the public events of run bad cannot be read, {re.escape(key)} is damaged: "
        "`stepfleet doctor` names what is wrong, `stepfleet runs delete bad` removes the run",
    ):
        await reading[0]
    Speaks.go_on.set()
    assert await reading[1] == ["Go", "Go", "StopEvent"]
    assert await sound == "done"
    if how == "type":
        with pytest.raises(WorkflowRuntimeError, match="run bad cannot go on, a key of it is dam"):
            await bad
    else:  # what it does is not what it says
        assert await bad == "done"
        link = place.new_fleet("operator").link("test")
        ((_, name, entry),) = await Inspector(link, place.keys).unreadable()
        await link.close()
        await place.call("XDEL", name, entry)  # as `stepfleet doctor` says
        assert (await read(bad))[-1] == "StopEvent"


@pytest.mark.parametrize("counter", ["writes", "seq", "inbox", "version", "waits"])
async def test_one_counter_that_is_no_number_keeps_no_other_run_waiting(
    place: Place, caplog: pytest.LogCaptureFixture, counter: str
) -> None:
    Rich.go_on = asyncio.Event()
    await place.serve(Rich)
    await place.serve(Add)
    bad = await place.client.start(Rich, run_id="bad")

    async def stands_still() -> bool:
        keys = " ".join(await place.run_keys())
        return all(word in keys for word in (":wait", ":buf", ":hold:work", ":store", ":events"))

    await eventually(stands_still, 20.0)
    buffer = [name for name in await place.run_keys() if ":bad:buf:" in name]
    name = min(buffer) if counter == "version" else place.keys.run("bad")
    await place.call("HSET", name, counter, "x")
    Rich.go_on.set()
    with suppress(WorkflowError):
        await bad.send_event(Go())

    async def told() -> bool:
        return "a key of the run has a wrong type or content" in caplog.text

    if counter == "version":
        await eventually(told, 20.0)
    for n in range(20):
        assert await (await place.client.start(Add, n=n)) == n + 1
    with suppress(WorkflowError):
        await bad.cancel_run()
    assert all(not task.done() for _, task in place.workers)
    assert [one for one in caplog.records if one.levelno >= logging.CRITICAL] == []
    assert "redis refuses to write" not in caplog.text
