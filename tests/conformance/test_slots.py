"""Steps with several event parameters: they run once one event of each type has come."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stepfleet import Context, Event, HumanResponseEvent, StartEvent, StopEvent, Workflow, step
from stepfleet.errors import WorkflowTimeoutError
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_none
from tests.conformance.place import Place


class A(Event):
    n: int


class B(Event):
    n: int


class Item(Event):
    n: int


class Pair(Event):
    numbers: list[int]


class Answer(HumanResponseEvent):
    n: int


class Diamond(Workflow):
    """Both branches of a start event are joined."""

    @step
    async def left(self, ev: StartEvent) -> A:
        return A(n=1)

    @step
    async def right(self, ev: StartEvent) -> B:
        return B(n=2)

    @step
    async def join(self, a: A, b: B) -> StopEvent:
        return StopEvent(result=[a.n, b.n])


async def test_two_branches_are_joined(place: Place) -> None:
    flow = await place.serve(Diamond)
    for _ in range(3):
        assert await flow.run() == [1, 2]


async def test_the_order_of_parameters_and_arrivals_does_not_matter(place: Place) -> None:
    class Flow(Diamond):
        @step
        async def left(self, ev: StartEvent) -> A:
            await asyncio.sleep(0.2)
            return A(n=1)

        @step
        async def join(self, b: B, ctx: Context, a: A) -> StopEvent:  # type: ignore[override]
            return StopEvent(result=[a.n, b.n])

    flow = await place.serve(Flow)
    assert await flow.run() == [1, 2]


class Sends(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> A | B | None:
        for n in range(3):
            ctx.send_event(A(n=n))
        for n in range(3):
            ctx.send_event(B(n=n))

    @step(num_workers=1)
    async def join(self, a: A, b: B) -> Pair:
        return Pair(numbers=[a.n, b.n])

    @step(num_workers=1)
    async def end(self, ctx: Context, ev: Pair) -> StopEvent | None:
        pairs = ctx.collect_events(ev, [Pair] * 3)
        return StopEvent(result=[pair.numbers for pair in pairs]) if pairs else None


async def test_events_are_paired_in_the_order_in_which_they_came(place: Place) -> None:
    flow = await place.serve(Sends)
    assert sorted(await flow.run()) == [[0, 0], [1, 1], [2, 2]]


async def test_two_parameters_of_one_type_take_two_events(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> A | None:
            ctx.send_event(A(n=0))
            ctx.send_event(A(n=1))

        @step
        async def join(self, first: A, second: A) -> StopEvent:
            return StopEvent(result=[first.n, second.n])

    flow = await place.serve(Flow)
    assert await flow.run() == [0, 1]


async def test_a_start_event_can_fill_a_parameter(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> A:
            return A(n=ev.n)

        @step
        async def join(self, ev: StartEvent, a: A) -> StopEvent:
            return StopEvent(result=[ev.n, a.n])

    flow = await place.serve(Flow)
    assert await flow.run(n=4) == [4, 4]


async def test_an_answer_from_outside_can_fill_a_parameter(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> A:
            return A(n=1)

        @step
        async def join(self, a: A, answer: Answer) -> StopEvent:
            return StopEvent(result=[a.n, answer.n])

    flow = await place.serve(Flow)
    handler = flow.run()
    await handler.send_event(Answer(n=2))
    assert await handler == [1, 2]


async def test_a_join_inside_of_a_scope_is_collected_there(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(4)]

        @step
        async def left(self, ev: Item) -> A:
            return A(n=ev.n)

        @step
        async def right(self, ev: Item) -> B:
            return B(n=ev.n)

        @step
        async def join(self, a: A, b: B) -> Pair:
            return Pair(numbers=[a.n, b.n])

        @step
        async def end(self, evs: list[Pair]) -> StopEvent:
            return StopEvent(result=[ev.numbers for ev in evs])

    flow = await place.serve(Flow)
    pairs = await flow.run()
    assert sorted(a for a, _ in pairs) == sorted(b for _, b in pairs) == [0, 1, 2, 3]


async def test_a_joining_step_is_tried_again_with_the_same_events(place: Place) -> None:
    class Flow(Diamond):
        @step(retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(2)))
        async def join(self, ctx: Context, a: A, b: B) -> StopEvent:  # type: ignore[override]
            if not await ctx.store.get("tried", default=False):
                await ctx.store.set("tried", True)
                raise ValueError("again")
            return StopEvent(result=[a.n, b.n])

    flow = await place.serve(Flow)
    assert await flow.run() == [1, 2]


async def test_a_joining_step_can_wait(place: Place) -> None:
    class Flow(Diamond):
        @step
        async def join(self, ctx: Context, a: A, b: B) -> StopEvent:  # type: ignore[override]
            answer = await ctx.wait_for_event(Answer, waiter_event=Item(n=0))
            return StopEvent(result=[a.n, b.n, answer.n])

    flow = await place.serve(Flow)
    handler = flow.run()
    async for event in handler.stream_events():
        if isinstance(event, Item):
            await handler.send_event(Answer(n=3))
    assert await handler == [1, 2, 3]


async def test_an_event_without_a_partner_starts_nothing(place: Place) -> None:
    class Flow(Diamond):
        @step
        async def right(self, ev: StartEvent) -> B | None:  # type: ignore[override]
            return None

    flow: Any = await place.serve(Flow, timeout=1)
    with pytest.raises(WorkflowTimeoutError):
        await flow.run()
