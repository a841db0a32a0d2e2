"""Section 1.8, first half: `collect_events`."""

from __future__ import annotations

import asyncio

import pytest

from stepfleet import Context, Workflow, step
from stepfleet.events import Event, StartEvent, StopEvent
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_none


class A(Event):
    n: int = 0


class B(Event):
    n: int = 0


class C(Event):
    n: int = 0


class FanIn(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> A | None:
        for n in range(5):
            ctx.send_event(A(n=n))

    @step
    async def work(self, ev: A) -> B:
        return B(n=ev.n * 10)

    @step
    async def end(self, ctx: Context, ev: B) -> StopEvent | None:
        found = ctx.collect_events(ev, [B] * 5)
        return None if found is None else StopEvent(result=sorted(e.n for e in found))


@pytest.mark.feature("1.8: collect_events")
async def test_a_step_collects_what_others_made() -> None:
    assert await FanIn().run() == [0, 10, 20, 30, 40]


class Ordered(Workflow):
    @step
    async def a(self, ev: StartEvent) -> A:
        await asyncio.sleep(0.05)
        return A(n=1)

    @step
    async def b(self, ev: StartEvent) -> B:
        return B(n=2)

    @step
    async def c(self, ev: StartEvent) -> C:
        return C(n=3)

    @step
    async def end(self, ctx: Context, ev: A | B | C) -> StopEvent | None:
        found = ctx.collect_events(ev, [C, A, B])
        return None if found is None else StopEvent(result=[type(e).__name__ for e in found])


@pytest.mark.feature("1.8: collect_events")
async def test_events_come_in_the_order_of_what_is_expected() -> None:
    assert await Ordered().run() == ["C", "A", "B"]


class Nothing(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ctx.collect_events(ev, []))


@pytest.mark.feature("1.8: collect_events")
async def test_expecting_nothing_gives_an_empty_list_at_once() -> None:
    assert await Nothing().run() == []


class Excess(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> A | B | None:
        for n in range(3):
            ctx.send_event(A(n=n))
        ctx.send_event(B(n=9))

    @step(num_workers=1)
    async def end(self, ctx: Context, ev: A | B) -> StopEvent | None:
        found = ctx.collect_events(ev, [A, B])
        return None if found is None else StopEvent(result=[e.n for e in found])


@pytest.mark.feature("1.8: excess events")
async def test_events_beyond_the_expected_ones_are_dropped() -> None:
    assert await Excess().run() == [0, 9]


class Unexpected(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> A | B | C | None:
        ctx.send_event(C(n=1))
        ctx.send_event(A(n=2))
        ctx.send_event(B(n=3))

    @step(num_workers=1)
    async def end(self, ctx: Context, ev: A | B | C) -> StopEvent | None:
        found = ctx.collect_events(ev, [A, B])
        return None if found is None else StopEvent(result=[e.n for e in found])


@pytest.mark.feature("1.8: excess events")
async def test_an_event_of_another_type_is_dropped() -> None:
    assert await Unexpected().run() == [2, 3]


class Rounds(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> A | None:
        for n in range(4):
            ctx.send_event(A(n=n))

    @step(num_workers=1)
    async def pair(self, ctx: Context, ev: A) -> B | None:
        found = ctx.collect_events(ev, [A, A])
        return None if found is None else B(n=sum(e.n for e in found))

    @step
    async def end(self, ctx: Context, ev: B) -> StopEvent | None:
        found = ctx.collect_events(ev, [B, B])
        return None if found is None else StopEvent(result=sorted(e.n for e in found))


@pytest.mark.feature("1.8: collect_events")
async def test_a_released_buffer_fills_again() -> None:
    assert await Rounds().run() == [1, 5]


class Buffers(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> A | None:
        for n in range(4):
            ctx.send_event(A(n=n))

    @step(num_workers=1)
    async def sort(self, ctx: Context, ev: A) -> B | None:
        side = "even" if ev.n % 2 == 0 else "odd"
        found = ctx.collect_events(ev, [A, A], buffer_id=side)
        return None if found is None else B(n=sum(e.n for e in found))

    @step
    async def end(self, ctx: Context, ev: B) -> StopEvent | None:
        found = ctx.collect_events(ev, [B, B])
        return None if found is None else StopEvent(result=sorted(e.n for e in found))


@pytest.mark.feature("1.8: buffer_id")
async def test_buffers_with_names_are_kept_apart() -> None:
    assert await Buffers().run() == [2, 4]


class TwoCollectors(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> A | None:
        ctx.send_event(A(n=1))
        ctx.send_event(A(n=2))

    @step
    async def one(self, ctx: Context, ev: A) -> B | None:
        found = ctx.collect_events(ev, [A, A])
        return None if found is None else B(n=sum(e.n for e in found))

    @step
    async def two(self, ctx: Context, ev: A) -> B | None:
        found = ctx.collect_events(ev, [A, A])
        return None if found is None else B(n=sum(e.n for e in found))

    @step
    async def end(self, ctx: Context, ev: B) -> StopEvent | None:
        found = ctx.collect_events(ev, [B, B])
        return None if found is None else StopEvent(result=[e.n for e in found])


@pytest.mark.feature("1.8: buffer_id")
async def test_every_step_has_buffers_of_its_own() -> None:
    assert await TwoCollectors().run() == [3, 3]


class FailsWhileCollecting(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> A | None:
        for n in range(3):
            ctx.send_event(A(n=n))

    @step(num_workers=1, retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(3)))
    async def end(self, ctx: Context, ev: A) -> StopEvent | None:
        found = ctx.collect_events(ev, [A] * 3)
        if ev.n == 1 and not await ctx.store.get("failed", default=False):
            await ctx.store.set("failed", True)
            raise ValueError("once")
        return None if found is None else StopEvent(result=sorted(e.n for e in found))


@pytest.mark.feature("1.8: collecting and retries")
@pytest.mark.differs(
    "there the attempt that failed has collected its event too, so it counts twice"
)
async def test_a_failed_attempt_collects_nothing() -> None:
    assert await FailsWhileCollecting().run() == [0, 1, 2]


class FailsAfterRelease(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> A | None:
        for n in range(3):
            ctx.send_event(A(n=n))

    @step(num_workers=1, retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(3)))
    async def end(self, ctx: Context, ev: A) -> StopEvent | None:
        found = ctx.collect_events(ev, [A] * 3)
        if found is None:
            return None
        if not await ctx.store.get("failed", default=False):
            await ctx.store.set("failed", True)
            raise ValueError("once")
        return StopEvent(result=sorted(e.n for e in found))


@pytest.mark.feature("1.8: collecting and retries")
async def test_a_step_that_fails_after_the_release_collects_again() -> None:
    assert await FailsAfterRelease().run() == [0, 1, 2]
