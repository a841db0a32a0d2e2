"""`@step`: the signature of a function becomes a `StepConfig`, checked where it is written.

Built in this version: one event parameter (a type or a union), an optional Context, and a return
type of events or None. A `Context` is known by its class name: its module lies above this one.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    TypeGuard,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from pydantic import BaseModel

from stepfleet.errors import WorkflowValidationError
from stepfleet.events import Event
from stepfleet.retry_policy import RetryPolicy

#: Executions of a step that may run at once within one run, unless its decorator says otherwise.
DEFAULT_NUM_WORKERS = 4

StepGraphCheck = Literal["reachability", "dead_end"]
WorkflowGraphCheck = Literal["reachability", "terminal_event", "dead_end"]
StepFunction = Callable[..., Any]
_FunctionT = TypeVar("_FunctionT", bound=StepFunction)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepConfig:
    """What a step's signature and decorator say."""

    accepts: tuple[type[Event], ...]
    returns: tuple[type[Event], ...]
    event_param: str
    context_param: str | None
    state_type: type[BaseModel] | None
    is_method: bool
    num_workers: int
    max_concurrency: int | None
    retry_policy: RetryPolicy | None
    timeout: float | None
    skip_graph_checks: frozenset[str]
    accept_event_subclasses: bool


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
) -> _FunctionT | Callable[[_FunctionT], _FunctionT]:
    """Mark a method, or with `workflow=` a free function, as a step of a workflow.

    It runs for every event of a type that it accepts. `num_workers` limits how many executions of
    it there are at once in one run, `max_concurrency` over all runs, `timeout` how long each takes.

    Raises:
        WorkflowValidationError: when the signature or an argument cannot work.
    """

    def decorate(function: _FunctionT) -> _FunctionT:
        _require_plain_function(function)
        signature = _read_signature(function, _locals_around(function))
        if workflow is None and _is_free_function(function):
            raise WorkflowValidationError(
                f"To decorate {function.__name__} please pass a workflow class "
                "to the @step decorator."
            )
        vars(function)["_step_config"] = StepConfig(
            accepts=signature.accepts,
            returns=signature.returns,
            event_param=signature.event_param,
            context_param=signature.context_param,
            state_type=signature.state_type,
            is_method=signature.is_method,
            num_workers=_checked_num_workers(num_workers),
            max_concurrency=_checked_max_concurrency(max_concurrency),
            retry_policy=retry_policy,
            timeout=seconds_or_none(timeout),
            skip_graph_checks=checked_graph_checks(
                skip_graph_checks, valid=get_args(StepGraphCheck)
            ),
            accept_event_subclasses=accept_event_subclasses,
        )
        if workflow is not None:
            workflow.add_step(function)
        return function

    return decorate if func is None else decorate(func)


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
            "timeout must be a number of seconds or a timedelta greater than 0, or None"
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


def _checked_num_workers(num_workers: int) -> int:
    if not is_positive_int(num_workers):
        raise WorkflowValidationError("num_workers must be an integer greater than 0")
    return num_workers


def _checked_max_concurrency(max_concurrency: int | None) -> int | None:
    if max_concurrency is not None and not is_positive_int(max_concurrency):
        raise WorkflowValidationError("max_concurrency must be an integer greater than 0 or None")
    return max_concurrency


# -- reading a signature ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signature:
    accepts: tuple[type[Event], ...]
    returns: tuple[type[Event], ...]
    event_param: str
    context_param: str | None
    state_type: type[BaseModel] | None
    is_method: bool


def _read_signature(function: StepFunction, localns: dict[str, Any]) -> _Signature:
    hints = _resolved_hints(function, localns)
    parameters = list(inspect.signature(function).parameters.values())
    is_method = (
        bool(parameters)
        and not _is_free_function(function)
        and (parameters[0].name == "self" or parameters[0].annotation is inspect.Parameter.empty)
    )
    events: dict[str, tuple[type[Event], ...]] = {}
    contexts: dict[str, type[BaseModel] | None] = {}
    for parameter in parameters[is_method:]:
        annotation = hints.get(parameter.name)
        if accepted := _event_types(annotation):
            events[parameter.name] = accepted
        elif _is_context(annotation):
            contexts[parameter.name] = _state_type(function, annotation)
        else:
            _require_optional(function, parameter, annotation)
        _require_named(function, parameter)
    event_param, accepts = _only_event(function, events)
    context_param, state_type = _only_context(function, contexts)
    return _Signature(
        accepts=accepts,
        returns=_return_types(function, hints),
        event_param=event_param,
        context_param=context_param,
        state_type=state_type,
        is_method=is_method,
    )


def _require_plain_function(function: StepFunction) -> None:
    if not inspect.isfunction(function):
        raise WorkflowValidationError(
            f"@step decorates functions, got {function!r}. "
            "Put it directly above the function, below @staticmethod and the like."
        )
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise WorkflowValidationError(
            f"Async-iterator fan-out (step '{function.__name__}' yields) is not supported. "
            "Send each event with ctx.send_event instead."
        )


def _resolved_hints(function: StepFunction, localns: dict[str, Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, localns=localns, include_extras=True)
    except NameError as error:
        raise WorkflowValidationError(
            f"Failed to resolve type annotations for {function.__name__}. "
            f"Missing name: {error.name}. "
            "Define or import it before the step, outside of `if TYPE_CHECKING:`."
        ) from error


def _only_event(
    function: StepFunction, events: dict[str, tuple[type[Event], ...]]
) -> tuple[str, tuple[type[Event], ...]]:
    match list(events.items()):
        case []:
            raise WorkflowValidationError(
                "Step signature must have at least one parameter annotated as type Event"
            )
        case [only]:
            return only
        case _:
            raise WorkflowValidationError(
                f"Step '{function.__name__}' has several event parameters ({', '.join(events)}). "
                "Joining events by parameters is not supported yet by this version: "
                "accept a union of the types and use ctx.collect_events."
            )


def _only_context(
    function: StepFunction, contexts: dict[str, type[BaseModel] | None]
) -> tuple[str | None, type[BaseModel] | None]:
    match list(contexts.items()):
        case []:
            return None, None
        case [only]:
            return only
        case _:
            raise WorkflowValidationError(
                f"Step '{function.__name__}' has several Context parameters "
                f"({', '.join(contexts)})."
            )


def _require_optional(
    function: StepFunction, parameter: inspect.Parameter, annotation: object
) -> None:
    where = f"Step '{function.__name__}' parameter '{parameter.name}'"
    if _is_event_list(annotation):
        raise WorkflowValidationError(
            f"{where} collects a list of events, which is not supported yet by this version: "
            "accept single events and use ctx.collect_events."
        )
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return
    if parameter.default is parameter.empty:
        raise WorkflowValidationError(
            f"{where} is neither an event nor a Context, and has no default value."
        )


def _require_named(function: StepFunction, parameter: inspect.Parameter) -> None:
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise WorkflowValidationError(
            f"Step '{function.__name__}' parameter '{parameter.name}' is positional-only, "
            "but steps are called with arguments by name."
        )


def _return_types(function: StepFunction, hints: dict[str, Any]) -> tuple[type[Event], ...]:
    if "return" not in hints:
        raise WorkflowValidationError(
            "Return types of workflows step functions must be annotated with their type."
        )
    returned: list[type[Event]] = []
    for member in _members_but_none(hints["return"]):
        if _is_event_list(member):
            raise WorkflowValidationError(
                f"Step '{function.__name__}' returns a list of events, which is not supported yet "
                "by this version: send each event with ctx.send_event."
            )
        if _is_event_type(member):
            returned.append(member)
        else:
            raise WorkflowValidationError(
                f"Step '{function.__name__}' must return events or None, "
                f"but its return annotation names {_name(member)}."
            )
    return tuple(dict.fromkeys(returned))


def _state_type(function: StepFunction, annotation: object) -> type[BaseModel] | None:
    for member in _union_members(annotation):
        for state in cast("tuple[object, ...]", get_args(member)):
            if _is_model_type(state):
                return state
            if state is not Any and not isinstance(state, TypeVar):
                raise WorkflowValidationError(
                    f"Step '{function.__name__}' has a Context of {_name(state)}, "
                    "which is not a pydantic model."
                )
    return None


def _event_types(annotation: object) -> tuple[type[Event], ...]:
    members = _members_but_none(annotation)
    if not all(_is_event_type(member) for member in members):
        return ()
    return tuple(dict.fromkeys(cast("list[type[Event]]", members)))


def _is_model_type(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_event_type(annotation: object) -> TypeGuard[type[Event]]:
    return isinstance(annotation, type) and issubclass(annotation, Event)


def _is_event_list(annotation: object) -> bool:
    return any(
        get_origin(member) is list and any(_event_types(item) for item in get_args(member))
        for member in _union_members(annotation)
    )


def _is_context(annotation: object) -> bool:
    members = _members_but_none(annotation)
    return bool(members) and all(_is_context_type(get_origin(m) or m) for m in members)


def _is_context_type(annotation: object) -> bool:
    return isinstance(annotation, type) and any(
        base.__name__ == "Context" for base in annotation.__mro__
    )


def _members_but_none(annotation: object) -> list[object]:
    return [member for member in _union_members(annotation) if member is not types.NoneType]


def _union_members(annotation: object) -> Iterator[object]:
    """Yield the members of a union, or the annotation itself, looking through aliases."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _union_members(get_args(annotation)[0])
    elif origin is Union or origin is types.UnionType:
        for member in get_args(annotation):
            yield from _union_members(member)
    elif type(annotation).__name__ == "TypeAliasType":
        yield from _union_members(cast("Any", annotation).__value__)
    else:
        yield annotation


def _name(annotation: object) -> str:
    return f"'{getattr(annotation, '__name__', annotation)}'"


def _is_free_function(function: StepFunction) -> bool:
    return "." not in function.__qualname__.rpartition("<locals>.")[2]


def _locals_around(function: StepFunction) -> dict[str, Any]:
    """Return the local names that the code around a function sees while it is being decorated.

    Annotations that are strings know only module globals; a class made inside a function is none.
    """
    scopes: list[dict[str, Any]] = []
    frame = inspect.currentframe()
    while frame is not None:
        encloses = function.__qualname__.startswith(f"{frame.f_code.co_qualname}.")
        if encloses and frame.f_globals is function.__globals__:
            scopes.append(frame.f_locals)
        frame = frame.f_back
    return {name: value for scope in reversed(scopes) for name, value in scope.items()}
