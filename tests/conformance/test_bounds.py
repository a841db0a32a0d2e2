"""Each limit on what a run, a step or a fleet may pile up has a setting, and an error that names it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from stepfleet import (
    Context,
    Event,
    HumanResponseEvent,
    StartEvent,
    StopEvent,
    Workflow,
    catch_error,
    step,
)
from stepfleet.errors import Overloaded, TooLargeError
from stepfleet.events import StepFailedEvent
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from tests.conformance.conftest import PLACES, place_url
from tests.conformance.place import Place


class Item(Event):
    n: int = 0


class Sent(HumanResponseEvent):
    n: int


@pytest_asyncio.fixture(params=PLACES)
async def small(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """A place with small limits."""
    limits: dict[str, Any] = {
        "pending_runs_limit": 2,
        "fan_out_limit": 3,
        "collect_limit": 3,
        "waiters_limit": 2,
        "deliveries_limit": 12,
    }
    place = Place(place_url(request), f"t{uuid4().hex[:12]}", **limits)
    yield place
    await place.close()


async def test_a_step_that_emits_too_many_events_fails_by_the_name_of_the_limit(
    small: Place,
) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> list[Item] | StopEvent:
            for n in range(ev.get("sent")):
                ctx.send_event(Item(n=n))
            return [Item(n=n) for n in range(ev.get("returned"))] or StopEvent(result="alone")

        @step
        async def end(self, ctx: Context, ev: Item) -> StopEvent | None:
            return StopEvent(result="done") if ctx.collect_events(ev, [Item] * 3) else None

    flow = await small.serve(Flow)
    assert await flow.run(sent=1, returned=2) == "done"
    for sent, returned in ((4, 0), (2, 2)):
        with pytest.raises(TooLargeError) as caught:
            await flow.run(sent=sent, returned=returned)
        assert str(caught.value) == (
            "step 'begin' sends and returns 4 events in one execution, over the limit of 3: split "
            "the work over several events, or raise the setting fan_out_limit"
        )


async def test_a_step_that_collects_too_many_events_fails_by_the_name_of_the_limit(
    small: Place,
) -> None:
    class Flow(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent | None:
            return StopEvent() if ctx.collect_events(ev, [StartEvent] * 4) else None

    flow = await small.serve(Flow)
    with pytest.raises(TooLargeError) as caught:
        await flow.run()
    assert str(caught.value) == (
        "step 'only' collects 4 events, over the limit of 3: collect in parts, or raise the "
        "setting collect_limit"
    )


async def test_a_wait_too_many_fails_its_step_by_the_name_of_the_limit(small: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(3):
                ctx.send_event(Item(n=n))

        @step(num_workers=1)
        async def ask(self, ctx: Context, ev: Item) -> StopEvent:
            await ctx.wait_for_event(HumanResponseEvent, waiter_id=str(ev.n))
            return StopEvent()

    flow = await small.serve(Flow)
    handler = flow.run(run_id="waits")
    with pytest.raises(TooLargeError) as caught:
        await handler
    assert str(caught.value) == (
        "step 'ask' cannot wait: 2 steps of run waits wait already. Wait in fewer of them, or "
        "raise the setting waiters_limit"
    )


@pytest.mark.parametrize("how", ["returns", "sends", "lists"])
async def test_a_run_that_goes_round_for_ever_fails_by_the_name_of_the_limit(
    small: Place, how: str
) -> None:
    executions: list[int] = []

    class Flow(Workflow):
        @step(retry_policy=retry_policy(wait=wait_fixed(0.0), stop=stop_after_attempt(3)))
        async def turn(
            self, ctx: Context, ev: StartEvent | Item
        ) -> Item | list[Item] | StopEvent | None:
            executions.append(1)
            if how == "sends":
                ctx.send_event(Item(n=len(executions)))
                return None
            return [Item(n=0)] if how == "lists" else Item(n=0)

        @catch_error
        async def mend(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result="mended")

    flow = await small.serve(Flow)
    handler = flow.run(run_id="loop")
    with pytest.raises(TooLargeError) as caught:
        await handler
    assert str(caught.value) == (
        "step 'turn' cannot go on: run loop has had as many deliveries as deliveries_limit allows. "
        "Look for a loop that does not end, split the work over several runs, or raise the setting"
    )
    assert 12 <= len(executions) <= 13


@pytest.mark.parametrize("wait", [0.0, 0.01])
async def test_retries_and_answers_are_no_further_deliveries(small: Place, wait: float) -> None:
    class Flow(Workflow):
        @step(retry_policy=retry_policy(wait=wait_fixed(wait), stop=stop_after_attempt(30)))
        async def begin(self, ctx: Context, ev: StartEvent) -> Item:
            if ctx.retry_info().retry_number < 20:
                raise ValueError("not yet")
            return Item()

        @step
        async def end(self, ctx: Context, ev: Item) -> StopEvent:
            for n in range(15):
                with suppress(TimeoutError):
                    await ctx.wait_for_event(HumanResponseEvent, waiter_id=str(n), timeout=0.01)
            return StopEvent(result="done")

    flow = await small.serve(Flow)
    assert await flow.run() == "done"


async def test_a_program_cannot_send_a_run_more_events_than_the_limit(small: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(Item)
            return StopEvent(result="done")

        @step
        async def take(self, ev: Sent) -> None: ...

    flow = await small.serve(Flow)
    handler = flow.run(run_id="sent")
    for n in range(11):
        await handler.send_event(Sent(n=n))
    with pytest.raises(TooLargeError) as caught:
        await handler.send_event(Sent(n=11))
    assert str(caught.value) == (
        "run sent takes no more events: it has had as many deliveries as deliveries_limit allows. "
        "Go on in another run, or raise the setting"
    )
    await handler.cancel_run()


async def test_a_fleet_with_enough_to_do_refuses_further_runs_until_one_has_ended(
    small: Place,
) -> None:
    class Flow(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            answer = await ctx.wait_for_event(HumanResponseEvent)
            return StopEvent(result=answer.response)

    flow = await small.serve(Flow)
    first, second = flow.run(run_id="one"), flow.run(run_id="two")
    assert [(await one.status()).status for one in (first, second)] == ["running"] * 2
    with pytest.raises(Overloaded) as caught:
        await flow.run(run_id="three")
    assert str(caught.value) == (
        "run three was not recorded: as many runs are live as pending_runs_limit allows. Try again "
        "in 1 s, start more workers, or raise the setting"
    )
    assert caught.value.retry_after == 1.0
    assert await small.call("EXISTS", small.keys.run("three")) == 0
    await first.cancel_run()
    await second.cancel_run()
    third = flow.run(run_id="three")
    await third.status()
    await third.cancel_run()
