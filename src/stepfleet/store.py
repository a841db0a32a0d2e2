"""The context store: paths, typed state and `edit_state` over a port that reads and writes top-level keys.

Layer: below context. What a write promises (fence, versions, the lock over hosts) is the port's
business.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, cast

from pydantic import BaseModel, ValidationError
from typing_extensions import TypeVar

from stepfleet.errors import WorkflowRuntimeError
from stepfleet.events import DictLikeModel

#: Segments of a path.
MAX_DEPTH: Final = 1000

#: Stands for a value that is not there.
MISSING: Final = object()

_NOT_AWAITED: Final = (
    "a value of the store is used before it is read: write `await ctx.store.get(...)`"
)


class DictState(DictLikeModel):
    """State without declared fields: any attribute or key."""

    if TYPE_CHECKING:

        def __init__(self, **values: Any) -> None: ...


#: The type of a state: `DictState` where none is declared.
StateT = TypeVar("StateT", bound=BaseModel, default=DictState)


#: The store that the running code edits: a write to it would wait for itself.
_edited: ContextVar[Any] = ContextVar("stepfleet.edited_store", default=None)


class Stored(NamedTuple):
    """A top-level value and its version (0: not there)."""

    version: int
    value: Any


class Edit(Protocol):
    """An exclusive edit in progress."""

    async def save(self, changed: Mapping[str, Any], removed: Sequence[str]) -> None:
        """Write all changes at once and end the edit."""
        ...


class StorePort(Protocol):
    """Reads and writes top-level keys."""

    async def read(self, fields: Sequence[str] | None) -> dict[str, Stored]:
        """Return the values of these keys, or of all."""
        ...

    async def write(
        self,
        changed: Mapping[str, Any],
        removed: Sequence[str] = (),
        *,
        expected: Mapping[str, int] | None = None,
    ) -> bool:
        """Write at once; return False when a value has another version than expected (0: none)."""
        ...

    def edit(self) -> AbstractAsyncContextManager[Edit]:
        """Give the run's edit lock; writers elsewhere wait."""
        ...

    def same(self, one: Any, other: Any) -> bool:
        """Tell whether two values are stored the same."""
        ...

    def copy(self, value: Any) -> Any:
        """Return a copy that shares nothing with the value."""
        ...


class StateStore(Generic[StateT]):
    """What steps of a run share. Every write is visible to all hosts when it returns.

    Single writes are atomic for a top-level key, also nested ones: two hosts that set different
    paths below one key both win. `edit_state` is exclusive over the run. Writes of a step that
    fails afterwards stay.
    """

    def __init__(self, port: StorePort, state_type: type[StateT] | None = None) -> None:
        self._port = port
        self._type: type[BaseModel] = state_type or DictState

    @property
    def state_type(self) -> type[BaseModel]:
        """The declared type of the state, `DictState` without one."""
        return self._type

    def get(self, path: str, default: Any = MISSING) -> Reading:
        """Return the value at a dotted path (`items.0.name`); has to be awaited.

        Raises:
            ValueError: nothing is there and no default was given.
        """
        return Reading(partial(self._get, path, default))

    async def _get(self, path: str, default: Any) -> Any:
        head, *rest = segments_of(path)
        found = (await self._port.read([head])).get(head)
        value = found.value if found is not None and found.version else self._field_default(head)
        for segment in rest:
            value = step_into(value, segment)
        if value is MISSING:
            if default is MISSING:
                raise ValueError(f"Path '{path}' not found in state")
            return default
        return value

    async def set(self, path: str, value: Any) -> None:
        """Set the value at a dotted path; missing dictionaries on the way are made.

        A typed state with `validate_assignment` checks the value, as an assignment to the field would.

        Raises:
            ValueError: the path is empty, the typed state has no such field, or refuses the value
                (pydantic's `ValidationError`).
        """
        self._refuse_inside_edit()
        head, *rest = segments_of(path)
        self._check_field(head)
        if not rest:
            await self._port.write({head: await self._checked(head, value)})
            return
        while True:
            found = (await self._port.read([head])).get(head, Stored(0, MISSING))
            current: Any = found.value if found.version else self._field_default(head)
            changed = put_copy({} if current is MISSING else current, rest, value, path)
            changed = await self._checked(head, changed)
            if await self._port.write({head: changed}, expected={head: found.version}):
                return

    async def get_state(self) -> StateT:
        """Return the whole state; changing it changes nothing stored.

        Raises:
            ValueError: a field of the typed state has neither a value nor a default.
        """
        return cast(StateT, self._assemble(await self._port.read(None)))

    async def set_state(self, state: StateT) -> None:
        """Replace the whole state; of a parent of the state's type, only the parent's fields.

        Raises:
            ValueError: it is of another type.
        """
        self._refuse_inside_edit()
        after = fields_of(state)
        if isinstance(state, self._type):
            before = await self._port.read(None)
            await self._port.write(after, [name for name in before if name not in after])
        elif issubclass(self._type, type(state)):
            await self._port.write(after)
        else:
            raise ValueError(  # noqa: TRY004 - the programming model fixes this type
                f"State must be of type {self._type.__name__} or a parent type, "
                f"got {type(state).__name__}"
            )

    async def clear(self) -> None:
        """Bring the state back to its defaults.

        Raises:
            ValueError: a field of the typed state has no default.
        """
        self._refuse_inside_edit()
        try:
            self._type()
        except ValueError as error:
            raise ValueError("State must have defaults for all fields") from error
        await self._port.write({}, list(await self._port.read(None)))

    @asynccontextmanager
    async def edit_state(self) -> AsyncGenerator[StateT]:
        """Give the state for an exclusive edit; its changes are stored at the end, none of them on an error.

        Raises:
            RuntimeError: a write to the store inside the block.
            WorkflowRuntimeError: the lock was lost (its lease ran out while this process was
            stalled).
        """
        self._refuse_inside_edit()
        async with self._port.edit() as edit:
            before = await self._port.read(None)
            state = self._assemble(
                {name: Stored(n, self._port.copy(value)) for name, (n, value) in before.items()}
            )
            inside = _edited.set(self)
            try:
                yield cast(StateT, state)
            finally:
                _edited.reset(inside)
            after = fields_of(state)
            changed = {
                name: value
                for name, value in after.items()
                if name not in before or not self._port.same(before[name].value, value)
            }
            await edit.save(changed, [name for name in before if name not in after])

    async def load(self) -> LoadedState:
        """Return the whole state for code that cannot await."""
        state = self._assemble(await self._port.read(None))
        return LoadedState(self._port, fields_of(state))

    def _refuse_inside_edit(self) -> None:
        # Only the code inside the block, and the tasks it starts: writers elsewhere wait for its end.
        if _edited.get() is self:
            raise RuntimeError("writer called inside edit_state: mutate the yielded state instead")

    def _check_field(self, name: str) -> None:
        if self._type.model_config.get("extra") != "allow" and name not in self._type.model_fields:
            raise ValueError(f'"{self._type.__name__}" object has no field "{name}"')

    async def _checked(self, name: str, value: Any) -> Any:
        """Return a value as an assignment to its field would leave it."""
        if not self._type.model_config.get("validate_assignment"):
            return value
        state = self._assemble(await self._port.read(None))
        setattr(state, name, value)
        return getattr(state, name)

    def _field_default(self, name: str) -> Any:
        field = self._type.model_fields.get(name)
        if field is None or field.is_required():
            return MISSING
        return field.get_default(call_default_factory=True, validated_data={})

    def _assemble(self, stored: Mapping[str, Stored]) -> BaseModel:
        values = {name: found.value for name, found in stored.items() if found.version}
        try:
            state = self._type(**_declared_only(self._type, values))
        except ValidationError:
            # A typed state whose fields have no defaults is filled by its first edit, and `set`
            # does not check types.
            state = self._type.model_construct(**values)
        for name, value in values.items():
            if name in self._type.model_fields:
                setattr(state, name, value)
            elif state.__pydantic_extra__ is not None:
                # Not by setattr: a key may have the name of a method.
                state.__pydantic_extra__[name] = value
        return state


class NoPartsError(ValueError, AttributeError):
    """A path goes through a value that has no parts: an assignment would be an AttributeError."""


class Reading(Coroutine[Any, Any, Any]):
    """A value that is read when it is awaited; code that forgets to await it is told so."""

    def __init__(self, read: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._read = read
        self._reading: Coroutine[Any, Any, Any] | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        """Read the value."""
        return self._started().__await__()

    def send(self, value: Any) -> Any:
        """Go on reading, for event loops."""
        return self._started().send(value)

    def throw(self, *error: Any) -> Any:
        """Give up reading with an error, for event loops."""
        return self._started().throw(*error)

    def close(self) -> None:
        """Give up reading."""
        if self._reading is not None:
            self._reading.close()

    def _started(self) -> Coroutine[Any, Any, Any]:
        if self._reading is None:
            self._reading = self._read()
        return self._reading

    def __bool__(self) -> bool:
        raise TypeError(_NOT_AWAITED)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(_NOT_AWAITED, name=name, obj=self)


class LoadedState:
    """The state as a dictionary; `save` writes what was changed in it."""

    def __init__(self, port: StorePort, values: dict[str, Any]) -> None:
        self.values = values
        self._port = port
        self._original = {name: port.copy(value) for name, value in values.items()}

    async def refresh(self, name: str) -> None:
        """Take over one value that was written past this dictionary."""
        for name_, stored in (await self._port.read([name])).items():
            self.values[name_] = stored.value
            self._original[name_] = self._port.copy(stored.value)

    async def save(self) -> None:
        """Write what was changed."""
        changed = {
            name: value
            for name, value in self.values.items()
            if name not in self._original or not self._port.same(self._original[name], value)
        }
        removed = [name for name in self._original if name not in self.values]
        if changed or removed:
            await self._port.write(changed, removed)


def _declared_only(state_type: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in state_type.model_fields}


def fields_of(state: BaseModel) -> dict[str, Any]:
    """Return the values of a state, declared or not."""
    return {**state.__dict__, **(state.__pydantic_extra__ or {})}


def segments_of(path: str) -> list[str]:
    """Return the parts of a dotted path.

    Raises:
        ValueError: it is empty or too long.
    """
    if not path:
        raise ValueError("Path cannot be empty")
    if not path.isascii():
        path.encode()  # a lone surrogate names no key: UnicodeEncodeError is a ValueError
    segments = path.split(".")
    if len(segments) > MAX_DEPTH:
        raise ValueError(f"Path length exceeds {MAX_DEPTH} segments")
    return segments


def step_into(value: Any, segment: str) -> Any:
    """Return what a dict, a list or an object has under one part of a path, `MISSING` when nothing."""
    if value is MISSING:
        return MISSING
    if isinstance(value, dict):
        mapping = cast(dict[Any, Any], value)
        return mapping.get(segment, MISSING)
    if isinstance(value, (list, tuple)):
        items = cast(Sequence[Any], value)
        try:
            return items[int(segment)]
        except (ValueError, IndexError):
            return MISSING
    return getattr(value, segment, MISSING)


def put_into(value: Any, segments: Sequence[str], new: Any, path: str) -> None:
    """Put a value below another one; missing dictionaries on the way are made.

    Raises:
        ValueError: the path goes through something that has no parts.
    """
    target: Any = value
    for segment in segments[:-1]:
        inner: Any = step_into(target, segment)
        if inner is MISSING:
            inner = {}
            _assign(target, segment, inner, path)
        target = inner
    _assign(target, segments[-1], new, path)


def put_copy(value: Any, segments: Sequence[str], new: Any, path: str) -> Any:
    """Return a value with a new one below it: what is on the way is copied, everything else is shared.

    What cannot be copied, such as a client, is changed itself.

    Raises:
        ValueError: the path goes through something that has no parts.
    """
    way = [value]
    for segment in segments[:-1]:
        inner = step_into(way[-1], segment)
        way.append(dict[str, Any]() if inner is MISSING else inner)
    for container, segment in zip(reversed(way), reversed(segments), strict=True):
        copied = _shallow(container)
        _assign(copied, segment, new, path)
        new = copied
    return new


def _shallow(value: Any) -> Any:
    try:
        return copy.copy(value)
    except Exception:  # noqa: BLE001 - whatever a class of the user does when it is copied
        return value


def _assign(value: Any, segment: str, new: Any, path: str) -> None:
    target: Any = value
    if isinstance(value, dict):
        target[segment] = new
    elif isinstance(value, list):
        try:
            target[int(segment)] = new
        except (ValueError, IndexError) as error:
            raise ValueError(f"Path '{path}' has no list index '{segment}'") from error
    elif hasattr(value, "__dict__"):
        setattr(value, segment, new)
    else:
        raise NoPartsError(
            f"Path '{path}' goes through a {type(value).__name__}, which has no parts"
        )


class LocalPort:
    """The store of a context that has no run yet: values in this process."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self.values: dict[str, Any] = dict(values or {})
        self._editing = asyncio.Lock()

    async def read(self, fields: Sequence[str] | None) -> dict[str, Stored]:
        """Return the values."""
        names = self.values if fields is None else [name for name in fields if name in self.values]
        return {name: Stored(1, self.values[name]) for name in names}

    async def write(
        self,
        changed: Mapping[str, Any],
        removed: Sequence[str] = (),
        *,
        expected: Mapping[str, int] | None = None,
    ) -> bool:
        """Write, after an edit that is in progress; nobody else can have written."""
        async with self._editing:
            self.put(changed, removed)
        return True

    def put(self, changed: Mapping[str, Any], removed: Sequence[str]) -> None:
        """Write at once."""
        self.values.update(changed)
        for name in removed:
            self.values.pop(name, None)

    @asynccontextmanager
    async def edit(self) -> AsyncGenerator[Edit]:
        """Give an edit, one after the other."""
        async with self._editing:
            yield _LocalEdit(self)

    def same(self, one: Any, other: Any) -> bool:
        """Tell nothing: every value is written."""
        return False

    def copy(self, value: Any) -> Any:
        """Return a copy, or the value itself where it cannot be copied, such as a client."""
        try:
            return copy.deepcopy(value)
        except Exception:  # noqa: BLE001 - whatever a class of the user does when it is copied
            return value


class _LocalEdit:
    def __init__(self, port: LocalPort) -> None:
        self._port = port

    async def save(self, changed: Mapping[str, Any], removed: Sequence[str]) -> None:
        self._port.put(changed, removed)


def lost_lock() -> WorkflowRuntimeError:
    """Return the error for an edit whose lock ran out."""
    return WorkflowRuntimeError(
        "edit_state lost its lock, so nothing of the edit was stored: this process was stalled "
        "for longer than the lease, or the delivery went to another worker"
    )
