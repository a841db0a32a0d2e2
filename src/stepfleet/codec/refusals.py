"""Why a value cannot travel, and what its author does about it."""

from __future__ import annotations

from collections import deque
from typing import Any, Final, cast

from stepfleet.codec.forms import LEAF_OF_TYPE, Refused
from stepfleet.codec.generic import GenericEnum, GenericEvent, GenericModel, cure
from stepfleet.codec.plans import is_registrable
from stepfleet.codec.registry import unregistered_cure

#: What does not travel as a subclass of itself, most derived first.
_EXACT: Final[tuple[type[Any], ...]] = (
    dict, list, tuple, set, frozenset, bool, int, float, str, bytes, *LEAF_OF_TYPE
)  # fmt: skip


def refusal_of(value: Any) -> Refused:
    """Returns why a value of this type does not travel, and what to do about it."""
    kind = cast("type[Any]", type(value))
    return Refused(f"a value of type {_shown_type(kind)} cannot travel", _cure(value, kind))


def _cure(value: Any, kind: type[Any]) -> str:
    if isinstance(value, GenericModel | GenericEvent | GenericEnum):
        return f"it stands in for {value.type_id}: {cure(value.type_id)}"
    if is_registrable(kind):
        return unregistered_cure(kind)
    if isinstance(value, type):
        return "send its name"
    if isinstance(value, deque):
        return "convert it with list(value)"
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return "make it a tuple, or its class a dataclass"
    for exact in _EXACT:
        if isinstance(value, exact):
            return f"it would come back as a plain {exact.__name__}; {_convert(exact)}"
    return (
        "send a value that describes it, or declare the field with Field(exclude=True, default=…), "
        "or let the step take it as a Resource"
    )


def _convert(exact: type[Any]) -> str:
    if exact in (dict, list, tuple, set, frozenset, int, float, str, bytes):
        return f"convert it with {exact.__name__}(value)"
    return f"convert it to an exact {exact.__name__}"


def _shown_type(kind: type[Any]) -> str:
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"
