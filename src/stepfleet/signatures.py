"""What the signature of a step says: which events it accepts, how many at once, and what it returns. Pure.

A `Context` is known by its class name: its module lies above this one.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
)
from dataclasses import dataclass
from typing import (
    Annotated,
    Any,
    Final,
    NamedTuple,
    TypeGuard,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import BaseModel

from stepfleet.collect import All, Cardinality, Collect, Take
from stepfleet.errors import WorkflowValidationError
from stepfleet.events import Event
from stepfleet.resource import ResourceDefinition, ResourceDescriptor, resource_in

_ASYNC_ITERATORS: Final = (AsyncIterator, AsyncIterable, AsyncGenerator)
_NO_ITERATORS: Final = (
    "Async-iterator fan-out (AsyncIterator[E] / AsyncGenerator[E, None] / async generator steps) "
    "is not supported. Return list[E] for a static collection, or emit incrementally with "
    "ctx.send_event."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The names are those of `decorators.StepConfig`."""

    accepts: tuple[type[Event], ...]
    returns: tuple[type[Event], ...]
    event_param: str
    slots: tuple[tuple[str, type[Event]], ...]
    collects: Collect | None
    bare: tuple[type[Event], ...]
    listed: tuple[type[Event], ...]
    other_returns: tuple[Any, ...]
    context_param: str | None
    state_type: type[BaseModel] | None
    is_method: bool
    resources: tuple[ResourceDefinition, ...]


class _EventParameter(NamedTuple):
    name: str
    types: tuple[type[Event], ...]
    #: Of a list of events.
    collects: Collect | None = None


def read_signature(function: Callable[..., Any], localns: dict[str, Any]) -> Signature:
    """Return what a step's signature says; `localns` has the local names that its annotations use.

    Raises:
        WorkflowValidationError: it cannot be the signature of a step.
    """
    hints = _resolved_hints(function, localns)
    if get_origin(hints.get("return")) in _ASYNC_ITERATORS:
        raise WorkflowValidationError(_NO_ITERATORS)
    parameters = list(inspect.signature(function).parameters.values())
    # A free function that begins with `self` gets the instance as a method does.
    is_method = bool(parameters) and (
        parameters[0].name == "self"
        or (not is_free_function(function) and parameters[0].annotation is inspect.Parameter.empty)
    )
    events: list[_EventParameter] = []
    contexts: dict[str, type[BaseModel] | None] = {}
    resources: list[ResourceDefinition] = []
    others: list[tuple[inspect.Parameter, object]] = []
    for parameter in parameters[is_method:]:
        annotation = hints.get(parameter.name)
        if asked := resource_in(annotation):
            resources.append(_resource(parameter.name, *asked, localns))
        elif found := _event_parameter(parameter.name, annotation):
            events.append(found)
        elif _is_context(annotation):
            contexts[parameter.name] = _state_type(function, annotation)
        else:
            others.append((parameter, annotation))
        _require_named(function, parameter)
    _check_together(events)
    for parameter, annotation in others:
        _require_optional(function, parameter, annotation)
    bare, listed, other_returns = _return_types(function, hints)
    context_param, state_type = _only_context(function, contexts)
    return Signature(
        accepts=_unique(cls for parameter in events for cls in parameter.types),
        returns=_unique((*bare, *listed)),
        event_param=events[0].name,
        slots=tuple((one.name, one.types[0]) for one in events) if len(events) > 1 else (),
        collects=events[0].collects,
        bare=bare,
        listed=listed,
        other_returns=other_returns,
        context_param=context_param,
        state_type=state_type,
        is_method=is_method,
        resources=tuple(resources),
    )


def require_plain_function(function: Callable[..., Any]) -> None:
    """Check that `@step` stands on a function that returns.

    Raises:
        WorkflowValidationError: it is something else, or it yields.
    """
    if not inspect.isfunction(function):
        raise WorkflowValidationError(
            f"@step decorates functions, got {function!r}. "
            "Put it directly above the function, below @staticmethod and the like."
        )
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise WorkflowValidationError(_NO_ITERATORS)


def _resolved_hints(function: Callable[..., Any], localns: dict[str, Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, localns=localns, include_extras=True)
    except NameError as error:
        raise WorkflowValidationError(
            f"Failed to resolve type annotations for {function.__qualname__}. "
            f"Missing name: {error.name}. "
            "Define or import it before the step, outside of `if TYPE_CHECKING:`."
        ) from error


def _resource(
    name: str, resource: ResourceDescriptor, asked: Any, localns: dict[str, Any]
) -> ResourceDefinition:
    resource.set_localns(localns)
    return ResourceDefinition(name=name, resource=resource, type_annotation=asked)


def _event_parameter(name: str, annotation: object) -> _EventParameter | None:
    """Return what a parameter takes, None when it takes no events."""
    marker = _marker(name, annotation)
    if listed := _listed_types(_members_but_none(annotation)):
        return _EventParameter(name, listed, marker or Collect())
    if marker is not None:
        raise WorkflowValidationError(
            f"Parameter {name!r} carries a Collect marker but is not annotated as list[E] of an "
            "Event subclass. Collect markers apply only to collection fan-in (list[Event]) "
            "parameters."
        )
    types_ = _event_types(annotation)
    return _EventParameter(name, types_) if types_ else None


def _marker(name: str, annotation: object) -> Collect | None:
    if get_origin(annotation) is not Annotated:
        return None
    for marker in cast("tuple[object, ...]", get_args(annotation)[1:]):
        if isinstance(marker, Cardinality):
            raise WorkflowValidationError(
                f"Parameter {name!r} is marked with {marker!r}: write Collect({marker!r})."
            )
        if isinstance(marker, Collect):
            if not isinstance(marker.cardinality, All | Take):
                raise WorkflowValidationError(
                    f"Collect cardinality on {name!r} must be All() or Take(n). "
                    "Other cardinalities are not supported."
                )
            return marker
    return None


def _check_together(events: list[_EventParameter]) -> None:
    """Check that the event parameters of a step can be filled together."""
    if not events:
        raise WorkflowValidationError(
            "Step signature must have at least one parameter annotated as type Event"
        )
    lists = [parameter.name for parameter in events if parameter.collects is not None]
    if len(lists) > 1:
        raise WorkflowValidationError(
            "A step may declare at most one list[E] collection parameter, but found both "
            f"{lists[0]!r} and {lists[1]!r}. Multi-slot collects are not supported."
        )
    if lists and len(events) > 1:
        raise WorkflowValidationError(
            "A list[E] collection parameter cannot be combined with other event parameters. Use a "
            "single list[E] parameter, or multiple single-event parameters for a multi-slot join."
        )
    for parameter in events if len(events) > 1 else ():
        if len(parameter.types) != 1:
            raise WorkflowValidationError(
                "Collect-mode steps (more than one event parameter) require each event parameter "
                f"to declare a single event type, but parameter {parameter.name!r} declares "
                f"{len(parameter.types)}. Union-typed collect parameters are not supported."
            )


def _only_context(
    function: Callable[..., Any], contexts: dict[str, type[BaseModel] | None]
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
    function: Callable[..., Any], parameter: inspect.Parameter, annotation: object
) -> None:
    where = f"Step '{function.__name__}' parameter '{parameter.name}'"
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return
    if parameter.default is parameter.empty:
        raise WorkflowValidationError(
            f"{where} is neither an event nor a Context nor a resource, and has no default value."
        )


def _require_named(function: Callable[..., Any], parameter: inspect.Parameter) -> None:
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise WorkflowValidationError(
            f"Step '{function.__name__}' parameter '{parameter.name}' is positional-only, "
            "but steps are called with arguments by name."
        )


def _return_types(
    function: Callable[..., Any],
    hints: dict[str, Any],
) -> tuple[tuple[type[Event], ...], tuple[type[Event], ...], tuple[object, ...]]:
    """Return the types that a step returns by themselves, those in lists, and what is no event.

    Of the last, all but None are refused when the workflow is validated.
    """
    if "return" not in hints:
        raise WorkflowValidationError(
            "Return types of workflows step functions must be annotated with their type. "
            f"Step '{function.__name__}' has none: say what it returns, such as `-> StopEvent | None`."
        )
    bare: list[type[Event]] = []
    listed: list[type[Event]] = []
    others: list[object] = []
    for member in _union_members(hints["return"]):
        if in_list := _listed_types([member]):
            listed += in_list
        elif _is_event_type(member):
            bare.append(member)
        else:
            others.append(member)
    return _unique(bare), _unique(listed), tuple(others)


def _state_type(function: Callable[..., Any], annotation: object) -> type[BaseModel] | None:
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


def _listed_types(members: list[object]) -> tuple[type[Event], ...]:
    """Return the event types in the one list among these, none when it is no list of events alone."""
    if len(members) != 1 or get_origin(members[0]) is not list:
        return ()
    return _event_types(get_args(members[0])[0])


def _unique(event_types: Iterable[type[Event]]) -> tuple[type[Event], ...]:
    return tuple(dict.fromkeys(event_types))


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


def is_free_function(function: Callable[..., Any]) -> bool:
    """Tell whether a function is no method."""
    return "." not in function.__qualname__.rpartition("<locals>.")[2]


def locals_around(function: Callable[..., Any]) -> dict[str, Any]:
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
