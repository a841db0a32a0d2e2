"""The public stream of a run: one order, each event once, every reader the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.errors import RunNotFound, WorkflowRuntimeError
from stepfleet.events import RetractedEvent, StreamGapEvent, WorkflowFailedEvent
from stepfleet.handler import WorkflowHandler
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_none
from tests.conformance.place import Place
from tests.support.wait import eventually

#: Seconds in which what is expected happens.
SOON = 20.0


class Progress(Event):
    text: str


class Go(Event):
    pass


def texts(events: list[Any]) -> list[str]:
    return [event.text if isinstance(event, Progress) else type(event).__name__ for event in events]


class Talking(Workflow):
    """Publishes before and after it was told to go on."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> None:
        ctx.write_event_to_stream(Progress(text="one"))
        ctx.write_event_to_stream(None)
        ctx.write_event_to_stream(Progress(text="two"))

    @step
    async def go_on(self, ctx: Context, ev: Go) -> StopEvent:
        ctx.write_event_to_stream(Progress(text="three"))
        return StopEvent(result="done")


async def talking(place: Place) -> Talking:
    return await place.serve(Talking, disable_validation=True)


async def has_talked(handler: WorkflowHandler) -> None:
    """Wait until what it publishes before it is told to go on is there."""

    async def are_two() -> bool:
        return (await handler.status()).last_sequence == 2

    await eventually(are_two, SOON)


async def test_events_arrive_in_order_while_the_step_still_runs(place: Place) -> None:
    seen = asyncio.Event()

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            for text in ("one", "two"):
                ctx.write_event_to_stream(Progress(text=text))
            async with asyncio.timeout(20):
                await seen.wait()
            ctx.write_event_to_stream(Progress(text="three"))
            return StopEvent(result="done")

    flow = await place.serve(Flow)
    handler = flow.run()
    shown: list[Event] = []
    async for event in handler.stream_events():
        shown.append(event)
        if isinstance(event, Progress) and event.text == "two":
            seen.set()
    assert texts(shown) == ["one", "two", "three", "StopEvent"]
    assert await handler == "done"


async def test_a_reader_that_comes_late_gets_everything(place: Place) -> None:
    flow = await talking(place)
    handler = flow.run()
    await has_talked(handler)
    await handler.send_event(Go())
    await handler
    shown = [event async for event in handler.stream_events()]
    assert sorted(texts(shown)[:-1]) == ["one", "three", "two"]
    assert texts(shown)[-1] == "StopEvent"


async def test_a_run_that_publishes_nothing_has_its_last_event(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=5)

    flow = await place.serve(Flow)
    handler = flow.run()
    assert [event.result async for event in handler.stream_events()] == [5]
    assert handler.last_sequence == 1
    again = place.new_client().handler(handler.run_id, workflow=flow)
    assert [event.result async for event in again.stream_events()] == [5]


async def test_a_stream_goes_on_where_it_was_left(place: Place) -> None:
    flow = await talking(place)
    handler = flow.run()
    async for event in handler.stream_events():
        assert texts([event]) == ["one"]
        break
    assert handler.last_sequence == 1
    await handler.send_event(Go())
    rest = texts([event async for event in handler.stream_events()])
    assert sorted(rest[:-1]) == ["three", "two"]


async def test_after_the_last_event_the_stream_of_a_handler_is_consumed(place: Place) -> None:
    flow = await talking(place)
    handler = flow.run()
    await has_talked(handler)
    await handler.send_event(Go())
    first = [event async for event in handler.stream_events()]
    with pytest.raises(WorkflowRuntimeError, match="already been consumed"):
        [event async for event in handler.stream_events()]
    assert texts([event async for event in handler.stream_events(after=0)]) == texts(first)
    assert len([event async for event in handler.stream_events(after=2)]) == 2


async def test_one_handler_streams_to_one_reader_at_a_time(place: Place) -> None:
    flow = await talking(place)
    handler = flow.run()
    first = handler.stream_events()
    assert texts([await anext(first)]) == ["one"]
    with pytest.raises(WorkflowRuntimeError, match="only be streamed once"):
        await anext(handler.stream_events())
    await first.aclose()
    await handler.send_event(Go())
    await handler


async def test_readers_in_other_processes_see_the_same_order(place: Place) -> None:
    flow = await talking(place)
    handler = flow.run()
    await handler.status()
    readers = [place.new_client().handler(handler.run_id, workflow=flow) for _ in range(3)]

    async def read(reader: Any) -> list[str]:
        return texts([event async for event in reader.stream_events()])

    reading = [asyncio.create_task(read(reader)) for reader in readers]
    await handler.send_event(Go())
    seen = await asyncio.gather(*reading)
    assert seen[0][-1] == "StopEvent"
    assert len(seen[0]) == 4
    assert seen == [seen[0]] * 3


async def test_sequences_of_one_run_have_no_gap_over_many_writers(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Go | None:
            for _ in range(20):
                ctx.send_event(Go())

        @step(num_workers=8)
        async def work(self, ctx: Context, ev: Go) -> StopEvent | None:
            ctx.write_event_to_stream(Progress(text="a"))
            await asyncio.sleep(0)
            ctx.write_event_to_stream(Progress(text="b"))
            return StopEvent() if ctx.collect_events(ev, [Go] * 20) else None

    flow = await place.serve(Flow)
    handler = flow.run()
    sequences = []
    async for event in handler.stream_events():
        assert not isinstance(event, StreamGapEvent)
        sequences.append(handler.last_sequence)
    assert sequences == list(range(1, 42))
    assert (await handler.status()).last_sequence == 41


async def test_an_execution_that_runs_again_does_not_repeat_what_it_published(
    place: Place,
) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Go | None:
            for _ in range(2):
                ctx.send_event(Go())

        @step(num_workers=1)
        async def join(self, ctx: Context, ev: Go) -> StopEvent | None:
            ctx.write_event_to_stream(Progress(text="working"))
            both = ctx.collect_events(ev, [Go] * 2)
            if both:
                ctx.write_event_to_stream(Progress(text="complete"))
                return StopEvent()
            return None

    flow = await place.serve(Flow)
    shown = [event async for event in flow.run().stream_events()]
    assert texts(shown) == ["working", "working", "complete", "StopEvent"]


async def test_each_attempt_of_a_retried_step_publishes_anew(place: Place) -> None:
    class Flow(Workflow):
        @step(retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(2)))
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Progress(text="trying"))
            if not await ctx.store.get("tried", False):
                await ctx.store.set("tried", True)
                raise ValueError("once")
            return StopEvent()

    flow = await place.serve(Flow)
    shown = [event async for event in flow.run().stream_events()]
    assert texts(shown) == ["trying", "trying", "StopEvent"]


async def test_what_an_execution_did_not_repeat_is_retracted(place: Place) -> None:
    executions: list[int] = []

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Go | None:
            for _ in range(2):
                ctx.send_event(Go())

        @step(num_workers=1)
        async def join(self, ctx: Context, ev: Go) -> StopEvent | None:
            executions.append(1)
            ctx.write_event_to_stream(Progress(text=f"execution {len(executions)}"))
            await ctx.store.set("n", 1)  # what was published before a write is out with it
            return StopEvent() if ctx.collect_events(ev, [Go] * 2) else None

    flow = await place.serve(Flow)
    shown = [event async for event in flow.run().stream_events()]
    assert texts(shown) == [
        "execution 1",
        "execution 2",
        "execution 3",
        "RetractedEvent",
        "StopEvent",
    ]
    mark = shown[3]
    assert isinstance(mark, RetractedEvent)
    assert (mark.sequences, mark.step) == ([2], "join")


async def test_a_stop_event_that_a_user_writes_ends_that_reader_only(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> None:
            ctx.write_event_to_stream(StopEvent(result="written"))

        @step
        async def go_on(self, ctx: Context, ev: Go) -> StopEvent:
            ctx.write_event_to_stream(Progress(text="later"))
            return StopEvent(result="returned")

    flow = await place.serve(Flow, disable_validation=True)
    handler = flow.run()
    assert [event.result async for event in handler.stream_events()] == ["written"]
    assert not handler.is_done()
    await handler.send_event(Go())
    assert await handler == "returned"
    rest = [event async for event in handler.stream_events(after=handler.last_sequence)]
    assert texts(rest) == ["later", "StopEvent"]
    assert rest[-1].result == "returned"


async def test_the_stream_of_a_failed_run_ends_with_the_failure(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Progress(text="before"))
            raise ValueError("broken")

    flow = await place.serve(Flow)
    handler = flow.run()
    shown = [event async for event in handler.stream_events()]
    assert texts(shown) == ["before", "WorkflowFailedEvent"]
    failure = shown[-1]
    assert isinstance(failure, WorkflowFailedEvent)
    assert (failure.step_name, failure.attempts) == ("begin", 1)
    assert str(failure.exception) == "broken"
    with pytest.raises(ValueError, match="^broken"):
        await handler


async def test_a_reader_without_classes_gets_the_fields(place: Place) -> None:
    flow = await talking(place)
    handler = flow.run()
    await has_talked(handler)
    await handler.send_event(Go())
    await handler
    stranger = place.new_client().handler(handler.run_id)
    shown = [event async for event in stranger.stream_events()]
    assert {event.text for event in shown[:-1]} == {"one", "two", "three"}
    assert "Progress" in repr(shown[0])
    assert await stranger == "done"


async def test_a_stream_of_an_unknown_run_says_so(place: Place) -> None:
    with pytest.raises(RunNotFound, match="'nothing'"):
        await anext(place.client.handler("nothing").stream_events())


async def test_a_thousand_events_reach_a_slow_reader(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            for n in range(1000):
                ctx.write_event_to_stream(Progress(text=str(n)))
            return StopEvent()

    flow = await place.serve(Flow)
    handler = flow.run()
    shown: list[str] = []
    async for event in handler.stream_events():
        if isinstance(event, Progress):
            shown.append(event.text)
        await asyncio.sleep(0)
    assert shown == [str(n) for n in range(1000)]


async def test_a_reader_may_break_and_go_on_at_once(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            for number in range(3):
                ctx.write_event_to_stream(Progress(text=str(number)))
            return StopEvent()

    handler = (await place.serve(Flow)).run()
    seen: list[Event] = []
    async for event in handler.stream_events():
        seen.append(event)
        break
    # The loop that was left is closed a moment later: nobody waits for that here.
    seen.extend([event async for event in handler.stream_events()])
    assert seen[:3] == [Progress(text=str(number)) for number in range(3)]
    assert isinstance(seen[3], StopEvent)
