"""`collect_events`: joins that release once, with the right events, wherever the steps run."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.errors import WorkflowTimeoutError
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_none
from tests.conformance.place import Place
from tests.support.wait import eventually


class A(Event):
    n: int


class B(Event):
    n: int


class C(Event):
    n: int


class Done(Event):
    n: int


class Joined(Event):
    labels: list[str]


def labels(events: list[Any]) -> list[str]:
    return [f"{type(e).__name__}{e.n}" for e in events]


def sends(*events: Event) -> type[Workflow]:
    """Returns a workflow that sends these events one after the other, and stops when all are there."""

    class Sender(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> A | B | C | Done | None:
            for event in events:
                ctx.send_event(event)
            ctx.send_event(Done(n=len(events)))

    return Sender


async def test_events_come_in_the_order_that_was_asked_for(place: Place) -> None:
    class Flow(sends(B(n=1), C(n=2), A(n=3), A(n=4))):
        @step(num_workers=1)
        async def join(self, ctx: Context, ev: A | B | C | Done) -> StopEvent | None:
            got = ctx.collect_events(ev, [A, B, C, A])
            return StopEvent(result=labels(got)) if got else None

    flow = await place.serve(Flow)
    assert await flow.run() == ["A3", "B1", "C2", "A4"]


async def test_events_beyond_what_is_needed_and_of_other_types_are_dropped(place: Place) -> None:
    class Flow(sends(A(n=0), A(n=1), A(n=2), C(n=3), B(n=4), A(n=5), B(n=6))):
        @step(num_workers=1)
        async def join(self, ctx: Context, ev: A | B | C | Done) -> StopEvent | None:
            if isinstance(ev, Done):
                return StopEvent(result=await ctx.store.get("joins"))
            got = ctx.collect_events(ev, [A, B])
            if got:
                await ctx.store.set("joins", [*await ctx.store.get("joins", []), labels(got)])
            return None

    flow = await place.serve(Flow)
    assert await flow.run() == [["A0", "B4"], ["A5", "B6"]]


async def test_nothing_expected_is_answered_at_once(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=ctx.collect_events(ev, []))

    flow = await place.serve(Flow)
    assert await flow.run() == []


async def test_buffers_with_different_ids_do_not_mix(place: Place) -> None:
    class Flow(sends(A(n=0), A(n=1), A(n=2), A(n=3))):
        @step(num_workers=1)
        async def join(self, ctx: Context, ev: A | Done) -> StopEvent | None:
            if isinstance(ev, Done):
                return StopEvent(result=await ctx.store.get("joins"))
            name = "even" if ev.n % 2 == 0 else "odd"
            got = ctx.collect_events(ev, [A, A], buffer_id=name)
            if got:
                joins = [*await ctx.store.get("joins", []), [name, labels(got)]]
                await ctx.store.set("joins", joins)
            return None

    flow = await place.serve(Flow, disable_validation=True)
    assert await flow.run() == [["even", ["A0", "A2"]], ["odd", ["A1", "A3"]]]


async def test_one_step_may_join_the_same_event_in_two_ways(place: Place) -> None:
    class Flow(sends(*(A(n=n) for n in range(6)))):
        @step(num_workers=1)
        async def join(self, ctx: Context, ev: A | Done) -> StopEvent | None:
            if isinstance(ev, Done):
                return StopEvent()
            twos = ctx.collect_events(ev, [A] * 2, buffer_id="two")
            threes = ctx.collect_events(ev, [A] * 3, buffer_id="three")
            for got in (twos, threes):
                if got:
                    ctx.write_event_to_stream(Joined(labels=labels(got)))
            return None

    flow = await place.serve(Flow, disable_validation=True)
    shown = [event async for event in flow.run().stream_events()]
    assert [event.labels for event in shown if isinstance(event, Joined)] == [
        ["A0", "A1"],
        ["A0", "A1", "A2"],
        ["A2", "A3"],
        ["A4", "A5"],
        ["A3", "A4", "A5"],
    ]


async def test_two_steps_join_the_same_events_independently(place: Place) -> None:
    class Flow(sends(A(n=0), A(n=1))):
        @step
        async def left(self, ctx: Context, ev: A) -> B | None:
            got = ctx.collect_events(ev, [A] * 2)
            return B(n=sum(e.n for e in got)) if got else None

        @step
        async def right(self, ctx: Context, ev: A) -> C | None:
            got = ctx.collect_events(ev, [A] * 2)
            return C(n=10 * sum(e.n for e in got)) if got else None

        @step
        async def join(self, ctx: Context, ev: B | C) -> StopEvent | None:
            got = ctx.collect_events(ev, [B, C])
            return StopEvent(result=labels(got)) if got else None

    flow = await place.serve(Flow, disable_validation=True)
    assert await flow.run() == ["B1", "C10"]


async def test_a_failed_attempt_leaves_nothing_in_the_buffer(place: Place) -> None:
    class Flow(sends(A(n=0), A(n=1), A(n=2))):
        @step(
            num_workers=1, retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(2))
        )
        async def join(self, ctx: Context, ev: A) -> StopEvent | None:
            got = ctx.collect_events(ev, [A] * 3)
            tries = await ctx.store.get(f"tries.{ev.n}", 0)
            await ctx.store.set(f"tries.{ev.n}", tries + 1)
            if tries == 0:
                raise ValueError("the first attempt of each event fails")
            return StopEvent(result=sorted(e.n for e in got)) if got else None

    flow = await place.serve(Flow, disable_validation=True)
    assert await flow.run() == [0, 1, 2]


async def test_a_buffer_is_complete_again_when_the_step_that_released_it_fails(
    place: Place,
) -> None:
    class Flow(sends(A(n=0), A(n=1))):
        @step(
            num_workers=1, retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(2))
        )
        async def join(self, ctx: Context, ev: A) -> StopEvent | None:
            got = ctx.collect_events(ev, [A] * 2)
            if got is None:
                return None
            if not await ctx.store.get("failed", False):
                await ctx.store.set("failed", True)
                raise ValueError("once")
            return StopEvent(result=labels(got))

    flow = await place.serve(Flow, disable_validation=True)
    assert await flow.run() == ["A0", "A1"]


async def test_when_many_complete_at_once_each_join_is_released_once(place: Place) -> None:
    joins: list[list[int]] = []

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> A | None:
            for n in range(30):
                ctx.send_event(A(n=n))

        @step(num_workers=30)
        async def work(self, ev: A) -> B:
            return B(n=ev.n)

        @step(num_workers=30)
        async def join(self, ctx: Context, ev: B) -> Done | None:
            got = ctx.collect_events(ev, [B] * 10)
            return Done(n=sum(e.n for e in got)) if got else None

        @step
        async def end(self, ctx: Context, ev: Done) -> StopEvent | None:
            joins.append([ev.n])
            got = ctx.collect_events(ev, [Done] * 3)
            return StopEvent(result=sum(e.n for e in got)) if got else None

    flow = await place.serve(Flow)
    assert await flow.run() == sum(range(30))


def fan(width: int) -> type[Workflow]:
    class Fan(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> A | None:
            for n in range(width):
                ctx.send_event(A(n=n))

        @step(num_workers=16)
        async def work(self, ev: A) -> B:
            return B(n=ev.n)

        @step(num_workers=16)
        async def join(self, ctx: Context, ev: B) -> StopEvent | None:
            got = ctx.collect_events(ev, [B] * width)
            return StopEvent(result=sorted(e.n for e in got)) if got else None

    Fan.__name__ = f"Fan{width}"
    return Fan


async def test_a_wide_fan_out_comes_together_complete(place: Place) -> None:
    flow = await place.serve(fan(200))
    assert await flow.run() == list(range(200))


async def test_ten_times_the_width_costs_about_ten_times_the_time(place: Place) -> None:
    small, large = await place.serve(fan(100)), None
    await small.run()
    began = time.perf_counter()
    await small.run()
    short = time.perf_counter() - began
    large = await place.serve(fan(1000))
    began = time.perf_counter()
    assert await large.run() == list(range(1000))
    # A quadratic join would take a hundred times as long.
    assert time.perf_counter() - began < 30 * short + 2


async def test_a_join_that_can_never_be_complete_times_out_and_says_what_lacks(
    place: Place,
) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> A:
            return A(n=1)

        @step
        async def join(self, ctx: Context, ev: A) -> StopEvent | None:
            got = ctx.collect_events(ev, [A] * 3)
            return StopEvent() if got else None

    flow = await place.serve(Flow, timeout=2.0)
    with pytest.raises(
        WorkflowTimeoutError,
        match=r"No steps active\. step join has collected 1 A and waits for more",
    ):
        await flow.run()


async def test_an_execution_that_ran_again_collects_its_event_once(place: Place) -> None:
    bodies: list[int] = []
    both = asyncio.Event()

    class Flow(sends(A(n=0), A(n=1))):
        @step
        async def join(self, ctx: Context, ev: A) -> StopEvent | None:
            bodies.append(ev.n)
            if len(bodies) == 2:
                both.set()
            async with asyncio.timeout(20):
                await both.wait()
            got = ctx.collect_events(ev, [A] * 2)
            return StopEvent(result=sorted(e.n for e in got)) if got else None

    flow = await place.serve(Flow, disable_validation=True)
    assert await flow.run() == [0, 1]
    assert await eventually(lambda: len(bodies) == 3, 20.0), (
        "only the event that was missing runs again"
    )
