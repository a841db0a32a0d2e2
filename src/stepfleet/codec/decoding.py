"""Bytes to values: what msgpack unpacks is lifted to the values that its extensions stand for.

Lifting is a walk of its own, not a hook that msgpack calls: so nothing nests on the C stack (41 KB
for each level), and depth is known exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from stepfleet.codec import forms
from stepfleet.codec.forms import CONTAINERS, LEAF_OF_CODE, SCALARS, STR, Malformed
from stepfleet.codec.generic import GenericEnum, cure, make_generic_model
from stepfleet.codec.packing import unpack
from stepfleet.codec.plans import DataclassPlan, EnumPlan, ModelPlan, Plan
from stepfleet.codec.registry import TypeRegistry
from stepfleet.codec.remote_errors import rebuild_error


class UnknownType(Exception):
    """A type id names no class; raised where it is met."""


class Decoder:
    """Lifts what `unpack` returns."""

    __slots__ = ("_generic", "_max_depth", "_registry")

    def __init__(self, registry: TypeRegistry, *, max_depth: int, generic: bool) -> None:
        self._registry = registry
        self._max_depth = max_depth
        self._generic = generic

    def lift(self, raw: Any, depth: int) -> Any:
        """Returns the value; a container sits at this depth.

        Raises: Malformed, UnknownType, or whatever a constructor raises for arguments out of range.
        """
        kind = cast("type[Any]", type(raw))
        if kind in SCALARS:
            return raw
        if kind is tuple:
            return self._extension(raw[0], raw[1], depth)
        if kind is list:
            return self._items(raw, depth)
        if kind is dict:
            return self.fields(raw, depth)
        raise Malformed(f"a value of type {kind.__name__} is not part of the format")

    def fields(self, raw: Any, depth: int) -> dict[str, Any]:
        """Returns a mapping by str whose container sits at this depth."""
        self._enter(depth)
        fields = _mapping(raw)
        if SCALARS.issuperset(map(type, fields.values())):
            return fields
        return {name: self.lift(value, depth + 1) for name, value in fields.items()}

    def model(self, plan: ModelPlan, body: Any, depth: int) -> Any:
        """Returns the model with this body: declared fields, dynamic fields, names not set."""
        declared, extra, unset = body
        return plan.build(
            self.fields(declared, depth),
            None if extra is None else self.fields(extra, depth),
            _names(unset),
        )

    def generic_fields(self, body: Any, depth: int) -> dict[str, Any]:
        """Returns declared and dynamic fields alike of a model without a class."""
        declared, extra, _ = body
        return {
            **self.fields(declared, depth),
            **({} if extra is None else self.fields(extra, depth)),
        }

    def error(self, raw: Any, depth: int) -> BaseException:
        """Returns the exception that was described."""
        return rebuild_error(self._error_content(raw, depth), self._registry)

    def plan(self, type_id: Any) -> Plan | None:
        """Returns the plan for a type id; None if it is unknown and stand-ins are wanted.

        Raises: UnknownType: it is unknown, and they are not.
        """
        if type(type_id) is not str:
            raise Malformed("a type id is not a str")
        plan = self._registry.plan_of_id(type_id)
        if plan is None and not self._generic:
            raise UnknownType(_unknown_type(type_id, self._registry))
        return plan

    def _extension(self, code: int, data: bytes, depth: int) -> Any:
        leaf = LEAF_OF_CODE.get(code)
        if leaf is not None:
            return leaf.from_bytes(data)
        if code not in CONTAINERS:
            raise Malformed(f"extension type {code} is not part of the format")
        raw = unpack(data)
        match code:
            case forms.TUPLE:
                return tuple(self._items(raw, depth))
            case forms.SET:
                return set(self._items(raw, depth))
            case forms.FROZENSET:
                return frozenset(self._items(raw, depth))
            case forms.MAPPING:
                flat = self._items(raw, depth)
                return dict(zip(flat[::2], flat[1::2], strict=True))
            case forms.MODEL:
                return self._model(raw, depth)
            case forms.DATACLASS:
                return self._dataclass(raw, depth)
            case forms.ENUM:
                return self._enum(raw)
            case _:
                return self.error(raw, depth)

    def _model(self, raw: Any, depth: int) -> Any:
        type_id, *body = raw
        plan = self.plan(type_id)
        if plan is None:
            return make_generic_model(type_id, self.generic_fields(body, depth))
        if not isinstance(plan, ModelPlan):
            raise Malformed(f"{type_id} is not a model here")
        return self.model(plan, body, depth)

    def _dataclass(self, raw: Any, depth: int) -> Any:
        type_id, fields = raw
        plan = self.plan(type_id)
        if plan is None:
            return make_generic_model(type_id, self.fields(fields, depth))
        if not isinstance(plan, DataclassPlan):
            raise Malformed(f"{type_id} is not a dataclass here")
        return plan.build(self.fields(fields, depth))

    def _enum(self, raw: Any) -> Any:
        type_id, identity = raw
        plan = self.plan(type_id)
        if plan is None and type(identity) in (str, int):
            return GenericEnum(type_id, identity)
        if not isinstance(plan, EnumPlan):
            raise Malformed(f"{type_id} is not an Enum here")
        return plan.lift(identity)

    def _error_content(self, raw: Any, depth: int) -> Mapping[str, Any]:
        self._enter(depth)
        content = dict(_mapping(raw))
        if content.get("args") is not None:
            content["args"] = self._items(content["args"], depth + 1)
        if content.get("attributes") is not None:
            content["attributes"] = self.fields(content["attributes"], depth + 1)
        if content.get("cause") is not None:
            content["cause"] = self._error_content(content["cause"], depth + 1)
        return content

    def _items(self, raw: Any, depth: int) -> list[Any]:
        self._enter(depth)
        if type(raw) is not list:
            raise Malformed("a list of values is expected")
        items = cast("list[Any]", raw)
        if SCALARS.issuperset(map(type, items)):
            return items
        return [self.lift(item, depth + 1) for item in items]

    def _enter(self, depth: int) -> None:
        if depth > self._max_depth:
            raise Malformed(
                f"it is nested more than {self._max_depth} levels deep (setting `depth_limit`)"
            )


def _unknown_type(type_id: str, registry: TypeRegistry) -> str:
    shared = registry.sharing(type_id)
    if shared:
        return f"the type id {type_id!r} is shared here by {' and '.join(shared)}"
    return f"no class is registered here for the type id {type_id!r}; {cure(type_id)}"


def _mapping(raw: Any) -> dict[str, Any]:
    mapping: dict[str, Any] = raw
    if type(raw) is not dict:
        raise Malformed("a mapping of names to values is expected")
    if not STR.issuperset(map(type, mapping)):
        raise Malformed("a mapping has a name that is not a str")
    return mapping


def _names(raw: Any) -> list[str] | None:
    if raw is None:
        return None
    names: list[str] = raw
    if type(raw) is not list or not STR.issuperset(map(type, names)):
        raise Malformed("a list of names is expected")
    return names
