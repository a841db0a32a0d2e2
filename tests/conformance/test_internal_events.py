"""`stream_events(expose_internal=True)`: what a run tells of its steps, in the order of its commits."""

from __future__ import annotations

import asyncio
import logging

import pytest

from stepfleet import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    catch_error,
    step,
)
from stepfleet.events import (
    InternalDispatchEvent,
    StepFailedEvent,
    StepState,
    StepStateChanged,
    UnhandledEvent,
    WorkflowIdleEvent,
)
from stepfleet.handler import WorkflowHandler
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed, wait_none
from tests.conformance.place import Place
from tests.support.wait import eventually


class Item(Event):
    n: int = 0


class Done(Event):
    n: int = 0


class Stray(Event):
    pass


def shown(event: Event) -> str:
    match event:
        case StepStateChanged(step_state=StepState.NOT_RUNNING):
            return f"- {event.name}:{event.worker_id} {event.output_event_name}"
        case StepStateChanged(step_state=StepState.RUNNING):
            return f"+ {event.name}:{event.worker_id} {event.input_event_name}"
        case StepStateChanged():
            return f"? {event.name}:{event.worker_id} {event.input_event_name}"
        case _:
            return type(event).__name__


async def told(handler: WorkflowHandler) -> list[str]:
    return [shown(event) async for event in handler.stream_events(expose_internal=True)]


async def test_a_chain_is_told_step_by_step_between_what_it_publishes(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item:
            ctx.write_event_to_stream(Done())
            return Item()

        @step
        async def end(self, ev: Item) -> StopEvent:
            return StopEvent()

    place.keep_history()
    flow = await place.serve(Flow)
    assert await told(flow.run()) == [
        "+ begin:0 StartEvent",
        "Done",
        f"- begin:0 {Item}",
        "+ end:0 Item",
        f"- end:0 {StopEvent}",
        "StopEvent",
    ]


async def test_the_events_name_what_came_in_and_what_went_out(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    place.keep_history()
    flow = await place.serve(Flow)
    handler = flow.run()
    first, second, _ = [event async for event in handler.stream_events(expose_internal=True)]
    assert first == StepStateChanged(
        name="begin", step_state=StepState.RUNNING, worker_id="0", input_event_name="StartEvent"
    )
    assert second == StepStateChanged(
        name="begin",
        step_state=StepState.NOT_RUNNING,
        worker_id="0",
        input_event_name=str(StartEvent),
        output_event_name=str(StopEvent),
    )


async def test_without_asking_nobody_gets_them(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Item())
            return StopEvent()

    place.keep_history()
    flow = await place.serve(Flow)
    events = [event async for event in flow.run().stream_events()]
    assert [type(event) for event in events] == [Item, StopEvent]


async def test_what_waits_for_a_slot_is_told_as_preparing(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(4):
                ctx.send_event(Item(n=n))
            return None

        @step(num_workers=2)
        async def work(self, ev: Item) -> Done:
            return Done(n=ev.n)

        @step
        async def join(self, ctx: Context, ev: Done) -> StopEvent | None:
            return StopEvent() if ctx.collect_events(ev, [Done] * 4) else None

    place.keep_history()
    flow = await place.serve(Flow)
    lines = await told(flow.run())
    work = [line for line in lines if " work:" in line]
    assert work.count("? work:<enqueued> Item") == 2
    assert sorted(line for line in work if line[0] == "+") == ["+ work:0 Item"] * 2 + [
        "+ work:1 Item"
    ] * 2 or {line for line in work if line[0] == "+"} <= {"+ work:0 Item", "+ work:1 Item"}
    assert sum(line[0] == "+" for line in work) == sum(line[0] == "-" for line in work) == 4
    running = 0
    for line in work:
        running += {"+": 1, "-": -1}.get(line[0], 0)
        assert 0 <= running <= 2


async def test_retries_failures_and_handlers_are_told(place: Place) -> None:
    class Flow(Workflow):
        @step(retry_policy=retry_policy(wait=wait_fixed(0.05), stop=stop_after_attempt(2)))
        async def begin(self, ev: StartEvent) -> Item:
            raise ValueError("no")

        @step(retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(2)))
        async def work(self, ctx: Context, ev: Item) -> StopEvent:
            if ctx.retry_info().retry_number == 0:
                raise ValueError("once")
            return StopEvent()

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> Item:
            return Item()

    place.keep_history()
    flow = await place.serve(Flow)
    assert await told(flow.run()) == [
        "+ begin:0 StartEvent",
        "- begin:0 None",
        "+ begin:0 StartEvent",
        "- begin:0 None",
        "+ rescue:0 StepFailedEvent",
        f"- rescue:0 {Item}",
        "+ work:0 Item",
        "- work:0 None",
        "+ work:0 Item",
        f"- work:0 {StopEvent}",
        "StopEvent",
    ]


async def test_a_failed_run_ends_with_its_step_and_no_idleness(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            raise ValueError("no")

    place.keep_history()
    flow = await place.serve(Flow)
    handler = flow.run()
    lines = await told(handler)
    assert lines == ["+ begin:0 StartEvent", "- begin:0 None", "WorkflowFailedEvent"]
    with pytest.raises(ValueError, match="no"):
        await handler


async def test_a_run_that_waits_for_an_event_is_idle(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(Done, waiter_event=Item())
            return StopEvent()

    place.keep_history()
    flow = await place.serve(Flow)
    handler = flow.run()
    lines: list[str] = []
    async for event in handler.stream_events(expose_internal=True):
        lines.append(shown(event))
        if isinstance(event, WorkflowIdleEvent):
            await handler.send_event(Done())
    assert lines == [
        "+ begin:0 StartEvent",
        "- begin:0 None",
        "Item",
        "WorkflowIdleEvent",
        "+ begin:0 StartEvent",
        f"- begin:0 {StopEvent}",
        "StopEvent",
    ]


async def test_a_question_comes_behind_the_step_that_returned_it(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> InputRequiredEvent:
            return InputRequiredEvent(prefix="?")

        @step
        async def hear(self, ev: HumanResponseEvent) -> StopEvent:
            return StopEvent(result=ev.response)

    place.keep_history()
    flow = await place.serve(Flow)
    handler = flow.run()
    lines: list[str] = []
    async for event in handler.stream_events(expose_internal=True):
        lines.append(shown(event))
        if isinstance(event, WorkflowIdleEvent):
            await handler.send_event(HumanResponseEvent(response="x"))
    assert lines == [
        "+ ask:0 StartEvent",
        f"- ask:0 {InputRequiredEvent}",
        "InputRequiredEvent",
        "WorkflowIdleEvent",
        "+ hear:0 HumanResponseEvent",
        f"- hear:0 {StopEvent}",
        "StopEvent",
    ]


async def test_an_event_that_nobody_takes_is_told(place: Place) -> None:
    class Flow(Workflow, types=[Stray]):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent | Stray:
            return Stray()

        @step
        async def end(self, ev: Done) -> StopEvent:
            return StopEvent()

    place.keep_history()
    flow = await place.serve(Flow, disable_validation=True)
    handler = flow.run()
    events: list[Event] = []
    async for event in handler.stream_events(expose_internal=True):
        events.append(event)
        if isinstance(event, WorkflowIdleEvent):
            await handler.send_event(Done())
    assert [event for event in events if isinstance(event, UnhandledEvent)] == [
        UnhandledEvent(
            event_type="Stray",
            qualified_name=f"{Stray.__module__}.{Stray.__qualname__}",
            step_name=None,
            idle=True,
        )
    ]


async def test_a_reader_that_stops_goes_on_where_it_stopped(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item:
            ctx.write_event_to_stream(Done())
            return Item()

        @step
        async def end(self, ev: Item) -> StopEvent:
            return StopEvent()

    place.keep_history()
    flow = await place.serve(Flow)
    handler = flow.run()
    lines: list[str] = []
    while "StopEvent" not in lines:
        async for event in handler.stream_events(expose_internal=True):
            lines.append(shown(event))
            break
    other = place.client.handler(handler.run_id, workflow=flow) if not place.in_memory else None
    assert lines == [
        "+ begin:0 StartEvent",
        "Done",
        f"- begin:0 {Item}",
        "+ end:0 Item",
        f"- end:0 {StopEvent}",
        "StopEvent",
    ]
    if other is not None:
        assert await told(other) == lines


async def test_a_wide_fan_out_is_told_whole(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(700):
                ctx.send_event(Item(n=n))
            return None

        @step(num_workers=50)
        async def work(self, ev: Item) -> Done:
            return Done(n=ev.n)

        @step(num_workers=1)
        async def join(self, ctx: Context, ev: Done) -> StopEvent | None:
            return StopEvent() if ctx.collect_events(ev, [Done] * 700) else None

    place.keep_history()
    flow = await place.serve(Flow, timeout=60)
    lines = await told(flow.run())
    for name in ("work", "join"):
        assert sum(line.startswith(f"+ {name}:") for line in lines) == 700
        assert sum(line.startswith(f"- {name}:") for line in lines) == 700
    assert "WorkflowIdleEvent" not in lines
    assert lines[-1] == "StopEvent"


async def test_a_continued_run_keeps_a_history_of_its_own(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Item())
            await ctx.wait_for_event(Done)
            return StopEvent(result="done")

    place.keep_history()
    flow = await place.serve(Flow)
    handler = flow.run()
    async for event in handler.stream_events(expose_internal=True):
        if isinstance(event, WorkflowIdleEvent):
            await handler.cancel_run()
    again = flow.run(ctx=handler.ctx)
    await again.send_event(Done())
    lines = await told(again)
    assert lines[-2:] == [f"- begin:0 {StopEvent}", "StopEvent"]
    assert await again == "done"


async def test_steps_that_run_are_named(place: Place) -> None:
    go = asyncio.Event()

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            ctx.send_event(Item(n=1))
            ctx.send_event(Item(n=2))
            return None

        @step
        async def work(self, ctx: Context, ev: Item) -> StopEvent | None:
            await go.wait()
            return StopEvent() if ctx.collect_events(ev, [Item] * 2) else None

    flow = await place.serve(Flow)
    handler = flow.run()

    async def both_work() -> bool:
        return await handler.ctx.running_steps() == ["work"]

    await eventually(both_work, 10)
    go.set()
    await handler
    assert await handler.ctx.running_steps() == []


async def test_a_run_that_keeps_no_history_says_so(
    fleet: Place, caplog: pytest.LogCaptureFixture
) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    flow = await fleet.serve(Flow)
    with caplog.at_level(logging.WARNING, logger="stepfleet.client"):
        events = [event async for event in flow.run().stream_events(expose_internal=True)]
    assert not any(isinstance(event, InternalDispatchEvent) for event in events)
    assert "keeps no history" in caplog.text


async def test_a_run_without_a_history_stores_nothing_about_its_commits(fleet: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    flow = await fleet.serve(Flow)
    handler = flow.run()
    await handler
    assert not await fleet.call("EXISTS", fleet.keys.history(handler.run_id))
