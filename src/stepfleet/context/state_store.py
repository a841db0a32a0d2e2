"""The state store of the programming model outside of a run: in memory, with checkpoints and patches.

A run has its store in Redis (`stepfleet.store`). These names serve code and tests that use a store
by itself.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, cast

from pydantic import BaseModel

from stepfleet.context.serializers import JsonSerializer
from stepfleet.context.snapshot import (
    LIVE,
    TREE,
    UnserializableKeyWarning,
    of_tree,
    warn_left_out,
)
from stepfleet.store import (
    MAX_DEPTH,
    MISSING,
    DictState,
    LocalPort,
    StateStore,
    StateT,
    fields_of,
    put_copy,
    put_into,
    segments_of,
    step_into,
)

__all__ = [
    "MAX_DEPTH",
    "DictState",
    "InMemorySerializedState",
    "InMemoryStateStore",
    "StateCheckpoint",
    "StateStore",
    "UnserializableKeyWarning",
    "apply_state_patch",
    "copy_state_for_edit",
    "create_cleared_state",
    "decode_state",
    "deserialize_state_from_dict",
    "encode_state",
    "get_by_path",
    "infer_state_type",
    "merge_state",
    "parse_in_memory_state",
    "set_by_path",
    "set_by_path_copy",
]


class ValueSerializer(Protocol):
    """Turns values into text and back."""

    def serialize(self, value: Any) -> str:
        """Return a value as text."""
        ...

    def deserialize(self, value: str) -> Any:
        """Return the value of a text."""
        ...


class DeclaresState(Protocol):
    """A workflow, as far as its state goes."""

    @property
    def state_type(self) -> type[BaseModel] | None:
        """The state type of its steps."""
        ...


# -- paths -----------------------------------------------------------------------------------------


def get_by_path(state: Any, path: str, default: Any = MISSING) -> Any:
    """Return the value at a dotted path of a state.

    Raises:
        ValueError: nothing is there and no default was given, or the path is too long.
    """
    value: Any = fields_of(state) if isinstance(state, BaseModel) else state
    for segment in segments_of(path):
        value = step_into(value, segment)
    if value is not MISSING:
        return value
    if default in (MISSING, ...):
        raise ValueError(f"Path '{path}' not found in state")
    return default


def set_by_path(state: Any, path: str, value: Any) -> None:
    """Set the value at a dotted path of a state; missing dictionaries on the way are made.

    Raises:
        ValueError: the path is empty or too long, or goes where nothing can be set.
    """
    head, *rest = segments_of(path)
    if not isinstance(state, BaseModel):
        put_into(state, [head, *rest], value, path)
        return
    if rest:
        current: Any = fields_of(state).get(head, MISSING)
        if current is MISSING:
            current = dict[str, Any]()
        put_into(current, rest, value, path)
        value = current
    _set_field(state, head, value)


def set_by_path_copy(state: StateT, path: str, value: Any) -> StateT:
    """Return a copy of a state with another value at a dotted path; what is not on the way is shared.

    Raises:
        ValueError: the path is empty or too long, or goes where nothing can be set.
    """
    head, *rest = segments_of(path)
    changed = state.model_copy()
    if rest:
        value = put_copy(fields_of(state).get(head, {}), rest, value, path)
    _set_field(changed, head, value)
    return changed


def _set_field(state: BaseModel, name: str, value: Any) -> None:
    if name in type(state).model_fields or state.__pydantic_extra__ is None:
        setattr(state, name, value)
    else:
        # Not by setattr: a key may have the name of a method.
        state.__pydantic_extra__[name] = value


# -- whole states ----------------------------------------------------------------------------------


def copy_state_for_edit(state: StateT) -> StateT:
    """Return a copy of a state; what cannot be copied, such as a client, is shared.

    So are fields that are excluded from serialization: their authors say that they are no data.
    """
    return _deep(state, {})


def _deep(value: Any, memo: dict[int, Any]) -> Any:
    """Copy value by value, so that one that cannot be copied costs no other one its copy."""
    if id(value) in memo:
        return memo[id(value)]
    copied: Any
    if isinstance(value, BaseModel):
        copied = memo[id(value)] = value.model_copy()
        fields = type(value).model_fields
        own = cast("dict[str, Any]", copied.__dict__)
        for name, item in own.items():
            if name not in fields or not fields[name].exclude:
                own[name] = _deep(item, memo)
        for more in (copied.__pydantic_extra__, copied.__pydantic_private__):
            if more is not None:
                more.update({name: _deep(item, memo) for name, item in more.items()})
    elif type(value) in (dict, list):
        copied = memo[id(value)] = copy.copy(value)
        for key in range(len(copied)) if type(value) is list else tuple(copied):
            copied[key] = _deep(copied[key], memo)
    else:
        try:
            copied = copy.deepcopy(value, memo)
        except Exception:  # noqa: BLE001 - whatever a value raises, it is shared
            copied = value
        memo[id(value)] = copied
    return copied


def merge_state(current_state: StateT, incoming: BaseModel) -> StateT:
    """Return the incoming state if it is of the current type, else the current one with its values."""
    if isinstance(incoming, type(current_state)):
        return incoming
    return current_state.model_copy(update=fields_of(incoming))


def create_cleared_state(state_type: type[StateT]) -> StateT:
    """Return a state with the defaults of its type.

    Raises:
        ValueError: a field has none.
    """
    try:
        return state_type()
    except ValueError as error:
        raise ValueError("State must have defaults for all fields") from error


def infer_state_type(workflow: DeclaresState) -> type[BaseModel]:
    """Return the state type that the steps of a workflow declare, `DictState` when they declare none.

    Raises:
        ValueError: none of the declared types extends all others.
    """
    return workflow.state_type or DictState


# -- states as data --------------------------------------------------------------------------------


class InMemorySerializedState(BaseModel):
    """A state as data, with the name of its type."""

    store_type: Literal["in_memory"] = "in_memory"
    state_type: str = "DictState"
    state_module: str = DictState.__module__
    state_data: Any = None


def encode_state(
    state: BaseModel,
    serializer: ValueSerializer,
    known_unserializable_keys: Collection[str] = LIVE,
) -> tuple[Any, str, str]:
    """Return a state as data, and name and module of its type.

    Of the keys that are known to hold live objects, those whose value cannot be serialized are left
    out, with an `UnserializableKeyWarning`.

    Raises:
        ValueError: another value cannot be serialized; the message names its key.
    """
    cls = type(state)
    if not isinstance(state, DictState):
        return serializer.serialize(state), cls.__name__, cls.__module__
    encoded: dict[str, str] = {}
    for name, value in fields_of(state).items():
        try:
            encoded[name] = serializer.serialize(value)
        except Exception as error:
            # Whatever the serializer raises.
            if name not in known_unserializable_keys:
                message = f"Failed to serialize state value for key {name}: {error}"
                raise ValueError(message) from error
            warn_left_out(name)
    return {"_data": encoded}, cls.__name__, cls.__module__


def decode_state(state_data: Any, serializer: ValueSerializer) -> BaseModel:
    """Return the state that `encode_state` made data of; an empty one of None, a state as it is.

    Raises:
        ValueError: it is no such data.
    """
    decoded = state_data
    if decoded is None:
        return DictState()
    if isinstance(decoded, str):
        decoded = serializer.deserialize(decoded)
    if isinstance(decoded, BaseModel):
        return decoded
    if isinstance(decoded, dict) and TREE in decoded and isinstance(serializer, JsonSerializer):
        state = of_tree(cast("dict[str, Any]", decoded), serializer)
        return state if isinstance(state, BaseModel) else DictState(**state)
    if isinstance(decoded, dict) and "_data" in decoded:
        encoded = cast("dict[str, dict[str, str]]", decoded)["_data"]
        return DictState(**{k: serializer.deserialize(v) for k, v in encoded.items()})
    raise ValueError(
        f"Unrecognized state payload of type {type(cast(object, state_data)).__name__}; refusing to decode"
    )


def parse_in_memory_state(data: dict[str, Any]) -> InMemorySerializedState:
    """Return what `InMemoryStateStore.to_dict` made, checked.

    Raises:
        ValueError: it is something else.
    """
    kind = data.get("store_type", "in_memory")
    if kind != "in_memory":
        raise ValueError(f"Cannot parse store_type '{kind}': the state is not in this dictionary")
    return InMemorySerializedState.model_validate(data)


def deserialize_state_from_dict(
    serialized_state: dict[str, Any],
    serializer: ValueSerializer,
    state_type: type[BaseModel] | None = None,
) -> BaseModel:
    """Return the state of what `InMemoryStateStore.to_dict` made; its type stands in it.

    `state_type` is ignored, as in the model.

    Raises:
        ValueError: it is something else.
    """
    return decode_state(parse_in_memory_state(serialized_state).state_data, serializer)


# -- a store in memory -----------------------------------------------------------------------------


class InMemoryStateStore(StateStore[StateT], Generic[StateT]):
    """A store in this process, filled with a state."""

    def __init__(self, initial_state: StateT) -> None:
        self._begin(LocalPort(fields_of(initial_state)), type(initial_state))

    @classmethod
    def over(cls, port: LocalPort, state_type: type[BaseModel] | None) -> InMemoryStateStore[Any]:
        """Return a store with the values of a port; a type whose fields have no defaults may be empty."""
        store: InMemoryStateStore[Any] = cls.__new__(cls)
        store._begin(port, state_type)
        return store

    def _begin(self, port: LocalPort, state_type: Any) -> None:
        self._local = port
        super().__init__(port, state_type)

    async def set_state(self, state: StateT) -> None:
        """Replace the whole state; one of a subclass makes that the type of the state.

        Raises:
            ValueError: it is of another type.
        """
        await super().set_state(state)
        if isinstance(state, self._type):
            self._type = type(state)

    def checkpoint(self) -> StateCheckpoint:
        """Return the state as it is now."""
        return StateCheckpoint(self._now(), JsonSerializer())

    def to_dict(self, serializer: ValueSerializer) -> dict[str, Any]:
        """Return the state as data.

        Raises:
            ValueError: a value cannot be serialized; the message names its key.
        """
        data, name, module = encode_state(self._now(), serializer)
        return InMemorySerializedState(
            state_type=name, state_module=module, state_data=data
        ).model_dump()

    @classmethod
    def from_dict(
        cls, serialized_state: dict[str, Any], serializer: ValueSerializer
    ) -> InMemoryStateStore[Any]:
        """Return a store with the state of what `to_dict` made.

        Raises:
            ValueError: it is something else.
        """
        return InMemoryStateStore(deserialize_state_from_dict(serialized_state, serializer))

    def _now(self) -> StateT:
        state: BaseModel = self.state_type.model_construct()
        for name, value in self._local.values.items():
            _set_field(state, name, value)
        return copy_state_for_edit(cast(StateT, state))


class StateCheckpoint:
    """A state at one moment, as a tree that patches can change."""

    def __init__(self, state: BaseModel, serializer: JsonSerializer) -> None:
        self._state = state
        self._serializer = serializer

    @property
    def state(self) -> BaseModel:
        """The state."""
        return self._state

    def to_dict(self) -> dict[str, Any]:
        """Return the state as a tree of JSON values."""
        cls, write = type(self.state), self._serializer.serialize_value
        if isinstance(self.state, DictState):
            values = {name: write(value) for name, value in fields_of(self.state).items()}
            tree = {TREE: "dict", "_data": values}
        else:
            tree = {TREE: "model", **write(self.state)}
        return InMemorySerializedState(
            state_type=cls.__name__, state_module=cls.__module__, state_data=tree
        ).model_dump()

    def diff(self, since: StateCheckpoint) -> list[dict[str, Any]]:
        """Return the JSON Patch (RFC 6902) that makes this state of an earlier one."""
        return _difference(since.to_dict(), self.to_dict(), "")


def apply_state_patch(state: dict[str, Any], patch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a tree with the `add`, `remove` and `replace` operations of a JSON Patch applied.

    Raises:
        ValueError: another operation.
        LookupError: a path leads nowhere.
    """
    changed: Any = copy.deepcopy(state)
    for operation in patch:
        *way, last = (
            part.replace("~1", "/").replace("~0", "~")
            for part in str(operation["path"]).split("/")[1:]
        )
        target: Any = changed
        for part in way:
            target = target[int(part) if isinstance(target, list) else part]
        _apply(operation, target, last)
    return changed


def _apply(operation: Mapping[str, Any], target: Any, last: str) -> None:
    key: Any = last
    if isinstance(target, list):
        key = len(cast("list[Any]", target)) if last == "-" else int(last)
    match operation["op"]:
        case "remove":
            del target[key]
        case "add" if isinstance(target, list):
            cast("list[Any]", target).insert(key, operation["value"])
        case "add" | "replace":
            target[key] = operation["value"]
        case other:
            raise ValueError(f"A state patch adds, removes and replaces; {other!r} is none of it.")


def _difference(before: Any, after: Any, path: str) -> list[dict[str, Any]]:
    if json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True):
        return []
    match before, after:
        case dict(), dict():
            old, new = cast("dict[str, Any]", before), cast("dict[str, Any]", after)
            removed = [{"op": "remove", "path": _below(path, k)} for k in old if k not in new]
            added = [
                {"op": "add", "path": _below(path, k), "value": new[k]} for k in new if k not in old
            ]
            kept = [k for k in old if k in new]
            changed = [one for k in kept for one in _difference(old[k], new[k], _below(path, k))]
            return [*removed, *changed, *added]
        case list(), list():
            return _list_difference(cast("list[Any]", before), cast("list[Any]", after), path)
        case _:
            return [{"op": "replace", "path": path, "value": after}]


def _list_difference(before: list[Any], after: list[Any], path: str) -> list[dict[str, Any]]:
    """Return what makes one list of the other: between what both begin and end with, it is replaced."""
    old, new = [[json.dumps(item, sort_keys=True) for item in one] for one in (before, after)]
    first, shorter = 0, min(len(old), len(new))
    while first < shorter and old[first] == new[first]:
        first += 1
    last = 0
    while last < shorter - first and old[-1 - last] == new[-1 - last]:
        last += 1
    going, coming = len(old) - last - first, after[first : len(new) - last]
    if going == len(coming):
        return [
            one
            for number, item in enumerate(coming, first)
            for one in _difference(before[number], item, f"{path}/{number}")
        ]
    removed = [{"op": "remove", "path": f"{path}/{first}"}] * going
    added = [
        {"op": "add", "path": f"{path}/{number}", "value": item}
        for number, item in enumerate(coming, first)
    ]
    return [*removed, *added]


def _below(path: str, key: str) -> str:
    return f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
