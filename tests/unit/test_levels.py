"""Lists and joins in the graph: who collects from whom, and what never comes together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stepfleet.decorators import step
from stepfleet.errors import WorkflowValidationError
from stepfleet.events import Event, HumanResponseEvent, StartEvent, StopEvent
from stepfleet.graph import Graph, build_graph, check_graph


class A(Event):
    pass


class SubA(A):
    pass


class B(Event):
    pass


class C(Event):
    pass


class Answer(HumanResponseEvent):
    pass


class Steps:
    """Collects free functions, as a workflow class does."""

    def __init__(self) -> None:
        self.functions: dict[str, Callable[..., Any]] = {}

    def add_step(self, func: Callable[..., Any], /) -> None:
        self.functions[func.__name__] = func

    def add(self, name: str, returns: Any, /, *, subclasses: bool = False, **events: Any) -> Steps:
        """Add a step with these event parameters."""
        parameters = ", ".join(events)
        namespace: dict[str, Any] = {}
        exec(f"async def {name}({parameters}): ...", namespace)
        function = namespace[name]
        function.__annotations__ = {**events, "return": returns}
        step(workflow=self, accept_event_subclasses=subclasses)(function)
        return self

    def graph(self) -> Graph:
        return build_graph("W", self.functions)


def problem(steps: Steps) -> str:
    with pytest.raises(WorkflowValidationError) as caught:
        check_graph(steps.graph())
    return str(caught.value)


def collectors(steps: Steps) -> dict[str, list[str]]:
    graph = steps.graph()
    check_graph(graph)
    return {name: [spec.name for spec in found] for name, found in graph.collectors.items()}


def test_members_and_what_follows_from_them_are_collected() -> None:
    steps = Steps().add("split", list[A], ev=StartEvent).add("work", B, ev=A)
    steps.add("join", StopEvent, evs=list[B])
    assert collectors(steps) == {"split": ["join"]}


def test_members_can_be_collected_directly_and_by_several_steps() -> None:
    steps = Steps().add("split", list[A], ev=StartEvent)
    steps.add("one", StopEvent, evs=list[A]).add("two", None, evs=list[A])
    assert collectors(steps) == {"split": ["one", "two"]}


def test_a_nested_list_is_collected_inside_first() -> None:
    steps = Steps().add("outer", list[A], ev=StartEvent).add("inner", list[B], ev=A)
    steps.add("part", C, evs=list[B]).add("whole", StopEvent, evs=list[C])
    assert collectors(steps) == {"outer": ["whole"], "inner": ["part"]}


def test_a_collector_that_returns_a_list_opens_a_scope_of_its_own() -> None:
    steps = Steps().add("split", list[A], ev=StartEvent).add("again", list[B], evs=list[A])
    steps.add("end", StopEvent, evs=list[B])
    assert collectors(steps) == {"split": ["again"], "again": ["end"]}


def test_a_loop_of_lists_ends() -> None:
    steps = Steps().add("split", list[A], ev=StartEvent)
    steps.add("again", list[A] | StopEvent, evs=list[A])
    assert collectors(steps) == {"split": ["again"], "again": ["again"]}


def test_a_list_that_nobody_collects_is_fine() -> None:
    steps = Steps().add("split", list[A], ev=StartEvent).add("work", StopEvent, ev=A)
    assert collectors(steps) == {"split": []}


def test_what_is_returned_by_itself_stays_on_its_level() -> None:
    steps = Steps().add("outer", list[A], ev=StartEvent).add("inner", list[B] | C, ev=A)
    steps.add("part", C, evs=list[B]).add("whole", StopEvent, evs=list[C])
    assert "whole" in collectors(steps)["outer"]


def test_subclasses_are_collected_by_a_step_that_opted_in() -> None:
    steps = Steps().add("split", list[SubA], ev=StartEvent)
    steps.add("join", StopEvent, evs=list[A], subclasses=True)
    assert collectors(steps) == {"split": ["join"]}


def test_a_list_has_to_be_returned_somewhere() -> None:
    steps = Steps().add("make", A, ev=StartEvent).add("join", StopEvent, evs=list[A | B])
    assert problem(steps) == (
        "Step 'join' parameter 'evs' collects list[A, B], but no returned-list producer creates a "
        "stream for those event types. list[E] fan-in only consumes events from steps annotated as "
        "returning list[E]; use ctx.collect_events for unstreamed ctx.send_event flows."
    )


def test_slots_of_one_level_fit() -> None:
    steps = Steps().add("a", A, ev=StartEvent).add("b", B, ev=StartEvent)
    steps.add("join", StopEvent, a=A, b=B)
    check_graph(steps.graph())


def test_slots_inside_one_scope_fit() -> None:
    steps = Steps().add("split", list[C], ev=StartEvent).add("a", A, ev=C).add("b", B, ev=C)
    steps.add("join", StopEvent, a=A, b=B)
    check_graph(steps.graph())


def test_an_answer_from_outside_is_at_the_top() -> None:
    steps = Steps().add("a", A, ev=StartEvent).add("join", StopEvent, a=A, answer=Answer)
    check_graph(steps.graph())


def test_slots_of_different_levels_never_fill() -> None:
    steps = Steps().add("split", list[A], ev=StartEvent).add("b", B, ev=StartEvent)
    steps.add("join", StopEvent, a=A, b=B)
    assert problem(steps) == (
        "Step 'join' joins event parameters that are never produced at a common stream level: "
        "'a' (A) is produced at the stream of step 'split'; 'b' (B) is produced at the top level. "
        "A multi-slot join only fires when all of its inputs originate at the same level. To gate "
        "in-stream work on input from another level, use ctx.wait_for_event inside the producing "
        "step instead."
    )


def test_a_slot_that_nobody_fills_is_named() -> None:
    steps = Steps().add("a", A, ev=StartEvent).add("join", StopEvent, a=A, b=B)
    assert "'b' (B) is produced at no level" in problem(steps)


def test_lists_are_part_of_the_digest() -> None:
    def digest(returns: Any, **events: Any) -> str:
        steps = Steps().add("split", returns, ev=StartEvent)
        return steps.add("end", StopEvent, **events).graph().digest

    digests = {
        digest(list[A], evs=list[A]),
        digest(list[A], evs=A),
        digest(A, evs=A),
        digest(list[A | B], evs=A),
    }
    assert len(digests) == 4
