"""Which classes data may name: an explicit set, filled from a workflow's annotations.

There is no way from a name to a class but through a registry: nothing is ever imported.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from threading import Lock
from typing import Any, Final, TypeVar, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel

import stepfleet.errors
import stepfleet.events
from stepfleet.codec.generic import GENERIC_TYPES
from stepfleet.codec.plans import Plan, is_registrable, make_plan
from stepfleet.errors import DefinitionError, EncodeError

_BUILTINS: Final[Mapping[str, Plan]] = types.MappingProxyType(
    {
        cls.__name__: make_plan(cls, cls.__name__)
        for module, roots in (
            (stepfleet.events, (stepfleet.events.DictLikeModel, Enum)),
            (stepfleet.errors, Exception),
        )
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, roots) and cls.__module__ == module.__name__
    }
)


class TypeRegistry:
    """The classes that may travel, and the ids by which they are named on the wire.

    An id is the class name where that is unique, else `module:qualname`; the latter is always
    understood. An open registry takes any class when it meets it: for one process only.
    """

    def __init__(self, types: Iterable[type] = (), *, open: bool = False) -> None:  # noqa: A002  its public name
        self._open = open
        self._lock = Lock()
        self._plan_of_class: dict[type, Plan] = {plan.cls: plan for plan in _BUILTINS.values()}
        #: By id and by full id; None where a name is shared and so names nothing.
        self._plan_of_id: dict[str, Plan | None] = {
            **_BUILTINS,
            **{full_id(plan.cls): plan for plan in _BUILTINS.values()},
        }
        for cls in types:
            self.add(cls)

    def add(self, cls: type) -> None:
        """Makes a class known; does nothing if it is.

        Raises: DefinitionError: the class is of no kind that can travel, or another one has exactly
            its module and name.
        """
        with self._lock:
            if cls not in self._plan_of_class:
                self._add(cls)

    def reachable(self, roots: Iterable[Any]) -> None:
        """Adds every class named by these annotations, and by those of their fields in turn."""
        # By identity, as not every annotation can be hashed; kept, so that no id is used again.
        seen: dict[int, Any] = {}
        pending: list[Any] = list(roots)
        while pending:
            annotation = pending.pop()
            if id(annotation) in seen:
                continue
            seen[id(annotation)] = annotation
            pending.extend(_parts(annotation))
            if isinstance(annotation, type) and get_origin(annotation) is None:
                if is_registrable(annotation):
                    self.add(annotation)
                pending.extend(_field_annotations(annotation))

    def id_of(self, cls: type) -> str:
        """Returns the id of a class.

        Raises: EncodeError: the class is not registered, and the registry is not open.
        """
        plan = self.plan_of(cls)
        if plan is None:
            raise EncodeError(f"{cls.__qualname__} is not registered; {unregistered_cure(cls)}")
        return plan.type_id

    def class_of(self, type_id: str) -> type | None:
        """Returns the class with this id, if there is exactly one."""
        plan = self.plan_of_id(type_id)
        return None if plan is None else plan.cls

    def plan_of(self, cls: type) -> Plan | None:
        """Returns the plan of a class; an open registry makes it when needed."""
        plan = self._plan_of_class.get(cls)
        if plan is None and self._open and cls not in GENERIC_TYPES and is_registrable(cls):
            self.add(cls)
            plan = self._plan_of_class[cls]
        return plan

    def plan_of_id(self, type_id: str) -> Plan | None:
        """Returns the plan of the class with this id, if there is exactly one."""
        return self._plan_of_id.get(type_id)

    def sharing(self, type_id: str) -> tuple[str, ...]:
        """Returns the full ids of the classes that share a name, if it is shared."""
        if self._plan_of_id.get(type_id, self) is not None:
            return ()
        return tuple(sorted(full_id(cls) for cls in self._plan_of_class if cls.__name__ == type_id))

    def _add(self, cls: type) -> None:
        short, full = cls.__name__, full_id(cls)
        if full in self._plan_of_id:
            if not self._open:
                raise DefinitionError(
                    f"two different classes are both {full}: give one of them another name"
                )
            full = self._numbered(full)
        if short not in self._plan_of_id:
            plan = make_plan(cls, short)
            self._plan_of_id[short] = plan
        else:
            plan = make_plan(cls, full)
            if not self._open and short not in _BUILTINS:
                self._retire(short)
        self._plan_of_id[full] = plan
        self._plan_of_class[cls] = plan

    def _retire(self, short: str) -> None:
        # Which of two classes came first must not matter: two processes may add them in another
        # order. In an open registry it may, and there an id in use must not change.
        first = self._plan_of_id[short]
        self._plan_of_id[short] = None
        if first is not None:
            full = full_id(first.cls)
            self._plan_of_id[full] = self._plan_of_class[first.cls] = make_plan(first.cls, full)

    def _numbered(self, full: str) -> str:
        number = 2
        while f"{full}#{number}" in self._plan_of_id:
            number += 1
        return f"{full}#{number}"


def full_id(cls: type) -> str:
    """Returns the long id of a class."""
    return f"{cls.__module__}:{cls.__qualname__}"


def unregistered_cure(cls: type) -> str:
    """Returns what to do about a class that is not registered."""
    return f"annotate a field or a step with {cls.__name__}, or pass types=[{cls.__name__}]"


def _parts(annotation: Any) -> Iterator[Any]:
    yield from get_args(annotation)
    origin = get_origin(annotation)
    if origin is not None:
        yield origin
    if isinstance(annotation, TypeVar):
        yield from (annotation.__bound__, *annotation.__constraints__)
    if isinstance(annotation, Enum):
        yield type(annotation)
    if type(annotation).__name__ == "TypeAliasType":
        yield cast(Any, annotation).__value__


def _field_annotations(cls: type[Any]) -> Iterator[Any]:
    if issubclass(cls, BaseModel):
        cls.model_rebuild(raise_errors=False)
        yield from (info.annotation for info in cls.model_fields.values() if not info.exclude)
    elif is_dataclass(cls) or hasattr(cls, "__total__"):
        try:
            yield from get_type_hints(cls, include_extras=True).values()
        except (NameError, TypeError, AttributeError):
            # A name that exists for type checkers only: its classes need `types=[…]`.
            yield from vars(cls).get("__annotations__", {}).values()
