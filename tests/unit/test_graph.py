"""The graph routes events to steps, and its checks name what does not fit together."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from stepfleet.context import Context
from stepfleet.decorators import step
from stepfleet.errors import StateTypeError, WorkflowConfigurationError, WorkflowValidationError
from stepfleet.events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepFailedEvent,
    StopEvent,
)
from stepfleet.graph import Graph, build_graph, check_graph, uses_human_input


class A(Event):
    pass


class SubA(A):
    pass


class B(Event):
    pass


class C(Event):
    pass


class Base(BaseModel):
    pass


class Derived(Base):
    pass


class Other(BaseModel):
    pass


class Steps:
    """Collects free functions, as a workflow class does."""

    def __init__(self) -> None:
        self.functions: dict[str, Callable[..., Any]] = {}

    def add_step(self, func: Callable[..., Any], /) -> None:
        self.functions[func.__name__] = func

    def graph(self) -> Graph:
        return build_graph("W", self.functions)


def linear() -> Steps:
    """Give steps that are fine: StartEvent -> A -> StopEvent."""
    steps = Steps()

    @step(workflow=steps)
    async def begin(ev: StartEvent) -> A:
        return A()

    @step(workflow=steps)
    async def end(ev: A) -> StopEvent:
        return StopEvent()

    return steps


def message_of(steps: Steps, *skip: str) -> str:
    with pytest.raises(WorkflowValidationError) as caught:
        check_graph(steps.graph(), skip=skip)
    return str(caught.value)


def configuration_error(steps: Steps) -> str:
    with pytest.raises(WorkflowConfigurationError) as caught:
        steps.graph()
    return str(caught.value)


# -- building


def test_a_graph_says_what_the_steps_say() -> None:
    graph = linear().graph()
    assert graph.workflow_name == "W"
    assert list(graph.steps) == ["begin", "end"]
    assert graph.start_event_class is StartEvent
    assert graph.stop_event_class is StopEvent
    assert set(graph.event_types) == {StartEvent, A, StopEvent}
    assert graph.state_type is None


def test_a_spec_tells_how_to_call_its_step() -> None:
    steps = linear()

    @step(workflow=steps, num_workers=2, max_concurrency=3, timeout=1.5)
    def tally(event: A, ctx: Context[Base]) -> B | None:
        return None

    spec = steps.graph().steps["tally"]
    assert spec.function is tally
    assert (spec.is_method, spec.is_async) == (False, False)
    assert (spec.event_param, spec.context_param, spec.state_type) == ("event", "ctx", Base)
    assert (spec.accepts, spec.returns) == ((A,), (B,))
    assert (spec.num_workers, spec.max_concurrency, spec.timeout) == (2, 3, 1.5)
    assert steps.graph().steps["begin"].is_async is True


def test_the_steps_of_a_graph_cannot_be_changed() -> None:
    graph = linear().graph()
    with pytest.raises(TypeError):
        graph.steps["more"] = graph.steps["end"]  # pyright: ignore[reportIndexIssue]


def test_a_workflow_without_steps_is_refused() -> None:
    assert configuration_error(Steps()) == (
        "Workflow 'W' has no configured steps. Did you forget to annotate methods with @step "
        "or to register free-function steps via @step(workflow=...)? "
        "At least one Event of type StartEvent must be received by any step."
    )


def test_a_workflow_without_start_event_is_refused() -> None:
    steps = Steps()

    @step(workflow=steps)
    async def end(ev: A) -> StopEvent:
        return StopEvent()

    assert configuration_error(steps) == (
        "At least one Event of type StartEvent must be received by any step. "
        "(Workflow 'W' has no @step that accepts StartEvent.)"
    )


def test_a_workflow_without_stop_event_is_refused() -> None:
    steps = Steps()

    @step(workflow=steps)
    async def begin(ev: StartEvent) -> A:
        return A()

    assert configuration_error(steps) == (
        "At least one Event of type StopEvent must be returned by any step. "
        "(Workflow 'W' has no @step that returns StopEvent.)"
    )


def test_two_types_of_start_event_are_refused() -> None:
    class MyStart(StartEvent):
        pass

    steps = linear()

    @step(workflow=steps)
    async def other(ev: MyStart) -> A:
        return A()

    assert configuration_error(steps) == (
        "Only one type of StartEvent is allowed per workflow, found 2: {MyStart, StartEvent} "
        "in workflow 'W'."
    )


def test_two_types_of_stop_event_are_refused() -> None:
    class MyStop(StopEvent):
        pass

    steps = linear()

    @step(workflow=steps)
    async def other(ev: A) -> MyStop:
        return MyStop()

    assert configuration_error(steps) == (
        "Only one type of StopEvent is allowed per workflow, found 2: {MyStop, StopEvent} "
        "in workflow 'W'."
    )


def test_a_function_without_decorator_is_refused() -> None:
    async def forgotten(ev: A) -> B:
        return B()

    steps = linear()
    steps.add_step(forgotten)
    with pytest.raises(
        WorkflowValidationError,
        match=r"^Step function forgotten is missing the `@step` decorator.$",
    ):
        steps.graph()


def test_the_most_derived_state_type_is_the_state_type() -> None:
    steps = linear()

    @step(workflow=steps)
    async def narrow(ev: A, ctx: Context[Derived]) -> None: ...

    @step(workflow=steps)
    async def wide(ev: A, ctx: Context[Base]) -> None: ...

    assert steps.graph().state_type is Derived


def test_state_types_that_do_not_extend_each_other_are_refused() -> None:
    steps = linear()

    @step(workflow=steps)
    async def one(ev: A, ctx: Context[Base]) -> None: ...

    @step(workflow=steps)
    async def two(ev: A, ctx: Context[Other]) -> None: ...

    with pytest.raises(
        StateTypeError,
        match=r"^Multiple state types are not in a compatible inheritance hierarchy\. "
        r"One of them must extend all others\. Found: Base, Other$",
    ):
        _ = steps.graph().state_type


# -- routing


def test_an_event_goes_to_every_step_that_accepts_its_exact_type() -> None:
    steps = linear()

    @step(workflow=steps)
    async def also(ev: A | B) -> None: ...

    graph = steps.graph()
    assert [spec.name for spec in graph.acceptors(A)] == ["end", "also"]
    assert [spec.name for spec in graph.acceptors(B)] == ["also"]
    assert graph.acceptors(SubA) == ()


def test_a_step_that_opted_in_gets_subclasses() -> None:
    steps = linear()

    @step(workflow=steps, accept_event_subclasses=True)
    async def every(ev: A) -> None: ...

    assert [spec.name for spec in steps.graph().acceptors(SubA)] == ["every"]


def test_acceptors_are_remembered() -> None:
    graph = linear().graph()
    assert graph.acceptors(A) is graph.acceptors(A)


# -- the digest


def test_the_digest_is_short_stable_hex() -> None:
    assert linear().graph().digest == linear().graph().digest
    assert len(linear().graph().digest) == 16
    int(linear().graph().digest, 16)


def test_the_digest_changes_with_the_code_of_a_step() -> None:
    def changed() -> Steps:
        steps = linear()

        @step(workflow=steps)
        async def end(ev: A) -> StopEvent:
            return StopEvent(result="changed")

        return steps

    assert changed().graph().digest != linear().graph().digest


def test_the_digest_does_not_depend_on_the_order_of_steps() -> None:
    backwards = dict(reversed(linear().functions.items()))
    assert build_graph("W", backwards).digest == linear().graph().digest


def test_code_without_sources_has_a_digest_too() -> None:
    def typed_in(result: str) -> str:
        namespace: dict[str, Any] = {"step": step, "StartEvent": StartEvent, "StopEvent": StopEvent}
        steps = namespace["steps"] = Steps()
        source = (
            "@step(workflow=steps)\n"
            "async def only(ev: StartEvent) -> StopEvent:\n"
            f"    return {result}\n"
        )
        exec(compile(source, "<shell>", "exec", dont_inherit=True), namespace)
        return steps.graph().digest

    assert typed_in("StopEvent()") == typed_in("StopEvent()")
    assert typed_in("StopEvent()") != typed_in("StopEvent(result=[ev])")


# -- checking


def test_a_graph_that_fits_passes() -> None:
    check_graph(linear().graph())


def test_a_step_cannot_accept_the_stop_event() -> None:
    steps = linear()

    @step(workflow=steps)
    async def t(ev: StopEvent) -> None: ...

    assert message_of(steps) == (
        "Step 't' cannot accept StopEvent. StopEvent signals the end of the workflow. "
        "Use a different Event type instead."
    )


def test_events_consumed_but_never_produced_are_named() -> None:
    steps = linear()

    @step(workflow=steps)
    async def more(ev: C | B) -> None: ...

    assert message_of(steps) == "The following events are consumed but never produced: B, C"


def test_events_produced_but_never_consumed_are_named() -> None:
    steps = linear()

    @step(workflow=steps)
    async def more(ev: A) -> C | B | None: ...

    assert message_of(steps) == "The following events are produced but never consumed: B, C"


@pytest.mark.parametrize("annotation", [str, list[int], list, tuple[A], A | str])
def test_a_return_type_names_events_only(annotation: Any) -> None:
    steps = linear()

    async def text(ev: A) -> Any: ...

    text.__annotations__["return"] = annotation
    step(workflow=steps)(text)
    assert re.fullmatch(
        r"The following events are produced but never consumed: (str|list|tuple)\. "
        r"Step 'text' must return events or None\.",
        message_of(steps),
    )


def test_a_subclass_counts_as_consumed_only_by_a_step_that_opted_in() -> None:
    def branching(accept_event_subclasses: bool) -> Steps:
        steps = Steps()

        @step(workflow=steps)
        async def begin(ev: StartEvent) -> SubA:
            return SubA()

        @step(workflow=steps, accept_event_subclasses=accept_event_subclasses)
        async def end(ev: A) -> StopEvent:
            return StopEvent()

        return steps

    check_graph(branching(accept_event_subclasses=True).graph())
    message = message_of(branching(accept_event_subclasses=False))
    assert message == "The following events are consumed but never produced: A"


def test_human_input_needs_no_step_on_the_other_side() -> None:
    steps = Steps()

    @step(workflow=steps)
    async def ask(ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent()

    @step(workflow=steps)
    async def answer(ev: HumanResponseEvent) -> StopEvent:
        return StopEvent()

    check_graph(steps.graph())
    assert uses_human_input(steps.graph()) is True
    assert uses_human_input(linear().graph()) is False


def circle_and_island() -> Steps:
    steps = linear()

    @step(workflow=steps)
    async def enter(ev: A) -> B:
        return B()

    @step(workflow=steps)
    async def t(ev: B) -> C:
        return C()

    @step(workflow=steps)
    async def u(ev: C) -> B:
        return B()

    @step(workflow=steps)
    async def island(ev: InputRequiredEvent) -> HumanResponseEvent:
        return HumanResponseEvent()

    return steps


def test_a_failure_comes_to_catch_error_steps_alone() -> None:
    steps = linear()

    @step(workflow=steps)
    async def handles(ev: StepFailedEvent) -> StopEvent: ...

    assert "[reachability] Unreachable steps: handles\n" in message_of(steps)


def test_every_problem_of_the_graph_is_listed_at_once() -> None:
    assert message_of(circle_and_island()) == (
        "Graph validation failed:\n"
        "  - [reachability] Unreachable steps: island\n"
        "    Steps must be reachable from StartEvent or HumanResponseEvent.\n"
        "  - [terminal_event] Events produced but never consumed: HumanResponseEvent\n"
        "    Only StopEvent and InputRequiredEvent may be terminal.\n"
        "  - [dead_end] Dead-end steps: enter, island, t, u\n"
        "    Steps must have a path to StopEvent or InputRequiredEvent."
    )


def test_a_workflow_can_skip_each_check() -> None:
    steps = circle_and_island()
    assert "[reachability]" not in message_of(steps, "reachability")
    assert "[terminal_event]" not in message_of(steps, "terminal_event")
    assert "[dead_end]" not in message_of(steps, "dead_end")
    check_graph(steps.graph(), skip=("reachability", "terminal_event", "dead_end"))


def test_a_step_can_be_left_out_of_a_check() -> None:
    steps = linear()

    @step(workflow=steps, skip_graph_checks=["reachability"])
    async def island(ev: InputRequiredEvent) -> A:
        return A()

    @step(workflow=steps, skip_graph_checks=["dead_end"])
    async def enter(ev: A) -> B:
        return B()

    @step(workflow=steps, skip_graph_checks=["dead_end"])
    async def circle(ev: B) -> B:
        return B()

    check_graph(steps.graph())


def test_a_step_that_returns_nothing_is_no_dead_end() -> None:
    steps = linear()

    @step(workflow=steps)
    async def note(ev: A) -> None: ...

    check_graph(steps.graph())


def test_a_long_way_out_is_no_dead_end() -> None:
    steps = linear()

    @step(workflow=steps)
    async def detour(ev: A) -> B:
        return B()

    @step(workflow=steps)
    async def further(ev: B) -> C:
        return C()

    @step(workflow=steps)
    async def back(ev: C) -> A:
        return A()

    check_graph(steps.graph())
