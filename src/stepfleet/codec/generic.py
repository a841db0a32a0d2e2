"""What a reader without the classes sees: read-only stand-ins that name the type and its cure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn, cast

from pydantic import BaseModel, ConfigDict, PrivateAttr

from stepfleet.events import Event


def cure(type_id: str) -> str:
    """Returns how to get the class behind a type id that is not registered."""
    name = type_id.rpartition(":")[2].rpartition(".")[2]
    return f"pass types=[{name}] to get it as its own class"


class GenericModel(BaseModel):
    """A model whose class is not registered here: its fields, read-only, and its type id."""

    model_config = ConfigDict(extra="allow", frozen=True)

    _type_id: str = PrivateAttr(default="")

    @property
    def type_id(self) -> str:
        """The id of the class that this value has where it comes from."""
        return self._type_id

    def __getattr__(self, name: str) -> Any:
        return _field(self, name)

    def __repr__(self) -> str:
        return _repr(self, self.type_id)

    def __hash__(self) -> int:
        return _hash(self)


class GenericEvent(Event):
    """An event whose class is not registered here: its fields, read-only, and its type id."""

    model_config = ConfigDict(extra="allow", frozen=True)

    _type_id: str = PrivateAttr(default="")

    @property
    def type_id(self) -> str:
        """The id of the class that this event has where it comes from."""
        return self._type_id

    def __getattr__(self, name: str) -> Any:
        return _field(self, name)

    def __setitem__(self, key: str, value: Any) -> NoReturn:
        raise TypeError(f"a generic event is read-only; {cure(self.type_id)}")

    def __repr__(self) -> str:
        return _repr(self, self.type_id)

    def __hash__(self) -> int:
        return _hash(self)


@dataclass(frozen=True, slots=True)
class GenericEnum:
    """A member of an Enum that is not registered here: its name, or a flag's value."""

    type_id: str
    name: str | int


GENERIC_TYPES: Final[frozenset[type]] = frozenset({GenericModel, GenericEvent, GenericEnum})


def make_generic_model(type_id: str, fields: Mapping[str, Any]) -> GenericModel:
    """Returns a stand-in for a model or dataclass."""
    return cast(GenericModel, _fill(object.__new__(GenericModel), type_id, fields))


def make_generic_event(type_id: str, fields: Mapping[str, Any]) -> GenericEvent:
    """Returns a stand-in for an event."""
    return cast(GenericEvent, _fill(object.__new__(GenericEvent), type_id, fields))


def _fill(stand_in: BaseModel, type_id: str, fields: Mapping[str, Any]) -> BaseModel:
    # Not by the constructor: a field may have any name, that of a private attribute included.
    object.__setattr__(stand_in, "__dict__", {})
    object.__setattr__(stand_in, "__pydantic_fields_set__", set(fields))
    object.__setattr__(stand_in, "__pydantic_extra__", dict(fields))
    object.__setattr__(stand_in, "__pydantic_private__", {"_type_id": type_id})
    return stand_in


def _field(stand_in: GenericModel | GenericEvent, name: str) -> Any:
    if name == "_type_id":
        return (stand_in.__pydantic_private__ or {}).get(name, "")
    fields = _fields(stand_in)
    if name in fields:
        return fields[name]
    known = ", ".join(fields) or "none"
    raise AttributeError(
        f"{stand_in.type_id} is known here only by its fields ({known}), not {name!r}; "
        f"{cure(stand_in.type_id)}"
    )


def _fields(stand_in: BaseModel) -> dict[str, Any]:
    return stand_in.__pydantic_extra__ or {}


def _repr(stand_in: BaseModel, type_id: str) -> str:
    shown = [repr(type_id), *(f"{name}={value!r}" for name, value in _fields(stand_in).items())]
    return f"{type(stand_in).__name__}({', '.join(shown)})"


def _hash(stand_in: GenericModel | GenericEvent) -> int:
    # Values may be unhashable here though they are not at home; names are enough to be correct.
    return hash((stand_in.type_id, *sorted(_fields(stand_in))))
