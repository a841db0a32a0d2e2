"""`@step`, `@catch_error`: the signature of a function becomes a `StepConfig`, checked where it is written.

What a signature may say is read by `signatures`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal, Protocol, TypeVar, get_args, overload

from pydantic import BaseModel

from stepfleet.collect import Collect
from stepfleet.deprecation import warn_once
from stepfleet.errors import WorkflowValidationError
from stepfleet.events import Event, StepFailedEvent
from stepfleet.resource import ResourceDefinition
from stepfleet.retry_policy import RetryPolicy
from stepfleet.retry_policy.waits import LONGEST, is_time
from stepfleet.signatures import (
    is_free_function,
    locals_around,
    read_signature,
    require_plain_function,
)

#: Executions of a step that may run at once within one run, unless its decorator says otherwise.
DEFAULT_NUM_WORKERS = 4

StepGraphCheck = Literal["reachability", "dead_end"]
WorkflowGraphCheck = Literal["reachability", "terminal_event", "dead_end"]
StepRole = Literal["step", "catch_error"]
StepFunction = Callable[..., Any]
#: What a step may return; the types that it names exactly are read from its annotation.
_Returned = Event | Sequence[Event] | None
#: So that a checker refuses a step that returns something else.
_FunctionT = TypeVar("_FunctionT", bound=Callable[..., _Returned | Awaitable[_Returned]])


@dataclass(frozen=True, slots=True, kw_only=True)
class StepConfig:
    """What a step's signature and decorator say."""

    accepts: tuple[type[Event], ...]
    returns: tuple[type[Event], ...]
    #: The first event parameter.
    event_param: str
    #: Of a step that joins events: its event parameters, one type each.
    slots: tuple[tuple[str, type[Event]], ...]
    #: Of a step that takes a list of events: how many.
    collects: Collect | None
    #: The types of `returns` that it returns by themselves, and those that it returns in lists.
    bare: tuple[type[Event], ...]
    listed: tuple[type[Event], ...]
    #: What the annotation names beside events; None apart, no workflow with such a step is valid.
    other_returns: tuple[Any, ...]
    context_param: str | None
    state_type: type[BaseModel] | None
    is_method: bool
    num_workers: int
    max_concurrency: int | None
    retry_policy: RetryPolicy | None
    timeout: float | None
    skip_graph_checks: frozenset[str]
    accept_event_subclasses: bool
    resources: tuple[ResourceDefinition, ...] = ()
    #: An old form: the state is loaded before the step starts, for `ctx.data`.
    pass_context: bool = False
    role: StepRole = "step"
    #: Of a `catch_error` step: the steps whose failures it handles; None: all that no other handles.
    catch_error_for_steps: tuple[str, ...] | None = None
    catch_error_max_recoveries: int = 1

    @property
    def accepted_events(self) -> list[type[Event]]:
        """The types that the step accepts; this and the next are the names of the model."""
        return list(self.accepts)

    @property
    def event_name(self) -> str:
        """The name of the first event parameter."""
        return self.event_param

    @property
    def return_types(self) -> list[Any]:
        """What the annotation of the return names."""
        return [*self.returns, *self.other_returns]

    @property
    def context_parameter(self) -> str | None:
        """The name of the parameter that gets the context."""
        return self.context_param

    @property
    def context_state_type(self) -> type[BaseModel] | None:
        """The model in `Context[State]`."""
        return self.state_type


@dataclass(frozen=True, slots=True)
class CatchErrorHandler:
    """A `@catch_error` step, as far as routing failures to it needs to know."""

    step_name: str
    #: None: every step that no other handler names.
    for_steps: list[str] | None
    #: How often one line of events may come to it.
    max_recoveries: int


class AcceptsSteps(Protocol):
    """A workflow class, as far as the decorator needs to know it."""

    def add_step(self, func: StepFunction, /) -> None:
        """Add a free function as a step."""
        ...


@overload
def step(func: _FunctionT, /) -> _FunctionT: ...


@overload
def step(
    *,
    workflow: AcceptsSteps | None = None,
    num_workers: int = DEFAULT_NUM_WORKERS,
    max_concurrency: int | None = None,
    retry_policy: RetryPolicy | None = None,
    timeout: float | timedelta | None = None,
    skip_graph_checks: Iterable[StepGraphCheck] | None = None,
    accept_event_subclasses: bool = False,
    pass_context: bool | None = None,
) -> Callable[[_FunctionT], _FunctionT]: ...


def step(
    func: _FunctionT | None = None,
    /,
    *,
    workflow: AcceptsSteps | None = None,
    num_workers: int = DEFAULT_NUM_WORKERS,
    max_concurrency: int | None = None,
    retry_policy: RetryPolicy | None = None,
    timeout: float | timedelta | None = None,
    skip_graph_checks: Iterable[StepGraphCheck] | None = None,
    accept_event_subclasses: bool = False,
    pass_context: bool | None = None,
) -> _FunctionT | Callable[[_FunctionT], _FunctionT]:
    """Mark a method, or with `workflow=` a free function, as a step of a workflow.

    It runs for every event of a type that it accepts. `num_workers` limits how many executions of
    it there are at once in one run, `max_concurrency` over all runs, `timeout` how long each takes.

    Raises:
        WorkflowValidationError: when the signature or an argument cannot work.
    """
    if pass_context is not None:
        warn_once("@step(pass_context=...)", "@step and a parameter annotated with Context")

    def decorate(function: _FunctionT) -> _FunctionT:
        make_step_function(
            function,
            num_workers=num_workers,
            max_concurrency=max_concurrency,
            retry_policy=retry_policy,
            timeout=timeout,
            skip_graph_checks=skip_graph_checks,
            accept_event_subclasses=accept_event_subclasses,
        )
        if pass_context:
            config = required_step_config(function)
            vars(function)["_step_config"] = replace(config, pass_context=True)
        if workflow is not None:
            workflow.add_step(function)
        elif is_free_function(function):
            raise WorkflowValidationError(
                f"To decorate {function.__name__} please pass a workflow class "
                "to the @step decorator."
            )
        return function

    return decorate if func is None else decorate(func)


@overload
def catch_error(func: _FunctionT, /) -> _FunctionT: ...


@overload
def catch_error(
    *, for_steps: Iterable[str] | None = None, max_recoveries: int = 1
) -> Callable[[_FunctionT], _FunctionT]: ...


def catch_error(
    func: _FunctionT | None = None,
    /,
    *,
    for_steps: Iterable[str] | None = None,
    max_recoveries: int = 1,
) -> _FunctionT | Callable[[_FunctionT], _FunctionT]:
    """Mark a method as the step that runs when other steps have failed for good.

    It gets a `StepFailedEvent` once a step's retries are used up. The run goes on with what it
    returns: a StopEvent ends it well, another event takes its way through the steps, and an error
    ends the run. Without `for_steps` it handles every step that no other handler names.
    `max_recoveries` limits how often one line of events comes to it: an event, what follows from
    it, what follows from that. Handlers are not handled, nor are time-outs and cancels of the run.

    Raises:
        WorkflowValidationError: when the signature or an argument cannot work.
    """
    if not is_positive_int(max_recoveries):
        raise WorkflowValidationError("@catch_error max_recoveries must be an integer >= 1")
    names = None if for_steps is None else _checked_step_names(for_steps)

    def decorate(function: _FunctionT) -> _FunctionT:
        make_step_function(function, num_workers=1)
        config = required_step_config(function)
        if config.accepts != (StepFailedEvent,):
            raise WorkflowValidationError(
                f"@catch_error handler '{function.__name__}' must accept StepFailedEvent "
                "as its event parameter."
            )
        vars(function)["_step_config"] = replace(
            config,
            role="catch_error",
            catch_error_for_steps=names,
            catch_error_max_recoveries=max_recoveries,
        )
        return function

    return decorate if func is None else decorate(func)


def make_step_function(
    func: _FunctionT,
    num_workers: int = DEFAULT_NUM_WORKERS,
    retry_policy: RetryPolicy | None = None,
    localns: dict[str, Any] | None = None,
    skip_graph_checks: Iterable[StepGraphCheck] | None = None,
    accept_event_subclasses: bool = False,
    *,
    max_concurrency: int | None = None,
    timeout: float | timedelta | None = None,
) -> _FunctionT:
    """Make a function a step without adding it to a workflow; `localns` has names that its annotations use.

    Raises:
        WorkflowValidationError: when the signature or an argument cannot work.
    """
    _require_num_workers(num_workers)
    require_plain_function(func)
    signature = read_signature(func, {**locals_around(func), **(localns or {})})
    vars(func)["_step_config"] = StepConfig(
        accepts=signature.accepts,
        returns=signature.returns,
        event_param=signature.event_param,
        slots=signature.slots,
        collects=signature.collects,
        bare=signature.bare,
        listed=signature.listed,
        other_returns=signature.other_returns,
        context_param=signature.context_param,
        state_type=signature.state_type,
        is_method=signature.is_method,
        num_workers=num_workers,
        max_concurrency=_checked_max_concurrency(max_concurrency),
        retry_policy=retry_policy,
        timeout=seconds_or_none(timeout),
        skip_graph_checks=checked_graph_checks(skip_graph_checks, valid=get_args(StepGraphCheck)),
        accept_event_subclasses=accept_event_subclasses,
        resources=signature.resources,
    )
    return func


def step_config_of(function: object) -> StepConfig | None:
    """Return what `@step` noted on a function, or None when it is no step."""
    config = getattr(function, "_step_config", None)
    return config if isinstance(config, StepConfig) else None


def required_step_config(function: StepFunction) -> StepConfig:
    """Return what `@step` noted on a function.

    Raises:
        WorkflowValidationError: when the function is no step.
    """
    config = step_config_of(function)
    if config is None:
        name = getattr(function, "__name__", repr(function))
        raise WorkflowValidationError(f"Step function {name} is missing the `@step` decorator.")
    return config


def is_positive_int(value: object) -> bool:
    """Tell whether a value is an integer above zero; True is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def seconds_or_none(timeout: float | timedelta | None) -> float | None:
    """Return a time-out in seconds, None meaning without end.

    Raises:
        WorkflowValidationError: when it is not a time above zero.
    """
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if seconds is not None and not _is_positive_number(seconds):
        raise WorkflowValidationError(
            "timeout must be a number of seconds or a timedelta greater than 0, or None, not "
            f"{timeout!r}"
        )
    if seconds is not None and not is_time(seconds):
        raise WorkflowValidationError(
            f"timeout must be less than {LONGEST:g} seconds, or None for no end"
        )
    return seconds


def checked_graph_checks(names: Iterable[str] | None, *, valid: Iterable[str]) -> frozenset[str]:
    """Return the names of the graph checks to skip.

    Raises:
        WorkflowValidationError: when there is no such check here.
    """
    skipped = frozenset(names or ())
    if unknown := skipped - frozenset(valid):
        raise WorkflowValidationError(
            f"Unknown graph check names: {', '.join(sorted(unknown))}. "
            f"Valid names are: {', '.join(sorted(valid))}"
        )
    return skipped


def _is_positive_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _require_num_workers(num_workers: int) -> None:
    if not is_positive_int(num_workers):
        raise WorkflowValidationError(
            f"num_workers must be an integer greater than 0, not {num_workers!r}"
        )


def _checked_max_concurrency(max_concurrency: int | None) -> int | None:
    if max_concurrency is not None and not is_positive_int(max_concurrency):
        raise WorkflowValidationError(
            f"max_concurrency must be an integer greater than 0 or None, not {max_concurrency!r}"
        )
    return max_concurrency


def _checked_step_names(names: Iterable[str]) -> tuple[str, ...]:
    listed = () if isinstance(names, str) else tuple(names)
    if isinstance(names, str) or not all(isinstance(name, str) for name in listed):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise WorkflowValidationError(
            "@catch_error for_steps must be None or a list of step name strings"
        )
    return listed
