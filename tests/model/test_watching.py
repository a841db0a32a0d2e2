"""Section 1.14: internal events, verbose runs, and the runner of tests."""

from __future__ import annotations

import asyncio

import pytest

from stepfleet import Context, Workflow, step
from stepfleet.errors import WorkflowCancelledByUser
from stepfleet.events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepState,
    StepStateChanged,
    StopEvent,
    UnhandledEvent,
    WorkflowIdleEvent,
)
from stepfleet.testing import WorkflowTestRunner


class Passed(Event):
    n: int = 0


class Stray(Event):
    n: int = 0


class Watched(Workflow):
    @step
    async def first(self, ev: StartEvent) -> Passed:
        return Passed()

    @step
    async def second(self, ev: Passed) -> StopEvent:
        return StopEvent(result="end")


@pytest.mark.feature("1.14: StepStateChanged")
async def test_a_run_tells_which_steps_ran_for_what() -> None:
    result = await WorkflowTestRunner(Watched()).run()
    told = [event for event in result.collected if isinstance(event, StepStateChanged)]
    began = [(e.name, e.input_event_name) for e in told if e.step_state is StepState.RUNNING]
    assert began == [("first", "StartEvent"), ("second", "Passed")]
    ended = [e for e in told if e.step_state is StepState.NOT_RUNNING]
    assert [e.name for e in ended] == ["first", "second"]
    assert [e.output_event_name for e in ended] == [str(Passed), str(StopEvent)]


@pytest.mark.feature("1.14: StepStateChanged")
async def test_internal_events_are_given_to_those_who_ask() -> None:
    handler = Watched().run()
    assert [type(e) async for e in handler.stream_events()] == [StopEvent]


class Strays(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.send_event(Stray())
        await asyncio.sleep(1.0)
        return StopEvent()


@pytest.mark.feature("1.14: UnhandledEvent")
async def test_an_event_that_nobody_accepts_is_told() -> None:
    result = await WorkflowTestRunner(Strays()).run()
    (told,) = [event for event in result.collected if isinstance(event, UnhandledEvent)]
    assert told.event_type == "Stray"
    assert told.qualified_name.endswith(".Stray")


class IdlesForAnswer(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent()

    @step
    async def answer(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent()


@pytest.mark.feature("1.14: WorkflowIdleEvent")
async def test_a_run_tells_that_it_can_only_wait() -> None:
    handler = IdlesForAnswer(timeout=60).run()
    idle = 0
    async for event in handler.stream_events(expose_internal=True):
        if isinstance(event, WorkflowIdleEvent):
            idle += 1
            handler.ctx.send_event(HumanResponseEvent())
    assert idle == 1


class Runs(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(30)
        return StopEvent()


@pytest.mark.feature("1.14: running_steps()")
async def test_a_context_tells_which_steps_run() -> None:
    handler = Runs().run()
    names: list[str] = []
    while not names:
        await asyncio.sleep(0.02)
        names = await handler.ctx.running_steps()
    assert names == ["only"]
    await handler.cancel_run()
    with pytest.raises(WorkflowCancelledByUser):
        await handler


@pytest.mark.feature("1.14: verbose")
@pytest.mark.one_process("it prints where the step runs")
async def test_a_verbose_workflow_prints_its_steps(capsys: pytest.CaptureFixture[str]) -> None:
    await Watched(verbose=True).run()
    printed = capsys.readouterr().out
    for line in (
        "[first:0] started from StartEvent",
        "[first:0] complete with Passed",
        "[second:0] started from Passed",
        "[second:0] complete with StopEvent",
    ):
        assert line in printed


@pytest.mark.feature("1.14: WorkflowTestRunner")
async def test_the_runner_leaves_out_what_it_is_told() -> None:
    result = await WorkflowTestRunner(Watched()).run(
        start_event=StartEvent(), exclude_events=[StepStateChanged]
    )
    assert result.collected == [StopEvent(result="end")]
    assert result.event_types == {StopEvent: 1}
    assert result.result == "end"
    assert isinstance(result.ctx, Context)
