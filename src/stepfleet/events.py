"""The events that steps exchange: pydantic models that also carry undeclared, dynamic fields.

Declared fields live in `__dict__`, dynamic ones in `__pydantic_extra__`, as in any pydantic model
that allows extra fields: no custom `__init__` slows construction down, and the codec reads both.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic_core import PydanticUndefined

from stepfleet.errors import RunFailed

#: Where a dumped event keeps its dynamic fields, so that they never mix with declared ones.
DYNAMIC_FIELDS_KEY = "_data"


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
        dynamic = self._dynamic
        if not dynamic:
            return
        nested = dynamic.pop(DYNAMIC_FIELDS_KEY, None)
        if isinstance(nested, Mapping):
            dynamic.update(cast("Mapping[str, Any]", nested))
        for name in self.__private_attributes__.keys() & dynamic.keys():
            setattr(self, name, dynamic.pop(name))

    @property
    def _dynamic(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.__pydantic_extra__)

    def __getitem__(self, key: str) -> Any:
        return self._dynamic[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._dynamic[key] = value

    def __contains__(self, key: object) -> bool:
        return key in self._dynamic

    def __len__(self) -> int:
        return len(self._dynamic)

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return iter(self._dynamic)

    def __bool__(self) -> bool:
        # Without this an event that has no dynamic field would be false, because its length is 0.
        return True

    def get(self, key: str, default: Any = None) -> Any:
        """Return a dynamic field, else the default; declared fields are attributes only."""
        return self._dynamic.get(key, default)

    def keys(self) -> KeysView[str]:
        """Return the names of the dynamic fields."""
        return self._dynamic.keys()

    def values(self) -> ValuesView[Any]:
        """Return the values of the dynamic fields."""
        return self._dynamic.values()

    def items(self) -> ItemsView[str, Any]:
        """Return name and value of every dynamic field."""
        return self._dynamic.items()

    def to_dict(self) -> dict[str, Any]:
        """Return a copy of the dynamic fields."""
        return dict(self._dynamic)

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped = cast("dict[str, Any]", dump(self))
        dynamic = {name: dumped.pop(name) for name in self._dynamic if name in dumped}
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

    def __str__(self) -> str:
        return str(self.result)

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped = super()._dump(dump)
        # A subclass that declares a `result` of its own wants to see it, None or not.
        declared_here = type(self).model_fields["result"].annotation is Any
        if declared_here and dumped.get("result", ...) is None:
            del dumped["result"]
        return dumped


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

    def __init__(self, message: str, *, original_type: str) -> None:
        super().__init__(message)
        self.original_type = original_type

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are copied by calling the class with `args`, which lacks the keyword.
        return (_unreconstructed, (str(self), self.original_type))


def _unreconstructed(message: str, original_type: str) -> UnreconstructedException:
    return UnreconstructedException(message, original_type=original_type)


def _describe_error(error: BaseException) -> dict[str, str]:
    if isinstance(error, UnreconstructedException):
        return {"type": error.original_type, "message": str(error)}
    return {"type": type(error).__qualname__, "message": str(error)}


def _error_from_description(value: Any) -> Any:
    match value:
        case {"type": str(original_type), "message": str(message)}:
            return UnreconstructedException(message, original_type=original_type)
        case _:
            return value


def _qualified_name(event_type: type[Event]) -> str:
    return f"{event_type.__module__}.{event_type.__qualname__}"


SerializableEvent = SerializeAsAny[Event]
SerializableOptionalEvent = SerializableEvent | None
SerializableException = Annotated[
    BaseException,
    PlainSerializer(_describe_error, return_type=dict[str, str], when_used="json"),
    BeforeValidator(_error_from_description),
]
SerializableOptionalException = SerializableException | None
SerializableEventType = Annotated[
    type[Event], PlainSerializer(_qualified_name, return_type=str, when_used="json")
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
