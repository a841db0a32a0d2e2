"""A workflow collects its steps, checks them, and hands start events to a runtime."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from stepfleet.context import Context
from stepfleet.decorators import step
from stepfleet.errors import (
    WorkflowConfigurationError,
    WorkflowRuntimeError,
    WorkflowValidationError,
)
from stepfleet.events import Event, InputRequiredEvent, StartEvent, StopEvent
from stepfleet.handler import WorkflowHandler
from stepfleet.workflow import (
    Workflow,
    current_runtime,
    graph_of,
    install_default_runtime,
    options_of,
)


class A(Event):
    pass


class Question(StartEvent):
    topic: str
    length: int = 1


class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> A:
        return A()

    @step
    async def end(self, ev: A) -> StopEvent:
        return StopEvent()


class Asking(Workflow):
    @step
    async def begin(self, ev: Question) -> StopEvent:
        return StopEvent()


class Unfit(Flow):
    @step
    async def extra(self, ev: InputRequiredEvent) -> None: ...


@dataclass
class RecordingRuntime:
    """Remembers what was submitted instead of running it."""

    handler: WorkflowHandler = field(default_factory=lambda: object.__new__(WorkflowHandler))
    submitted: list[tuple[Workflow, StartEvent | None, str | None, Context[Any] | None]] = field(
        default_factory=list[tuple[Workflow, StartEvent | None, str | None, Context[Any] | None]]
    )

    def submit(
        self,
        workflow: Workflow,
        start_event: StartEvent | None,
        *,
        run_id: str | None,
        ctx: Context[Any] | None,
    ) -> WorkflowHandler:
        self.submitted.append((workflow, start_event, run_id, ctx))
        return self.handler

    @property
    def event(self) -> StartEvent:
        event = self.submitted[-1][1]
        assert event is not None
        return event


@pytest.fixture
def runtime() -> RecordingRuntime:
    return RecordingRuntime()


@pytest.fixture
def no_default_runtime() -> Iterator[None]:
    installed = Workflow._default_runtime
    install_default_runtime(None)
    yield
    install_default_runtime(installed)


def run(workflow: Workflow, *args: Any, **kwargs: Any) -> WorkflowHandler:
    async def inside_a_loop() -> WorkflowHandler:
        return workflow.run(*args, **kwargs)

    return asyncio.run(inside_a_loop())


# -- steps


def test_methods_are_steps_in_the_order_of_their_definition() -> None:
    assert list(graph_of(Flow).steps) == ["begin", "end"]


def test_a_subclass_inherits_and_overrides_steps() -> None:
    class Changed(Flow):
        @step(num_workers=1)
        async def end(self, ev: A) -> StopEvent:
            return StopEvent(result=2)

    steps = graph_of(Changed).steps
    assert list(steps) == ["begin", "end"]
    assert steps["end"].function is Changed.end
    assert graph_of(Flow).steps["end"].function is Flow.end


def test_an_override_without_decorator_is_no_step() -> None:
    class Changed(Flow):
        async def end(self, ev: A) -> StopEvent:
            return StopEvent()

    with pytest.raises(WorkflowConfigurationError, match=r"returns StopEvent"):
        Changed()


def test_steps_come_from_mixins_and_static_methods_too() -> None:
    class Mixin:
        @step
        async def note(self, ev: A) -> None: ...

    class Mixed(Mixin, Flow):
        @staticmethod
        @step
        async def free(ev: A) -> None: ...

    assert set(graph_of(Mixed).steps) == {"begin", "end", "note", "free"}
    assert graph_of(Mixed).steps["free"].is_method is False


def test_free_functions_are_steps_of_their_class_only() -> None:
    class Parent(Flow):
        pass

    @step(workflow=Parent)
    async def note(ev: A) -> None: ...

    class Child(Parent):
        pass

    assert "note" in graph_of(Parent).steps
    assert "note" not in graph_of(Child).steps
    assert "note" not in graph_of(Flow).steps


def test_a_workflow_can_be_made_of_free_functions() -> None:
    class Empty(Workflow):
        pass

    @step(workflow=Empty)
    async def only(ev: StartEvent) -> StopEvent:
        return StopEvent()

    assert Empty().start_event_class is StartEvent


def test_a_step_added_later_reaches_existing_instances() -> None:
    class Growing(Flow):
        pass

    workflow = Growing()
    assert workflow.validate() is False

    @step(workflow=Growing)
    async def ask(ev: A) -> InputRequiredEvent:
        return InputRequiredEvent()

    assert InputRequiredEvent in workflow.events
    assert workflow.validate() is True


def test_a_name_can_be_used_once() -> None:
    class Parent(Flow):
        pass

    async def end(ev: A) -> None: ...

    with pytest.raises(
        WorkflowValidationError,
        match=r"^A step end is already part of this workflow, please choose another name.$",
    ):
        step(workflow=Parent)(end)


def test_add_step_needs_a_decorated_function() -> None:
    async def f(ev: A) -> None: ...

    with pytest.raises(
        WorkflowValidationError, match=r"^Step function f is missing the `@step` decorator.$"
    ):
        Flow.add_step(f)


# -- the constructor


def test_a_workflow_without_steps_cannot_be_built_even_without_validation() -> None:
    class Empty(Workflow):
        pass

    with pytest.raises(WorkflowConfigurationError, match=r"^Workflow 'Empty' has no configured"):
        Empty(disable_validation=True)


def test_a_workflow_without_a_start_event_cannot_be_built_even_without_validation() -> None:
    class Endless(Workflow):
        @step
        async def end(self, ev: A) -> StopEvent:
            return StopEvent()

    with pytest.raises(WorkflowConfigurationError, match=r"'Endless' has no @step that accepts"):
        Endless(disable_validation=True)


@pytest.mark.parametrize("bad", [0, -1, True, 1.5, "2"])
def test_num_concurrent_runs_is_a_positive_integer_or_none(bad: Any) -> None:
    with pytest.raises(
        WorkflowValidationError,
        match=r"^num_concurrent_runs must be an integer greater than 0 or None, not ",
    ):
        Flow(num_concurrent_runs=bad)


def test_unknown_graph_checks_are_named_with_the_valid_ones() -> None:
    with pytest.raises(
        WorkflowValidationError,
        match=r"^Unknown graph check names: zz. "
        "Valid names are: dead_end, reachability, terminal_event$",
    ):
        Flow(skip_graph_checks=["zz"])  # pyright: ignore[reportArgumentType]


def test_the_default_timeout_is_that_of_the_model() -> None:
    assert options_of(Flow()).timeout == 45
    assert options_of(Flow(timeout=None)).timeout is None
    assert options_of(Flow(timeout=timedelta(minutes=2))).timeout == 120


@pytest.mark.parametrize("timeout", [0, -1, timedelta(0)])
def test_a_timeout_of_nothing_is_refused(timeout: Any) -> None:
    with pytest.raises(WorkflowValidationError, match="greater than 0, or None"):
        Flow(timeout=timeout)


def test_a_subclass_constructor_takes_its_own_arguments() -> None:
    class Needy(Flow):
        def __init__(self, model: str, **options: Any) -> None:
            super().__init__(**options)
            self.model = model

    workflow = Needy("large", timeout=3)
    assert workflow.model == "large"
    assert options_of(workflow).timeout == 3
    assert options_of(workflow).constructor_arguments == (("large",), {"timeout": 3})


def test_types_of_a_class_and_its_parents_are_collected() -> None:
    class Model(BaseModel):
        pass

    class Parent(Flow, types=[Model]):
        pass

    class Side(Flow, types=[bytes]):
        pass

    class Child(Parent, Side, types=[int, Model]):
        pass

    assert set(options_of(Child()).types) == {Model, bytes, int}
    assert options_of(Child()).types.count(Model) == 1
    assert options_of(Flow()).types == ()


# -- properties


def test_the_workflow_name_is_the_given_one_or_that_of_the_class() -> None:
    assert Flow().workflow_name == f"{__name__}.Flow"
    assert Flow(workflow_name="flow").workflow_name == "flow"
    assert options_of(Flow()).explicit_name is None
    assert options_of(Flow(workflow_name="flow")).explicit_name == "flow"


def test_events_and_their_special_types() -> None:
    assert Asking().start_event_class is Question
    assert Asking().stop_event_class is StopEvent
    assert set(Flow().events) == {StartEvent, A, StopEvent}


def test_a_graph_can_be_given_another_name() -> None:
    assert graph_of(Flow()).workflow_name == "Flow"
    assert graph_of(Flow(), name="orders").workflow_name == "orders"
    assert graph_of(Flow()) is graph_of(Flow())


def test_a_serializer_is_kept() -> None:
    serializer = object()
    assert Flow(serializer=serializer).serializer is serializer


# -- validation


def test_validate_tells_whether_a_human_is_needed() -> None:
    class Human(Flow):
        @step
        async def ask(self, ev: A) -> InputRequiredEvent:
            return InputRequiredEvent()

    assert Human().validate() is True
    assert Flow().validate() is False


def test_validate_names_what_does_not_fit() -> None:
    with pytest.raises(WorkflowValidationError, match=r"Unreachable steps: extra"):
        Unfit().validate()


def test_validation_can_be_disabled_or_a_check_skipped(runtime: RecordingRuntime) -> None:
    assert Unfit(skip_graph_checks=["reachability"]).validate() is True
    run(Unfit(disable_validation=True, runtime=runtime))
    assert len(runtime.submitted) == 1


def test_run_validates_first(runtime: RecordingRuntime) -> None:
    with pytest.raises(WorkflowValidationError):
        run(Unfit(runtime=runtime))
    assert runtime.submitted == []


def test_a_check_skipped_by_one_instance_is_made_by_the_next(runtime: RecordingRuntime) -> None:
    run(Unfit(skip_graph_checks=["reachability"], runtime=runtime))
    with pytest.raises(WorkflowValidationError):
        run(Unfit(runtime=runtime))


def test_run_validates_a_class_once(
    runtime: RecordingRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fresh(Flow):
        pass

    calls: list[object] = []

    def record(graph: object, *, skip: object) -> None:
        calls.append(graph)

    monkeypatch.setattr("stepfleet.workflow.check_graph", record)
    run(Fresh(runtime=runtime))
    run(Fresh(runtime=runtime))
    assert len(calls) == 1


# -- run


def test_run_needs_a_running_loop(runtime: RecordingRuntime) -> None:
    with pytest.raises(RuntimeError, match=r"^no running event loop$"):
        Flow(runtime=runtime).run()


def test_run_returns_the_handler_of_the_runtime(runtime: RecordingRuntime) -> None:
    workflow = Flow(runtime=runtime)
    assert run(workflow, topic="ships") is runtime.handler
    assert runtime.submitted == [(workflow, StartEvent(topic="ships"), None, None)]


def test_run_takes_the_run_id_out_of_the_fields(runtime: RecordingRuntime) -> None:
    run(Flow(runtime=runtime), run_id="r1", topic="ships")
    _, event, run_id, _ = runtime.submitted[0]
    assert run_id == "r1"
    assert event == StartEvent(topic="ships")


def test_run_hands_a_context_on(runtime: RecordingRuntime) -> None:
    context: Context[Any] = Context()
    run(Flow(runtime=runtime), context)
    assert runtime.submitted[0][3] is context


def test_run_builds_the_start_event_of_the_workflow(runtime: RecordingRuntime) -> None:
    run(Asking(runtime=runtime), topic="ships")
    assert runtime.event == Question(topic="ships")


def test_a_subclass_makes_its_start_event_itself(runtime: RecordingRuntime) -> None:
    class Shortened(Asking):
        def _get_start_event_instance(
            self, start_event: StartEvent | None, **kwargs: Any
        ) -> StartEvent:
            return start_event or Question(topic=kwargs["about"])

    run(Shortened(runtime=runtime), about="ships")
    assert runtime.event == Question(topic="ships")


def test_arguments_are_checked_before_an_event_loop_is_asked_for() -> None:
    with pytest.raises(ValueError, match="must be an instance of 'StartEvent'"):
        Flow().run(start_event=A())  # pyright: ignore[reportArgumentType]


def test_fields_that_make_no_start_event_are_refused(runtime: RecordingRuntime) -> None:
    with pytest.raises(WorkflowRuntimeError) as caught:
        run(Asking(runtime=runtime), topic="ships", length="long")
    assert str(caught.value) == (
        "Failed creating a start event of type 'Question' with the keyword arguments: "
        "{'topic': 'ships', 'length': 'long'}"
    )
    assert "length" in str(caught.value.__cause__)


def test_a_given_start_event_is_sent(runtime: RecordingRuntime) -> None:
    event = Question(topic="ships")
    run(Asking(runtime=runtime), start_event=event)
    assert runtime.event is event


def test_a_start_event_must_be_one(runtime: RecordingRuntime) -> None:
    with pytest.raises(
        ValueError, match=r"^The 'start_event' argument must be an instance of 'StartEvent'.$"
    ):
        run(Flow(runtime=runtime), start_event=A())


def test_a_start_event_that_no_step_accepts_is_refused(runtime: RecordingRuntime) -> None:
    with pytest.raises(
        WorkflowRuntimeError,
        match=r"^The 'start_event' argument is a 'StartEvent', which no step of workflow 'Asking' "
        "accepts: pass an instance of 'Question'.$",
    ):
        run(Asking(runtime=runtime), start_event=StartEvent())
    assert runtime.submitted == []


def test_a_subclass_of_the_start_event_needs_a_step_that_opted_in(
    runtime: RecordingRuntime,
) -> None:
    class Broad(Workflow):
        @step(accept_event_subclasses=True)
        async def begin(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    run(Broad(runtime=runtime), start_event=Question(topic="ships"))
    assert runtime.event == Question(topic="ships")
    with pytest.raises(WorkflowRuntimeError, match=r"pass an instance of 'StartEvent'"):
        run(Flow(runtime=runtime), start_event=Question(topic="ships"))


def test_fields_beside_a_start_event_are_ignored_with_a_warning(
    runtime: RecordingRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="stepfleet.workflow"):
        run(Flow(runtime=runtime), start_event=StartEvent(a=1), b=2)
    assert runtime.event == StartEvent(a=1)
    assert "arguments=b" in caplog.text


# -- the choice of a runtime


@pytest.mark.usefixtures("no_default_runtime")
def test_without_any_runtime_run_says_how_to_get_one() -> None:
    with pytest.raises(WorkflowRuntimeError, match=r"pass runtime= to its constructor"):
        run(Flow())


@pytest.mark.usefixtures("no_default_runtime")
def test_the_installed_default_is_the_last_choice(runtime: RecordingRuntime) -> None:
    install_default_runtime(lambda: runtime)
    run(Flow())
    assert len(runtime.submitted) == 1


@pytest.mark.usefixtures("no_default_runtime")
def test_inside_a_step_the_workers_runtime_wins_over_the_default(
    runtime: RecordingRuntime,
) -> None:
    def never() -> RecordingRuntime:
        raise AssertionError

    install_default_runtime(never)
    token = current_runtime.set(runtime)
    try:
        run(Flow())
    finally:
        current_runtime.reset(token)
    assert len(runtime.submitted) == 1


def test_a_given_runtime_wins_over_the_workers(runtime: RecordingRuntime) -> None:
    token = current_runtime.set(RecordingRuntime())
    try:
        workflow = Flow(runtime=runtime)
        assert workflow.runtime is runtime
        run(workflow)
    finally:
        current_runtime.reset(token)
    assert len(runtime.submitted) == 1
