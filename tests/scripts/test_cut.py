"""cut.lua: a consistent cut through one run, which changes nothing."""

from __future__ import annotations

import pytest

from stepfleet.core.commit import Append, Note, Park, Quota, Remember, SetTimer, Wait, Write
from stepfleet.core.cut import Cut, Pending
from stepfleet.errors import DecodeError
from stepfleet.storage.cutting import checkpoint_of, cut_of, reading
from tests.scripts.rig import NARROW, WIDE, Rig, cancel, did, effect, emit, end, settle


def cut(rig: Rig, run_id: str, *, contents: bool = True) -> Cut:
    script, keys, args = reading(rig.keys, run_id, contents=contents)
    return cut_of(run_id, rig.script(script.name, keys, args))


def pending(rig: Rig, run_id: str) -> list[str]:
    return [one.id.rstrip(".") for one in cut(rig, run_id).pending]


def test_a_cut_has_everything_that_is_pending(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, *"abcd"), emit(NARROW, *"pqrst"))
    a, b, c, d = rig.read(WIDE)
    timer = f"{run_id}/{b.id}/back-off/2"
    rig.apply(effect(d, Write("key", b"value")))
    rig.apply(settle(b, SetTimer(timer, 60_000, b"data"), Note(b.id, "timer back-off 2 A:wide")))
    rig.apply(settle(c, Wait("w", "A", b"waiter"), Note(c.id, "waiting A A:wide")))
    rig.apply(
        settle(d, Append("join:x", "A", b"event"), expects=[Quota("join:x", "A", (("A", 2),))])
    )
    found = cut(rig, run_id)
    assert found.text("status") == "running"
    assert sorted(one.id.rstrip(".") for one in found.pending) == ["a", "p", "q"]
    assert Pending(a.id, "A:wide", b"record of a", a.entry) in found.pending
    assert found.held == {"narrow": 3}
    assert found.waiting["narrow"][0] == Pending(did("r"), "B:narrow", b"record of r")
    assert found.waits == [b"waiter"]
    assert [(one.member, one.data) for one in found.timers] == [(timer, b"data")]
    assert 50_000 < found.timers[0].left_ms <= 60_000
    assert found.buffers["join:x"].events == [b"event"]
    assert (found.buffers["join:x"].counts, found.store) == ({"A": 1}, {"key": b"value"})


def test_what_waits_in_lists_can_be_counted_alone(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, *"pqrst"))
    found = cut(rig, run_id, contents=False)
    assert (found.held, found.waiting) == ({"narrow": 3}, {})


def test_a_cut_of_an_ended_run_has_what_was_parked_before_what_still_stands_in_streams(
    rig: Rig,
) -> None:
    run_id = rig.start(emit(WIDE, *"abc"))
    _, second, _ = rig.read(WIDE)
    rig.apply(cancel(run_id))
    assert rig.words(settle(second, Park(WIDE, second.entry))) == ["over"]
    assert pending(rig, run_id) == ["b", "a", "c"]


def test_a_cut_changes_nothing(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"), emit(NARROW, *"pqr"))
    before = rig.everything()
    cut(rig, run_id)
    assert rig.everything() == before


def test_a_cut_of_a_run_that_is_not_there_is_empty(rig: Rig) -> None:
    found = cut(rig, "nobody")
    assert (found.record, found.open, list(found.pending)) == ({}, {}, [])


def test_what_is_remembered_is_the_run_at_that_moment_of_its_commit(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, *"ab"), emit(NARROW, *"pqr"))
    first, second = rig.read(WIDE)
    rig.apply(settle(first, Write("k", b"v"), Remember(b"one", 2), emit(WIDE, "later")))
    (raw,) = rig.client.lrange(rig.keys.checkpoints(run_id), 0, -1)
    about, found = checkpoint_of(run_id, raw)
    assert about == b"one"
    assert sorted(one.id.rstrip(".") for one in found.pending) == ["b", "p", "q"]
    assert [one.id.rstrip(".") for one in found.waiting["narrow"]] == ["r"]
    assert (found.store, found.text("status")) == ({"k": b"v"}, "running")
    rig.apply(settle(second, Remember(b"two", 2), Remember(b"three", 2), end()))
    kept = rig.client.lrange(rig.keys.checkpoints(run_id), 0, -1)
    assert [checkpoint_of(run_id, one)[0] for one in kept] == [b"two", b"three"], "the last stay"
    assert all("checkpoints" not in checkpoint_of(run_id, one)[1].kept for one in kept)


@pytest.mark.parametrize("data", [b"", b"[", b"3:ab", b"x", b"1:a[1:b]", b"[]9"])
def test_a_checkpoint_that_is_none_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError, match="a checkpoint is not readable"):
        checkpoint_of("run", data)
