"""`ctx.retry_info()`: what a step knows of the attempts of its delivery before this one."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.errors import ContextStateError
from stepfleet.retry_policy import (
    RetryInfo,
    retry_policy,
    stop_after_attempt,
    wait_fixed,
    wait_none,
)
from tests.conformance.place import Place


class Item(Event):
    n: int = 0


class Answer(Event):
    n: int = 0
    retries: int = 0


async def test_it_counts_the_retries_and_has_the_last_error(place: Place) -> None:
    seen: list[RetryInfo] = []

    class Flow(Workflow):
        @step(retry_policy=retry_policy(wait=wait_fixed(0.05), stop=stop_after_attempt(3)))
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            info = ctx.retry_info()
            seen.append(info)
            if info.retry_number < 2:
                raise ValueError(f"failure {info.retry_number}")
            return StopEvent()

    flow = await place.serve(Flow)
    await flow.run()
    first, second, third = seen
    assert (first.retry_number, first.elapsed_seconds) == (0, 0.0)
    assert first.last_exception is None
    assert first.last_failed_at is None
    for number, info in ((1, second), (2, third)):
        assert info.retry_number == number
        assert isinstance(info.last_exception, ValueError)
        assert str(info.last_exception) == f"failure {number - 1}"
        assert info.last_failed_at is not None
        assert abs((datetime.now(UTC) - info.last_failed_at).total_seconds()) < 60
    assert 0 < second.elapsed_seconds < third.elapsed_seconds < 60


async def test_each_delivery_counts_for_itself(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(3):
                ctx.send_event(Item(n=n))
            return None

        @step(retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(5)))
        async def work(self, ctx: Context, ev: Item) -> Answer:
            info = ctx.retry_info()
            if info.retry_number < ev.n:
                raise ValueError("again")
            return Answer(n=ev.n, retries=info.retry_number)

        @step
        async def join(self, ctx: Context, ev: Answer) -> StopEvent | None:
            found = ctx.collect_events(ev, [Answer] * 3)
            if found is None:
                return None
            return StopEvent(result=sorted([answer.n, answer.retries] for answer in found))

    flow = await place.serve(Flow)
    assert [list(pair) for pair in await flow.run()] == [[0, 0], [1, 1], [2, 2]]


async def test_it_is_kept_while_a_retry_waits_for_an_event(place: Place) -> None:
    class Flow(Workflow):
        @step(retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(3)))
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            if ctx.retry_info().retry_number == 0:
                raise ValueError("once")
            await ctx.wait_for_event(Answer, waiter_event=Item())
            info = ctx.retry_info()
            return StopEvent(result=[info.retry_number, str(info.last_exception)])

    flow = await place.serve(Flow)
    handler = flow.run()
    async for event in handler.stream_events():
        if isinstance(event, Item):
            await handler.send_event(Answer())
    assert list(await handler) == [1, "once"]


async def test_it_belongs_to_steps(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    flow = await place.serve(Flow)
    with pytest.raises(ContextStateError, match="retry_info requires a running workflow"):
        Context(flow).retry_info()
    handler = flow.run()
    with pytest.raises(ContextStateError, match="only available from within step functions"):
        handler.ctx.retry_info()
    await handler
