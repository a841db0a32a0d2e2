"""How to test a workflow of one's own: one idea per test."""

from __future__ import annotations

import pytest

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.testing import WorkflowTestResult, WorkflowTestRunner


class Order(StartEvent):
    number: int = 2


class Progress(Event):
    done: int


class Baking(Workflow):
    @step
    async def bake(self, ctx: Context, ev: Order) -> StopEvent:
        for done in range(ev.number):
            ctx.write_event_to_stream(Progress(done=done))
        await ctx.store.set("baked", await ctx.store.get("baked", default=0) + ev.number)
        return StopEvent(result=f"{ev.number} loaves")


async def test_a_runner_collects_what_a_run_publishes_and_returns() -> None:
    """In its order, up to the event that ended the run."""
    runner = WorkflowTestRunner(Baking())
    outcome = await runner.run(start_event=Order(number=3), expose_internal=False)

    assert isinstance(outcome, WorkflowTestResult)
    assert outcome.result == "3 loaves"
    assert [event.done for event in outcome.collected[:-1]] == [0, 1, 2]
    assert outcome.event_types == {Progress: 3, StopEvent: 1}


async def test_without_a_start_event_the_workflow_s_own_one_is_made() -> None:
    """Its fields need defaults then."""
    outcome = await WorkflowTestRunner(Baking()).run()

    assert outcome.result == "2 loaves"


async def test_types_of_events_can_be_left_out() -> None:
    """By their exact type: what inherits from one of them stays."""
    runner = WorkflowTestRunner(Baking())

    outcome = await runner.run(exclude_events=[Progress, Event], expose_internal=False)

    assert outcome.event_types == {StopEvent: 1}
    assert [type(event) for event in outcome.collected] == [StopEvent]


async def test_the_context_shows_the_store_after_the_run() -> None:
    """It carries the state into a next run as well."""
    runner = WorkflowTestRunner(Baking())

    first = await runner.run()
    second = await runner.run(start_event=Order(number=5), ctx=first.ctx)

    assert await second.ctx.store.get("baked") == 7


async def test_the_error_of_a_step_reaches_the_test() -> None:
    """As it reaches whoever awaits a run."""

    class Burnt(Workflow):
        @step
        async def bake(self, ev: StartEvent) -> StopEvent:
            raise ValueError("burnt")

    with pytest.raises(ValueError, match="burnt"):
        await WorkflowTestRunner(Burnt()).run()
