"""Section 1.1: limits on runs, and runs inside of runs."""

from __future__ import annotations

import asyncio
import time

import pytest

from stepfleet import Context, Workflow, step
from stepfleet.errors import WorkflowCancelledByUser, WorkflowTimeoutError
from stepfleet.events import Event, StartEvent, StopEvent


class Began(Event):
    run: str


class OneOfMany(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        began = time.time()
        await asyncio.sleep(ev.get("seconds", 0.1))
        return StopEvent(result=[began, time.time()])


@pytest.mark.feature("1.1: num_concurrent_runs")
async def test_an_instance_has_so_many_runs_at_once() -> None:
    workflow = OneOfMany(num_concurrent_runs=2)
    spans = await asyncio.gather(*(workflow.run() for _ in range(6)))
    edges = sorted([(began, 1) for began, _ in spans] + [(ended, -1) for _, ended in spans])
    now = most = 0
    for _, change in edges:
        now += change
        most = max(most, now)
    assert most <= 2


@pytest.mark.feature("1.1: num_concurrent_runs")
async def test_a_run_that_waits_for_its_turn_has_all_of_its_time() -> None:
    workflow = OneOfMany(num_concurrent_runs=1, timeout=3.0)
    assert len(await asyncio.gather(*(workflow.run(seconds=0.8) for _ in range(5)))) == 5


class SlowChild(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(30)
        return StopEvent(result="never")


class WaitingParent(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        handler = SlowChild().run()
        ctx.write_event_to_stream(Began(run=handler.run_id))
        return StopEvent(result=await handler)


@pytest.mark.feature("1.1: nested workflows")
async def test_a_parent_that_awaits_a_run_can_be_cancelled() -> None:
    handler = WaitingParent().run()
    async for event in handler.stream_events():
        if isinstance(event, Began):
            break
    await handler.cancel_run()
    with pytest.raises(WorkflowCancelledByUser):
        await handler


@pytest.mark.feature("1.1: nested workflows")
async def test_a_parent_that_awaits_a_run_times_out() -> None:
    with pytest.raises(WorkflowTimeoutError):
        await WaitingParent(timeout=0.5).run()


class Leaf(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.depth)


class Recursive(Workflow):
    @step(num_workers=1)
    async def only(self, ev: StartEvent) -> StopEvent:
        if ev.depth == 0:
            return StopEvent(result=await Leaf().run(depth=0))
        return StopEvent(result=await Recursive().run(depth=ev.depth - 1) + 1)


@pytest.mark.feature("1.1: nested workflows")
async def test_runs_may_be_nested_deeply() -> None:
    assert await Recursive().run(depth=5) == 5
