"""`@step` reads a signature into a `StepConfig` and refuses at once what cannot work."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Optional, Union, cast

import pytest
from pydantic import BaseModel

from stepfleet.context import Context
from stepfleet.decorators import StepConfig, step, step_config_of
from stepfleet.errors import WorkflowValidationError
from stepfleet.events import Event, StartEvent, StopEvent
from stepfleet.retry_policy import retry_policy

if TYPE_CHECKING:
    from somewhere import Absent  # pyright: ignore[reportMissingImports]


class A(Event):
    pass


class B(Event):
    pass


class State(BaseModel):
    count: int = 0


class Collector:
    """Stands for a workflow class."""

    def __init__(self) -> None:
        self.added: list[Any] = []

    def add_step(self, func: Any, /) -> None:
        self.added.append(func)


def config_of(function: Any) -> StepConfig:
    config = step_config_of(function)
    assert config is not None
    return config


def refused(function: Any, **options: Any) -> str:
    """Give the message with which the decorator refuses a free function."""
    with pytest.raises(WorkflowValidationError) as caught:
        step(workflow=Collector(), **options)(function)
    return str(caught.value)


def accepted(function: Any, **options: Any) -> StepConfig:
    return config_of(step(workflow=Collector(), **options)(function))


async def plain(ev: A) -> B:
    return B()


# -- the decorator


def test_the_function_itself_is_returned_with_and_without_parentheses() -> None:
    class Flow:
        @step
        async def bare(self, ev: A) -> B:
            return B()

        @step()
        async def called(self, ev: A) -> B:
            return B()

    assert inspect.isfunction(Flow.bare)
    assert inspect.isfunction(Flow.called)
    assert config_of(Flow.bare) == config_of(Flow.called)


def test_a_step_has_the_defaults_of_the_model() -> None:
    config = accepted(plain)
    assert (config.num_workers, config.max_concurrency, config.retry_policy, config.timeout) == (
        4,
        None,
        None,
        None,
    )
    assert config.skip_graph_checks == frozenset()
    assert config.accept_event_subclasses is False


def test_options_are_noted() -> None:
    policy = retry_policy()
    config = accepted(
        plain,
        num_workers=1,
        max_concurrency=8,
        retry_policy=policy,
        timeout=timedelta(minutes=1),
        skip_graph_checks=["dead_end"],
        accept_event_subclasses=True,
    )
    assert config.num_workers == 1
    assert config.max_concurrency == 8
    assert config.retry_policy is policy
    assert config.timeout == 60
    assert config.skip_graph_checks == {"dead_end"}
    assert config.accept_event_subclasses is True


def test_a_free_function_is_added_to_its_workflow() -> None:
    collector = Collector()
    decorated = step(workflow=collector)(plain)
    assert collector.added == [decorated]


def test_a_free_function_needs_a_workflow() -> None:
    with pytest.raises(
        WorkflowValidationError,
        match=r"^To decorate plain please pass a workflow class to the @step decorator.$",
    ):
        step(plain)


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"pass_the_context"):
        step(pass_the_context=True)  # pyright: ignore[reportCallIssue]


def test_only_functions_can_be_decorated() -> None:
    assert "@step decorates functions, got <staticmethod" in refused(staticmethod(plain))


@pytest.mark.parametrize("bad", [0, -1, True, 1.5, "4", None])
def test_num_workers_is_a_positive_integer(bad: Any) -> None:
    expected = f"num_workers must be an integer greater than 0, not {bad!r}"
    assert refused(plain, num_workers=bad) == expected


@pytest.mark.parametrize("bad", [0, -1, True, 1.5, "4"])
def test_max_concurrency_is_a_positive_integer_or_none(bad: Any) -> None:
    expected = f"max_concurrency must be an integer greater than 0 or None, not {bad!r}"
    assert refused(plain, max_concurrency=bad) == expected


@pytest.mark.parametrize("bad", [0, -1, True, "4", float("nan"), timedelta(0)])
def test_a_timeout_is_a_positive_time_or_none(bad: Any) -> None:
    expected = (
        f"timeout must be a number of seconds or a timedelta greater than 0, or None, not {bad!r}"
    )
    assert refused(plain, timeout=bad) == expected


@pytest.mark.parametrize("bad", [float("inf"), 1e300, 10**400])
def test_a_timeout_that_nobody_can_count_is_none(bad: Any) -> None:
    assert refused(plain, timeout=bad) == (
        "timeout must be less than 1e+12 seconds, or None for no end"
    )


def test_unknown_graph_checks_are_named_with_the_valid_ones() -> None:
    assert refused(plain, skip_graph_checks=["zz", "terminal_event"]) == (
        "Unknown graph check names: terminal_event, zz. Valid names are: dead_end, reachability"
    )


def test_the_configuration_is_immutable() -> None:
    with pytest.raises(AttributeError):
        accepted(plain).num_workers = 2  # pyright: ignore[reportAttributeAccessIssue]


# -- parameters


def test_the_event_parameter_may_have_any_name_and_place() -> None:
    async def odd(ctx: Context[Any], something: A) -> B:
        return B()

    config = accepted(odd)
    assert (config.event_param, config.context_param) == ("something", "ctx")


def test_unions_of_events_are_flattened() -> None:
    async def new(ev: A | B) -> None: ...
    async def old(ev: Union[A, B]) -> None: ...  # noqa: UP007
    async def optional(ev: Optional[A]) -> None: ...  # noqa: UP045
    async def annotated(ev: Annotated[A | B, "either"]) -> None: ...

    assert accepted(new).accepts == (A, B)
    assert accepted(old).accepts == (A, B)
    assert accepted(optional).accepts == (A,)
    assert accepted(annotated).accepts == (A, B)


def test_a_method_has_its_instance_as_first_parameter_and_a_static_one_has_not() -> None:
    class Flow:
        @step
        async def method(self, ev: A) -> B:
            return B()

        @staticmethod
        @step
        async def static(ev: A) -> B:
            return B()

    assert config_of(Flow.method).is_method is True
    assert config_of(Flow.static).is_method is False
    assert accepted(plain).is_method is False


def test_an_event_parameter_is_required() -> None:
    async def none(ctx: Context[Any]) -> B:
        return B()

    assert refused(none) == (
        "Step signature must have at least one parameter annotated as type Event"
    )


@pytest.mark.parametrize("annotation", [int, "A | int", inspect.Parameter.empty])
def test_a_parameter_that_nobody_fills_is_refused(annotation: Any) -> None:
    async def extra(ev: A, other: Any) -> None: ...

    if annotation is inspect.Parameter.empty:
        del extra.__annotations__["other"]
    else:
        extra.__annotations__["other"] = annotation
    assert refused(extra) == (
        "Step 'extra' parameter 'other' is neither an event nor a Context nor a resource, "
        "and has no default value."
    )


def test_a_parameter_with_a_default_value_is_left_alone() -> None:
    async def extra(ev: A, limit: int = 3, *args: Any, **kwargs: Any) -> None: ...

    assert accepted(extra).event_param == "ev"


def test_a_positional_only_parameter_is_refused() -> None:
    async def positional(ev: A, /) -> None: ...

    assert "Step 'positional' parameter 'ev' is positional-only" in refused(positional)


# -- context


def test_a_context_may_name_its_state_type() -> None:
    async def typed(ev: A, ctx: Context[State]) -> None: ...
    async def untyped(ev: A, ctx: Context) -> None: ...  # pyright: ignore[reportMissingTypeArgument]
    async def anything(ev: A, ctx: Context[Any]) -> None: ...
    async def optional(ev: A, ctx: Context[State] | None = None) -> None: ...
    async def without(ev: A) -> None: ...

    assert accepted(typed).state_type is State
    assert accepted(untyped).state_type is None
    assert accepted(anything).state_type is None
    assert accepted(optional).state_type is State
    assert (accepted(untyped).context_param, accepted(without).context_param) == ("ctx", None)


def test_any_class_called_context_is_a_context() -> None:
    other_context = type("Context", (), {})

    async def foreign(ev: A, ctx: Any) -> None: ...

    foreign.__annotations__["ctx"] = other_context
    assert accepted(foreign).context_param == "ctx"


def test_a_state_type_is_a_pydantic_model() -> None:
    async def wrong(ev: A, ctx: Context[int]) -> None: ...  # type: ignore[type-var]

    assert refused(wrong) == "Step 'wrong' has a Context of 'int', which is not a pydantic model."


def test_several_contexts_are_refused() -> None:
    async def twice(ev: A, one: Context[Any], two: Context[Any]) -> None: ...

    assert refused(twice) == "Step 'twice' has several Context parameters (one, two)."


# -- return types


def test_return_types_leave_out_none() -> None:
    async def either(ev: A) -> A | B | None: ...
    async def optional(ev: A) -> Optional[StopEvent]: ...  # noqa: UP045
    async def nothing(ev: A) -> None: ...

    assert accepted(either).returns == (A, B)
    assert accepted(optional).returns == (StopEvent,)
    assert accepted(nothing).returns == ()
    assert accepted(either).return_types == [A, B, type(None)]


def test_a_return_type_is_required() -> None:
    async def silent(ev: A):
        return None

    assert refused(silent) == (
        "Return types of workflows step functions must be annotated with their type. "
        "Step 'silent' has none: say what it returns, such as `-> StopEvent | None`."
    )


def test_generators_are_refused() -> None:
    async def stream(ev: A) -> AsyncIterator[B]:
        yield B()

    message = refused(stream)
    assert message.startswith("Async-iterator fan-out")
    assert "is not supported" in message


def test_synchronous_functions_are_steps_too() -> None:
    def sync(ev: A) -> B:
        return B()

    assert accepted(sync).returns == (B,)


# -- names


def test_classes_made_inside_functions_are_found() -> None:
    class Local(Event):
        pass

    class Flow:
        class Nested(Event):
            pass

        @step
        async def begin(self, ev: StartEvent) -> Local:
            return Local()

        @step(num_workers=2)
        async def end(self, ev: Local | Nested) -> StopEvent:
            return StopEvent()

    assert config_of(Flow.begin).returns == (Local,)
    assert config_of(Flow.end).accepts == (Local, Flow.Nested)


def test_the_innermost_name_wins() -> None:
    class A(Event):
        pass

    def build() -> tuple[type[Event], StepConfig]:
        class A(Event):
            pass

        async def inner(ev: A) -> None: ...

        return A, accepted(inner)

    # A free function inside `build` sees the class of `build`.
    innermost, config = build()
    assert config.accepts == (innermost,)
    assert config.accepts != (A,)


def test_a_name_of_a_caller_does_not_leak_in() -> None:
    def caller() -> StepConfig:
        A = B  # noqa: F841, N806 - a local of the calling code, not of the surrounding code
        return accepted(plain)

    assert caller().accepts == (A,)


def test_a_name_that_cannot_be_resolved_is_named() -> None:
    async def lost(ev: Absent) -> B:  # pyright: ignore[reportUnknownParameterType]
        return B()

    message = refused(cast("Any", lost))
    assert message.startswith("Failed to resolve type annotations for ")
    assert ".lost. Missing name: Absent. " in message
