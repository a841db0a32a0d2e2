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
    Place,
    Publish,
    Quota,
    Take,
    Tally,
    Version,
    Wait,
    Wake,
    Within,
    Write,
)
from tests.scripts.rig import (
    NARROW,
    SYS,
    WIDE,
    WORKFLOW,
    Entry,
    Rig,
    Route,
    did,
    effect,
    emit,
    end,
    settle,
)

#: No number that Redis counts with.
NO_COUNTS = ("x", "", "1.5", "9" * 30, "-0", "007", "+1")


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


# -- the index of pending work ----------------------------------------------------------------------

#: A step whose ceiling over all runs is one.
ONE = Route(WORKFLOW, "C", "one", 4, 1, ("C",))


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "held")])
def test_a_delivery_that_the_index_has_lost_is_no_delivery_that_was_settled(
    rig: Rig, names: tuple[str, ...]
) -> None:
    run_id = rig.start(emit(NARROW, *names), timeout_ms=1000)
    entry = rig.take(NARROW)
    rig.client.delete(rig.keys.open(run_id))
    before = rig.everything()
    settled = settle(entry, Publish(b"p"), emit(WIDE, "next"), Deadline(0))
    assert rig.words(settled) == ["broken"]
    assert rig.words(effect(entry, emit(WIDE, "n", guard=entry.id))) == ["broken"]
    assert rig.everything() == before
    assert rig.words(ended_as_damaged(run_id), settled) == ["applied", "over"]


def test_the_index_is_lost_also_when_others_came_into_it_since(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, "a"), emit(WIDE, "b"))
    entry = rig.take(NARROW)
    rig.apply(effect(entry, emit(WIDE, "n", guard=entry.id)))
    rig.client.delete(rig.keys.open(run_id))
    rig.apply(effect(entry, emit(WIDE, "m", guard=entry.id)))
    assert rig.open(run_id) == {"m": "stream"}
    assert rig.words(settle(entry)) == ["broken"]


def test_a_copy_of_what_was_settled_is_gone_while_others_wait_for_a_place(rig: Rig) -> None:
    rig.start(emit(ONE, "first"))
    run_id = rig.start(emit(ONE, "a"))
    rig.apply(settle(rig.take(ONE)))
    rig.apply(Commit(run_id, rig.take(SYS).fence, [Wake(ONE)]))
    entry = rig.take(ONE)
    copy = twice(rig, entry, "other")
    rig.apply(settle(entry, emit(ONE, "b", "c")))
    assert rig.open(run_id) == {}
    assert rig.held(run_id, "one") == ["b", "c"]
    guarded = effect(copy, emit(WIDE, "n", guard=copy.id))
    assert rig.words(guarded, settle(copy), consumer="other") == ["gone", "gone"]


# -- what waits, and what runs share ----------------------------------------------------------------


@pytest.mark.parametrize("garbage", [b"", b"x", b"x" * 40, b"\x93\x01\xc1"])
def test_a_commit_that_comes_upon_a_held_delivery_that_is_none_is_whole(
    rig: Rig, garbage: bytes
) -> None:
    run_id = rig.start(emit(NARROW, "a", "b", "c", "d", "e"))
    rig.client.lset(rig.keys.hold(run_id, "narrow"), 0, garbage)
    entry, other = rig.read(NARROW)
    settled = settle(entry, Publish(b"p"), emit(WIDE, "next"))
    assert rig.words(settled) == ["broken"]
    assert rig.public(run_id) == [("1-0", b"p")]
    assert rig.queued(WIDE) == ["next"]
    assert rig.queued(NARROW) == ["b", "d"]
    assert rig.open(run_id) == {"b": "stream", "d": "stream", "next": "stream"}
    assert rig.held(run_id, "narrow") == ["e"]
    assert rig.words(settled) == ["gone"]
    assert rig.words(ended_as_damaged(run_id), settle(other)) == ["applied", "over"]


def other_type(rig: Rig, key: str) -> None:
    rig.client.set(key, "x")


def no_count(rig: Rig, key: str) -> None:
    rig.client.hset(key, mapping={"reserved": "x", "lent": "1.5"})


def no_lent_count(rig: Rig, key: str) -> None:
    rig.client.hset(key, "lent", "x")


@pytest.mark.parametrize("damage", [other_type, no_count, no_lent_count])
def test_no_run_fails_by_a_damaged_ceiling(rig: Rig, damage: Callable[[Rig, str], None]) -> None:
    runs = [rig.start(emit(ONE, "a")) for _ in range(4)]
    gauge = rig.keys.gauge(WORKFLOW, "one")
    damage(rig, gauge)
    rig.apply(settle(rig.take(ONE)))
    damage(rig, gauge)  # the place that is reserved for the next run is forgotten
    for run_id in runs[1:]:
        alarm = rig.take(SYS)
        assert alarm.run_id == run_id
        rig.apply(Commit(run_id, alarm.fence, [Wake(ONE)]))
        assert rig.client.xlen(rig.stream(ONE)) == 1
        rig.apply(settle(rig.take(ONE), end()))
    assert rig.client.hget(gauge, "reserved") == b"0"
    later = [rig.start(emit(ONE, "a")) for _ in range(2)]
    assert [rig.held(run_id, "one") for run_id in later] == [[], ["a"]]


def test_no_run_fails_by_a_damaged_queue_of_a_ceiling(rig: Rig) -> None:
    first, _ = [rig.start(emit(ONE, "a")) for _ in range(2)]
    queue = f"{rig.keys.gauge(WORKFLOW, 'one')}:queue"
    rig.client.delete(queue)
    rig.client.set(queue, "x")
    third = rig.start(emit(ONE, "a"))
    assert rig.client.lrange(queue, 0, -1) == [third.encode()]
    rig.client.delete(queue)
    rig.client.set(queue, "x")
    rig.apply(settle(rig.take(ONE), end()))
    assert rig.run(first)["status"] == "completed"


@pytest.mark.parametrize("which", [0, 1])
def test_one_run_ends_in_an_error_by_the_damaged_places_of_its_workflow(
    rig: Rig, which: int
) -> None:
    def start(name: str) -> None:
        rig.apply(rig.new(Place(WORKFLOW, 1), emit(NARROW, 1, awaitable=False), run_id=name))

    key = rig.keys.places(WORKFLOW)[which]
    start("first")
    rig.client.delete(key)
    rig.client.set(key, "x")
    entry = rig.take(NARROW)
    assert rig.words(settle(entry, end())) == ["broken"]
    failed = Commit("first", DamagedFence(), [end("failed")._replace(workflow=WORKFLOW)])
    assert rig.words(failed, settle(entry)) == ["applied", "over"]
    start("second")
    rig.apply(settle(rig.take(NARROW), end()))
    assert rig.run("second")["status"] == "completed"


# -- the record ------------------------------------------------------------------------------------


def no_hash(rig: Rig, key: str) -> None:
    rig.client.delete(key)
    rig.client.set(key, "x")


def no_content(rig: Rig, key: str) -> None:
    for field in rig.client.hkeys(key):
        rig.client.hset(key, field, b"\x93\x01\xc1")


def no_status(rig: Rig, key: str) -> None:
    rig.client.hset(key, "status", "x")


def no_start(rig: Rig, key: str) -> None:
    rig.client.hset(key, "started", "x")


@pytest.mark.parametrize("damage", [no_hash, no_content, no_status, no_start])
@pytest.mark.parametrize("public", [True, False])
def test_a_run_whose_record_is_damaged_ends_in_one_that_is_written_anew(
    rig: Rig, damage: Callable[[Rig, str], None], public: bool
) -> None:
    run_id = rig.start(emit(WIDE, "a", "b"))
    entry, other = rig.read(WIDE)
    if public:
        rig.apply(effect(entry, Publish(b"p"), Publish(b"q"), Write("f", b"v")))
    key = rig.keys.run(run_id)
    damage(rig, key)
    if damage is not no_start:
        assert rig.words(settle(entry)) == ["broken"]
    assert rig.words(ended_as_damaged(run_id), ended_as_damaged(run_id)) == ["applied", "over"]
    record = rig.run(run_id)
    assert (record["status"], record["entry"], record["ended"].isdigit()) == (
        "failed",
        "the end",
        True,
    )
    assert record.keys() <= {
        *("status", "entry", "ended", "seq", "further", "joined", "parks"),
    }
    assert rig.public(run_id) == (
        [("1-0", b"p"), ("2-0", b"q"), ("3-0", b"the end")] if public else []
    )
    assert all(ttl > 0 for name, ttl in rig.keys_of(run_id).items() if name.count(":") == 3)
    assert rig.client.lrange(rig.keys.tidy, 0, -1) == [run_id.encode()]
    ((_, told),) = rig.client.xrange(rig.keys.ends)
    assert (told[b"r"], told[b"s"], told[b"q"]) == (
        run_id.encode(),
        b"failed",
        b"3" if public else b"1",
    )
    assert rig.words(settle(entry), settle(other)) == ["over", "over"]
    assert rig.queued(WIDE) == []


def test_the_record_of_a_run_that_ended_well_stays(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    rig.apply(settle(rig.take(WIDE), end()))
    before = rig.everything()
    assert rig.words(ended_as_damaged(run_id)) == ["over"]
    assert rig.everything() == before
