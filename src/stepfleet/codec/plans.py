"""What the codec knows about a registered class: found once, used for each of its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum, Flag
from functools import cached_property
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stepfleet.codec.forms import Malformed
from stepfleet.errors import DefinitionError
from stepfleet.events import DictLikeModel, Event

#: Builtins whose own content would be lost if only the fields of a dataclass travelled.
_VALUE_TYPES: Final = (
    int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset
)  # fmt: skip

# Setting the slots directly is what pydantic's own `model_construct` does, at a third of its cost
# (0.55 µs against 1.7 µs for two fields).
_set_fields: Final = BaseModel.__dict__["__dict__"].__set__
_set_fields_set: Final = BaseModel.__dict__["__pydantic_fields_set__"].__set__
_set_extra: Final = BaseModel.__dict__["__pydantic_extra__"].__set__
_set_private: Final = BaseModel.__dict__["__pydantic_private__"].__set__


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """How instances of a pydantic model are taken apart and built."""

    cls: type[BaseModel]
    type_id: str
    #: The fields that travel, in declared order.
    names: tuple[str, ...]
    #: The same as a set, or None when `__dict__` never is what travels: a field is excluded.
    keys: frozenset[str] | None
    excluded: tuple[str, ...]
    #: A field that is excluded and has no default, so that no instance could be built.
    not_rebuildable: str | None
    extra: Literal["allow", "ignore", "forbid"]
    #: Whether building ends with `model_post_init`, which also sets private attributes.
    post_init: bool
    is_event: bool

    def build(
        self, declared: dict[str, Any], extra: dict[str, Any] | None, unset: list[str] | None
    ) -> BaseModel:
        """Returns the instance that these exact values came from; no validator runs.

        Raises: Malformed: a field without a default is missing, or an unknown one is forbidden.
        """
        fields_set = {*declared, *extra} if extra else set(declared)
        if self.keys != declared.keys() or (extra and self.extra != "allow"):
            declared, extra = self._reconcile(declared, extra or {})
            fields_set &= {*self.names, *(extra or ())}
        if unset:
            fields_set.difference_update(unset)
        model = object.__new__(self.cls)
        _set_fields(model, declared)
        _set_fields_set(model, fields_set)
        _set_extra(model, (extra or {}) if self.extra == "allow" else None)
        _set_private(model, None)
        if self.post_init:
            self._run_post_init(model, declared, extra, fields_set)
        return model

    def _run_post_init(
        self,
        model: BaseModel,
        declared: dict[str, Any],
        extra: dict[str, Any] | None,
        fields_set: set[str],
    ) -> None:
        # The producer's instance has been through it already: what it assigns to fields that
        # travelled is put back, so that a hook that is not idempotent cannot change them.
        kept, kept_extra, kept_set = dict(declared), dict(extra or {}), set(fields_set)
        model.model_post_init(None)
        vars(model).update({name: kept[name] for name in self.names})
        _set_fields_set(model, kept_set)
        if self.extra == "allow":
            _set_extra(model, kept_extra)

    def _reconcile(
        self, declared: dict[str, Any], extra: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Fits the fields of an older or newer version of the class to this one."""
        sent = {**extra, **declared}
        for name in self.excluded:
            sent.pop(name, None)
        ours: dict[str, Any] = {}
        for name, info in self.cls.model_fields.items():
            ours[name] = sent.pop(name) if name in sent else self._default(info, name, ours)
        if sent and self.extra == "forbid":
            names = ", ".join(sorted(map(str, sent)))
            raise Malformed(f"{self.type_id} has no field {names}, and forbids extra fields")
        return ours, sent if self.extra == "allow" else None

    def _default(self, info: FieldInfo, name: str, before: dict[str, Any]) -> Any:
        if info.is_required():
            raise Malformed(f"{self.type_id}.{name} is missing and has no default")
        if getattr(info, "default_factory_takes_validated_data", False):
            return info.get_default(call_default_factory=True, validated_data=before)
        return info.get_default(call_default_factory=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataclassPlan:
    """How instances of a dataclass are taken apart and built."""

    cls: type[Any]
    type_id: str
    names: tuple[str, ...]

    def stray_attribute(self, value: object) -> str | None:
        """Returns an attribute that is no field and so would be lost, if there is one."""
        for name in getattr(value, "__dict__", ()):
            if name not in self.names and not isinstance(
                getattr(self.cls, name, None), cached_property
            ):
                return name
        return None

    def build(self, sent: Mapping[str, Any]) -> object:
        """Returns the instance with these fields; neither `__init__` nor `__post_init__` runs.

        Raises: Malformed: a field without a default is missing.
        """
        instance = object.__new__(self.cls)
        for field in fields(self.cls):
            if field.name in sent:
                value = sent[field.name]
            elif field.default is not MISSING:
                value = field.default
            elif field.default_factory is not MISSING:
                value = field.default_factory()
            else:
                raise Malformed(f"{self.type_id}.{field.name} is missing and has no default")
            object.__setattr__(instance, field.name, value)
        return instance


@dataclass(frozen=True, slots=True, kw_only=True)
class EnumPlan:
    """How members of an Enum are named: by name, flags by value."""

    cls: type[Enum]
    type_id: str

    def lower(self, member: Enum) -> str | int | None:
        """Returns what identifies the member, or None when nothing in the class does."""
        if isinstance(member, Flag):
            return int(member.value)
        name = member.name
        return name if self.cls.__members__.get(name) is member else None

    def lift(self, identity: object) -> Enum:
        """Returns the member.

        Raises: Malformed: this version of the class has no such member.
        """
        if issubclass(self.cls, Flag):
            if type(identity) is int:
                return self.cls(identity)
        elif type(identity) is str and identity in self.cls.__members__:
            return self.cls.__members__[identity]
        raise Malformed(f"{self.type_id} has no member {str(identity)[:64]!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorPlan:
    """A class of exceptions that may be rebuilt from its name."""

    cls: type[BaseException]
    type_id: str


Plan = ModelPlan | DataclassPlan | EnumPlan | ErrorPlan


def make_plan(cls: type[Any], type_id: str) -> Plan:
    """Returns the plan for a class.

    Raises: DefinitionError: the class is of no kind that can be registered.
    """
    if issubclass(cls, Exception):
        return ErrorPlan(cls=cls, type_id=type_id)
    if issubclass(cls, Enum):
        return EnumPlan(cls=cls, type_id=type_id)
    if issubclass(cls, BaseModel):
        return _make_model_plan(cls, type_id)
    if _is_plain_dataclass(cls):
        return DataclassPlan(cls=cls, type_id=type_id, names=tuple(f.name for f in fields(cls)))
    raise DefinitionError(
        f"{cls.__module__}.{cls.__qualname__} cannot be registered as a type that travels: it is "
        "neither a pydantic model, a dataclass, an Enum nor an Exception"
    )


def is_registrable(cls: type[Any]) -> bool:
    """Returns whether a registry may take this class without being told to."""
    if cls is BaseModel or cls.__module__ in ("builtins", "enum"):
        return False
    return issubclass(cls, Exception | Enum | BaseModel) or _is_plain_dataclass(cls)


def _is_plain_dataclass(cls: type[Any]) -> bool:
    return is_dataclass(cls) and not issubclass(cls, (BaseException, *_VALUE_TYPES))


def _make_model_plan(cls: type[BaseModel], type_id: str) -> ModelPlan:
    excluded = tuple(name for name, info in cls.model_fields.items() if info.exclude is True)
    names = tuple(name for name in cls.model_fields if name not in excluded)
    # What stepfleet's own hook sorts out has been sorted out before the event was encoded.
    own_hook = cls.model_post_init is getattr(DictLikeModel, "model_post_init", None)
    return ModelPlan(
        cls=cls,
        type_id=type_id,
        names=names,
        keys=None if excluded else frozenset(names),
        excluded=excluded,
        not_rebuildable=next((n for n in excluded if cls.model_fields[n].is_required()), None),
        extra=cls.model_config.get("extra") or "ignore",
        post_init=bool(getattr(cls, "__pydantic_post_init__", None)) and not own_hook,
        is_event=issubclass(cls, Event),
    )
