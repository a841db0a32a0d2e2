"""What travels is versioned, comes back as it went, and is refused when it is something else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepfleet import wire
from stepfleet.core.commit import Route
from stepfleet.core.delivery import Record, content_digest, delivery_id
from stepfleet.errors import DecodeError

GOLDEN = Path(__file__).parents[1] / "golden" / "wire"

ROUTE = Route("Flow", "Work", "step", 4, 2, ("Work", "Other"))


class Kind(NamedTuple):
    """A record, how it is written, how it is read."""

    value: Any
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


def _waiter() -> wire.Waiter:
    values: dict[str, Any] = {name: f"the {name}" for name in wire.Waiter._fields}
    values |= {"requirements": b"\x80", "route": ROUTE, "record": b"\x01\x02"}
    return wire.Waiter(**values)


KINDS = {
    "delivery-first": Kind(Record("run", "Start", b"\x80"), wire.encode_record, wire.decode_record),
    "delivery-full": Kind(
        Record(
            "AAAAAAAAAAAAAAAAAAAAAA",
            "Work",
            b"\x81\xa1x\x01",
            attempt=3,
            first_ms=1_700_000_000_000,
            journal=[["answer", "waiter", "Reply", b"\x80"], ["collect", None]],
            failure=[1_700_000_000_500, b"\x90"],
            lineage=[["scope", 1]],
            headers={"traceparent": "00-1-2-01"},
            code="digest",
        ),
        wire.encode_record,
        wire.decode_record,
    ),
    "history-row": Kind(
        wire.HistoryRow(
            delivery="AAAAAAAAAAAAAAAAAAAAAA",
            step="work",
            input="flows.Work",
            outcome="returned",
            output="flows.Done",
            emitted=(("join", "flows.Done", ("BBBBBBBBBBBBBBBBBBBBBB",)),),
            unhandled=("flows.Stray", "work"),
            ends=True,
            late=1,
            events=(("Done", b"\x80"),),
        ),
        wire.encode_history_row,
        wire.decode_history_row,
    ),
    "public-event": Kind(
        wire.PublicEntry("event", "Progress", b"\x80", "step", "delivery", 2, "a1b2c3.7"),
        wire.encode_public,
        wire.decode_public,
    ),
    "public-end": Kind(
        wire.PublicEntry("end", "StopEvent", b"\x80"), wire.encode_public, wire.decode_public
    ),
    "timer-promotion": Kind(
        wire.Promotion(ROUTE, "delivery", b"\x01\x02"), wire.encode_timer, wire.decode_timer
    ),
    "timer-expiry": Kind(wire.Expiry("waiter"), wire.encode_timer, wire.decode_timer),
    "waiter": Kind(_waiter(), wire.encode_waiter, wire.decode_waiter),
    "unclaimed": Kind(
        wire.Unclaimed(
            *(
                {"type_id": "Reply", "payload": b"\x80", "seq": 7}.get(n, n)
                for n in wire.Unclaimed._fields
            )
        ),
        wire.encode_unclaimed,
        wire.decode_unclaimed,
    ),
    "buffered": Kind(
        wire.BufferedEvent("Part", b"\x80"), wire.encode_buffered, wire.decode_buffered
    ),
}


def _golden(name: str) -> Path:
    return GOLDEN / f"v{wire.VERSION}" / f"{name}.json"


@pytest.mark.parametrize("name", KINDS)
def test_a_record_has_the_bytes_that_its_version_promises(name: str) -> None:
    path, data = _golden(name), KINDS[name].encode(KINDS[name].value)
    assert path.exists(), f"write {path.relative_to(GOLDEN.parents[2])}: {_shown(data)}"
    assert json.loads(path.read_text()) == _shown(data), (
        f"the bytes of {name} changed, and other hosts may run older code. Raise wire.VERSION, keep "
        f"tests/golden/wire/v{wire.VERSION} as it is (new code still reads it), and add the new bytes "
        f"as tests/golden/wire/v{wire.VERSION + 1}"
    )


def _shown(data: bytes) -> dict[str, Any]:
    fields = repr(msgpack.unpackb(data, strict_map_key=False))
    return {"hex": data.hex(), "fields": fields}


@pytest.mark.parametrize("path", sorted(GOLDEN.rglob("*.json")), ids=lambda path: path.stem)
def test_every_version_that_was_ever_written_can_be_read(path: Path) -> None:
    kind = KINDS[path.stem]
    assert kind.decode(bytes.fromhex(json.loads(path.read_text())["hex"])) == kind.value


@pytest.mark.parametrize("name", KINDS)
def test_a_record_comes_back_as_it_went(name: str) -> None:
    kind = KINDS[name]
    assert kind.decode(kind.encode(kind.value)) == kind.value


@pytest.mark.parametrize("name", KINDS)
def test_a_newer_version_is_refused_with_both_numbers(name: str) -> None:
    kind = KINDS[name]
    fields = msgpack.unpackb(kind.encode(kind.value))
    newer = msgpack.packb([wire.VERSION + 1, *fields[1:]])
    with pytest.raises(DecodeError, match=f"version {wire.VERSION + 1}; this code reads up to"):
        kind.decode(newer)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x01", b"\x90", b"\x91\xa1x", msgpack.packb([1]), msgpack.packb([1, 2])],
    ids=["nothing", "no msgpack", "a number", "no version", "a text as version", "bare", "short"],
)
def test_what_is_no_record_is_refused_and_kept(name: str, data: bytes) -> None:
    with pytest.raises(DecodeError) as raised:
        KINDS[name].decode(data)
    assert raised.value.args


_ATOMS = (
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.binary(max_size=3)
)
_LISTS = st.lists(_ATOMS | st.lists(_ATOMS, max_size=6), max_size=11)


@given(
    st.sampled_from(sorted(KINDS)),
    st.binary(max_size=40) | _LISTS.map(lambda f: msgpack.packb([1, *f])),
)
def test_a_reader_returns_or_raises_a_decode_error_whatever_it_is_given(
    name: str, data: bytes
) -> None:
    with contextlib.suppress(DecodeError):
        KINDS[name].decode(data)


@given(
    st.builds(
        Record,
        parent=st.text(max_size=30),
        type_id=st.text(max_size=30),
        payload=st.binary(max_size=50),
        attempt=st.integers(-12, 2**31),
        first_ms=st.integers(0, 2**53),
        journal=st.none() | st.lists(st.lists(st.text(max_size=5) | st.binary(max_size=5))),
        failure=st.none() | st.tuples(st.integers(0, 2**53), st.binary()).map(list),
        lineage=st.none() | st.lists(st.integers(0, 9), max_size=3),
        headers=st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
        code=st.none() | st.text(max_size=8),
    )
)
def test_every_delivery_comes_back_as_it_went(record: Record) -> None:
    assert wire.decode_record(wire.encode_record(record)) == record


def test_ids_of_deliveries_have_22_characters_that_fit_everywhere() -> None:
    name = delivery_id("parent", "step", "return", 0)
    assert len(name) == 22
    assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert name == "xiuWY60wOiZzvu3jAkaXIQ", "other hosts make the same id"


@given(
    st.lists(
        st.tuples(st.text(max_size=4), st.text(max_size=4), st.text(max_size=4), st.integers(0, 3)),
        min_size=2,
        max_size=2,
        unique=True,
    )
)
def test_two_emissions_never_share_an_id(pairs: list[tuple[str, str, str, int]]) -> None:
    plain = [pair for pair in pairs if not any("\0" in part for part in pair[:3])]
    assert len({delivery_id(*pair) for pair in plain}) == len(plain)


def test_equal_contents_have_equal_digests_and_types_tell_them_apart() -> None:
    assert content_digest("A", b"x") == content_digest("A", b"x")
    assert content_digest("A", b"x") != content_digest("B", b"x")
    assert content_digest("A", b"x") != content_digest("A", b"y")
