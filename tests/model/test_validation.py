"""Section 1.12: what is refused before anything runs, and the words for it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from stepfleet import Workflow, step
from stepfleet.errors import WorkflowConfigurationError, WorkflowValidationError
from stepfleet.events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
)


class A(Event): ...


class B(Event): ...


class C(Event): ...


def refusal(workflow: Callable[[], Workflow]) -> str:
    with pytest.raises((WorkflowValidationError, WorkflowConfigurationError)) as caught:
        workflow().validate()
    return str(caught.value)


@pytest.mark.feature("1.12: StopEvent is accepted by no step")
def test_no_step_accepts_the_stop_event() -> None:
    class Accepts(Workflow):
        @step
        async def s(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

        @step
        async def t(self, ev: StopEvent) -> None: ...

    assert refusal(Accepts) == (
        "Step 't' cannot accept StopEvent. StopEvent signals the end of the workflow. "
        "Use a different Event type instead."
    )


@pytest.mark.feature("1.12: events that are consumed and never produced")
def test_an_event_that_no_step_makes_is_named() -> None:
    class Unmade(Workflow):
        @step
        async def s(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

        @step
        async def t(self, ev: A) -> StopEvent:
            return StopEvent()

    assert refusal(Unmade) == "The following events are consumed but never produced: A"


@pytest.mark.feature("1.12: events that are produced and never consumed")
def test_an_event_that_no_step_takes_is_named() -> None:
    class Untaken(Workflow):
        @step
        async def s(self, ev: StartEvent) -> A | StopEvent:
            return StopEvent()

    assert refusal(Untaken) == "The following events are produced but never consumed: A"


@pytest.mark.feature("1.12: reachability")
def test_steps_that_cannot_be_reached_are_named() -> None:
    class Island(Workflow):
        @step
        async def s(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

        @step
        async def x(self, ev: A) -> B:
            return B()

        @step
        async def y(self, ev: B) -> A | StopEvent:
            return A()

    assert refusal(Island) == (
        "Graph validation failed:\n  - [reachability] Unreachable steps: x, y\n"
        "    Steps must be reachable from StartEvent or HumanResponseEvent."
    )
    assert Island(skip_graph_checks={"reachability"}).validate() is False


@pytest.mark.feature("1.12: dead ends")
def test_steps_that_lead_nowhere_are_named() -> None:
    class DeadEnd(Workflow):
        @step
        async def s(self, ev: StartEvent) -> A | StopEvent:
            return A()

        @step
        async def t(self, ev: A) -> B:
            return B()

        @step
        async def u(self, ev: B) -> A:
            return A()

    assert refusal(DeadEnd) == (
        "Graph validation failed:\n  - [dead_end] Dead-end steps: t, u\n"
        "    Steps must have a path to StopEvent or InputRequiredEvent."
    )
    assert DeadEnd(skip_graph_checks={"dead_end"}).validate() is False


@pytest.mark.feature("1.12: skip_graph_checks")
def test_a_step_may_be_left_out_of_a_check() -> None:
    class DeadEnd(Workflow):
        @step
        async def s(self, ev: StartEvent) -> A | StopEvent:
            return A()

        @step(skip_graph_checks=["dead_end"])
        async def t(self, ev: A) -> B:
            return B()

        @step(skip_graph_checks=["dead_end"])
        async def u(self, ev: B) -> A:
            return A()

    assert DeadEnd().validate() is False


@pytest.mark.feature("1.12: a step that returns nothing")
def test_a_step_that_returns_nothing_is_no_dead_end() -> None:
    class Quiet(Workflow):
        @step
        async def s(self, ev: StartEvent) -> A | StopEvent:
            return A()

        @step
        async def t(self, ev: A) -> None: ...

    assert Quiet().validate() is False


@pytest.mark.feature("1.12: human input")
def test_questions_need_no_reader_and_answers_no_writer() -> None:
    class Asks(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> InputRequiredEvent:
            return InputRequiredEvent()

        @step
        async def answer(self, ev: HumanResponseEvent) -> StopEvent:
            return StopEvent()

    assert Asks().validate() is True


@pytest.mark.feature("1.12: disable_validation")
def test_an_explicit_validation_cannot_be_turned_off() -> None:
    class Untaken(Workflow):
        @step
        async def s(self, ev: StartEvent) -> A | StopEvent:
            return StopEvent()

    with pytest.raises(WorkflowValidationError, match="never consumed"):
        Untaken(disable_validation=True).validate()


class UntakenAtRun(Workflow):
    def __init__(self) -> None:
        super().__init__(disable_validation=True)

    @step
    async def s(self, ev: StartEvent) -> A | StopEvent:
        return StopEvent(result="ran")


@pytest.mark.feature("1.12: disable_validation")
async def test_a_workflow_without_validation_runs() -> None:
    assert await UntakenAtRun().run() == "ran"


@pytest.mark.feature("1.12: validation by run()")
@pytest.mark.one_process("a worker that loads such a workflow refuses to start")
async def test_run_validates() -> None:
    class Untaken(Workflow):
        @step
        async def s(self, ev: StartEvent) -> A | StopEvent:
            return StopEvent()

    with pytest.raises(WorkflowValidationError, match="produced but never consumed: A"):
        await Untaken().run()


@pytest.mark.feature("1.12: accepted subclasses")
def test_a_step_that_accepts_subclasses_takes_them() -> None:
    class A2(A): ...

    class Takes(Workflow):
        @step
        async def s(self, ev: StartEvent) -> A2:
            return A2()

        @step(accept_event_subclasses=True)
        async def t(self, ev: A) -> StopEvent:
            return StopEvent()

    assert Takes().validate() is False


@pytest.mark.feature("1.12: configuration")
def test_several_start_events_are_listed() -> None:
    class OneStart(StartEvent): ...

    class OtherStart(StartEvent): ...

    class Both(Workflow):
        @step
        async def s(self, ev: OneStart) -> StopEvent:
            return StopEvent()

        @step
        async def t(self, ev: OtherStart) -> StopEvent:
            return StopEvent()

    message = refusal(Both)
    assert re.match("Only one type of StartEvent is allowed per workflow, found 2: ", message)
    assert "OneStart" in message
    assert "OtherStart" in message
