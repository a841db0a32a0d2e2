"""The events that steps exchange: pydantic models that also carry undeclared, dynamic fields.

Declared fields live in `__dict__`, dynamic ones in `__pydantic_extra__`, as in any pydantic model
that allows extra fields: no custom `__init__` slows construction down, and the codec reads both.
"""

from __future__ import annotations

import builtins
from collections.abc import (
    Callable,
    Generator,
    ItemsView,
    Iterator,
    KeysView,
    Mapping,
    ValuesView,
)
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticUndefined

from stepfleet.errors import RunFailed

#: Where a dumped event keeps its dynamic fields, so that they never mix with declared ones.
DYNAMIC_FIELDS_KEY = "_data"

_ClassT = TypeVar("_ClassT")


class DictLikeModel(BaseModel):
    """A model that keeps undeclared keyword arguments, and offers only them like a dict."""

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)

    if TYPE_CHECKING:
        # Dynamic fields make every keyword and attribute legal, which pydantic hides from checkers.
        def __init__(self, **fields: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    def model_post_init(self, context: Any, /) -> None:
        """Put keywords that name a private attribute, and the dynamic part of a dump, in place."""
        dynamic: dict[str, Any] | None = self.__pydantic_extra__
        if not dynamic:
            return
        nested = dynamic.pop(DYNAMIC_FIELDS_KEY, None)
        if isinstance(nested, Mapping):
            dynamic.update(cast("Mapping[str, Any]", nested))
        for name in self.__private_attributes__.keys() & dynamic.keys():
            setattr(self, name, dynamic.pop(name))

    @property
    def _data(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.__pydantic_extra__)

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._data[key] = value

    def __contains__(self, key: object) -> bool:
        return key in self._data

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return iter(self._data)

    def __bool__(self) -> bool:
        # Without this an event that has no dynamic field would be false, because its length is 0.
        return True

    def get(self, key: str, default: Any = None) -> Any:
        """Return a dynamic field, else the default; declared fields are attributes only."""
        return self._data.get(key, default)

    def keys(self) -> KeysView[str]:
        """Return the names of the dynamic fields."""
        return self._data.keys()

    def values(self) -> ValuesView[Any]:
        """Return the values of the dynamic fields."""
        return self._data.values()

    def items(self) -> ItemsView[str, Any]:
        """Return name and value of every dynamic field."""
        return self._data.items()

    def to_dict(self) -> dict[str, Any]:
        """Return a copy of the dynamic fields."""
        return dict(self._data)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler, /
    ) -> JsonSchemaValue:
        """Describe the declared fields; JSON Schema allows others unless it says otherwise."""
        schema = super().__get_pydantic_json_schema__(core_schema, handler)
        handler.resolve_ref_schema(schema).pop("additionalProperties", None)
        return schema

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped = cast("dict[str, Any]", dump(self))
        dynamic = {name: dumped.pop(name) for name in self._data if name in dumped}
        if dynamic:
            dumped[DYNAMIC_FIELDS_KEY] = dynamic
        return dumped


class Event(DictLikeModel):
    """What one step returns and others accept; its exact type decides which steps run."""

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...


EventType = type[Event]


class StartEvent(Event):
    """The event that starts a run, built from the keyword arguments of `Workflow.run()`."""

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...


class StopEvent(Event):
    """The event that ends a run; its `result` is what the run's caller gets."""

    result: Any = None

    def __init__(self, result: Any = PydanticUndefined, /, **fields: Any) -> None:
        if result is not PydanticUndefined:
            fields["result"] = result
        super().__init__(**fields)

    @property
    def _result(self) -> Any:
        return self.result

    def __str__(self) -> str:
        return str(self.result)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            if name != "result":
                yield name, value
        if self.result is not None:
            yield "result", self.result

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler, /
    ) -> JsonSchemaValue:
        """Describe the fields that a subclass declares; the result may be anything."""
        schema = super().__get_pydantic_json_schema__(core_schema, handler)
        if cls._has_any_result():
            handler.resolve_ref_schema(schema).get("properties", {}).pop("result", None)
        return schema

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped = super()._dump(dump)
        # A subclass that declares a `result` of its own wants to see it, None or not.
        if self._has_any_result() and dumped.get("result", ...) is None:
            del dumped["result"]
        return dumped

    @classmethod
    def _has_any_result(cls) -> bool:
        return cls.model_fields["result"].annotation is Any


class InputRequiredEvent(Event):
    """The event that asks somebody outside for input; a step that returns it publishes it."""

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...


class HumanResponseEvent(Event):
    """The answer from outside, sent into the run through its handler."""

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...


class UnreconstructedException(RunFailed):
    """Stands in for an error of a type that cannot be rebuilt here."""

    def __init__(self, message: str, *, original_type: str | None = None) -> None:
        super().__init__(message)
        self.original_type = original_type

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are copied by calling the class with `args`, which lacks the keyword.
        return (_unreconstructed, (str(self), self.original_type))


def _unreconstructed(message: str, original_type: str | None) -> UnreconstructedException:
    return UnreconstructedException(message, original_type=original_type)


def _dump_event(event: Event) -> dict[str, Any]:
    return {
        "__is_pydantic": True,
        "value": event.model_dump(mode="json"),
        "qualified_name": _qualified_name(type(event)),
    }


def _event_of_dump(value: Any) -> Any:
    match value:
        case {"__is_pydantic": True, "value": fields, "qualified_name": str(name)}:
            return _class_of(Event, name).model_validate(fields)
        case BaseModel() if not isinstance(value, Event):
            raise ValueError(f"it must resolve to an Event, not a {type(value).__name__}")
        case _:
            return value


def _dump_error(error: BaseException) -> dict[str, str]:
    original = error.original_type if isinstance(error, UnreconstructedException) else None
    name = original or _qualified_name(type(error))
    return {"exception_type": name, "exception_message": str(error)}


def _error_of_dump(value: Any) -> Any:
    match value:
        case {"exception_type": str(name), "exception_message": str(message)}:
            try:
                return _class_of(Exception, name)(message)
            except Exception:  # noqa: BLE001 - users' constructors may raise anything
                return UnreconstructedException(message, original_type=name)
        case _:
            return value


def _class_of_name(value: Any) -> Any:
    return _class_of(Event, value) if isinstance(value, str) else value


#: Finds the class of a name for what is being read; None: it knows none of this name, others may.
ClassFinder = Callable[[str], type | None]
_finder: ContextVar[ClassFinder | None] = ContextVar("stepfleet.class_finder", default=None)


@contextmanager
def finding_classes(finder: ClassFinder) -> Generator[None]:
    """Let events and errors inside of events be read with these classes.

    The finder raises `ValueError` for a name that must not be read.
    """
    before = _finder.set(finder)
    try:
        yield
    finally:
        _finder.reset(before)


def _class_of(root: type[_ClassT], name: str) -> type[_ClassT]:
    finder = _finder.get()
    found = _always_known(root, name) or (finder(name) if finder is not None else None)
    if found is None:
        return _loaded_class(root, name)
    if not issubclass(found, root):
        raise ValueError(f"{name} must resolve to an {root.__name__}")  # noqa: TRY004 - for pydantic
    return found


def _always_known(root: type, name: str) -> type | None:
    """Return an error that Python has built in, or the one that stands for those nobody knows."""
    module, _, short = name.rpartition(".")
    if root is Exception and module == "builtins":
        return getattr(builtins, short, None)
    is_placeholder = name == _qualified_name(UnreconstructedException)
    return UnreconstructedException if is_placeholder else None


def _loaded_class(root: type[_ClassT], name: str) -> type[_ClassT]:
    """Return the class of this name among those that are loaded: a name never imports anything."""
    pending: list[type[_ClassT]] = [root]
    while pending:
        found = pending.pop()
        if _qualified_name(found) == name and "<locals>" not in name:
            return found
        pending += found.__subclasses__()
    raise ValueError(f"no class {name} is loaded that extends {root.__name__}")


def _qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


SerializableEvent = Annotated[
    Event,
    PlainSerializer(_dump_event, return_type=dict[str, Any]),
    BeforeValidator(_event_of_dump),
]
SerializableOptionalEvent = SerializableEvent | None
SerializableException = Annotated[
    BaseException,
    PlainSerializer(_dump_error, return_type=dict[str, str]),
    BeforeValidator(_error_of_dump),
]
SerializableOptionalException = SerializableException | None
SerializableEventType = Annotated[
    type[Event],
    PlainSerializer(_qualified_name, return_type=str),
    BeforeValidator(_class_of_name),
]


class StepFailedEvent(Event):
    """Tells a `catch_error` step which execution failed for good, and how."""

    step_name: str
    input_event: SerializableEvent
    exception: SerializableException
    attempts: int
    elapsed_seconds: float
    failed_at: datetime


class WorkflowTimedOutEvent(StopEvent):
    """Ends the public stream of a run whose deadline passed."""

    timeout: float
    active_steps: list[str]


class WorkflowCancelledEvent(StopEvent):
    """Ends the public stream of a run that was cancelled."""


class WorkflowFailedEvent(StopEvent):
    """Ends the public stream of a run that a step's error ended."""

    step_name: str
    exception: SerializableException
    attempts: int | None = None
    elapsed_seconds: float | None = None


class IdleReleasedEvent(StopEvent):
    """Marks a run that was released from memory while idle; never published."""


class CollectionReleaseEvent(Event):
    """Triggers a step that collects a list of events, with the complete list."""

    events: list[SerializableEvent] = Field(default_factory=list[Event])
    #: The delivery that returned the list.
    stream_id: str = ""
    binding_id: str = ""


class InternalDispatchEvent(Event):
    """What a run tells about itself, to readers that ask for internal events."""


class StepState(Enum):
    """Where one execution of a step stands."""

    PREPARING = "preparing"
    RUNNING = "running"
    NOT_RUNNING = "not_running"


class StepStateChanged(InternalDispatchEvent):
    """Tells that an execution of a step was queued, began or ended."""

    name: str
    step_state: StepState
    worker_id: str
    input_event_name: str
    output_event_name: str | None = None


class WorkflowIdleEvent(InternalDispatchEvent):
    """Tells that nothing of the run is pending: only something from outside can move it."""


class UnhandledEvent(InternalDispatchEvent):
    """Tells that no step accepts or awaits an event, so it was dropped."""

    event_type: str
    qualified_name: str
    step_name: str | None = None
    idle: bool = False


class RetractedEvent(Event):
    """Tells readers that a step ran again and did not repeat some of what it had published."""

    #: Sequences of the entries that no longer hold.
    sequences: list[int]
    step: str


class StreamGapEvent(Event):
    """Tells a reader that was too slow, or came too late, which public events are no longer kept."""

    first: int
    last: int
