"""`catch_error`: steps that run when others failed for good, within a budget for each line of events."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, catch_error, step
from stepfleet.errors import (
    WorkflowCancelledByUser,
    WorkflowTimeoutError,
    WorkflowValidationError,
)
from stepfleet.events import StepFailedEvent, WorkflowFailedEvent
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_none
from tests.conformance.place import Place


class Item(Event):
    n: int = 0


class Other(Event):
    n: int = 0


class OwnError(Exception):
    pass


async def test_a_handler_gets_the_failure_once_the_retries_are_used_up(place: Place) -> None:
    tries: list[int] = []

    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item(n=7)

        @step(retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(3)))
        async def work(self, ev: Item) -> StopEvent:
            tries.append(ev.n)
            raise OwnError("no")

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            assert isinstance(ev.input_event, Item)
            assert isinstance(ev.exception, OwnError)
            return StopEvent(
                result={
                    "step": ev.step_name,
                    "n": ev.input_event.n,
                    "error": str(ev.exception),
                    "attempts": ev.attempts,
                    "elapsed": ev.elapsed_seconds,
                    "at": ev.failed_at,
                }
            )

    flow = await place.serve(Flow)
    told = await flow.run()
    assert tries == [7, 7, 7]
    age = datetime.now(UTC) - told.pop("at")
    assert abs(age.total_seconds()) < 60
    assert 0 <= told.pop("elapsed") < 60
    assert told == {"step": "work", "n": 7, "error": "no", "attempts": 3}


async def test_an_event_of_a_handler_takes_its_way_through_the_steps(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            raise ValueError("at once")

        @step
        async def work(self, ev: Item) -> StopEvent:
            return StopEvent(result=ev.n)

        @catch_error
        async def rescue(self, ctx: Context, ev: StepFailedEvent) -> Item:
            await ctx.store.set("seen", ev.step_name)
            return Item(n=42)

    flow = await place.serve(Flow)
    handler = flow.run()
    assert await handler == 42
    assert await handler.ctx.store.get("seen") == "begin"


async def test_a_handler_that_raises_ends_the_run_with_its_own_error(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            raise ValueError("the step")

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            raise KeyError("the handler")

    flow = await place.serve(Flow)
    handler = flow.run()
    shown = [event async for event in handler.stream_events()]
    with pytest.raises(KeyError, match="the handler"):
        await handler
    (end,) = shown
    assert isinstance(end, WorkflowFailedEvent)
    assert end.step_name == "rescue"


async def test_a_step_has_the_handler_that_names_it_before_the_one_for_all(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item | Other:
            return Item() if ev.kind == "item" else Other()

        @step
        async def work(self, ev: Item) -> StopEvent:
            raise ValueError("work")

        @step
        async def more(self, ev: Other) -> StopEvent:
            raise ValueError("more")

        @catch_error(for_steps=["work"])
        async def of_work(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result=f"of_work: {ev.step_name}")

        @catch_error
        async def of_all(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result=f"of_all: {ev.step_name}")

    flow = await place.serve(Flow)
    assert await flow.run(kind="item") == "of_work: work"
    assert await flow.run(kind="other") == "of_all: more"


async def test_a_step_that_no_handler_covers_ends_the_run(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            raise ValueError("not covered")

        @step
        async def work(self, ev: Item) -> StopEvent:
            return StopEvent()

        @catch_error(for_steps=["work"])
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result="rescued")

    flow = await place.serve(Flow)
    with pytest.raises(ValueError, match="not covered"):
        await flow.run()


async def test_the_budget_of_a_handler_ends_a_line_of_failures(place: Place) -> None:
    calls: list[int] = []

    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item(n=1)

        @step
        async def work(self, ev: Item) -> StopEvent:
            raise ValueError(f"bad {ev.n}")

        @catch_error(max_recoveries=2)
        async def rescue(self, ev: StepFailedEvent) -> Item:
            calls.append(ev.input_event.n)
            return Item(n=ev.input_event.n + 1)

    flow = await place.serve(Flow)
    with pytest.raises(ValueError, match="bad 3"):
        await flow.run()
    assert calls == [1, 2]


async def test_a_budget_rides_on_what_steps_send_too(place: Place) -> None:
    calls: list[int] = []

    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item(n=1)

        @step
        async def work(self, ctx: Context, ev: Item) -> Other | None:
            if ev.n > 2:
                return None
            ctx.send_event(Other(n=ev.n))
            return None

        @step
        async def fail(self, ev: Other) -> StopEvent:
            raise ValueError(f"bad {ev.n}")

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> Item:
            calls.append(ev.input_event.n)
            return Item(n=ev.input_event.n + 1)

    flow = await place.serve(Flow, timeout=10)
    with pytest.raises(ValueError, match="bad 2"):
        await flow.run()
    assert calls == [1]


async def test_lines_of_events_have_budgets_of_their_own(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(5):
                ctx.send_event(Item(n=n))
            return None

        @step
        async def work(self, ev: Item) -> Other:
            raise ValueError(f"bad {ev.n}")

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> Other:
            return Other(n=ev.input_event.n)

        @step
        async def join(self, ctx: Context, ev: Other) -> StopEvent | None:
            found = ctx.collect_events(ev, [Other] * 5)
            return None if found is None else StopEvent(result=sorted(other.n for other in found))

    flow = await place.serve(Flow, timeout=20)
    assert await flow.run() == [0, 1, 2, 3, 4]


async def test_each_handler_counts_for_itself(place: Place) -> None:
    calls: list[str] = []

    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            raise ValueError("first")

        @step
        async def work(self, ev: Item) -> StopEvent:
            raise ValueError("second")

        @catch_error(for_steps=["begin"])
        async def of_begin(self, ev: StepFailedEvent) -> Item:
            calls.append("of_begin")
            return Item()

        @catch_error
        async def of_all(self, ev: StepFailedEvent) -> StopEvent:
            calls.append("of_all")
            return StopEvent(result="saved")

    flow = await place.serve(Flow)
    assert await flow.run() == "saved"
    assert calls == ["of_begin", "of_all"]


async def test_a_handler_may_wait_for_somebody_outside(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            raise ValueError("help")

        @catch_error
        async def rescue(self, ctx: Context, ev: StepFailedEvent) -> StopEvent:
            answer = await ctx.wait_for_event(Other, waiter_event=Item(n=1))
            return StopEvent(result=(str(ev.exception), answer.n))

    flow = await place.serve(Flow)
    handler = flow.run()
    async for event in handler.stream_events():
        if isinstance(event, Item):
            await handler.send_event(Other(n=5))
    assert list(await handler) == ["help", 5]


async def test_the_time_out_of_a_step_is_handled_and_that_of_the_run_is_not(place: Place) -> None:
    class Flow(Workflow):
        @step(timeout=0.1)
        async def begin(self, ev: StartEvent) -> Item:
            await asyncio.sleep(30)
            return Item()

        @step
        async def work(self, ev: Item) -> StopEvent:
            await asyncio.sleep(30)
            return StopEvent()

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> Item:
            assert isinstance(ev.exception, TimeoutError)
            return Item()

    flow = await place.serve(Flow, timeout=3.0)
    with pytest.raises(WorkflowTimeoutError, match="work"):
        await flow.run()


async def test_a_cancelled_run_is_not_handled(place: Place) -> None:
    handled: list[Any] = []
    running = asyncio.Event()

    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            running.set()
            await asyncio.sleep(30)
            return StopEvent()

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            handled.append(ev)
            return StopEvent()

    flow = await place.serve(Flow)
    handler = flow.run()
    await running.wait()
    await handler.cancel_run()
    with pytest.raises(WorkflowCancelledByUser):
        await handler
    assert handled == []


async def test_failures_are_routed_without_validation_too(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            raise ValueError("x")

        @step
        async def end(self, ev: Other) -> StopEvent:
            return StopEvent()

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result="rescued")

    flow = await place.serve(Flow, disable_validation=True)
    assert await flow.run() == "rescued"


async def test_handlers_that_do_not_fit_are_refused_at_the_start_of_a_run(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

        @catch_error(for_steps=["nope"])
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

    for unchecked in (False, True):
        with pytest.raises(WorkflowValidationError, match="lists unknown step 'nope'"):
            Flow(runtime=place.runtime, disable_validation=unchecked).run()


async def test_a_failure_too_large_to_travel_is_handled_by_its_name(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            raise ValueError("x" * 30_000_000)

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result=[type(ev.exception).__name__, len(str(ev.exception))])

    flow = await place.serve(Flow)
    name, length = await flow.run()
    assert name in ("UnreconstructedException", "ValueError")
    assert length <= 30_000
