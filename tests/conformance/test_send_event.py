"""`send_event`: prompt, irrevocable, in order, once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.errors import (
    ContextStateError,
    EncodeError,
    StaleExecution,
    WorkflowRuntimeError,
)
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_none
from tests.conformance.place import Place
from tests.support.wait import eventually


class Item(Event):
    n: int


class Other(Event):
    n: int


class Last(Event):
    pass


async def test_what_a_step_sends_is_delivered_in_call_order_and_before_what_it_returns(
    place: Place,
) -> None:
    seen: list[int] = []

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item:
            for n in range(20):
                ctx.send_event(Item(n=n))
            return Item(n=20)

        @step(num_workers=1)
        async def take(self, ctx: Context, ev: Item) -> StopEvent | None:
            seen.append(ev.n)
            return StopEvent() if ev.n == 20 else None

    flow = await place.serve(Flow)
    await flow.run()
    assert seen == list(range(21))


async def test_a_sent_event_is_delivered_while_its_sender_still_runs(place: Place) -> None:
    arrived = asyncio.Event()

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | StopEvent:
            ctx.send_event(Item(n=1))
            async with asyncio.timeout(20):
                await arrived.wait()
            return StopEvent(result="the other step ran meanwhile")

        @step
        async def take(self, ev: Item) -> None:
            arrived.set()

    flow = await place.serve(Flow, disable_validation=True)
    assert await flow.run() == "the other step ran meanwhile"


async def test_a_sent_event_stays_sent_when_its_sender_fails(place: Place) -> None:
    class Flow(Workflow):
        @step(retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(3)))
        async def begin(self, ctx: Context, ev: StartEvent) -> Item:
            attempt = await ctx.store.get("attempt", 0) + 1
            await ctx.store.set("attempt", attempt)
            ctx.send_event(Item(n=attempt))
            if attempt < 3:
                raise ValueError("again")
            return Item(n=0)

        @step
        async def take(self, ctx: Context, ev: Item) -> StopEvent | None:
            all_ = ctx.collect_events(ev, [Item] * 4)
            return StopEvent(result=sorted(e.n for e in all_)) if all_ else None

    flow = await place.serve(Flow)
    assert await flow.run() == [0, 1, 2, 3]


async def test_equal_events_of_one_execution_are_all_delivered(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            for _ in range(3):
                ctx.send_event(Item(n=1))

        @step
        async def take(self, ctx: Context, ev: Item) -> StopEvent | None:
            three = ctx.collect_events(ev, [Item] * 3)
            return StopEvent(result=len(three)) if three else None

    flow = await place.serve(Flow)
    assert await flow.run() == 3


async def test_a_targeted_event_reaches_its_step_only(place: Place) -> None:
    seen: list[str] = []

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            ctx.send_event(Item(n=1), step="second")

        @step
        async def first(self, ev: Item) -> StopEvent:
            seen.append("first")
            return StopEvent(result="first")

        @step
        async def second(self, ev: Item) -> StopEvent:
            seen.append("second")
            return StopEvent(result="second")

    flow = await place.serve(Flow)
    assert await flow.run() == "second"
    assert seen == ["second"]


async def test_a_wrong_target_is_an_error_where_the_event_is_sent(place: Place) -> None:
    messages: list[str] = []

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            for event, target in ((Item(n=1), "nowhere"), (Other(n=1), "take")):
                try:
                    ctx.send_event(event, step=target)
                except WorkflowRuntimeError as error:
                    messages.append(str(error))
            return None

        @step
        async def take(self, ev: Item) -> StopEvent:
            return StopEvent()

    flow = await place.serve(Flow, disable_validation=True)
    handler = flow.run()
    with pytest.raises(WorkflowRuntimeError, match="^Step nowhere does not exist$"):
        await handler.send_event(Item(n=1), step="nowhere")
    with pytest.raises(WorkflowRuntimeError, match="^Step take does not accept event of type "):
        handler.ctx.send_event(Other(n=1), step="take")
    await handler.send_event(Item(n=1), step="take")
    await handler
    assert messages == [
        "Step nowhere does not exist",
        f"Step take does not accept event of type {Other}; it accepts Item",
    ]


async def test_a_value_that_cannot_travel_is_an_error_where_it_is_sent(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | StopEvent:
            try:
                ctx.send_event(Item(n=1, callback=print))  # type: ignore[call-arg]
            except EncodeError as error:
                return StopEvent(result=str(error))
            return Item(n=0)

        @step
        async def take(self, ev: Item) -> StopEvent:
            return StopEvent(result="sent")

    flow = await place.serve(Flow)
    message = await flow.run()
    assert "Item" in message
    assert "callback" in message


async def test_a_plain_function_step_sends_from_its_thread(place: Place) -> None:
    class Flow(Workflow):
        @step
        def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(3):
                ctx.send_event(Item(n=n))
            ctx.write_event_to_stream(Other(n=9))

        @step
        def take(self, ctx: Context, ev: Item) -> StopEvent | None:
            three = ctx.collect_events(ev, [Item] * 3)
            return StopEvent(result=sorted(e.n for e in three)) if three else None

    flow = await place.serve(Flow)
    handler = flow.run()
    shown = [event async for event in handler.stream_events()]
    assert [type(event) for event in shown] == [Other, StopEvent]
    assert await handler == [0, 1, 2]


async def test_events_come_from_a_handler_and_from_its_context_in_order(place: Place) -> None:
    seen: list[int] = []

    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> None: ...

        @step(num_workers=1)
        async def take(self, ev: Item) -> StopEvent | None:
            seen.append(ev.n)
            return StopEvent() if ev.n == 9 else None

    flow = await place.serve(Flow, disable_validation=True)
    handler = flow.run()
    for n in range(9):
        handler.ctx.send_event(Item(n=n))
    await handler.send_event(Item(n=9), step="take")
    await handler
    assert sorted(seen) == list(range(10))
    assert seen[:9] == sorted(seen[:9])


async def test_the_same_client_event_twice_is_two_events(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> None: ...

        @step
        async def take(self, ctx: Context, ev: Item) -> StopEvent | None:
            two = ctx.collect_events(ev, [Item] * 2)
            return StopEvent(result=len(two)) if two else None

    flow = await place.serve(Flow, disable_validation=True)
    handler = flow.run()
    await handler.send_event(Item(n=1))
    await handler.send_event(Item(n=1))
    assert await handler == 2


async def test_after_the_end_an_event_is_refused_or_dropped(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent | Item) -> StopEvent:
            return StopEvent(result=1)

    flow = await place.serve(Flow, disable_validation=True)
    handler = flow.run()
    await handler
    handler.ctx.send_event(Item(n=1))  # as in the model nobody is told
    with pytest.raises(WorkflowRuntimeError, match="has ended"):
        await handler.send_event(Item(n=1))
    assert await handler == 1


async def test_a_stop_event_that_is_sent_does_not_end_the_run(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item:
            ctx.send_event(StopEvent(result="sent"))
            return Item(n=1)

        @step
        async def take(self, ev: Item) -> StopEvent:
            return StopEvent(result="returned")

    flow = await place.serve(Flow)
    assert await flow.run() == "returned"


async def test_an_event_that_nobody_accepts_is_dropped_and_the_run_idles(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Other | None:
            return Other(n=1)

        @step
        async def take(self, ev: Item) -> StopEvent:
            return StopEvent(result=ev.n)

    flow = await place.serve(Flow, disable_validation=True)
    handler = flow.run()
    await eventually(lambda: "Other: no step accepts this event" in caplog.text, 20.0)

    async def idles() -> bool:
        status = await handler.status()
        return (status.status, status.pending) == ("running", 0)

    await eventually(idles, 20.0)
    await handler.send_event(Item(n=7))
    assert await handler == 7


async def test_a_context_without_a_run_or_out_of_its_step_says_so(place: Place) -> None:
    kept: list[Context[Any]] = []

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            kept.append(ctx)
            return StopEvent()

    flow = await place.serve(Flow)
    ctx = Context(flow)
    with pytest.raises(ContextStateError, match="called before workflow started"):
        ctx.send_event(Item(n=1))
    with pytest.raises(ContextStateError, match="requires a running workflow"):
        ctx.write_event_to_stream(Item(n=1))
    handler = flow.run()
    await handler
    with pytest.raises(ContextStateError, match="only available from within step functions"):
        handler.ctx.collect_events(Item(n=1), [Item])
    with pytest.raises(StaleExecution, match="the step has returned"):
        kept[0].send_event(Item(n=1))
