"""Whoever awaits runs is told of their ends: from the announcement where it says enough, else by a read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from stepfleet import StartEvent, StopEvent, Workflow, awaited, step
from stepfleet.errors import RunNotFound
from stepfleet.storage.reader import RunReader
from tests.conformance.place import Place
from tests.support.wait import eventually

#: Longer than what an announcement carries.
LONG = "x" * 2_000


class Echo(Workflow):
    @step
    async def answer(self, ev: StartEvent) -> StopEvent:
        if ev.text == "fail":
            raise ValueError("as asked")
        return StopEvent(result=ev.text)


@pytest.fixture(autouse=True)
def _no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would only be found by the look now and then is not found."""
    monkeypatch.setattr(awaited, "RECHECK", 60.0)


@pytest.fixture(name="looked_at")
def _looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes the runs whose records are read."""
    looked_at: list[str] = []
    runs = RunReader.runs

    async def noted(self: RunReader, run_ids: Sequence[str]) -> Any:
        looked_at.extend(run_ids)
        return await runs(self, run_ids)

    monkeypatch.setattr(RunReader, "runs", noted)
    return looked_at


async def test_short_results_of_own_runs_need_no_read(place: Place, looked_at: list[str]) -> None:
    flow = await place.serve(Echo)
    assert await flow.run(text="first") == "first"  # from now on the client hears of ends
    looked_at.clear()
    handlers = [flow.run(text=f"{n}") for n in range(50)]
    assert await asyncio.gather(*handlers) == [f"{n}" for n in range(50)]
    assert looked_at == []


async def test_a_long_result_is_read(place: Place, looked_at: list[str]) -> None:
    flow = await place.serve(Echo)
    assert await flow.run(text="first") == "first"
    looked_at.clear()
    handler = flow.run(text=LONG)
    assert await handler == LONG
    assert looked_at == [handler.run_id]


async def test_a_failure_is_read(place: Place) -> None:
    flow = await place.serve(Echo)
    assert await flow.run(text="first") == "first"
    with pytest.raises(ValueError, match="as asked"):
        await flow.run(text="fail")


async def test_an_end_that_was_heard_before_anybody_awaits_is_known(
    place: Place, looked_at: list[str]
) -> None:
    flow = await place.serve(Echo)
    assert await flow.run(text="first") == "first"
    looked_at.clear()
    handler = flow.run(text="early")
    await eventually(handler.is_done, 20.0)
    assert handler.get_stop_event() == StopEvent(result="early")
    assert await handler == "early"
    assert looked_at == []


async def test_an_end_of_which_more_was_not_said_is_read_when_somebody_awaits_it(
    fleet: Place, looked_at: list[str]
) -> None:
    flow = await fleet.serve(Echo)
    assert await flow.run(text="first") == "first"
    looked_at.clear()
    long, short = flow.run(text=LONG), flow.run(text="behind it")
    assert await short == "behind it"
    await fleet.has_ended(long.run_id)
    assert looked_at == []
    assert await long == LONG
    assert looked_at == [long.run_id]


async def test_a_run_that_ended_before_the_client_heard_of_ends_is_read(
    fleet: Place, looked_at: list[str]
) -> None:
    await fleet.serve(Echo)
    handler = await fleet.client.start(Echo, text="early")
    await fleet.has_ended(handler.run_id)
    assert await handler == "early"
    assert looked_at == [handler.run_id]


async def test_a_start_that_may_name_an_earlier_run_is_read(
    fleet: Place, looked_at: list[str]
) -> None:
    await fleet.serve(Echo)
    assert await (await fleet.client.start(Echo, run_id="same", text="once")) == "once"
    async with fleet.new_client() as client:
        assert await (await client.start(Echo, text="first")) == "first"
        looked_at.clear()
        assert await (await client.start(Echo, run_id="same", text="once")) == "once"
    assert looked_at == ["same"]


async def test_a_wait_that_was_given_up_can_be_taken_up_again(place: Place) -> None:
    flow = await place.serve(Echo)
    assert await flow.run(text="first") == "first"
    handler = flow.run(text="late")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await handler
    others = [asyncio.ensure_future(handler) for _ in range(3)]
    await asyncio.sleep(0)
    others[0].cancel()
    assert await asyncio.gather(*others[1:]) == ["late", "late"]
    assert not place.client.connection().awaited.runs


async def test_a_handler_of_an_unknown_run_can_be_awaited_again_when_the_run_is_there(
    fleet: Place,
) -> None:
    await fleet.serve(Echo)
    handler = fleet.client.handler("later", workflow=Echo)
    with pytest.raises(RunNotFound):
        await handler
    await fleet.client.start(Echo, run_id="later", text="now")
    assert await handler == "now"


async def test_a_record_that_cannot_be_read_does_not_keep_others_waiting(fleet: Place) -> None:
    await fleet.serve(Echo)
    ended = await fleet.client.start(Echo, text="there")
    await fleet.has_ended(ended.run_id)
    await fleet.call("SET", fleet.keys.run("broken"), "no hash")
    async with fleet.new_client() as client:
        broken = asyncio.ensure_future(client.handler("broken", workflow=Echo))
        good = client.handler(ended.run_id, workflow=Echo)
        async with asyncio.timeout(20.0):  # long before the next look
            assert await good == "there"
        broken.cancel()
        await asyncio.wait([broken])
    await fleet.call("DEL", fleet.keys.run("broken"))


async def test_an_announcement_that_is_lost_costs_time_and_nothing_else(
    fleet: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(awaited, "RECHECK", 0.2)
    await fleet.serve(Echo)
    async with fleet.new_client() as client:
        assert await (await client.start(Echo, text="first")) == "first"
        monkeypatch.setattr(awaited.Awaited, "told", lambda *_: None)
        handlers = await client.start_many(Echo, [{"text": f"{n}"} for n in range(3)])
        assert await asyncio.gather(*handlers) == ["0", "1", "2"]
