"""Section 1.1: the class `Workflow`, its options and `run()`."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from stepfleet import Context, Workflow, step
from stepfleet.errors import (
    WorkflowConfigurationError,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
    WorkflowValidationError,
)
from stepfleet.events import Event, StartEvent, StopEvent


class Middle(Event):
    n: int


class TwoSteps(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Middle:
        return Middle(n=ev.n)

    @step
    async def end(self, ev: Middle) -> StopEvent:
        return StopEvent(result=ev.n + 1)


# -- the constructor ---------------------------------------------------------------------------------


@pytest.mark.feature("1.1: constructor")
def test_a_workflow_without_steps_cannot_be_made() -> None:
    class Empty(Workflow):
        pass

    with pytest.raises(WorkflowConfigurationError, match="must be received by any step"):
        Empty()


@pytest.mark.feature("1.1: constructor")
@pytest.mark.parametrize("disable_validation", [False, True])
def test_a_workflow_needs_a_step_that_accepts_a_start_event(disable_validation: bool) -> None:
    class NoStart(Workflow):
        @step
        async def only(self, ev: Middle) -> StopEvent:
            return StopEvent()

    with pytest.raises(
        WorkflowConfigurationError,
        match=r"At least one Event of type StartEvent must be received by any step\. "
        r"\(Workflow 'NoStart' has no @step that accepts StartEvent\.\)",
    ):
        NoStart(disable_validation=disable_validation)


@pytest.mark.feature("1.1: constructor")
@pytest.mark.parametrize("disable_validation", [False, True])
def test_a_workflow_needs_a_step_that_returns_a_stop_event(disable_validation: bool) -> None:
    class NoStop(Workflow):
        @step
        async def only(self, ev: StartEvent) -> None: ...

    with pytest.raises(
        WorkflowConfigurationError,
        match=r"At least one Event of type StopEvent must be returned by any step\. "
        r"\(Workflow 'NoStop' has no @step that returns StopEvent\.\)",
    ):
        NoStop(disable_validation=disable_validation)


class StartA(StartEvent): ...


class StartB(StartEvent): ...


class StopA(StopEvent): ...


class StopB(StopEvent): ...


@pytest.mark.feature("1.1: constructor")
def test_a_workflow_has_one_type_of_start_event() -> None:
    class TwoStarts(Workflow):
        @step
        async def one(self, ev: StartA) -> StopEvent:
            return StopEvent()

        @step
        async def other(self, ev: StartB) -> StopEvent:
            return StopEvent()

    with pytest.raises(
        WorkflowConfigurationError,
        match="Only one type of StartEvent is allowed per workflow, found 2",
    ):
        TwoStarts()


@pytest.mark.feature("1.1: constructor")
def test_a_workflow_has_one_type_of_stop_event() -> None:
    class TwoStops(Workflow):
        @step
        async def one(self, ev: StartEvent) -> StopA:
            return StopA()

        @step
        async def other(self, ev: StartEvent) -> StopB:
            return StopB()

    with pytest.raises(
        WorkflowConfigurationError,
        match="Only one type of StopEvent is allowed per workflow, found 2",
    ):
        TwoStops()


class Configured(Workflow):
    greeting = "hello"

    def __init__(self, name: str = "world", **options: Any) -> None:
        super().__init__(**options)
        self.name = name

    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=f"{self.greeting} {self.name}")


@pytest.mark.feature("1.1: attributes of the class and the instance")
async def test_steps_read_attributes_of_the_class_and_of_the_instance() -> None:
    assert await Configured().run() == "hello world"


@pytest.mark.feature("1.1: attributes of the class and the instance")
@pytest.mark.one_process(
    "on a cluster `self` is the worker's: other constructor arguments are an error"
)
async def test_steps_see_what_the_constructor_was_given() -> None:
    assert await Configured("Ada").run() == "hello Ada"
    assert await Configured(name="Bob", timeout=5).run() == "hello Bob"


class Counts(Workflow):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.runs = 0

    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        self.runs += 1
        return StopEvent(result=self.runs)


@pytest.mark.feature("1.1: attributes of the class and the instance")
@pytest.mark.one_process("what a step assigns to `self` stays in the process of its worker")
async def test_all_runs_of_an_instance_share_it() -> None:
    workflow = Counts()
    assert [await workflow.run() for _ in range(3)] == [1, 2, 3]


# -- the properties ------------------------------------------------------------------------------------


@pytest.mark.feature("1.1: properties")
def test_a_workflow_tells_its_events() -> None:
    class Typed(Workflow):
        @step
        async def begin(self, ev: StartA) -> Middle:
            return Middle(n=1)

        @step
        async def end(self, ev: Middle) -> StopA:
            return StopA()

    workflow = Typed()
    assert workflow.start_event_class is StartA
    assert workflow.stop_event_class is StopA
    assert set(workflow.events) == {StartA, Middle, StopA}
    assert len(workflow.events) == 3


@pytest.mark.feature("1.1: properties")
def test_a_workflow_has_a_name() -> None:
    class Local(TwoSteps): ...

    assert TwoSteps().workflow_name == f"{TwoSteps.__module__}.TwoSteps"
    assert Local().workflow_name.endswith("test_a_workflow_has_a_name.<locals>.Local")
    assert TwoSteps(workflow_name="given").workflow_name == "given"


# -- run -------------------------------------------------------------------------------------------------


@pytest.mark.feature("1.1: run()")
async def test_run_returns_a_handler_at_once() -> None:
    handler = TwoSteps().run(n=1)
    assert not handler.is_done()
    assert await handler == 2
    assert handler.is_done()


@pytest.mark.feature("1.1: run()")
async def test_one_instance_runs_many_times_at_once() -> None:
    workflow = TwoSteps()
    results = await asyncio.gather(*(workflow.run(n=n) for n in range(20)))
    assert results == list(range(1, 21))


@pytest.mark.feature("1.1: run()")
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the model's coroutine
def test_run_needs_a_running_event_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        TwoSteps().run(n=1)


class Ordered(StartEvent):
    number: int


class Orders(Workflow):
    @step
    async def only(self, ev: Ordered) -> StopEvent:
        return StopEvent(result=ev.number)


@pytest.mark.feature("1.1: start events")
async def test_arguments_that_make_no_start_event_are_refused_at_once() -> None:
    with pytest.raises(
        WorkflowRuntimeError,
        match="Failed creating a start event of type 'Ordered' with the keyword arguments: {'colour': 3}",
    ):
        Orders().run(colour=3)


@pytest.mark.feature("1.1: start events")
async def test_something_else_than_a_start_event_is_refused_at_once() -> None:
    with pytest.raises(
        ValueError, match="The 'start_event' argument must be an instance of 'StartEvent'"
    ):
        Orders().run(start_event=Middle(n=1))


@pytest.mark.feature("1.1: start events")
async def test_arguments_beside_a_start_event_are_ignored_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert await Orders().run(start_event=Ordered(number=1), number=2) == 1
    assert "start_event" in caplog.text


@pytest.mark.feature("1.1: start events")
@pytest.mark.differs("in the model such a run idles until it times out")
async def test_a_start_event_that_no_step_accepts_is_refused_at_once() -> None:
    with pytest.raises(WorkflowRuntimeError, match="pass an instance of 'Ordered'"):
        Orders().run(start_event=StartEvent(number=1))


@pytest.mark.feature("1.1: run ids")
async def test_a_run_has_an_id_that_may_be_given() -> None:
    workflow = TwoSteps()
    handler = workflow.run(n=1)
    assert isinstance(handler.run_id, str)
    assert len(handler.run_id) >= 10
    other = workflow.run(n=1)
    assert other.run_id != handler.run_id
    await handler
    await other


@pytest.mark.feature("1.1: run ids")
@pytest.mark.one_process("on a server the error comes with the first await: run() never blocks")
async def test_an_id_of_a_live_run_is_refused_at_once() -> None:
    workflow = TwoSteps()
    handler = workflow.run(n=1, run_id="mine")
    assert handler.run_id == "mine"
    with pytest.raises(RuntimeError, match="Workflow run with run_id 'mine' already exists"):
        workflow.run(n=1, run_id="mine")
    await handler


class Leaves(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(0.05)
        ctx.write_event_to_stream(Middle(n=1))
        return StopEvent(result="done")


@pytest.mark.feature("1.1: fire and forget")
async def test_a_run_goes_on_although_nobody_awaits_it() -> None:
    handler = Leaves().run()
    seen = [type(event).__name__ async for event in handler.stream_events()]
    assert seen == ["Middle", "StopEvent"]


class Slow(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(ev.seconds)
        return StopEvent(result="done")


@pytest.mark.feature("1.1: timeout")
async def test_a_run_ends_in_an_error_after_its_time() -> None:
    with pytest.raises(
        WorkflowTimeoutError,
        match=r"Operation timed out after 0.3 seconds. Currently active steps: only",
    ):
        await Slow(timeout=0.3).run(seconds=30)


@pytest.mark.feature("1.1: timeout")
async def test_a_run_may_have_no_limit() -> None:
    assert await Slow(timeout=None).run(seconds=0.01) == "done"


@pytest.mark.feature("1.1: timeout")
@pytest.mark.differs("a time-out error is no special case there: it has no common root")
def test_the_time_out_is_an_error_of_its_own() -> None:
    from stepfleet.errors import WorkflowError

    assert issubclass(WorkflowTimeoutError, WorkflowError)
    assert not issubclass(WorkflowTimeoutError, TimeoutError)


# -- num_concurrent_runs -----------------------------------------------------------------------------------


@pytest.mark.feature("1.1: num_concurrent_runs")
@pytest.mark.parametrize("number", [0, -1, True, "3", 1.5])
def test_a_wrong_number_of_concurrent_runs_is_refused(number: Any) -> None:
    with pytest.raises(
        WorkflowValidationError,
        match="num_concurrent_runs must be an integer greater than 0 or None",
    ):
        TwoSteps(num_concurrent_runs=number)


# -- steps of a class ----------------------------------------------------------------------------------------


class Parent(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Middle:
        return Middle(n=1)

    @step
    async def end(self, ev: Middle) -> StopEvent:
        return StopEvent(result=f"parent {ev.n}")


class Child(Parent):
    @step
    async def end(self, ev: Middle) -> StopEvent:
        return StopEvent(result=f"child {ev.n}")


@pytest.mark.feature("1.1: inheritance of steps")
async def test_a_subclass_inherits_steps_and_may_replace_them() -> None:
    assert await Parent().run() == "parent 1"
    assert await Child().run() == "child 1"


class WithFunctions(Workflow):
    pass


@step(workflow=WithFunctions)
async def first(ev: StartEvent) -> Middle:
    return Middle(n=5)


@step(workflow=WithFunctions)
async def last(ctx: Context, ev: Middle) -> StopEvent:
    await ctx.store.set("n", ev.n)
    return StopEvent(result=await ctx.store.get("n"))


@pytest.mark.feature("1.1: free functions as steps")
async def test_free_functions_may_be_the_steps() -> None:
    assert await WithFunctions().run() == 5


@pytest.mark.feature("1.1: free functions as steps")
def test_steps_added_to_a_class_are_not_inherited() -> None:
    class Heir(WithFunctions): ...

    with pytest.raises(WorkflowConfigurationError, match="must be received by any step"):
        Heir()


@pytest.mark.feature("1.1: free functions as steps")
def test_a_name_of_a_step_is_given_once() -> None:
    class Taken(Workflow):
        @step
        async def one(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    with pytest.raises(
        WorkflowValidationError,
        match="A step one is already part of this workflow, please choose another name.",
    ):

        @step(workflow=Taken)
        async def one(ev: StartEvent) -> StopEvent:
            return StopEvent()


@pytest.mark.feature("1.1: free functions as steps")
def test_a_function_without_the_decorator_is_no_step() -> None:
    class Open(Workflow): ...

    async def plain(ev: StartEvent) -> StopEvent:
        return StopEvent()

    with pytest.raises(
        WorkflowValidationError, match="Step function plain is missing the `@step` decorator."
    ):
        Open.add_step(plain)


# -- workflows in workflows -----------------------------------------------------------------------------------


class Nesting(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        handler = TwoSteps().run(n=ev.n)
        return StopEvent(result=[await handler, handler.run_id != ctx.run_id])


@pytest.mark.feature("1.1: nested workflows")
@pytest.mark.differs("a context has no public run id there")
async def test_a_step_may_run_another_workflow_and_await_it() -> None:
    assert await Nesting().run(n=3) == [4, True]


class Adds(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        results = await asyncio.gather(TwoSteps().run(n=1), TwoSteps().run(n=2))
        return StopEvent(result=sum(results))


@pytest.mark.feature("1.1: nested workflows")
async def test_a_step_may_await_several_runs() -> None:
    assert await Adds().run() == 5


class Progress(Event):
    text: str


class Inner(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Progress(text="half"))
        return StopEvent(result="inner")


class Forwards(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        handler = Inner().run()
        async for event in handler.stream_events():
            if not isinstance(event, StopEvent):
                ctx.write_event_to_stream(event)
        return StopEvent(result=await handler)


@pytest.mark.feature("1.1: nested workflows")
async def test_a_step_may_forward_the_events_of_another_run() -> None:
    handler = Forwards().run()
    events = [event async for event in handler.stream_events()]
    assert [type(event) for event in events] == [Progress, StopEvent]
    assert await handler == "inner"


class FailsInside(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        raise LookupError("inner trouble")


class Outer(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        try:
            await FailsInside().run()
        except LookupError as error:
            return StopEvent(result=f"caught {error}")
        return StopEvent(result="nothing")


@pytest.mark.feature("1.1: nested workflows")
async def test_an_error_of_a_nested_run_is_raised_where_it_is_awaited() -> None:
    assert await Outer().run() == "caught inner trouble"


# -- validate ----------------------------------------------------------------------------------------------


class Question(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


@pytest.mark.feature("1.1: validate()")
def test_validate_tells_whether_a_human_is_needed() -> None:
    from stepfleet.events import HumanResponseEvent, InputRequiredEvent

    class Human(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> InputRequiredEvent:
            return InputRequiredEvent()

        @step
        async def answer(self, ev: HumanResponseEvent) -> StopEvent:
            return StopEvent()

    assert Human().validate() is True
    assert Question().validate() is False
