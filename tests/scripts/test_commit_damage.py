"""What strangers do to a run: counters that are none, entries that stand twice, a foreign public stream."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stepfleet.core.commit import (
    Append,
    Commit,
    DamagedFence,
    Deadline,
    FewWaits,
    Lend,
    Mark,
    Open,
    Publish,
    Quota,
    Take,
    Tally,
    Version,
    Wait,
    Within,
    Write,
)
from tests.scripts.rig import NARROW, WIDE, Entry, Rig, did, effect, emit, end, settle

#: No number that Redis counts with.
NO_COUNTS = ("x", "", "1.5", "9" * 30)


def append(entry: Entry) -> Commit:
    return settle(
        entry, Publish(b"p"), Append("b", "A", b"v"), expects=[Quota("b", "A", (("A", 9),))]
    )


#: field of the run's record (or of its buffer) -> a commit that counts with it
COUNTED: dict[str, Callable[[Entry], Commit]] = {
    "seq": lambda e: settle(e, emit(WIDE, "n"), Publish(b"p")),
    "seq, end": lambda e: settle(e, end()),
    "seq, mark": lambda e: settle(e, emit(WIDE, "n"), Mark(b"m", e.id, ())),
    "seq, effect": lambda e: effect(e, emit(WIDE, "n"), Publish(b"p")),
    "waits": lambda e: settle(e, Publish(b"p"), Wait(e.id, "T", b"w")),
    "waiting": lambda e: settle(e, Publish(b"p"), Wait(e.id, "T", b"w")),
    "waiting, limit": lambda e: settle(e, Wait(e.id, "T", b"w"), expects=[FewWaits()]),
    "waiting:T": lambda e: settle(e, Publish(b"p"), Wait(e.id, "T", b"w")),
    "waiting:*": lambda e: settle(e, Publish(b"p"), Wait(e.id, "*", b"w")),
    "deliveries": lambda e: effect(e, emit(WIDE, "n", guard=e.id)),
    "writes": lambda e: effect(e, Publish(b"p"), Write("f", b"v")),
    "lent": lambda e: effect(e, Publish(b"p"), Lend(e.route, e.entry, e.id, 2)),
    "s:wide": lambda e: effect(e, Publish(b"p"), emit(WIDE, "n")),
    "s:wide, lend": lambda e: effect(e, Publish(b"p"), Lend(e.route, e.entry, e.id, 2)),
    "deadline": lambda e: settle(e, Publish(b"p"), Deadline(0)),
    "timeout": lambda e: settle(e, Publish(b"p"), Deadline(0)),
    "buffer version": append,
    "buffer version, take": lambda e: settle(
        e, Publish(b"p"), Take("b", 1), expects=[Version("b", 1)]
    ),
    "buffer n:A": append,
}


@pytest.mark.parametrize("value", NO_COUNTS)
@pytest.mark.parametrize("case", COUNTED)
def test_a_counter_that_is_none_is_found_before_anything_is_written(
    rig: Rig, case: str, value: str
) -> None:
    field = case.partition(",")[0]
    run_id = rig.start(emit(WIDE, "a", "b"), timeout_ms=1000)
    entry = rig.take(WIDE)
    rig.apply(settle(rig.take(WIDE), Deadline(0), Publish(b"before")))
    key = rig.keys.run(run_id)
    if field.startswith("buffer "):
        key, field = rig.keys.buffer(run_id, "b")[0], field.removeprefix("buffer ")
    rig.client.hset(key, field, value)
    before = rig.everything()
    assert rig.words(COUNTED[case](entry)) == ["broken"]
    assert rig.everything() == before


def test_a_scope_that_counts_no_numbers_is_found_before_anything_is_written(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a", "b"))
    entry, other = rig.read(WIDE)
    opened = (Within(), emit(WIDE, "n"), Tally("s", 0, ()))
    rig.apply(settle(other, Open("s", ()), *opened))
    rig.client.hset(rig.keys.scope(run_id, "s"), "open", "1.5")
    before = rig.everything()
    assert rig.words(settle(entry, Publish(b"p"), *opened)) == ["broken"]
    assert rig.everything() == before


# -- the end of a run with a damaged public stream --------------------------------------------------


def ended_as_damaged(run_id: str) -> Commit:
    return Commit(run_id, DamagedFence(), [end("failed")])


def no_stream(rig: Rig, run_id: str) -> None:
    rig.client.delete(rig.keys.events(run_id))
    rig.client.set(rig.keys.events(run_id), "x")


def no_sequence(rig: Rig, run_id: str) -> None:
    rig.client.hset(rig.keys.run(run_id), "seq", "x")


@pytest.mark.parametrize("damage", [no_stream, no_sequence])
def test_a_run_whose_public_stream_is_damaged_ends_in_its_record(
    rig: Rig, damage: Callable[[Rig, str], None]
) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    rig.apply(effect(rig.take(WIDE), Publish(b"p")))
    damage(rig, run_id)
    kept = rig.client.dump(rig.keys.events(run_id))
    assert rig.words(ended_as_damaged(run_id), ended_as_damaged(run_id)) == ["applied", "over"]
    assert rig.run(run_id)["status"] == "failed"
    assert rig.run(run_id)["entry"] == "the end"
    assert rig.client.dump(rig.keys.events(run_id)) == kept
    assert all(ttl > 0 for name, ttl in rig.keys_of(run_id).items() if not name.endswith(":keys"))
    ((_, told),) = rig.client.xrange(rig.keys.ends)
    assert (told[b"r"], told[b"s"], told[b"e"]) == (run_id.encode(), b"failed", b"the end")


def test_a_run_goes_on_behind_what_a_stranger_wrote_into_its_public_stream(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    rig.apply(effect(entry, Publish(b"p")))
    rig.client.xadd(rig.keys.events(run_id), {"d": "strange"}, id="7000-5")
    rig.apply(effect(entry, Publish(b"q")))
    rig.apply(settle(entry, Publish(b"r"), end()))
    public = [("1-0", b"p"), ("7000-5", b"strange"), ("7001-0", b"q"), ("7002-0", b"r")]
    assert rig.public(run_id) == [*public, ("7003-0", b"the end")]
    assert rig.run(run_id)["seq"] == "7003"


# -- entries that stand twice -----------------------------------------------------------------------


def twice(rig: Rig, entry: Entry, consumer: str) -> Entry:
    """Adds an entry again, as no worker would, and reads it."""
    fields = {"r": entry.run_id, "i": entry.id, "d": entry.record}
    rig.client.xadd(rig.stream(entry.route), fields)
    return next(one for one in rig.read(entry.route, consumer) if one.id == entry.id)


@pytest.mark.parametrize("first_is_copy", [True, False])
def test_a_delivery_that_stands_in_its_stream_twice_is_settled_once(
    rig: Rig, first_is_copy: bool
) -> None:
    run_id = rig.start(emit(NARROW, "a", "b", "held"))
    entry = rig.take(NARROW)
    both = [(entry, "me"), (twice(rig, entry, "other"), "other")]
    if first_is_copy:
        both.reverse()
    (first, owner), (second, late_owner) = both
    words = (emit(WIDE, "next"), Publish(b"p"))
    assert rig.words(settle(first, *words), consumer=owner) == ["applied"]
    assert rig.words(settle(second, *words), consumer=late_owner) == ["gone"]
    assert rig.queued(WIDE) == ["next"]
    assert rig.public(run_id) == [("1-0", b"p")]
    assert rig.run(run_id)["s:narrow"] == "2"
    assert sorted(rig.queued(NARROW)) == ["b", "held"]
    assert rig.pending(NARROW, late_owner).keys().isdisjoint({second.entry})


def test_the_effects_of_a_delivery_that_was_settled_are_gone(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    copy = twice(rig, entry, "other")
    rig.apply(effect(entry, emit(WIDE, "n", guard=entry.id), Publish(b"p", entry.id, "f")))
    # as long as it is open, both are one execution that was tried twice
    again = [
        effect(copy, emit(WIDE, "n", guard=copy.id), Publish(b"p", copy.id, "f")),
        effect(copy, emit(WIDE, "m", guard=copy.id)),
    ]
    assert rig.words(again[0], consumer="other") == ["applied"]
    rig.apply(settle(entry, Publish(b"q")))
    rig.client.delete(rig.keys.sent(run_id, entry.id))
    before = rig.everything()
    assert rig.words(*again, consumer="other") == ["gone", "gone"]
    assert rig.everything() == before
    assert did("m") not in rig.queued(WIDE)
