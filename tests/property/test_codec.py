"""Does every value come back exact, and does nothing but a DecodeError come from other bytes?"""

from __future__ import annotations

import math
import struct
import sys
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from stepfleet.codec import Codec, GenericEnum, GenericModel, TypeRegistry
from stepfleet.errors import DecodeError
from stepfleet.events import Event

if TYPE_CHECKING:
    from collections.abc import Iterator


class Color(Enum):
    RED = 1
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Bits(IntFlag):
    A = 1
    B = 2


class Fixed(BaseModel):
    model_config = ConfigDict(frozen=True)

    key: Any


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    a: Any = None
    b: Any = None


@dataclass
class Pair:
    left: Any
    right: Any


class Sample(Event):
    value: Any = None
    other: Any = None


TYPES = (Color, Level, Bits, Fixed, Open, Pair, Sample)
CODEC = Codec(TypeRegistry(TYPES))
GENERIC = Codec(TypeRegistry(), generic=True)

zones = st.one_of(
    st.none(),
    st.just(UTC),
    st.sampled_from(["Europe/Berlin", "America/New_York", "UTC"]).map(ZoneInfo),
    st.builds(
        timezone,
        st.timedeltas(timedelta(hours=-23), timedelta(hours=23)),
    ),
    st.builds(timezone, st.just(timedelta(hours=2)), st.text(max_size=5)),
)
texts = st.text(st.characters(), max_size=20)
any_texts = st.one_of(texts, st.lists(st.integers(0, 0x10FFFF).map(chr), max_size=5).map("".join))


def decimals() -> st.SearchStrategy[Decimal]:
    return st.one_of(
        st.decimals(),
        st.sampled_from([Decimal("sNaN"), Decimal("-NaN7"), Decimal("-0E+3")]),
    )


hashable_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**80), 2**80),
    st.floats(),
    any_texts,
    st.binary(max_size=20),
    st.builds(datetime.combine, st.dates(), st.times(), tzinfo=zones).flatmap(
        lambda moment: st.sampled_from([moment, moment.replace(fold=1)])
    ),
    st.dates(),
    st.builds(lambda moment, zone: moment.replace(tzinfo=zone), st.times(), zones),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.sampled_from([*Color, *Level]),
    st.integers(0, 3).map(Bits),
    st.complex_numbers(),
    texts.map(PurePosixPath),
    texts.map(PureWindowsPath),
    texts.map(Path),
)
scalars = st.one_of(hashable_scalars, decimals(), st.binary(max_size=9).map(bytearray))
hashables = st.recursive(
    hashable_scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(inner, max_size=3),
        st.builds(Fixed, key=inner),
    ),
    max_leaves=6,
)
names = st.text("abcxyz_é", min_size=1, max_size=6).filter(lambda name: name[0] != "_")
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.sets(hashables, max_size=4),
        st.frozensets(hashables, max_size=4),
        st.dictionaries(any_texts, inner, max_size=4),
        st.dictionaries(hashables, inner, max_size=4),
        st.builds(Pair, inner, inner),
        st.builds(Open, a=inner),
        st.builds(lambda extra: Open(**extra), st.dictionaries(names, inner, max_size=3)),
        st.builds(Fixed, key=inner),
        st.builds(Sample, other=inner),
    ),
    max_leaves=12,
)


def pack(raw: Any) -> bytes:
    return cast(bytes, msgpack.packb(raw))


def exact(a: Any, b: Any) -> bool:
    """Returns whether two values have the same types and content, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, BaseModel):
        return (
            exact(dict(vars(a)), dict(vars(b)))
            and exact(a.__pydantic_extra__, b.__pydantic_extra__)
            and a.__pydantic_fields_set__ == b.__pydantic_fields_set__
        )
    if is_dataclass(a):
        return all(exact(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(map(exact, a, b))
    if type(a) is dict:
        return exact([*a.items()], [*b.items()])
    if type(a) in (set, frozenset):
        return len(a) == len(b) and all(any(exact(x, y) for y in b) for x in a)
    if type(a) is float:
        return struct.pack(">d", a) == struct.pack(">d", b)
    if type(a) is complex:
        return exact([a.real, a.imag], [b.real, b.imag])
    if type(a) is Decimal:
        return a.as_tuple() == b.as_tuple()
    if type(a) in (datetime, time):
        return (
            a.replace(tzinfo=None) == b.replace(tzinfo=None)
            and a.fold == b.fold
            and exact(a.tzinfo, b.tzinfo)
        )
    if type(a) is timezone:
        return (a.utcoffset(None), a.tzname(None)) == (b.utcoffset(None), b.tzname(None))
    return bool(a == b)


@given(values)
@settings(max_examples=600)
def test_a_value_comes_back_exact(value: Any) -> None:
    assert exact(CODEC.decode_value(CODEC.encode_value(value, where="x")), value)


@given(values, st.dictionaries(names, values, max_size=2))
@settings(max_examples=300)
def test_an_event_comes_back_exact_and_a_generic_reader_can_read_it(
    value: Any, dynamic: dict[str, Any]
) -> None:
    event = Sample(value=value)
    for name, content in dynamic.items():
        event[name] = content
    type_id, payload = CODEC.encode_event(event)
    assert exact(CODEC.decode_event(type_id, payload), event)
    generic = GENERIC.decode_event(type_id, payload)
    assert {*dynamic} <= {*generic.keys()}


@given(values)
@settings(max_examples=200)
def test_what_was_decoded_has_the_same_bytes_again(value: Any) -> None:
    encoded = CODEC.encode_value(value, where="x")
    assert CODEC.encode_value(CODEC.decode_value(encoded), where="x") == encoded


class Recorder:
    """Records what the interpreter is asked to do while it is armed; a hook cannot be removed."""

    def __init__(self) -> None:
        self.armed = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.armed and event.partition(".")[0] in (
            "import", "exec", "compile", "pickle", "marshal", "os", "subprocess", "ctypes",
        ):  # fmt: skip
            self.seen.append(f"{event} {args!r}")

    @contextmanager
    def arm(self) -> Iterator[None]:
        self.armed, self.seen = True, []
        try:
            yield
        finally:
            self.armed = False


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    recorder = Recorder()
    # The list of time zones is read from the system once, and no data chooses what is read.
    zoned = datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    assert CODEC.decode_value(CODEC.encode_value(zoned, where="x")) == zoned
    with recorder.arm():
        compile("1", "<this proves that the hook hears>", "eval")
    assert recorder.seen
    return recorder


def decode_every_way(recorder: Recorder, data: bytes) -> None:
    modules = len(sys.modules)
    attempts = (
        CODEC.decode_value,
        CODEC.decode_error,
        GENERIC.decode_value,
        GENERIC.decode_error,
        lambda data: CODEC.decode_event("Sample", data),
        lambda data: CODEC.decode_event("StepFailedEvent", data),
        lambda data: GENERIC.decode_event("Sample", data),
    )
    with recorder.arm():
        for attempt in attempts:
            try:
                attempt(data)
            except DecodeError:
                continue
    assert recorder.seen == []
    assert len(sys.modules) == modules


@given(st.binary(max_size=200))
@settings(max_examples=1000)
def test_any_bytes_raise_nothing_but_a_decode_error(recorder: Recorder, data: bytes) -> None:
    decode_every_way(recorder, data)


@given(values, st.data())
@settings(max_examples=500)
def test_mutated_bytes_raise_nothing_but_a_decode_error(
    recorder: Recorder, value: Any, data: st.DataObject
) -> None:
    _, payload = CODEC.encode_event(Sample(value=value))
    mutated = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "end"])):
            case "flip" if at < len(mutated):
                mutated[at] = data.draw(st.integers(0, 255))
            case "cut":
                del mutated[at : at + data.draw(st.integers(1, 8))]
            case "insert":
                mutated[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case _:
                del mutated[at:]
    decode_every_way(recorder, bytes(mutated))


raw_parts = st.recursive(
    st.one_of(
        st.none(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(max_size=8),
        st.binary(max_size=8),
        st.sampled_from(["Sample", "Color", "Pair", "Open", "RED", "Europe/Berlin", "2024-01-01"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(
            st.sampled_from(["type", "module", "name", "message", "args", "attributes", "value",
                             "traceback", "cause", "a", "left"]), inner, max_size=9),
        st.builds(
            lambda code, part: msgpack.ExtType(code, msgpack.packb(part)), st.integers(0, 22), inner
        ),
    ),
    max_leaves=15,
)  # fmt: skip


@given(raw_parts)
@settings(max_examples=1000)
def test_well_formed_nonsense_raises_nothing_but_a_decode_error(
    recorder: Recorder, raw: Any
) -> None:
    decode_every_way(recorder, pack(raw))


@given(raw_parts)
@settings(max_examples=500)
def test_whatever_was_decoded_can_be_encoded(raw: Any) -> None:
    try:
        value = CODEC.decode_value(pack(raw))
    except DecodeError:
        return
    assert isinstance(CODEC.encode_value(value, where="x"), bytes)


def test_the_comparison_of_these_tests_sees_small_differences() -> None:
    pairs: list[tuple[Any, Any]] = [
        (1, True),
        (0.0, -0.0),
        ((1,), [1]),
        ({1: 1, 2: 2}, {2: 2, 1: 1}),
        (Decimal("1.0"), Decimal("1.00")),
        (Color.RED, GenericEnum("Color", "RED")),
        (Open(a=1), Open(a=1, b=None)),
        (Open(), GenericModel()),
        (time(1, fold=1), time(1)),
        (date(2024, 1, 1), datetime(2024, 1, 1)),  # noqa: DTZ001
        (UUID(int=1), UUID(int=2)),
    ]
    assert [pair for pair in pairs if exact(*pair)] == []
    assert exact(math.nan, math.nan)
