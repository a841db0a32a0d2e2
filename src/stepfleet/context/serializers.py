"""How values stand in a snapshot of a context (`Context.to_dict`): as JSON text, and nothing but JSON.

What travels through Redis is encoded by `stepfleet.codec`; a serializer is used for snapshots only.
"""

from __future__ import annotations

import base64
import json
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from types import GenericAlias
from typing import Any, ClassVar, Final, NoReturn, Self, cast
from weakref import WeakValueDictionary

from pydantic import BaseModel

from stepfleet.codec import Codec, TypeRegistry
from stepfleet.context.utils import import_module_from_qualified_name
from stepfleet.errors import ContextSerdeError
from stepfleet.events import finding_classes

#: Marks an object in JSON text that stands for a pydantic model.
_MODEL: Final = "__is_pydantic"
#: Marks one that stands for an object that has `class_name()`, `to_dict()` and `from_dict()`.
_COMPONENT: Final = "__is_component"
#: Marks one that stands for any other value that events may carry.
_VALUE: Final = "__stepfleet"


class BaseSerializer(ABC):
    """Turns values into text and back."""

    @contextmanager
    def validation_context(self) -> Generator[None]:
        """Do nothing around the block: a serializer of the model may select itself in it."""
        yield

    @abstractmethod
    def serialize(self, value: Any) -> str:
        """Return a value as text.

        Raises:
            ValueError: the value cannot be written.
        """

    @abstractmethod
    def deserialize(self, value: str) -> Any:
        """Return the value that `serialize` wrote.

        Raises:
            ValueError: the text stands for a value of a class that is not known here.
        """


class JsonSerializer(BaseSerializer):
    """JSON text. Models keep their class, and so does everything that an event may carry.

    So do objects with `class_name()`, `to_dict()` and `from_dict()`. A class is found among
    `allowed_types` and those of the workflow and, unless `allowed_types` were given, among those
    that this process has serialized: text never makes it import anything. A name in `allowed_types`
    is imported when the serializer is made.

    Raises:
        TypeError: an entry of `allowed_types` is neither a class nor a name.
        ValueError: two of them have one name.
    """

    _seen: ClassVar[WeakValueDictionary[str, type]] = WeakValueDictionary()

    def __init__(self, *, allowed_types: Iterable[type | str] | None = None) -> None:
        self._is_open = allowed_types is None
        self._types: dict[str, type] = {}
        self._registry = TypeRegistry(open=True)
        self._codec = Codec(self._registry)
        self._add(allowed_types or ())

    def with_types(self, *classes: type) -> Self:
        """Return a serializer that knows these classes, and those in their annotations, as well."""
        other = type(self)()
        other._is_open = self._is_open
        other._add([*self._types.values(), *classes])
        return other

    def resolve_class(self, qualified_name: str) -> type:
        """Return the class that text names.

        Raises:
            ValueError: it is not known here.
        """
        cls = self._known(qualified_name)
        if cls is None:
            short = qualified_name.rpartition(".")[2]
            raise ValueError(
                f"Class {qualified_name} is not in the serializer's allowed types. "
                f"Pass JsonSerializer(allowed_types=[{short}]), or name it in the workflow's types."
            )
        return cls

    def serialize(self, value: Any) -> str:
        """Return a value as JSON text.

        Raises:
            ValueError: the value cannot be written.
        """
        return json.dumps(self.serialize_value(value))

    def deserialize(self, value: str) -> Any:
        """Return the value that `serialize` wrote.

        Raises:
            ValueError: the text is no JSON, or names a class that is not known here.
        """
        return self.deserialize_value(json.loads(value))

    def _known(self, qualified_name: str) -> type | None:
        cls = self._types.get(qualified_name) or self._by_short_name(qualified_name)
        return cls or (JsonSerializer._seen.get(qualified_name) if self._is_open else None)

    def _add(self, types: Iterable[type | str]) -> None:
        for given in types:
            cls = import_module_from_qualified_name(given) if isinstance(given, str) else given
            if not isinstance(cls, type) or isinstance(cls, GenericAlias) or cls is Any:
                raise TypeError(
                    f"allowed_types takes concrete classes, or names of them, not {cls!r}"
                )
            if self._types.setdefault(_name(cls), cls) is not cls:
                raise ValueError(
                    f"Two classes claim the serialized name {_name(cls)}: text cannot tell them apart."
                )
            self._registry.reachable([cls])

    def serialize_value(self, value: object) -> Any:
        """Return a value as what JSON has: texts, numbers, lists and dictionaries.

        Raises:
            ValueError: the value cannot be written.
        """
        given, value = value, cast(Any, value)
        if value is None or type(value) in (bool, int, float, str):
            return value
        cls: type = type(value)
        if hasattr(cls, "class_name") and hasattr(cls, "to_dict"):
            JsonSerializer._seen[_name(cls)] = cls
            content = self.serialize_value(cast(Any, given).to_dict())
            return {_COMPONENT: True, "value": content, "qualified_name": _name(cls)}
        if isinstance(value, BaseModel):
            JsonSerializer._seen[_name(cls)] = cls
            try:
                content = value.model_dump(mode="json")
            except Exception as error:
                raise ValueError(f"Failed to serialize value: {cls}: {value!r}") from error
            # What its annotations do not say, such as a model in a field of any type, JSON forgets.
            return self._exactly(value, content) or {
                _MODEL: True,
                "value": content,
                "qualified_name": _name(cls),
            }
        if type(value) is list:
            return [self.serialize_value(item) for item in cast("list[Any]", value)]
        if type(value) is dict:
            items = cast("dict[Any, Any]", value)
            if all(type(key) is str for key in items) and not {_MODEL, _VALUE} & items.keys():
                return {key: self.serialize_value(item) for key, item in items.items()}
        try:
            data = self._codec.encode_value(value, where="value")
        except ValueError as error:
            raise ValueError(f"Failed to serialize value: {type(given)}: {given!r}") from error
        return {_VALUE: base64.b64encode(data).decode()}

    def _exactly(self, value: BaseModel, content: Any) -> dict[str, str] | None:
        try:
            if type(value)(**_with_dynamic(content)) == value:
                return None
            return {
                _VALUE: base64.b64encode(self._codec.encode_value(value, where="value")).decode()
            }
        except ValueError:
            return None

    def deserialize_value(self, data: Any) -> Any:
        """Return the value that `serialize_value` made of it.

        Raises:
            ValueError: a class is not known here.
        """
        raw = data
        if isinstance(raw, list):
            return [self.deserialize_value(item) for item in cast("list[Any]", raw)]
        if not isinstance(raw, dict):
            return raw
        content = cast("dict[str, Any]", raw)
        if content.get(_MODEL) and "qualified_name" in content:
            return self._model(str(content["qualified_name"]), content.get("value") or {})
        if content.get(_COMPONENT) and "qualified_name" in content:
            component: Any = self.resolve_class(str(content["qualified_name"]))
            with finding_classes(self._found):
                return component.from_dict(self.deserialize_value(content.get("value")))
        if _VALUE in content:
            return self._codec.decode_value(base64.b64decode(content[_VALUE]))
        return {key: self.deserialize_value(item) for key, item in content.items()}

    def _model(self, name: str, content: Mapping[str, Any]) -> Any:
        cls = self.resolve_class(name)
        if not issubclass(cls, BaseModel):
            raise ValueError(f"Class {name} is no pydantic model.")  # noqa: TRY004 - data is wrong
        with finding_classes(self._found):
            return cls.model_validate(
                {k: self.deserialize_value(value) for k, value in _with_dynamic(content).items()}
            )

    def _found(self, name: str) -> type | None:
        """Return a class for what stands inside of a model; an open serializer may know none."""
        return self._known(name) if self._is_open else self.resolve_class(name)

    def _by_short_name(self, name: str) -> type | None:
        """Return a class written as `module.Name` where it is nested in another one or in a function."""
        module, _, short = name.rpartition(".")
        found = [
            cls
            for cls in self._types.values()
            if cls.__name__ == short and cls.__module__ == module
        ]
        return found[0] if len(found) == 1 else None


class PickleSerializer(BaseSerializer):
    """Exists to say why it does not: reading a pickle runs whatever its bytes name.

    Raises:
        ContextSerdeError: always.
    """

    def __init__(self, *, allowed_types: Iterable[type] | None = None) -> None:
        _refuse()

    def serialize(self, value: Any) -> str:
        """Refuse."""
        _refuse()

    def deserialize(self, value: str) -> Any:
        """Refuse."""
        _refuse()


#: The name that the model had before.
JsonPickleSerializer = PickleSerializer


def _refuse() -> NoReturn:
    raise ContextSerdeError(
        "PickleSerializer is refused: whoever can write a pickle chooses the code that runs when it is "
        "read. Use JsonSerializer(), which writes models, dataclasses, enums, dates, sets and bytes; "
        "keep live objects out of events and state."
    )


def _with_dynamic(content: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = dict(content)
    return {**fields.pop("_data", {}), **fields}


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
