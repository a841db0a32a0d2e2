"""Values to bytes: a value is lowered to what msgpack carries, then packed in one call.

Lowering descends only into containers that hold something other than scalars. It does not know
where it is; after a refusal, `locate` walks the value once more to say where the offender sits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, cast

from pydantic import BaseModel

from stepfleet.codec import forms
from stepfleet.codec.forms import LEAF_OF_TYPE, SCALARS, STR, Refused
from stepfleet.codec.packing import extension, new_packer
from stepfleet.codec.plans import DataclassPlan, EnumPlan, ErrorPlan, ModelPlan
from stepfleet.codec.refusals import refusal_of
from stepfleet.codec.registry import TypeRegistry
from stepfleet.codec.remote_errors import describe_error

#: Characters of a key that a path in an error message shows.
_SHOWN_KEY: Final = 40

_SEQUENCE_CODES: Final = {tuple: forms.TUPLE, set: forms.SET, frozenset: forms.FROZENSET}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The largest values that travel, checked in both directions, and how many of them."""

    #: Bytes of one encoded event, result or store value (setting `event_limit`).
    max_bytes: int = 1024 * 1024
    #: Levels of nesting inside one event or value (setting `depth_limit`).
    max_depth: int = 64
    #: Events that one execution of a step sends and returns (setting `fan_out_limit`).
    fan_out: int = 100_000
    #: Events that one `collect_events` waits for (setting `collect_limit`).
    collected: int = 10_000


def pack_rest(value: Any) -> Any:
    """Packs what lowering leaves to msgpack and msgpack cannot pack: ints over 64 bits.

    Raises: Refused: anything else, which another thread has put there since it was looked at.
    """
    if type(value) is int:
        return extension(forms.INTEGER, forms.integer_to_bytes(value))
    raise refusal_of(value)


class Encoder:
    """Lowers and packs one value; made anew for each."""

    __slots__ = ("_budget", "_max_depth", "_packer", "_registry")

    def __init__(self, registry: TypeRegistry, limits: Limits) -> None:
        self._registry = registry
        self._max_depth = limits.max_depth
        # Every part takes a byte or more: a value with more parts than bytes allowed cannot fit.
        # This ends the walk through lists that share their content many times over.
        self._budget = limits.max_bytes
        self._packer = new_packer(pack_rest)

    def pack(self, lowered: Any) -> bytes:
        """Returns the bytes of what `lower` returned."""
        return self._packer.pack(lowered)

    def lower(self, value: Any, depth: int) -> Any:
        """Returns the value in terms of msgpack; a container sits at this depth.

        Raises: Refused: it, or something inside, cannot travel.
        """
        kind = cast("type[Any]", type(value))
        if kind in SCALARS:
            return value
        leaf = LEAF_OF_TYPE.get(kind)
        if leaf is not None:
            return extension(leaf.code, leaf.to_bytes(value))
        if kind is list:
            self._enter(depth, len(value))
            if SCALARS.issuperset(map(type, value)):
                return value
            return [self.lower(item, depth + 1) for item in value]
        if kind is dict:
            return self._mapping(value, depth)
        if kind is tuple:
            self._enter(depth, len(value))
            return self._extension(forms.TUPLE, [self.lower(item, depth + 1) for item in value])
        if kind is set or kind is frozenset:
            return self._set(value, _SEQUENCE_CODES[kind], depth)
        return self._registered(value, kind, depth)

    def model_body(self, model: BaseModel, plan: ModelPlan, depth: int) -> list[Any]:
        """Returns a model's declared fields, dynamic fields and names of fields that were not set.

        Raises: Refused: the model, or something inside, cannot travel.
        """
        declared = _declared(model, plan)
        extra: dict[str, Any] = model.__pydantic_extra__ or {}
        if not STR.issuperset(map(type, extra)):
            raise Refused(
                "it has a dynamic field whose name is not a str", "name dynamic fields by str"
            )
        fields_set = model.__pydantic_fields_set__
        unset = [name for name in (*declared, *extra) if name not in fields_set]
        self._enter(depth, len(declared) + len(extra))
        return [
            self._parts(declared, depth),
            self._parts(extra, depth) if extra else None,
            unset or None,
        ]

    def error(self, error: BaseException, depth: int) -> dict[str, Any]:
        """Returns an exception as data; what of its content cannot travel is left out.

        Raises: Refused: it is over a limit.
        """
        return self._lower_error(describe_error(error, self._registry), depth)

    def _lower_error(self, description: dict[str, Any], depth: int) -> dict[str, Any]:
        self._enter(depth, len(description["traceback"]))
        lowered = dict(description)
        for part in ("args", "attributes"):
            try:
                lowered[part] = self.lower(description[part], depth + 1)
            except Refused as refused:
                if refused.limit == "size":
                    raise
                lowered[part] = None
        if description["cause"] is not None:
            lowered["cause"] = self._lower_error(description["cause"], depth + 1)
        return lowered

    def _enter(self, depth: int, parts: int) -> None:
        if depth > self._max_depth:
            raise Refused(
                f"it is nested more than {self._max_depth} levels deep (setting `depth_limit`)",
                "flatten it",
                limit="depth",
            )
        self._budget -= parts + 1
        if self._budget < 0:
            raise Refused("it has more parts than bytes are allowed", "", limit="size")

    def _extension(self, code: int, lowered: Any) -> Any:
        return extension(code, self._packer.pack(lowered))

    def _parts(self, fields: dict[str, Any], depth: int) -> dict[str, Any]:
        if SCALARS.issuperset(map(type, fields.values())):
            return fields
        return {name: self.lower(value, depth + 1) for name, value in fields.items()}

    def _mapping(self, value: dict[Any, Any], depth: int) -> Any:
        self._enter(depth, 2 * len(value))
        if STR.issuperset(map(type, value)):
            return self._parts(value, depth)
        # Not a msgpack map: keys that are equal as bytes need not be equal here (NaN in a tuple).
        flat = [self.lower(part, depth + 1) for pair in value.items() for part in pair]
        return self._extension(forms.MAPPING, flat)

    def _set(self, value: set[Any] | frozenset[Any], code: int, depth: int) -> Any:
        self._enter(depth, len(value))
        # Sorted: the order of a set differs between processes, and digests are taken of the bytes.
        items = sorted(self._packer.pack(self.lower(item, depth + 1)) for item in value)
        return extension(code, self._packer.pack_array_header(len(items)) + b"".join(items))

    def _registered(self, value: Any, kind: type[Any], depth: int) -> Any:
        match self._registry.plan_of(kind):
            case ModelPlan() as plan:
                body = [plan.type_id, *self.model_body(value, plan, depth)]
                return self._extension(forms.MODEL, body)
            case DataclassPlan() as plan:
                fields = _dataclass_fields(value, plan)
                self._enter(depth, len(fields))
                body = [plan.type_id, self._parts(fields, depth)]
                return self._extension(forms.DATACLASS, body)
            case EnumPlan() as plan:
                return self._extension(forms.ENUM, [plan.type_id, _member_identity(value, plan)])
            case ErrorPlan():
                return self._extension(forms.ERROR, self.error(value, depth))
            case None if isinstance(value, BaseException):
                return self._extension(forms.ERROR, self.error(value, depth))
            case None:
                raise refusal_of(value)


def locate(
    value: Any,
    path: str,
    lower: Callable[[Any, int], Any],
    registry: TypeRegistry,
    *,
    depth: int,
) -> tuple[str, Refused | None]:
    """Returns the path of the innermost part that is refused, and its refusal."""
    ancestors = {id(value)}
    found: Refused | None = None
    while True:
        for segment, part in _parts_of(value, registry):
            try:
                lower(part, depth + 1)
            except Refused as refused:
                path += segment
                if id(part) in ancestors:
                    return path, Refused("it contains itself", "send ids instead of the objects")
                ancestors.add(id(part))
                value, depth, found = part, depth + 1, refused
                break
        else:
            return path, found


def _parts_of(value: Any, registry: TypeRegistry) -> Iterator[tuple[str, Any]]:
    match value:
        case list() | tuple():
            for index, item in enumerate(cast("list[Any]", value)):
                yield f"[{index}]", item
        case set() | frozenset():
            for item in cast("set[Any]", value):
                yield f"<element {_shown(item)}>", item
        case dict():
            for key, item in cast("dict[Any, Any]", value).items():
                yield f"<key {_shown(key)}>", key
                yield f"[{_shown(key)}]", item
        case _:
            for name, item in _fields_of(value, registry).items():
                yield f".{name}", item


def _fields_of(value: Any, registry: TypeRegistry) -> dict[str, Any]:
    try:
        match registry.plan_of(cast("type[Any]", type(value))):
            case ModelPlan() as plan:
                return {**_declared(value, plan), **(value.__pydantic_extra__ or {})}
            case DataclassPlan() as plan:
                return _dataclass_fields(value, plan)
            case EnumPlan() | ErrorPlan() | None:
                return {}
    except Refused:
        return {}


def _shown(key: object) -> str:
    text = repr(key) if type(key) in SCALARS else type(key).__qualname__
    return text if len(text) <= _SHOWN_KEY else f"{text[:_SHOWN_KEY]}…"


def _declared(model: BaseModel, plan: ModelPlan) -> dict[str, Any]:
    own = vars(model)
    if plan.keys == own.keys():
        return own
    lost = plan.not_rebuildable
    if lost is not None:
        raise Refused(
            f"its field {lost} is declared with exclude=True and has no default, so it could not "
            "be rebuilt",
            f"give {lost} a default",
        )
    for name in plan.names:
        if name not in own:
            raise Refused(f"its field {name} was never set", "build it by calling its class")
    return {name: own[name] for name in plan.names}


def _dataclass_fields(value: object, plan: DataclassPlan) -> dict[str, Any]:
    stray = plan.stray_attribute(value)
    if stray is not None:
        raise Refused(
            f"its attribute {stray} is not a field, and would be lost",
            f"declare {stray} as a field",
        )
    for name in plan.names:
        if not hasattr(value, name):
            raise Refused(f"its field {name} was never set", "build it by calling its class")
    return {name: getattr(value, name) for name in plan.names}


def _member_identity(member: Enum, plan: EnumPlan) -> str | int:
    identity = plan.lower(member)
    if identity is None:
        raise Refused(
            f"{member!r} is not a declared member of {plan.type_id}", "declare it in the class"
        )
    # A flag class keeps every value it was ever asked for: data must not make it keep large ones.
    if isinstance(identity, int) and not -(2**63) <= identity < 2**64:
        raise Refused("a flag of more than 64 bits cannot travel", "send the set of its members")
    return identity
