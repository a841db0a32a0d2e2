"""Exceptions as data: name, message, content and traceback text; a class only where it is known."""

from __future__ import annotations

import builtins
import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, cast

from stepfleet.codec.forms import Malformed
from stepfleet.codec.packing import UNICODE_ERRORS
from stepfleet.codec.plans import ErrorPlan
from stepfleet.events import UnreconstructedException

if TYPE_CHECKING:
    from stepfleet.codec.registry import TypeRegistry

#: Bytes of a traceback's end, and of a message's start, that travel.
_TEXT_BYTES: Final = 16 * 1024
#: Bytes of a described exception beside its texts and names.
_FRAME_BYTES: Final = 150
#: Errors of a chain of causes that travel, the first included.
_CHAIN: Final = 4
#: How the note begins that carries the text of a traceback from another process.
NOTE_HEADER: Final = "Remote traceback:\n"
_BUILTIN_PREFIX: Final = "builtins:"
_CUT: Final = "[…]"

#: Builtin errors that are rebuilt. Not those that end a process or a generator instead of a step:
#: raised again in the caller, SystemExit would end the caller.
_REBUILT: Final[Mapping[str, type[Exception]]] = MappingProxyType(
    {
        cls.__name__: cls
        for cls in vars(builtins).values()
        if isinstance(cls, type)
        and issubclass(cls, Exception)
        and cls not in (StopIteration, StopAsyncIteration)
    }
)


def describe_error(
    error: BaseException, registry: TypeRegistry, *, chain: int = _CHAIN
) -> dict[str, Any]:
    """Returns an exception as a dict of plain values, and of its own arguments and attributes."""
    type_id, module, name = _names(error, registry)
    cause = error.__cause__
    if cause is None and not error.__suppress_context__:
        cause = error.__context__
    # Errors from extension modules have none.
    attributes = dict(cast("dict[str, Any]", getattr(error, "__dict__", {})))
    attributes.pop("__notes__", None)
    return {
        "type": type_id,
        "module": module,
        "name": name,
        "message": _message(error),
        "args": _arguments(error),
        "attributes": attributes,
        "traceback": _traceback_text(error),
        "cause": None
        if cause is None or chain <= 1
        else describe_error(cause, registry, chain=chain - 1),
    }


def bare_description(
    error: BaseException, registry: TypeRegistry, *, max_bytes: int
) -> dict[str, Any]:
    """Returns an exception without its content and cause, its texts cut to what fits into so many bytes."""
    bare: dict[str, Any] = {
        **describe_error(error, registry, chain=1),
        "args": None,
        "attributes": None,
    }
    room = max(0, max_bytes - _FRAME_BYTES - 3 * len(bare["type"]))
    bare["message"] = _start(bare["message"], room // 2)
    bare["traceback"] = _end(bare["traceback"], room - _size(bare["message"]))
    return bare


def rebuild_error(description: Mapping[str, Any], registry: TypeRegistry) -> BaseException:
    """Returns the exception, as its own class where that is builtin or registered.

    Raises: Malformed: this does not describe an exception.
    """
    match description:
        case {
            "type": str(type_id),
            "module": str(module),
            "name": str(name),
            "message": str(message),
            "args": args,
            "attributes": attributes,
            "traceback": str(text),
            "cause": cause,
        }:
            pass
        case _:
            raise Malformed("an error has an unknown form")
    error = _rebuild_as_own_class(_class_of(type_id, registry), message, args, attributes)
    if error is None:
        original = name if module == "builtins" else f"{module}.{name}"
        error = UnreconstructedException(message, original_type=original)
    if text:
        error.add_note(NOTE_HEADER + text)
    if cause is not None:
        error.__cause__ = rebuild_error(cause, registry)
    return error


def _names(error: BaseException, registry: TypeRegistry) -> tuple[str, str, str]:
    if isinstance(error, UnreconstructedException) and error.original_type is not None:
        # It goes on under the name it came with: a class may be known at the next stop.
        module, _, name = error.original_type.rpartition(".")
        module = module or "builtins"
        return f"{module}:{name}", module, name
    kind = type(error)
    plan = registry.plan_of(kind)
    type_id = f"{kind.__module__}:{kind.__qualname__}" if plan is None else plan.type_id
    return type_id, kind.__module__, kind.__qualname__


def _arguments(error: BaseException) -> Any:
    if isinstance(error, UnreconstructedException):
        return None
    if isinstance(error, OSError) and error.filename is not None:
        # `args` leaves out the file names, which the message names.
        return [error.errno, error.strerror, error.filename, None, error.filename2]
    return list(error.args)


def _message(error: BaseException) -> str:
    try:
        return _start(str(error))
    except Exception:  # noqa: BLE001  the user's own __str__
        return f"<{type(error).__name__} whose str() fails>"


def _traceback_text(error: BaseException) -> str:
    if error.__traceback__ is not None:
        return _end("".join(traceback.format_exception(error)))
    # Never raised here: it is only passing through, with the traceback of where it was raised.
    for note in cast("list[Any]", getattr(error, "__notes__", ())):
        if isinstance(note, str) and note.startswith(NOTE_HEADER):
            return note.removeprefix(NOTE_HEADER)
    return ""


def _class_of(type_id: str, registry: TypeRegistry) -> type[BaseException] | None:
    plan = registry.plan_of_id(type_id)
    if isinstance(plan, ErrorPlan):
        return plan.cls
    if type_id.startswith(_BUILTIN_PREFIX):
        return _REBUILT.get(type_id.removeprefix(_BUILTIN_PREFIX))
    return None


def _rebuild_as_own_class(
    cls: type[BaseException] | None, message: str, args: Any, attributes: Any
) -> BaseException | None:
    if cls is None:
        return None
    try:
        error = cls(message) if args is None else cls(*args)
        if attributes:
            error.__dict__.update(attributes)
        same = type(error) is cls and _message(error) == message
    except Exception:  # noqa: BLE001  the user's own constructor: it cannot be built from this
        return None
    return error if same else None


def _start(text: str, most: int = _TEXT_BYTES) -> str:
    data = text.encode("utf-8", UNICODE_ERRORS)
    if len(data) <= most:
        return text
    return data[:most].decode("utf-8", "ignore") + _CUT


def _end(text: str, most: int = _TEXT_BYTES) -> str:
    data = text.encode("utf-8", UNICODE_ERRORS)
    if len(data) <= most:
        return text
    return _CUT + data[max(0, len(data) - most) :].decode("utf-8", "ignore")


def _size(text: str) -> int:
    return len(text.encode("utf-8", UNICODE_ERRORS))
