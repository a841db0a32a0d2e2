"""Buffers, waiters and the inbox: joins release once, waits see every event."""

from __future__ import annotations

import random

import pytest

from stepfleet.core.commit import (
    Answer,
    Append,
    Commit,
    ControlFence,
    Has,
    Is,
    Keep,
    Note,
    OperationFence,
    Quota,
    Take,
    Unkeep,
    Unwait,
    Version,
    Wait,
)
from tests.scripts.rig import SYS, WIDE, Entry, Rig, Route, did, effect, emit, settle

QUOTA = (("A", 2), ("B", 1))


def append(entry: Entry, type_: str, quota: tuple[tuple[str, int], ...] = QUOTA) -> Commit:
    event = entry.id.rstrip(".").encode()
    return settle(entry, Append("b", type_, event), expects=[Quota("b", type_, quota)])


def take(entry: Entry, version: int, *words: object) -> Commit:
    return settle(entry, Take("b", version), emit(WIDE, "joined"), expects=[Version("b", version)])


def content(rig: Rig, run_id: str) -> tuple[dict[str, str], list[bytes]]:
    counts, events = rig.keys.buffer(run_id, "b")
    found = rig.client.hgetall(counts)
    return {k.decode(): v.decode() for k, v in found.items()}, rig.client.lrange(events, 0, -1)


def test_contributions_are_kept_in_the_order_of_their_commits(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, *"abc"))
    a, b, _ = rig.read(WIDE)
    assert rig.commits(append(a, "A"), append(b, "B")) == [
        Answer("applied", missing=2),
        Answer("applied", missing=1),
    ]
    expected = {"version": "2", "n:A": "1", "n:B": "1", "quota": "A 2 B 1"}
    assert content(rig, run_id) == (expected, [b"a", b"b"])


def test_what_completes_a_buffer_conflicts_with_its_version_and_length(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, *"abc"))
    a, b, c = rig.read(WIDE)
    answers = rig.commits(append(a, "A"), append(b, "B"), append(c, "A"))
    assert answers[2] == Answer("conflict", buffer="b", version=2, length=2)
    assert rig.queued(WIDE) == ["c"], "it is still to be settled"
    assert rig.words(take(c, 2)) == ["applied"]
    assert content(rig, run_id) == ({"version": "3"}, [])
    assert rig.queued(WIDE) == ["joined"]


def test_an_event_beyond_its_quota_is_dropped_and_its_delivery_settled(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, *"abc"))
    a, b, c = rig.read(WIDE)
    quota = (("A", 1), ("B", 1))
    answers = rig.commits(*[append(entry, "A", quota) for entry in (a, b, c)])
    assert answers == [Answer("applied", missing=1)] * 3
    assert content(rig, run_id)[1] == [b"a"]
    assert rig.queued(WIDE) == []


def test_a_type_that_is_not_wanted_does_not_complete_a_buffer(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, *"ab"))
    a, b = rig.read(WIDE)
    assert rig.words(append(a, "C"), append(b, "C")) == ["applied", "applied"]
    assert content(rig, run_id) == ({}, [])


def test_a_release_that_read_an_older_content_conflicts(rig: Rig) -> None:
    rig.start(emit(WIDE, *"abcd"))
    a, b, c, d = rig.read(WIDE)
    rig.apply(append(a, "A"))
    rig.apply(append(b, "B"))
    assert rig.commit(take(c, 1)) == Answer("conflict", buffer="b", version=2, length=2)
    assert rig.words(take(c, 2)) == ["applied"]
    assert rig.commit(take(d, 2)) == Answer("conflict", buffer="b", version=3, length=0)


def test_a_buffer_that_was_released_and_filled_again_has_another_version(rig: Rig) -> None:
    rig.start(emit(WIDE, *"abcdef"))
    a, b, c, d, e, f = rig.read(WIDE)
    rig.apply(append(a, "A"))
    rig.apply(append(b, "B"))
    rig.apply(take(c, 2))
    rig.apply(append(d, "A"))
    rig.apply(append(e, "B"))
    assert rig.commit(take(f, 2)) == Answer("conflict", buffer="b", version=5, length=2)


def test_a_release_of_a_buffer_that_nobody_appended_to_counts_as_a_version(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, *"ab"))
    a, b = rig.read(WIDE)
    assert rig.words(take(a, 0), take(b, 0)) == ["applied", "conflict"]
    further = rig.client.smembers(rig.keys.further(run_id))
    assert {key.encode() for key in rig.keys.buffer(run_id, "b")} <= further


@pytest.mark.parametrize("seed", range(3))
def test_joins_under_concurrency_take_every_event_once(rig: Rig, seed: int) -> None:
    """Many deliveries join by threes; they decide in any order, each on what it last learned."""
    chance = random.Random(seed)
    names = [f"e{number}" for number in range(12)]
    run_id = rig.start(emit(WIDE, *names))
    quota, joined = (("A", 3),), list[list[bytes]]()
    waiting: list[tuple[Entry, Answer | None]] = [(entry, None) for entry in rig.read(WIDE)]
    while waiting:
        chance.shuffle(waiting)
        some, waiting = waiting[:4], waiting[4:]
        seen = content(rig, run_id)[1]
        commits = [
            append(entry, "A", quota)
            if known is None or known.length != 2
            else take(entry, known.version)._replace(words=[Take("b", known.version)])
            for entry, known in some
        ]
        for (entry, known), answer in zip(some, rig.commits(*commits), strict=True):
            if answer.word == "conflict":
                waiting.append((entry, answer))
            elif known is not None and known.length == 2:
                joined.append([*seen[:2], entry.id.rstrip(".").encode()])
    assert len(joined) == 4
    assert content(rig, run_id)[1] == []


# -- waiters -----------------------------------------------------------------------------------------

OTHER = Route("Flow", "A", "other", 4)


def wait(entry: Entry, type_: str, seen: str = "") -> Commit:
    words = [Wait(entry.id, type_, b"waiter"), Note(entry.id, f"waiting {type_} A:wide")]
    return settle(entry, *words, expects=[Is("inbox", seen)])


@pytest.mark.parametrize(("type_", "diverted"), [("A", True), ("*", True), ("Z", False)])
def test_an_event_of_an_awaited_type_goes_to_the_waiters_first(
    rig: Rig, type_: str, diverted: bool
) -> None:
    run_id = rig.start(emit(WIDE, "w"))
    rig.apply(wait(rig.take(WIDE), type_))
    words = [emit(WIDE, "x"), emit(OTHER, "y", also=True)]
    rig.apply(Commit(run_id, OperationFence("o"), words))
    expected = (["x"], [], []) if diverted else ([], ["x"], ["y"])
    assert (rig.queued(SYS), rig.queued(WIDE), rig.queued(OTHER)) == expected
    assert rig.open(run_id) == {"w": "waiting"} | {
        name: "stream" for names in expected for name in names
    }


def test_an_event_that_is_not_to_be_awaited_goes_to_its_step(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "w"))
    rig.apply(wait(rig.take(WIDE), "A"))
    rig.apply(Commit(run_id, ControlFence(), [emit(WIDE, "x", awaitable=False)]))
    assert (rig.queued(SYS), rig.queued(WIDE)) == ([], ["x"])


def test_an_answered_waiter_diverts_no_more(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "w"))
    rig.apply(wait(rig.take(WIDE), "A"))
    rig.apply(Commit(run_id, ControlFence(), [emit(WIDE, "x")]))
    answer = settle(
        rig.take(SYS),
        Unwait(did("w"), "A"),
        emit(WIDE, "w", awaitable=False),
        expects=[Has(did("w"))],
    )
    assert rig.words(answer) == ["applied"]
    rig.apply(Commit(run_id, ControlFence(), [emit(WIDE, "y")]))
    assert (rig.queued(SYS), rig.queued(WIDE)) == ([], ["w", "y"])
    assert rig.open(run_id) == {"w": "stream", "y": "stream"}


def test_a_waiter_is_answered_once(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "w"))
    rig.apply(wait(rig.take(WIDE), "A"))
    rig.apply(Commit(run_id, ControlFence(), [emit(WIDE, "x"), emit(WIDE, "y")]))
    words = Unwait(did("w"), "A"), emit(WIDE, "w", awaitable=False)
    both = [settle(entry, *words, expects=[Has(did("w"))]) for entry in rig.read(SYS)]
    assert rig.words(*both) == ["applied", "conflict"]
    assert rig.queued(WIDE) == ["w"]
    assert rig.run(run_id)["waiting"] == "0"


def test_an_event_goes_the_same_way_when_it_is_sent_again(rig: Rig) -> None:
    """It went to the waiters; when it is repeated nobody waits, and its further stream must not get it."""
    rig.start(emit(WIDE, "w", "s"))
    waiter, sender = rig.read(WIDE)
    rig.apply(wait(waiter, "A"))
    words = [
        emit(WIDE, "x", guard=sender.id),
        emit(OTHER, "y", guard=sender.id, also=True),
    ]
    rig.apply(effect(sender, *words))
    rig.apply(settle(rig.take(SYS), Unwait(did("w"), "A")))
    rig.apply(effect(sender, *words))
    assert rig.queued(OTHER) == []
    assert rig.queued(WIDE) == ["s"]


def test_an_answer_that_came_before_the_wait_makes_it_look_again(rig: Rig) -> None:
    rig.start(emit(WIDE, "w"), emit(SYS, "x"))
    rig.apply(settle(rig.take(SYS), Keep(b"unclaimed", 2)))
    waiter = rig.take(WIDE)
    assert rig.words(wait(waiter, "A")) == ["conflict"]
    assert rig.words(wait(waiter, "A", seen="1")) == ["applied"]


def test_the_inbox_keeps_the_last_events_and_counts_all(rig: Rig) -> None:
    run_id = rig.start()
    for number in range(5):
        rig.apply(Commit(run_id, ControlFence(), [Keep(f"e{number}".encode(), 2)]))
    assert rig.client.lrange(rig.keys.inbox(run_id), 0, -1) == [b"e3", b"e4"]
    assert rig.run(run_id)["inbox"] == "5"
    rig.apply(Commit(run_id, ControlFence(), [Unkeep(b"e3")]))
    assert rig.client.lrange(rig.keys.inbox(run_id), 0, -1) == [b"e4"]
