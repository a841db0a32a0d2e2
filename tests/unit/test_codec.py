"""Is what travels exact, and is everything else refused with a path and a cure?"""

from __future__ import annotations

import base64
import json
import math
import pickle
import re
import socket
import sys
import threading
import tracemalloc
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag, IntEnum, IntFlag, StrEnum
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel

from stepfleet.codec import (
    FORMAT_VERSION,
    Codec,
    GenericEnum,
    GenericEvent,
    GenericModel,
    Limits,
    TypeRegistry,
)
from stepfleet.codec.forms import LEAF_OF_CODE, LEAF_OF_TYPE
from stepfleet.errors import (
    DecodeError,
    DefinitionError,
    EncodeError,
    TooLargeError,
    UnknownTypeError,
    WorkflowTimeoutError,
)
from stepfleet.events import (
    Event,
    StartEvent,
    StepFailedEvent,
    StepState,
    StepStateChanged,
    StopEvent,
    UnreconstructedException,
)

T = TypeVar("T")
GOLDEN = Path(__file__).parent.parent / "golden" / "codec"


class Color(Enum):
    RED = "red"
    CRIMSON = "red"  # noqa: PIE796  an alias
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1


class Mood(StrEnum):
    GOOD = "good"


class Access(Flag):
    READ = 1
    WRITE = 2


class Bits(IntFlag):
    ONE = 1


class Address(BaseModel):
    model_config = ConfigDict(frozen=True)

    street: str
    zip_code: str = "0000"


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")

    a: int = 1

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    a: int = 1


class Box(BaseModel, Generic[T]):
    content: T


class Names(RootModel[list[str]]):
    pass


class Holder(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    conn: Any = None


@dataclass
class Point:
    x: int
    y: int = 0
    label: str = field(default_factory=lambda: "none", init=False)


@dataclass(frozen=True, slots=True)
class Frozen:
    parts: tuple[int, ...]


class Failure(Exception):
    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class Formatting(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")


class JokeEvent(Event):
    topic: str = "pirates"
    parts: list[Any] = Field(default_factory=list)

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...


TYPES = (
    Color, Size, Mood, Access, Bits, Address, Loose, Strict, Box[int], Names, Holder, Point, Frozen,
    Failure, Formatting, JokeEvent,
)  # fmt: skip

VALUES: dict[str, Any] = {
    "integer": 2**70,
    "negative integer": -(2**63) - 1,
    "tuple": (1, ("a", None)),
    "set": {"b", "a", 3},
    "frozenset": frozenset({(1, 2)}),
    "mapping": {1: "int", None: 1.5, (1, "a"): b"x", b"k": True, "s": 2**64},
    "bytearray": bytearray(b"ab"),
    "complex": complex(-0.0, 1.5),
    "decimal": Decimal("-1.20E+5"),
    "datetime naive": datetime(2024, 2, 29, 1, 2, 3, 4),  # noqa: DTZ001
    "datetime utc": datetime(2024, 2, 29, tzinfo=UTC),
    "datetime offset": datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=-3, microseconds=1))),
    "datetime named": datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=1), "here")),
    "datetime zone": datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
    "date": date(1, 1, 1),
    "time": time(23, 59, 59, 999999, tzinfo=UTC, fold=1),
    "timedelta": timedelta(days=-1, seconds=5, microseconds=7),
    "uuid": UUID("12345678-1234-5678-1234-567812345678"),
    "pure posix path": PurePosixPath("a/../b"),
    "pure windows path": PureWindowsPath("C:\\temp\\x"),
    "path": Path("/tmp/x"),
    "enum": Color.BLUE,
    "int enum": Size.SMALL,
    "str enum": Mood.GOOD,
    "flag": Access.READ | Access.WRITE,
    "int flag": Bits.ONE | Bits(8),
    "model": Address(street="Main"),
    "model with extras": Loose(a=2, b=[Address(street="x")]),
    "generic model": Box[int](content=3),
    "root model": Names(["a"]),
    "dataclass": Point(1, 2),
    "frozen dataclass": Frozen((1, 2)),
    "error": Failure("no luck", 7),
    "builtin error": FileNotFoundError(2, "No such file or directory", "/x"),
}


@pytest.fixture
def codec() -> Codec:
    return Codec(TypeRegistry(TYPES))


def pack(raw: Any) -> bytes:
    return cast(bytes, msgpack.packb(raw))


def exact(a: Any, b: Any) -> bool:
    """Returns whether two values have the same types and content, all the way down."""
    if type(a) is not type(b):
        return False
    match a:
        case list() | tuple():
            return len(a) == len(b) and all(map(exact, a, b))
        case dict():
            return exact([*a.items()], [*b.items()])
        case set() | frozenset():
            return sorted(map(repr, a)) == sorted(map(repr, b))
        case BaseModel():
            return (
                exact(vars(a), vars(b))
                and exact(a.__pydantic_extra__, b.__pydantic_extra__)
                and a.__pydantic_fields_set__ == b.__pydantic_fields_set__
            )
        case BaseException():
            return str(a) == str(b) and exact(a.args, b.args)
        case float() | complex() | Decimal():
            return repr(a) == repr(b)
        case datetime() | time():
            return repr(a) == repr(b) and exact(a.tzinfo, b.tzinfo)
        case _:
            return a == b


def there_and_back(codec: Codec, event: Event) -> Event:
    return codec.decode_event(*codec.encode_event(event))


def refusal(codec: Codec, value: Any) -> str:
    with pytest.raises(EncodeError) as caught:
        codec.encode_event(JokeEvent(parts=[0, value]))
    return str(caught.value)


# -- what travels --


@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_exact_in_a_typed_field_and_in_a_dynamic_one(
    codec: Codec, name: str
) -> None:
    event = JokeEvent(parts=[VALUES[name]], dynamic={"deep": VALUES[name]})
    assert exact(there_and_back(codec, event), event)


@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_exact_on_its_own(codec: Codec, name: str) -> None:
    value = VALUES[name]
    assert exact(codec.decode_value(codec.encode_value(value, where="x")), value)


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**64, 0.1, math.nan, math.inf,
        -math.inf, -0.0, 5e-324, "", "é\x00", "\ud800", "\ud83d\ude00", b"", b"\xff", [], {}, (),
        set(), frozenset(), "Decimal", Decimal("NaN"), Decimal("sNaN12"), Decimal("-0"),
        Decimal("1E-400"), complex(math.nan, -0.0), timedelta.max, timedelta.min,
        datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC),
        time.min, Access(0), PurePosixPath(""), Path("caf\udce9"), {"": {"": []}},
    ],
)  # fmt: skip
def test_the_edges_of_each_type_come_back_exact(codec: Codec, value: Any) -> None:
    assert exact(codec.decode_value(codec.encode_value(value, where="x")), value)
    event = JokeEvent(parts=[value], dynamic=value)
    assert exact(there_and_back(codec, event), event)


def test_every_leaf_type_has_an_example() -> None:
    assert {*LEAF_OF_TYPE} <= {type(value) for value in VALUES.values()}


def test_utc_comes_back_as_the_one_utc(codec: Codec) -> None:
    value = codec.decode_value(codec.encode_value(datetime.now(UTC), where="x"))
    assert value.tzinfo is UTC


def test_fields_that_were_not_set_stay_so(codec: Codec) -> None:
    event = there_and_back(codec, JokeEvent(topic="x"))
    assert event.model_fields_set == {"topic"}
    dynamic = StartEvent(a=1)
    dynamic["b"] = 2
    assert there_and_back(codec, dynamic).model_fields_set == {"a"}


def test_dict_order_is_kept(codec: Codec) -> None:
    value = {"b": 1, "a": 2, 3: 4}
    assert [*codec.decode_value(codec.encode_value(value, where="x"))] == ["b", "a", 3]


def test_keys_that_only_bytes_make_equal_stay_apart(codec: Codec) -> None:
    value = {(float("nan"),): 1, (float("nan"),): 2}  # noqa: F601
    assert len(value) == 2
    assert len(codec.decode_value(codec.encode_value(value, where="x"))) == 2


def test_equal_sets_have_equal_bytes_whatever_their_order(codec: Codec) -> None:
    up, down = set(range(0, 4096, 8)), set(range(4088, -1, -8))
    assert [*up] != [*down]
    assert codec.encode_value(up, where="x") == codec.encode_value(down, where="x")


def test_an_event_of_the_model_itself_travels(codec: Codec) -> None:
    changed = StepStateChanged(
        name="s", step_state=StepState.RUNNING, worker_id="0", input_event_name="A"
    )
    assert exact(there_and_back(codec, changed), changed)
    assert there_and_back(codec, StopEvent(result={"a": (1,)})).result == {"a": (1,)}


def test_a_user_dict_never_looks_like_a_type(codec: Codec) -> None:
    before = set(sys.modules)
    hostile = {"__is_pydantic": True, "qualified_name": "antigravity.X", "value": {}}
    lookalike = [1, ["Address", {"street": "x"}, None, None], {"type": "Address"}]
    pickled = base64.b64encode(pickle.dumps(Point(1))).decode()
    value = {"a": hostile, "b": lookalike, "c": pickled, "d": pickle.dumps(1)}
    assert exact(there_and_back(codec, JokeEvent(parts=[value])), JokeEvent(parts=[value]))
    assert "antigravity" not in set(sys.modules) - before


def test_bytes_of_an_event_stay_bytes_when_an_event_carries_them(codec: Codec) -> None:
    _, payload = codec.encode_event(JokeEvent(parts=[Address(street="x")]))
    assert codec.decode_value(codec.encode_value(payload, where="x")) == payload


# -- how instances are built --


def test_decoding_runs_no_validator_and_no_init() -> None:
    calls: list[str] = []

    class Counting(BaseModel):
        x: int

        def __init__(self, **data: Any) -> None:
            calls.append("init")
            super().__init__(**data)

    @dataclass
    class Doubling:
        x: int

        def __post_init__(self) -> None:
            self.x *= 2

    codec = Codec(TypeRegistry([Counting, Doubling]))
    sent = [Counting(x=1), Doubling(1), Counting.model_construct(x="not an int")]
    calls.clear()
    assert codec.decode_value(codec.encode_value(sent, where="x")) == sent
    assert calls == []


def test_private_attributes_do_not_travel_and_take_their_default() -> None:
    class Secret(Event):
        x: int = 0
        _token: str = PrivateAttr(default="none")
        _list: list[int] = PrivateAttr(default_factory=list)

    codec = Codec(TypeRegistry([Secret]))
    event = Secret(x=1)
    event._token = "canary"
    type_id, payload = codec.encode_event(event)
    decoded = codec.decode_event(type_id, payload)
    assert b"canary" not in payload
    assert (decoded._token, decoded._list) == ("none", [])


def test_a_post_init_hook_runs_but_cannot_change_what_travelled() -> None:
    class Hooked(Event):
        count: int = 0
        _double: int = PrivateAttr(default=0)

        def model_post_init(self, context: Any, /) -> None:
            self.count += 1
            self._double = 2 * self.count

    codec = Codec(TypeRegistry([Hooked]))
    decoded = there_and_back(codec, Hooked(count=1))
    assert decoded.count == 2
    assert decoded._double == 6


def test_an_excluded_field_takes_its_default() -> None:
    class Conn(Event):
        x: int
        conn: Any = Field(default_factory=lambda: ["fresh"], exclude=True)

    codec = Codec(TypeRegistry([Conn]))
    decoded = there_and_back(codec, Conn(x=1, conn=socket.socket))
    assert (decoded.x, decoded.conn, decoded.model_fields_set) == (1, ["fresh"], {"x"})


def test_an_excluded_field_without_a_default_is_refused() -> None:
    class Conn(Event):
        conn: Any = Field(exclude=True)

    with pytest.raises(EncodeError) as caught:
        Codec(TypeRegistry([Conn])).encode_event(Conn(conn=1))
    assert str(caught.value) == (
        "Conn: its field conn is declared with exclude=True and has no default, so it could not be "
        "rebuilt; give conn a default"
    )


def test_a_cached_property_does_not_hinder() -> None:
    class Cached(Event):
        x: int = 1

        @cached_property
        def double(self) -> int:
            return 2 * self.x

    @dataclass
    class CachedPoint:
        x: int

        @cached_property
        def double(self) -> int:
            return 2 * self.x

    event, point = Cached(x=2), CachedPoint(2)
    assert event.double == point.double == 4
    codec = Codec(TypeRegistry([Cached, CachedPoint]))
    assert there_and_back(codec, event) == event
    assert codec.decode_value(codec.encode_value(point, where="x")) == point


# -- two versions at once --


def versions(old: type, new: type) -> tuple[Codec, Codec]:
    old.__name__ = new.__name__ = "Shared"
    return Codec(TypeRegistry([old])), Codec(TypeRegistry([new]))


def test_a_field_from_a_newer_class_takes_its_default_or_is_named() -> None:
    class Old(BaseModel):
        a: int

    class New(BaseModel):
        a: int
        b: list[int] = Field(default_factory=lambda: [7])

    class Newest(BaseModel):
        a: int
        c: int

    old, new = versions(Old, New)
    decoded = new.decode_value(old.encode_value(Old(a=1), where="x"))
    assert (decoded, decoded.model_fields_set) == (New(a=1), {"a"})
    old, newest = versions(Old, Newest)
    with pytest.raises(DecodeError, match=r"Shared\.c is missing and has no default"):
        newest.decode_value(old.encode_value(Old(a=1), where="x"))


@pytest.mark.parametrize("extra", ["ignore", "allow", "forbid"])
def test_an_unknown_field_meets_the_class_own_rule(extra: Any) -> None:
    class New(BaseModel):
        a: int
        b: int

    class Old(BaseModel):
        model_config = ConfigDict(extra=extra)
        a: int

    new, old = versions(New, Old)
    payload = new.encode_value(New(a=1, b=2), where="x")
    if extra == "forbid":
        with pytest.raises(DecodeError, match="Shared has no field b, and forbids extra fields"):
            old.decode_value(payload)
        return
    decoded = old.decode_value(payload)
    assert decoded.model_extra == ({"b": 2} if extra == "allow" else None)
    assert decoded.model_fields_set == ({"a", "b"} if extra == "allow" else {"a"})


def test_a_dynamic_field_that_was_declared_since_becomes_that_field() -> None:
    class Old(Event):
        pass

    class New(Event):
        topic: str = "none"

    old, new = versions(Old, New)
    decoded = new.decode_event(*old.encode_event(Old.model_validate({"topic": "x"})))
    assert (decoded.topic, [*decoded.keys()], decoded.model_fields_set) == ("x", [], {"topic"})


def test_a_field_that_was_excluded_since_takes_its_default() -> None:
    class Old(Event):
        conn: Any

    class New(Event):
        conn: Any = Field(default="none", exclude=True)

    old, new = versions(Old, New)
    decoded = new.decode_event(*old.encode_event(Old(conn="sent")))
    assert (decoded.conn, [*decoded.keys()]) == ("none", [])


def test_a_dataclass_of_another_version_is_fitted() -> None:
    @dataclass
    class Old:
        a: int
        gone: int = 0

    @dataclass
    class New:
        a: int
        b: int = 5

    old, new = versions(Old, New)
    assert new.decode_value(old.encode_value(Old(1), where="x")) == New(1, 5)
    with pytest.raises(DecodeError, match=r"Shared\.a is missing"):
        new.decode_value(_extension(2, ["Shared", {}]))


# -- what is refused --


class Unregistered(BaseModel):
    x: int = 1


class Shade(Enum):
    DARK = 1


Pair = namedtuple("Pair", "a b")  # noqa: PYI024
ELSEWHERE = (
    "send a value that describes it, or declare the field with Field(exclude=True, default=…), or "
    "let the step take it as a Resource"
)


class Text(str):
    __slots__ = ()


class Moment(datetime):
    pass


@dataclass
class Stray:
    x: int


REFUSED: list[tuple[Any, str]] = [
    (threading.Lock(), f"a value of type _thread.lock cannot travel; {ELSEWHERE}"),
    ((i for i in ()), f"a value of type generator cannot travel; {ELSEWHERE}"),
    (print, f"a value of type builtin_function_or_method cannot travel; {ELSEWHERE}"),
    (object(), f"a value of type object cannot travel; {ELSEWHERE}"),
    (int, "a value of type type cannot travel; send its name"),
    (
        OrderedDict(a=1),
        "a value of type collections.OrderedDict cannot travel; it would come back as a plain "
        "dict; convert it with dict(value)",
    ),
    (
        defaultdict(int),
        "a value of type collections.defaultdict cannot travel; it would come back as a plain "
        "dict; convert it with dict(value)",
    ),
    (
        Counter("a"),
        "a value of type collections.Counter cannot travel; it would come back as a plain "
        "dict; convert it with dict(value)",
    ),
    (
        deque([1]),
        "a value of type collections.deque cannot travel; convert it with list(value)",
    ),
    (
        Pair(1, 2),
        f"a value of type {__name__}.Pair cannot travel; make it a tuple, or its class a dataclass",
    ),
    (
        Text("x"),
        f"a value of type {__name__}.Text cannot travel; it would come back as a plain str; "
        "convert it with str(value)",
    ),
    (
        Moment(2024, 1, 1),
        f"a value of type {__name__}.Moment cannot travel; it would come back as a plain datetime; "
        "convert it to an exact datetime",
    ),
    (
        msgpack.ExtType(1, b"x"),
        "a value of type msgpack.ext.ExtType cannot travel; make it a tuple, or its class a "
        "dataclass",
    ),
    (msgpack.Timestamp(1), f"a value of type msgpack.ext.Timestamp cannot travel; {ELSEWHERE}"),
    (
        Unregistered(),
        f"a value of type {__name__}.Unregistered cannot travel; annotate a field or a step with "
        "Unregistered, or pass types=[Unregistered]",
    ),
    (
        Shade.DARK,
        f"a value of type {__name__}.Shade cannot travel; annotate a field or a step with Shade, "
        "or pass types=[Shade]",
    ),
]


@pytest.mark.parametrize(("value", "message"), REFUSED, ids=lambda v: type(v).__name__)
def test_a_refusal_names_path_type_and_cure(codec: Codec, value: Any, message: str) -> None:
    assert refusal(codec, value) == f"JokeEvent.parts[1]: {message}"


def test_the_path_leads_through_every_kind_of_container(codec: Codec) -> None:
    lock = threading.Lock()

    def path(value: Any) -> str:
        return refusal(codec, value).partition(": ")[0]

    assert path(Holder(conn=[Holder(conn=lock)])) == "JokeEvent.parts[1].conn[0].conn"
    assert path({"k": (0, lock)}) == "JokeEvent.parts[1]['k'][1]"
    assert path({lock: 1}) == "JokeEvent.parts[1]<key lock>"
    assert path({1, lock}) == "JokeEvent.parts[1]<element lock>"
    assert path(Frozen((1, lock))) == "JokeEvent.parts[1].parts[1]"  # type: ignore[arg-type]
    assert path(Loose(b=lock)) == "JokeEvent.parts[1].b"
    with pytest.raises(EncodeError, match=r"^JokeEvent\.extra: a value of type _thread\.lock"):
        codec.encode_event(JokeEvent(extra=lock))
    with pytest.raises(EncodeError, match=r"^store\.key\['a'\]: a value of type _thread\.lock"):
        codec.encode_value({"a": lock}, where="store.key")


def test_a_zone_without_a_key_is_refused(codec: Codec) -> None:
    class Here(tzinfo):
        def utcoffset(self, moment: datetime | None) -> timedelta:
            return timedelta(0)

        def __repr__(self) -> str:
            return "Here()"

    assert refusal(codec, datetime(2024, 1, 1, tzinfo=Here())) == (
        "JokeEvent.parts[1]: the time zone Here() has no name that another host knows; use "
        "datetime.timezone or a zoneinfo.ZoneInfo made from a key"
    )


def test_an_attribute_of_a_dataclass_that_is_no_field_is_refused() -> None:
    codec = Codec(TypeRegistry([Stray]))
    stray = Stray(1)
    stray.y = 2  # type: ignore[attr-defined]
    with pytest.raises(EncodeError) as caught:
        codec.encode_value([stray], where="result")
    assert str(caught.value) == (
        "result[0]: its attribute y is not a field, and would be lost; declare y as a field"
    )


def test_a_field_that_was_never_set_is_refused(codec: Codec) -> None:
    assert refusal(codec, Address.model_construct()) == (
        "JokeEvent.parts[1]: its field street was never set; build it by calling its class"
    )


def test_a_member_that_its_class_does_not_declare_is_refused() -> None:
    class Lenient(Enum):
        ONE = 1

        @classmethod
        def _missing_(cls, value: object) -> Enum:
            member = object.__new__(cls)
            member._name_, member._value_ = "OTHER", value
            return member

    codec = Codec(TypeRegistry([Lenient]))
    with pytest.raises(EncodeError) as caught:
        codec.encode_value(Lenient(7), where="x")
    assert str(caught.value) == (
        "x: <Lenient.OTHER: 7> is not a declared member of Lenient; declare it in the class"
    )


def test_a_flag_of_more_than_64_bits_is_refused(codec: Codec) -> None:
    widest = Bits(2**63)
    assert codec.decode_value(codec.encode_value(widest, where="x")) is widest
    with pytest.raises(EncodeError, match=r"^x: a flag of more than 64 bits cannot travel; send"):
        codec.encode_value(Bits(2**64), where="x")


def test_a_dynamic_field_whose_name_is_no_str_is_refused(codec: Codec) -> None:
    event = StartEvent(a=1)
    event[3] = 1  # type: ignore[index]
    with pytest.raises(EncodeError) as caught:
        codec.encode_event(event)
    assert str(caught.value) == (
        "StartEvent: it has a dynamic field whose name is not a str; name dynamic fields by str"
    )


def test_an_event_of_an_unregistered_class_is_refused(codec: Codec) -> None:
    class Foreign(Event):
        pass

    with pytest.raises(EncodeError, match=r"^Foreign: .*; annotate a field or a step with Foreign"):
        codec.encode_event(Foreign())


def test_a_cycle_is_refused_and_named(codec: Codec) -> None:
    loop: dict[str, Any] = {"a": 1}
    loop["me"] = [loop]
    assert refusal(codec, loop) == (
        "JokeEvent.parts[1]['me'][0]: it contains itself; send ids instead of the objects"
    )
    event = JokeEvent()
    event.parts.append(event)
    with pytest.raises(EncodeError, match=r"^JokeEvent\.parts\[0\]: it contains itself"):
        codec.encode_event(event)


# -- limits --


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: (v,), lambda v: {1: v}])
def test_the_depth_limit_is_exact_in_both_directions(wrap: Any) -> None:
    registry = TypeRegistry([JokeEvent])
    codec = Codec(registry)
    value: Any = wrap(0)
    for _ in range(63):
        value = wrap(value)
    fits = codec.encode_value(value, where="x")
    assert exact(codec.decode_value(fits), value)
    event = StopEvent(result=value)
    assert exact(there_and_back(codec, event), event)
    with pytest.raises(TooLargeError, match=r"nested more than 64 levels deep \(.*`depth_limit`"):
        codec.encode_value(wrap(value), where="x")
    with pytest.raises(TooLargeError, match=r"^StopEvent\.result"):
        codec.encode_event(StopEvent(result=wrap(value)))
    deeper = Codec(registry, limits=Limits(max_depth=65)).encode_value(wrap(value), where="x")
    with pytest.raises(DecodeError, match=r"nested more than 64 levels deep \(.*`depth_limit`"):
        codec.decode_value(deeper)


def test_models_count_as_levels() -> None:
    codec = Codec(TypeRegistry([Holder]), limits=Limits(max_depth=2))
    assert codec.encode_value(Holder(conn=Holder()), where="x")
    with pytest.raises(TooLargeError, match=r"^x\.conn\.conn: it is nested more than 2"):
        codec.encode_value(Holder(conn=Holder(conn=Holder())), where="x")


def test_the_size_limit_is_exact_in_both_directions() -> None:
    registry = TypeRegistry([JokeEvent])
    codec = Codec(registry)
    size = len(codec.encode_event(StopEvent(result="x" * 100_000))[1]) - 100_000
    fits = StopEvent(result="x" * (1024 * 1024 - size))
    assert there_and_back(codec, fits) == fits
    with pytest.raises(TooLargeError) as caught:
        codec.encode_event(StopEvent(result=fits.result + "x"))
    assert str(caught.value) == (
        "StopEvent: it takes 1048577 bytes, over the limit of 1048576 bytes (setting "
        "`event_limit`); keep large content elsewhere and send a reference"
    )
    large = Codec(registry, limits=Limits(max_bytes=2**21)).encode_value("x" * 2**20, where="x")
    with pytest.raises(DecodeError, match=r"over the limit of 1048576 bytes .*`event_limit`"):
        codec.decode_value(large)
    with pytest.raises(TooLargeError, match=r"^x: it takes 1048581 bytes"):
        codec.encode_value("x" * 2**20, where="x")


def test_a_list_of_two_million_parts_is_refused(codec: Codec) -> None:
    with pytest.raises(TooLargeError, match=r"^x: it has too many parts .*`event_limit`"):
        codec.encode_value([0] * 2_000_000, where="x")


def test_a_small_object_that_unfolds_without_end_is_refused(codec: Codec) -> None:
    value: list[Any] = [0]
    for _ in range(50):
        value = [value, value]
    with pytest.raises(TooLargeError, match=r"^x: it has too many parts"):
        codec.encode_value(value, where="x")


def test_a_value_too_deep_for_the_stack_is_refused() -> None:
    codec = Codec(TypeRegistry(), limits=Limits(max_depth=10_000))
    with pytest.raises(TooLargeError, match=r"too deep for Python's stack"):
        codec.encode_value(nested(5_000), where="x")


# -- the registry --


def module_class(name: str, module: str) -> type[BaseModel]:
    return type(name, (BaseModel,), {"__module__": module, "__qualname__": name})


def test_an_id_is_the_class_name_while_it_is_unique() -> None:
    first, second = module_class("Same", "one"), module_class("Same", "two")
    registry = TypeRegistry([first])
    assert (registry.id_of(first), registry.class_of("Same")) == ("Same", first)
    registry.add(second)
    assert (registry.id_of(first), registry.id_of(second)) == ("one:Same", "two:Same")
    assert (registry.class_of("one:Same"), registry.class_of("two:Same")) == (first, second)
    assert registry.class_of("Same") is None
    with pytest.raises(UnknownTypeError, match="'Same' is shared here by one:Same and two:Same"):
        Codec(registry).decode_value(_extension(1, ["Same", {}, None, None]))


def test_the_long_id_is_always_understood() -> None:
    registry = TypeRegistry([Address])
    assert registry.class_of(f"{__name__}:Address") is Address


def test_a_builtin_event_keeps_its_name() -> None:
    own = type("StopEvent", (StopEvent,), {"__module__": "mine", "__qualname__": "StopEvent"})
    registry = TypeRegistry([own])
    assert registry.id_of(StopEvent) == "StopEvent"
    assert registry.id_of(own) == "mine:StopEvent"


def test_two_classes_of_one_full_name_are_refused_but_in_an_open_registry() -> None:
    first, second = module_class("Same", "one"), module_class("Same", "one")
    with pytest.raises(DefinitionError, match="two different classes are both one:Same"):
        TypeRegistry([first, second])
    registry = TypeRegistry(open=True)
    assert registry.id_of(first) == "Same"
    assert registry.id_of(second) == "one:Same#2"
    assert (registry.class_of("Same"), registry.class_of("one:Same#2")) == (first, second)


def test_an_open_registry_takes_classes_as_it_meets_them() -> None:
    class Foreign(Event):
        inner: Any = None

    codec = Codec(TypeRegistry(open=True))
    event = Foreign(inner=[Unregistered(x=2), Shade.DARK, Stray(1), Failure("x", 2)])
    decoded = there_and_back(codec, event)
    assert exact(decoded, event)
    assert decoded.inner[3].code == 2


@pytest.mark.parametrize("open_", [True, False])
def test_an_error_that_would_end_the_caller_is_never_rebuilt(open_: bool) -> None:
    codec = Codec(TypeRegistry(open=open_))
    for error in (SystemExit(3), KeyboardInterrupt(), StopIteration(1), GeneratorExit()):
        decoded = codec.decode_error(codec.encode_error(error))
        assert isinstance(decoded, UnreconstructedException)
        assert decoded.original_type == type(error).__name__


def test_what_cannot_travel_cannot_be_registered() -> None:
    class Plain:
        pass

    for cls in (Plain, int, KeyboardInterrupt):
        with pytest.raises(DefinitionError, match="cannot be registered"):
            TypeRegistry([cls])
    registry = TypeRegistry(open=True)
    with pytest.raises(EncodeError, match="Plain is not registered"):
        registry.id_of(Plain)


def test_reachable_follows_annotations() -> None:
    class Leaf(BaseModel):
        x: int = 0

    @dataclass
    class Keeper:
        inner: Frozen

    class Wide(Event):
        model_config = ConfigDict(arbitrary_types_allowed=True)

        a: dict[str, list[Box[int] | None]]
        b: Literal[Color.RED]
        c: Keeper
        d: tuple[Leaf, ...]
        e: Address = Field(exclude=True, default=Address(street="x"))
        f: threading.Thread | None = None
        g: Failure | None = None

    registry = TypeRegistry()
    registry.reachable([Wide | None, list[Mood]])
    found = {Wide, Box[int], Color, Keeper, Frozen, Leaf, Failure, Mood}
    assert {cls for cls in found if registry.class_of(cls.__name__) is not cls} == set()
    assert registry.class_of("Address") is None


class Tree(BaseModel):
    children: list[Tree] = Field(default_factory=list)


def test_reachable_ends_on_recursive_types() -> None:
    registry = TypeRegistry()
    registry.reachable([Tree])
    assert registry.class_of("Tree") is Tree


# -- readers without the classes --


def test_a_generic_reader_sees_fields_and_the_cure(codec: Codec) -> None:
    event = JokeEvent(
        topic="x",
        parts=[Address(street="s"), Color.RED, Point(1), {cast(Any, Address(street="k")): 1}],
        n=1,
    )
    type_id, payload = codec.encode_event(event)
    reader = Codec(TypeRegistry(), generic=True)
    decoded = reader.decode_event(type_id, payload)
    assert isinstance(decoded, GenericEvent)
    assert (decoded.type_id, decoded.topic, decoded.n, decoded["n"]) == ("JokeEvent", "x", 1, 1)
    address, color, point, keyed = decoded.parts
    assert isinstance(address, GenericModel)
    assert (address.type_id, address.street) == ("Address", "s")
    assert color == GenericEnum("Color", "RED")
    assert (point.type_id, point.x) == ("Point", 1)
    assert [*keyed.values()] == [1]
    assert repr(address) == "GenericModel('Address', street='s', zip_code='0000')"
    assert repr(decoded).startswith("GenericEvent('JokeEvent', topic='x'")
    assert decoded == reader.decode_event(type_id, payload)
    with pytest.raises(AttributeError) as caught:
        _ = decoded.tell
    assert str(caught.value) == (
        "JokeEvent is known here only by its fields (topic, parts, n), not 'tell'; pass "
        "types=[JokeEvent] to get it as its own class"
    )


def test_a_generic_event_is_read_only_and_does_not_travel_on(codec: Codec) -> None:
    reader = Codec(TypeRegistry(open=True), generic=True)
    decoded = reader.decode_event(*codec.encode_event(JokeEvent()))
    with pytest.raises(ValueError, match="frozen"):
        decoded.topic = "y"
    with pytest.raises(TypeError, match="read-only"):
        decoded["x"] = 1
    with pytest.raises(EncodeError, match=r"stands in for JokeEvent: pass types=\[JokeEvent\]"):
        reader.encode_event(decoded)


def test_fields_of_a_generic_event_may_have_any_name(codec: Codec) -> None:
    event = StartEvent()
    for name in ("_type_id", "type_id", "model_extra", "self"):
        event[name] = name
    _, payload = codec.encode_event(event)
    decoded = Codec(TypeRegistry(), generic=True).decode_event("Other", payload)
    assert isinstance(decoded, GenericEvent)
    assert (decoded.type_id, decoded["type_id"], decoded["_type_id"]) == (
        "Other",
        "type_id",
        "_type_id",
    )
    assert hash(decoded) == hash(decoded)


def test_a_reader_that_is_not_generic_names_the_type_and_the_cure(codec: Codec) -> None:
    type_id, payload = codec.encode_event(JokeEvent())
    with pytest.raises(UnknownTypeError) as caught:
        Codec(TypeRegistry()).decode_event(type_id, payload)
    assert str(caught.value) == (
        "no class is registered here for the type id 'JokeEvent'; pass types=[JokeEvent] to get it "
        "as its own class"
    )
    assert caught.value.raw == payload


# -- errors --


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def error_there_and_back(codec: Codec, error: BaseException) -> BaseException:
    return codec.decode_error(codec.encode_error(error))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"), KeyError("k", 1), FileNotFoundError(2, "No such file", "/x"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), ZeroDivisionError(), TimeoutError(),
        WorkflowTimeoutError("late"), Failure("no", 3), ConnectionResetError(104, "reset"),
        DecodeError("bad", b"raw"), OSError("only text"), RuntimeError({"a": (1,)}),
    ],
    ids=repr,
)  # fmt: skip
def test_a_builtin_or_registered_error_comes_back_as_itself(codec: Codec, error: Exception) -> None:
    decoded = error_there_and_back(codec, raised(error))
    assert type(decoded) is type(error)
    assert (str(decoded), decoded.args) == (str(error), error.args)
    assert getattr(decoded, "code", None) == getattr(error, "code", None)
    assert "Remote traceback:\nTraceback (most recent call last):" in decoded.__notes__[0]
    assert "in raised" in decoded.__notes__[0]


def test_an_error_group_comes_back_with_its_members(codec: Codec) -> None:
    group = ExceptionGroup("both", [ValueError("a"), Failure("b", 2)])
    decoded = error_there_and_back(codec, group)
    assert isinstance(decoded, ExceptionGroup)
    assert [repr(error) for error in decoded.exceptions] == ["ValueError('a')", "Failure('b')"]


@pytest.mark.parametrize("error", [Formatting(3), json.JSONDecodeError("bad", "doc", 0)], ids=repr)
def test_an_error_that_cannot_be_rebuilt_is_named(codec: Codec, error: Exception) -> None:
    decoded = error_there_and_back(codec, error)
    assert isinstance(decoded, UnreconstructedException)
    assert str(decoded) == str(error)
    assert decoded.original_type == f"{type(error).__module__}.{type(error).__qualname__}"


def test_an_unreconstructed_error_keeps_its_name_and_becomes_itself_where_it_is_known() -> None:
    known, unknown = Codec(TypeRegistry([Failure])), Codec(TypeRegistry())
    passed_on = unknown.decode_error(unknown.encode_error(raised(Failure("no"))))
    again = unknown.decode_error(unknown.encode_error(passed_on))
    assert isinstance(again, UnreconstructedException)
    assert again.original_type == f"{__name__}.Failure"
    assert again.__notes__ == passed_on.__notes__
    assert isinstance(known.decode_error(unknown.encode_error(passed_on)), Failure)


def test_causes_travel(codec: Codec) -> None:
    error = raised(ValueError("outer"), raised(KeyError("inner")))
    decoded = error_there_and_back(codec, error)
    assert isinstance(decoded.__cause__, KeyError)
    chain = [ValueError("0")]
    for number in range(1, 10):
        chain.append(ValueError(str(number)))
        chain[-1].__cause__ = chain[-2]
    decoded = error_there_and_back(codec, chain[-1])
    assert str(decoded.__cause__.__cause__.__cause__) == "6"  # type: ignore[union-attr]
    assert decoded.__cause__.__cause__.__cause__.__cause__ is None  # type: ignore[union-attr]


def test_what_of_an_error_cannot_travel_is_left_out(codec: Codec) -> None:
    decoded = error_there_and_back(codec, ValueError("x", threading.Lock()))
    assert isinstance(decoded, UnreconstructedException | ValueError)
    assert "lock" in str(decoded)
    error = Failure("x")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    assert isinstance(error_there_and_back(codec, error), Failure)
    loop = ValueError()
    loop.args = (loop,)
    assert isinstance(error_there_and_back(codec, loop), Exception)


def test_an_error_always_can_be_encoded(codec: Codec) -> None:
    class Rude(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert str(error_there_and_back(codec, Rude())) == "<Rude whose str() fails>"
    huge = ValueError("é" * 2_000_000)
    payload = codec.encode_error(raised(huge))
    assert len(payload) < 40_000
    assert str(codec.decode_error(payload)).endswith("é[…]")
    doubled = ValueError()
    doubled.args = (doubled, doubled)
    assert len(codec.encode_error(doubled)) < 1024 * 1024


@pytest.mark.parametrize("max_bytes", [1024, 1500, 5000])
def test_an_error_is_cut_to_the_size_limit_and_keeps_its_class_where_its_message_fits(
    max_bytes: int,
) -> None:
    codec = Codec(TypeRegistry(()), limits=Limits(max_bytes=max_bytes))
    cause = raised(ValueError("w" * 2000))
    for message in ("no", "é" * 2000, "n" * 30_000):
        payload = codec.encode_error(raised(KeyError(message), cause))
        assert len(payload) <= max_bytes
        decoded = codec.decode_error(payload)
        assert str(decoded)[1:3] == message[:2]
    assert isinstance(codec.decode_error(codec.encode_error(raised(OSError("no")))), OSError)


def test_a_long_traceback_keeps_its_end(codec: Codec) -> None:
    error = raised(ValueError("x" * 10))
    for number in range(3000):
        error.add_note(f"note {number} " + "y" * 10)
    note = error_there_and_back(codec, error).__notes__[0]
    assert len(note.encode()) <= 16 * 1024 + 30
    assert note.startswith("Remote traceback:\n[…]")
    assert "note 2999" in note


def test_an_exception_is_a_value_of_an_event(codec: Codec) -> None:
    event = StepFailedEvent(
        step_name="s",
        input_event=JokeEvent(topic="x"),
        exception=raised(Failure("no", 4)),
        attempts=1,
        elapsed_seconds=0.5,
        failed_at=datetime(2024, 1, 1, tzinfo=UTC),
    )
    decoded = there_and_back(codec, event)
    assert isinstance(decoded.exception, Failure)
    assert decoded.exception.code == 4
    assert decoded.input_event == JokeEvent(topic="x")


# -- bytes that are not ours --


def _extension(code: int, body: Any) -> bytes:
    data = body if isinstance(body, bytes) else pack(body)
    return pack(msgpack.ExtType(code, data))


MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it cannot be read"),
    "two values": (b"\x01\x02", "it cannot be read"),
    "cut": (b"\x92\x01", "it cannot be read"),
    "reserved byte": (b"\xc1", "it cannot be read"),
    "length beyond the end": (b"\xdd\xff\xff\xff\xff", "it cannot be read"),
    "bad utf-8": (b"\xa1\xff", "it cannot be read"),
    "int key": (b"\x81\x01\x02", "it cannot be read"),
    "bytes key": (b"\x81\xc4\x01a\x02", "a mapping has a name that is not a str"),
    "timestamp": (pack(msgpack.Timestamp(1)), "type Timestamp is not part of the format"),
    "unknown extension": (_extension(99, b""), "extension type 99 is not part of the format"),
    "unhashable element": (_extension(7, [[]]), "it cannot be read: TypeError"),
    "odd mapping": (_extension(9, [1]), "it cannot be read: ValueError"),
    "unhashable key": (_extension(9, [[], 1]), "it cannot be read: TypeError"),
    "unknown member": (_extension(3, ["Color", "GREEN"]), "Color has no member 'GREEN'"),
    "member of no Enum": (_extension(3, ["Address", "x"]), "Address is not an Enum here"),
    "flag out of range": (_extension(3, ["Access", 64]), "it cannot be read: ValueError"),
    "flag by name": (_extension(3, ["Access", "READ"]), "Access has no member 'READ'"),
    "model as dataclass": (_extension(2, ["Address", {}]), "Address is not a dataclass here"),
    "dataclass as model": (_extension(1, ["Point", {}, None, None]), "Point is not a model here"),
    "type id of no str": (_extension(1, [1, {}, None, None]), "a type id is not a str"),
    "fields of no mapping": (
        _extension(1, ["Loose", [], None, None]),
        "a mapping of names to values is expected",
    ),
    "unset of no list": (_extension(1, ["Loose", {}, None, {}]), "a list of names is expected"),
    "unset of no str": (_extension(1, ["Loose", {}, None, [1]]), "a list of names is expected"),
    "model without parts": (_extension(1, ["Loose"]), "it cannot be read: ValueError"),
    "tuple of no list": (_extension(6, 1), "a list of values is expected"),
    "decimal": (_extension(12, b"x"), "it cannot be read: InvalidOperation"),
    "unknown zone": (
        _extension(13, ["2024-01-01T00:00:00", 0, "../../etc/passwd"]),
        "the time zone '../../etc/passwd' is not known on this host",
    ),
    "zone of no form": (_extension(13, ["2024-01-01", 0, {}]), "a time zone has an unknown form"),
    "timedelta": (_extension(16, [1]), "a timedelta has an unknown form"),
    "timedelta overflow": (_extension(16, [10**12, 0, 0]), "it cannot be read: OverflowError"),
    "uuid": (_extension(17, b"1"), "it cannot be read: ValueError"),
    "error": (_extension(4, {"type": "x"}), "an error has an unknown form"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_bytes_raise_a_decode_error_that_keeps_them(codec: Codec, name: str) -> None:
    data, message = MALFORMED[name]
    with pytest.raises(DecodeError, match=re.escape(message)) as caught:
        codec.decode_value(data)
    assert caught.value.raw == data


@pytest.mark.parametrize(
    ("type_id", "payload"),
    [
        ("Address", pack([{"street": "x"}, None, None])),
        ("Color", pack([{}, None, None])),
        ("JokeEvent", pack({})),
        ("JokeEvent", pack([{}, None])),
        ("JokeEvent", pack(None)),
        ("StepFailedEvent", pack([{}, None, None])),
    ],
)
def test_a_payload_that_is_no_event_raises_a_decode_error(
    codec: Codec, type_id: str, payload: bytes
) -> None:
    with pytest.raises(DecodeError):
        codec.decode_event(type_id, payload)


def test_the_message_about_malformed_bytes_is_short(codec: Codec) -> None:
    for data in (_extension(14, b"x" * 10**5), _extension(1, ["Z" * 10**5, {}, None, None])):
        with pytest.raises(DecodeError) as caught:
            codec.decode_value(data)
        assert len(str(caught.value)) < 400


def test_an_error_payload_that_is_none_raises_a_decode_error(codec: Codec) -> None:
    for data in (b"", b"\xc0", pack({}), pack({"type": 1})):
        with pytest.raises(DecodeError):
            codec.decode_error(data)


def test_headers_that_promise_too_much_allocate_nothing(codec: Codec) -> None:
    bomb = b"\xdd\x00\x0f\x00\x00" * 900 + bytes(1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            codec.decode_value(bomb)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def test_deeply_nested_extensions_raise_a_decode_error(codec: Codec) -> None:
    data = b"\x90"
    for _ in range(3_000):
        data = _extension(6, b"\x91" + data)
    with pytest.raises(DecodeError, match="nested more than 64 levels"):
        codec.decode_value(data)
    unlimited = Codec(TypeRegistry(), limits=Limits(max_depth=10_000))
    with pytest.raises(DecodeError, match="RecursionError"):
        unlimited.decode_value(data)


def test_threads_may_share_a_codec(codec: Codec) -> None:
    events = [JokeEvent(topic=str(n), parts=[(n, {n: Address(street=str(n))})]) for n in range(50)]
    expected = [codec.encode_event(event) for event in events]
    results: list[bool] = []

    def work() -> None:
        results.append(all([codec.encode_event(e) for e in events] == expected for _ in range(20)))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert results == [True] * 4


# -- golden files --


#: What the other two methods write, beside every value.
PAYLOADS: dict[str, Any] = {
    "event payload": JokeEvent(parts=[(1, Color.RED)], n=2**64),
    "error payload": Failure("no luck", 7),
}


def golden_bytes(codec: Codec, name: str) -> bytes:
    match name:
        case "event payload":
            return codec.encode_event(PAYLOADS[name])[1]
        case "error payload":
            return codec.encode_error(PAYLOADS[name])
        case _:
            return codec.encode_value(VALUES[name], where="golden")


def golden_value(codec: Codec, name: str, data: bytes) -> Any:
    match name:
        case "event payload":
            return codec.decode_event("JokeEvent", data)
        case "error payload":
            return codec.decode_error(data)
        case _:
            return codec.decode_value(data)


def golden_files() -> list[Path]:
    return sorted(GOLDEN.glob("v*/*.json"))


@pytest.mark.parametrize("path", golden_files(), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_bytes_of_every_released_version_are_read(codec: Codec, path: Path) -> None:
    record = json.loads(path.read_text())
    value = golden_value(codec, record["value"], bytes.fromhex(record["hex"]))
    assert exact(value, {**VALUES, **PAYLOADS}[record["value"]])


@pytest.mark.parametrize("name", [*VALUES, *PAYLOADS])
def test_the_bytes_of_this_version_do_not_change(codec: Codec, name: str) -> None:
    path = GOLDEN / f"v{FORMAT_VERSION}" / f"{name.replace(' ', '-')}.json"
    encoded = golden_bytes(codec, name).hex()
    described = repr({**VALUES, **PAYLOADS}[name])
    record = json.dumps({"value": name, "describes": described, "hex": encoded})
    expected = json.loads(path.read_text())["hex"] if path.exists() else "no file"
    assert encoded == expected, (
        f"The bytes of {name!r} differ from {path}. Workers of the released version read and write "
        "the old bytes, so: if this was not meant, undo it. If it was, raise FORMAT_VERSION in "
        f"codec/codec.py, leave {path.parent} as it is (its files must still be read), and write "
        f"each record like this one into the new version's folder: {record}"
    )


def test_every_extension_code_has_a_golden_file() -> None:
    records = [json.loads(path.read_text()) for path in golden_files()]
    values = [bytes.fromhex(record["hex"]) for record in records if record["value"] in VALUES]
    codes = {msgpack.unpackb(value).code for value in values}
    assert codes == {*range(1, 10), *LEAF_OF_CODE}
