"""The forms on the wire: extension codes, and the values that have no parts of their own.

A code, once released, keeps its meaning for ever: golden files pin each of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import cache
from pathlib import PosixPath, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any, Final, Literal, cast
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from stepfleet.codec.packing import UNICODE_ERRORS, new_packer, unpack

MODEL: Final = 1
DATACLASS: Final = 2
ENUM: Final = 3
ERROR: Final = 4
INTEGER: Final = 5
TUPLE: Final = 6
SET: Final = 7
FROZENSET: Final = 8
#: A dict with any key that is not a str: a flat list of keys and values.
MAPPING: Final = 9
CONTAINERS: Final = frozenset({MODEL, DATACLASS, ENUM, ERROR, TUPLE, SET, FROZENSET, MAPPING})

#: What msgpack itself carries exactly. Exact types: a subclass is not in here.
SCALARS: Final[frozenset[type]] = frozenset({type(None), bool, int, float, str, bytes})
STR: Final[frozenset[type]] = frozenset({str})


class Refused(Exception):
    """A value cannot travel; raised where it is met, before its path is known."""

    def __init__(
        self, problem: str, cure: str, limit: Literal["depth", "size"] | None = None
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.cure = cure
        self.limit = limit


class Malformed(Exception):
    """Bytes do not have the form that their place asks for."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """How the values of one exact type, which hold no other values, become bytes and come back."""

    code: int
    kind: type
    to_bytes: Callable[[Any], bytes]
    from_bytes: Callable[[bytes], Any]


def integer_to_bytes(value: int) -> bytes:
    """Returns an int of any size as big-endian two's complement."""
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _integer_from_bytes(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def _complex_to_bytes(value: complex) -> bytes:
    return struct.pack(">dd", value.real, value.imag)


def _complex_from_bytes(data: bytes) -> complex:
    return complex(*struct.unpack(">dd", data))


def _text_to_bytes(value: object) -> bytes:
    return str(value).encode("utf-8", UNICODE_ERRORS)


def _text(data: bytes) -> str:
    return data.decode("utf-8", UNICODE_ERRORS)


@cache
def _zones() -> frozenset[str]:
    # `ZoneInfo(key)` imports a module whose name is made from the key where only the tzdata package
    # has it; asking this list first keeps that name from being chosen by data.
    return frozenset(available_timezones())


def _lower_zone(zone: tzinfo | None) -> Any:
    if zone is None:
        return None
    if type(zone) is timezone:
        # What pickle would call: the offset, and the name only if one was given.
        offset, *name = cast(Any, zone).__getinitargs__()
        return [offset // timedelta(microseconds=1), *name]
    if type(zone) is ZoneInfo and zone.key in _zones():
        return zone.key
    raise Refused(
        f"the time zone {zone!r} has no name that another host knows",
        "use datetime.timezone or a zoneinfo.ZoneInfo made from a key",
    )


def _lift_zone(data: Any) -> tzinfo | None:
    match data:
        case None:
            return None
        case str(key):
            if key not in _zones():
                raise Malformed(f"the time zone {key[:64]!r} is not known on this host")
            return ZoneInfo(key)
        case [int(microseconds)]:
            return timezone(timedelta(microseconds=microseconds))
        case [int(microseconds), str(name)]:
            return timezone(timedelta(microseconds=microseconds), name)
        case _:
            raise Malformed("a time zone has an unknown form")


def _moment_to_bytes(value: datetime | time) -> bytes:
    zone = _lower_zone(value.tzinfo)
    local = value.replace(tzinfo=None).isoformat()
    return new_packer().pack([local, value.fold, zone])


def _datetime_from_bytes(data: bytes) -> datetime:
    local, fold, zone = unpack(data)
    return datetime.fromisoformat(local).replace(fold=fold, tzinfo=_lift_zone(zone))


def _time_from_bytes(data: bytes) -> time:
    local, fold, zone = unpack(data)
    return time.fromisoformat(local).replace(fold=fold, tzinfo=_lift_zone(zone))


def _timedelta_to_bytes(value: timedelta) -> bytes:
    return new_packer().pack([value.days, value.seconds, value.microseconds])


def _timedelta_from_bytes(data: bytes) -> timedelta:
    match unpack(data):
        case [int(days), int(seconds), int(microseconds)]:
            return timedelta(days, seconds, microseconds)
        case _:
            raise Malformed("a timedelta has an unknown form")


#: Code 5 is also what an int within 64 bits never uses: msgpack has it.
_LEAVES: Final = (
    Leaf(INTEGER, int, integer_to_bytes, _integer_from_bytes),
    Leaf(10, bytearray, bytes, bytearray),
    Leaf(11, complex, _complex_to_bytes, _complex_from_bytes),
    Leaf(12, Decimal, _text_to_bytes, lambda data: Decimal(_text(data))),
    Leaf(13, datetime, _moment_to_bytes, _datetime_from_bytes),
    Leaf(14, date, _text_to_bytes, lambda data: date.fromisoformat(_text(data))),
    Leaf(15, time, _moment_to_bytes, _time_from_bytes),
    Leaf(16, timedelta, _timedelta_to_bytes, _timedelta_from_bytes),
    Leaf(17, UUID, lambda value: value.bytes, lambda data: UUID(bytes=data)),
    Leaf(18, PurePosixPath, _text_to_bytes, lambda data: PurePosixPath(_text(data))),
    Leaf(19, PureWindowsPath, _text_to_bytes, lambda data: PureWindowsPath(_text(data))),
    Leaf(20, PosixPath, _text_to_bytes, lambda data: PosixPath(_text(data))),
)

LEAF_OF_TYPE: Final[Mapping[type, Leaf]] = MappingProxyType({leaf.kind: leaf for leaf in _LEAVES})
LEAF_OF_CODE: Final[Mapping[int, Leaf]] = MappingProxyType({leaf.code: leaf for leaf in _LEAVES})
