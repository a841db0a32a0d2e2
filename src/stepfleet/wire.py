"""What travels: deliveries, public entries, timers and waiters as versioned msgpack. Layer: wire, pure.

Events are encoded by `codec`; here they are bytes with a type id, so that any worker can move them
without their classes. Every record begins with its version; golden files in `tests/golden/wire`
pin the bytes.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, cast

import msgpack

from stepfleet.core.commit import Route
from stepfleet.core.delivery import Record
from stepfleet.errors import DecodeError, NewerVersionError

#: Version of every record below. A reader refuses a newer one.
VERSION: Final = 1

_pack: Final = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def encode_record(record: Record) -> bytes:
    """Return the bytes of a delivery."""
    return _pack((VERSION, *record))


def decode_record(data: bytes) -> Record:
    """Return the delivery that `encode_record` wrote.

    Raises:
        DecodeError: the bytes are no record, or one of a newer version.
    """
    fields = _unpack(data, "delivery", len(Record._fields))
    return Record(*_typed(fields, (str, str, bytes, int, int), "delivery", data))


class PublicEntry(NamedTuple):
    """One entry of a run's public stream."""

    #: "event", "end" (the terminal one) or "mark" (names entries that were not repeated).
    kind: str
    type_id: str = ""
    payload: bytes = b""
    step: str = ""
    delivery: str = ""
    attempt: int = 0
    #: Which execution of the delivery published it.
    execution: str = ""


def encode_public(entry: PublicEntry) -> bytes:
    """Return the bytes of a public entry."""
    return _pack((VERSION, *entry))


def decode_public(data: bytes) -> PublicEntry:
    """Return the entry that `encode_public` wrote.

    Raises:
        DecodeError: the bytes are no public entry, or one of a newer version.
    """
    fields = _unpack(data, "public entry", len(PublicEntry._fields))
    return PublicEntry(*_typed(fields, (str, str, bytes, str, str, int, str), "public entry", data))


class Promotion(NamedTuple):
    """A timer that adds a delivery to its stream: back-off, or an entry that has to wait for other code."""

    route: Route
    delivery: str
    record: bytes


class Expiry(NamedTuple):
    """A timer that ends the wait of a suspended delivery."""

    waiter: str


def encode_timer(timer: Promotion | Expiry) -> bytes:
    """Return the bytes of a timer's data."""
    if isinstance(timer, Expiry):
        return _pack((VERSION, "expiry", timer.waiter))
    return _pack((VERSION, "promotion", route_fields(timer.route), timer.delivery, timer.record))


def decode_timer(data: bytes) -> Promotion | Expiry:
    """Return the timer that `encode_timer` wrote.

    Raises:
        DecodeError: the bytes are no timer, or one of a newer version.
    """
    match _unpack(data, "timer", None):
        case ["expiry", str(waiter)]:
            return Expiry(waiter)
        case ["promotion", route, str(delivery), bytes(record)]:
            return Promotion(route_of(route, data), delivery, record)
        case _:
            pass
    raise DecodeError("a timer is of an unknown kind", data)


class Waiter(NamedTuple):
    """A delivery that is suspended until an event comes."""

    #: Which wait it is: delivery, attempt and position, so that no two waits share a name.
    name: str
    #: How the script counts it: the escaped type name, or '*' for waits that take subclasses.
    type: str
    type_id: str
    waiter_id: str
    #: Field values that the event must have, encoded by the codec.
    requirements: bytes
    route: Route
    delivery: str
    record: bytes
    #: Member of its time-out timer, '' for none.
    timer: str


def encode_waiter(waiter: Waiter) -> bytes:
    """Return the bytes of a waiter."""
    return _pack((VERSION, *waiter[:5], route_fields(waiter.route), *waiter[6:]))


def decode_waiter(data: bytes) -> Waiter:
    """Return the waiter that `encode_waiter` wrote.

    Raises:
        DecodeError: the bytes are no waiter, or one of a newer version.
    """
    fields = _unpack(data, "waiter", len(Waiter._fields))
    fields[5] = route_of(fields[5], data)
    shape = (str, str, str, str, bytes, tuple, str, bytes, str)
    return Waiter(*_typed(fields, shape, "waiter", data))


class Completed(NamedTuple):
    """What a checkpoint is about: a step that returned, with what it took and gave."""

    delivery: str
    step: str
    input_type: str
    input: bytes
    #: '' when the step returned None.
    output_type: str
    output: bytes


def encode_completed(completed: Completed) -> bytes:
    """Return the bytes of what a checkpoint is about."""
    return _pack((VERSION, *completed))


def decode_completed(data: bytes) -> Completed:
    """Return what `encode_completed` wrote.

    Raises:
        DecodeError: the bytes are none, or of a newer version.
    """
    fields = _unpack(data, "checkpoint", len(Completed._fields))
    return Completed(*_typed(fields, (str, str, str, bytes, str, bytes), "checkpoint", data))


class Unclaimed(NamedTuple):
    """An event that nobody accepted or awaited when it came."""

    type_id: str
    payload: bytes
    #: Last public sequence when it came.
    seq: int


def encode_unclaimed(event: Unclaimed) -> bytes:
    """Return the bytes of an inbox element."""
    return _pack((VERSION, *event))


def decode_unclaimed(data: bytes) -> Unclaimed:
    """Return the element that `encode_unclaimed` wrote.

    Raises:
        DecodeError: the bytes are no inbox element, or one of a newer version.
    """
    fields = _unpack(data, "inbox element", len(Unclaimed._fields))
    return Unclaimed(*_typed(fields, (str, bytes, int), "inbox element", data))


class HistoryRow(NamedTuple):
    """What one commit of a run did."""

    #: The delivery that it settled, else the one that emitted; '' for somebody outside.
    delivery: str = ""
    #: Of a settled execution: step, type of its event, outcome (returned, failed, suspended), type
    #: that it returned.
    step: str = ""
    input: str = ""
    outcome: str = ""
    output: str = ""
    #: What it emitted: (step, type, deliveries) each.
    emitted: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    #: Type and target of an event that nobody took.
    unhandled: tuple[str, str] = ("", "")
    #: The run ended with it.
    ends: bool = False
    #: How many public events followed from the outcome.
    late: int = 0
    #: Of a verbose run: type and content of each event that was emitted.
    events: tuple[tuple[str, bytes], ...] = ()


def encode_history_row(row: HistoryRow) -> bytes:
    """Return the bytes of a row of a history."""
    return _pack((VERSION, *row))


def decode_history_row(data: bytes) -> HistoryRow:
    """Return the row that `encode_history_row` wrote.

    Raises:
        DecodeError: the bytes are no row, or one of a newer version.
    """
    fields = _unpack(data, "history row", len(HistoryRow._fields))
    shape = (str, str, str, str, str, list, list, bool, int, list)
    *texts, emitted, unhandled, ends, late, events = _typed(fields, shape, "history row", data)
    return HistoryRow._make(
        [
            *texts,
            tuple(_emitted(group, data) for group in emitted),
            _tuple_of(unhandled, (str, str), data),
            ends,
            late,
            tuple(_tuple_of(event, (str, bytes), data) for event in events),
        ]
    )


def _emitted(group: Any, data: bytes) -> tuple[str, str, tuple[str, ...]]:
    step, event, names = _tuple_of(group, (str, str, list), data)
    return step, event, _tuple_of(names, (str,) * len(names), data)


def _tuple_of(fields: Any, shape: tuple[type, ...], data: bytes) -> tuple[Any, ...]:
    if not isinstance(fields, list) or len(cast("list[Any]", fields)) != len(shape):
        raise DecodeError("a history row has a part of another length", data)
    return tuple(_typed(cast("list[Any]", fields), shape, "history row", data))


class BufferedEvent(NamedTuple):
    """An event in a collect buffer."""

    type_id: str
    payload: bytes
    #: The span that brought it, as W3C writes it; it is left out where nobody traces.
    traceparent: str = ""


def encode_buffered(event: BufferedEvent) -> bytes:
    """Return the bytes of a buffered event."""
    return _pack((VERSION, *event) if event.traceparent else (VERSION, *event[:2]))


def decode_buffered(data: bytes) -> BufferedEvent:
    """Return the event that `encode_buffered` wrote.

    Raises:
        DecodeError: the bytes are no buffered event, or one of a newer version.
    """
    fields = _unpack(data, "buffered event", None)
    if len(fields) not in (2, 3):
        raise DecodeError(f"a buffered event has {len(fields)} fields instead of 2 or 3", data)
    shape = (str, bytes, str)[: len(fields)]
    return BufferedEvent(*_typed(fields, shape, "buffered event", data))


def route_fields(route: Route) -> list[Any]:
    """Return a route as it stands in records: without slots it is as it was before there were any."""
    return list(route if route.slots else route[:-1])


def route_of(fields: Any, data: bytes) -> Route:
    """Return the route that `route_fields` described.

    Raises:
        DecodeError: it has other fields than this version knows.
    """
    count = len(Route._fields)
    if not isinstance(fields, list) or len(cast("list[Any]", fields)) not in (count - 1, count):
        raise DecodeError("a route has other fields than this version knows", data)
    shape = (str, str, str, int, int, list, list)
    given: list[Any] = [*cast("list[Any]", fields), *cast("list[Any]", [[]])][:count]
    *scalars, types, slots = _typed(given, shape, "route", data)
    types = tuple(_typed(types, (str,) * len(types), "route", data))
    return Route._make([*scalars, types, tuple(_typed(slots, (int,) * len(slots), "route", data))])


def _typed(fields: list[Any], shape: tuple[type, ...], what: str, data: bytes) -> list[Any]:
    """Return fields, the first of which are of these types."""
    if not all(map(isinstance, fields, shape)):
        raise DecodeError(f"a {what} has fields of wrong types", data)
    return fields


def _unpack(data: bytes, what: str, length: int | None) -> list[Any]:
    try:
        unpacked: Any = msgpack.unpackb(data, strict_map_key=False)
    except Exception as error:
        raise DecodeError(f"a {what} is not readable: {error}", data) from error
    fields: list[Any] = unpacked
    if not isinstance(unpacked, list) or not fields or not isinstance(fields[0], int):
        raise DecodeError(f"a {what} is not a versioned record", data)
    version, *rest = fields
    if version > VERSION:
        raise NewerVersionError(
            f"a {what} has version {version}; this code reads up to {VERSION}", data
        )
    if length is not None and len(rest) != length:
        raise DecodeError(f"a {what} has {len(rest)} fields instead of {length}", data)
    return rest
