"""What a late commit finds moved: the waits, the timers and the values that were there when it was decided."""

from __future__ import annotations

import pytest

from stepfleet.core.commit import (
    Commit,
    ControlFence,
    Count,
    Counted,
    Has,
    Is,
    Keep,
    SetTimer,
    Stored,
    Unapplied,
    Unwait,
    Wait,
    Word,
    Write,
)
from stepfleet.storage.wide import WIDE as MOST
from stepfleet.storage.wide import parts_of
from tests.scripts.rig import SYS, WIDE, Entry, Rig, did, due, effect, emit, settle


def control(run_id: str, *words: object, expects: tuple[object, ...] = ()) -> Commit:
    return Commit(run_id, ControlFence(), words, expects)  # type: ignore[arg-type]


def test_an_answer_to_the_first_wait_of_a_step_does_not_fit_its_second(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "s"))
    rig.apply(control(run_id, Wait("s:1:0", "A", b"")))
    late = control(run_id, Unwait("s:1:0", "A"), emit(WIDE, "late"), expects=(Has("s:1:0"),))
    rig.apply(control(run_id, Unwait("s:1:0", "A"), Wait("s:1:1", "A", b"")))
    assert rig.words(late) == ["conflict"]
    assert rig.queued(WIDE) == ["s"]


def test_a_timer_that_was_fired_late_leaves_the_next_one(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "s"))
    rig.apply(control(run_id, SetTimer(f"{run_id}/s/back-off/2", 0, b"")))
    late = due(run_id, f"{run_id}/s/back-off/2", emit(WIDE, "again", awaitable=False))
    rig.apply(late)
    rig.apply(control(run_id, SetTimer(f"{run_id}/s/back-off/3", 60_000, b"")))
    assert rig.words(late) == ["gone"]
    assert rig.client.zrange(rig.keys.timers, 0, -1) == [f"{run_id}/s/back-off/3".encode()]


def test_an_event_for_nobody_is_not_put_away_while_a_wait_begins(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "s"))
    put_away = control(run_id, Keep(b"event", 100), expects=(Is("waits", ""),))
    rig.apply(control(run_id, Wait("s:1:0", "A", b"")))
    assert rig.words(put_away) == ["conflict"]
    assert not rig.client.exists(rig.keys.inbox(run_id))


def test_an_event_that_went_to_the_waiters_goes_nowhere_else_when_it_is_sent_again(
    rig: Rig,
) -> None:
    run_id = rig.start(emit(WIDE, "s"))
    entry = rig.take(WIDE)
    rig.stream(SYS)
    rig.apply(control(run_id, Wait("w", "A", b"")))
    sent = effect(
        entry, emit(WIDE, "x", guard=did("s")), emit(WIDE, "y", guard=did("s"), also=True)
    )
    rig.apply(sent)
    rig.apply(control(run_id, Unwait("w", "A")))
    rig.apply(sent)
    assert rig.queued(SYS) == ["x"]
    assert rig.queued(WIDE) == ["s"]
    assert rig.words(settle(entry)) == ["applied"]


def test_a_version_of_a_value_never_comes_again(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "s"))
    rig.apply(control(run_id, Write("d", b"one")))
    rig.client.delete(rig.keys.store(run_id))
    rig.apply(control(run_id, Write("d", b"two")))
    assert rig.words(control(run_id, Write("d", b"stale"), expects=(Stored("d", 1),))) == [
        "conflict"
    ]


# -- a server that came back with an older state -------------------------------------------------------


def early(entry: Entry, call: int, *words: Word, execution: str = "x.1") -> Commit:
    mine = (entry.id, execution, call)
    return effect(entry, *words, Count(*mine), expects=[Unapplied(*mine)])


def counting(entry: Entry, calls: int, execution: str = "x.1") -> Commit:
    return settle(entry, expects=[Counted(entry.id, execution, calls)])


def test_a_delivery_is_settled_with_all_of_its_early_commits(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "s"))
    entry = rig.take(WIDE)
    first, third = (
        early(entry, 1, emit(WIDE, "x", guard=did("s"))),
        early(entry, 3, Write("f", b"v")),
    )
    # The second was refused, the third came twice.
    assert rig.words(first, third, third) == ["applied"] * 3
    assert rig.client.hget(rig.keys.store(run_id), "f") == b"1:v"
    assert rig.words(counting(entry, 3)) == ["rewound"]
    assert rig.words(counting(entry, 1, "x.2")) == ["rewound"]
    assert rig.words(counting(entry, 2)) == ["applied"]


def test_a_delivery_of_which_an_early_commit_was_lost_is_not_settled(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "s"))
    entry = rig.take(WIDE)
    rig.apply(early(entry, 1, Write("f", b"v")))
    before = rig.client.hgetall(rig.keys.open(run_id))
    rig.apply(early(entry, 2, Write("f", b"w")))
    rig.client.hset(rig.keys.open(run_id), mapping=before)
    # The last one is there, what was before it is not.
    rig.apply(early(entry, 3, Write("f", b"w")))
    assert rig.words(counting(entry, 3)) == ["rewound"]
    assert "s" in rig.queued(WIDE)
    # The step runs again, and its commits are counted anew.
    rig.apply(early(entry, 1, Write("f", b"v"), execution="x.2"))
    assert rig.words(counting(entry, 1, "x.2")) == ["applied"]


@pytest.mark.parametrize("damage", ["no number", "x.1 2", "", "x.1 two three"])
def test_early_commits_whose_count_is_damaged_count_as_lost(rig: Rig, damage: str) -> None:
    run_id = rig.start(emit(WIDE, "s"))
    entry = rig.take(WIDE)
    rig.client.hset(rig.keys.open(run_id), f"{did('s')}!", damage)
    assert rig.words(counting(entry, 1)) == ["rewound"]
    assert rig.words(early(entry, 1, execution="x.2")) == ["applied"]
    assert rig.words(counting(entry, 1, "x.2")) == ["applied"]


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("settles", [True, False])
def test_a_wide_result_of_which_redis_has_lost_a_part_is_not_committed(
    rig: Rig, lost: int, *, settles: bool
) -> None:
    run_id = rig.start(emit(WIDE, "s"))
    entry = rig.take(WIDE)
    wide = emit(WIDE, *(f"d{n}" for n in range(2 * MOST + 1)), guard=did("s"))
    whole = settle(entry, wide) if settles else early(entry, 1, wide)
    *parts, last = parts_of(whole)
    assert len(parts) == 3
    for number, part in enumerate(parts):
        before = rig.client.hgetall(rig.keys.sent(run_id, did("s")))
        word = rig.words(part)
        assert word == ["rewound" if number > lost else "applied"]
        if number == lost:
            rig.client.delete(rig.keys.sent(run_id, did("s")))
            if before:
                rig.client.hset(rig.keys.sent(run_id, did("s")), mapping=before)
    assert rig.words(last) == ["rewound"]
    assert rig.words(*parts, last) == ["applied"] * 4
