"""Lent slots: what waits holds neither a slot nor a place, its end gives back none, and no count drifts."""

from __future__ import annotations

import pytest

from stepfleet.core.commit import (
    Answer,
    Commit,
    EntryFence,
    Lend,
    Note,
    Recount,
    SetTimer,
    StrayFence,
    Wake,
)
from tests.scripts.rig import (
    NARROW,
    SYS,
    WORKFLOW,
    Entry,
    Rig,
    Route,
    cancel,
    effect,
    emit,
    end,
    settle,
)

ONE = Route(WORKFLOW, "C", "one", 1, 1, ("C",))


def lend(entry: Entry, times: int = 1) -> Commit:
    return effect(entry, Lend(entry.route, entry.entry, entry.id, times))


def slots(rig: Rig, run_id: str, step: str = "narrow") -> tuple[int, int]:
    """Returns the slot counter of a step and the number of lent slots."""
    record = rig.run(run_id)
    return int(record[f"s:{step}"]), int(record.get("lent", 0))


def test_what_waits_lets_the_next_one_go(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, 1, 2, 3, 4))
    first = rig.take(NARROW)
    rig.apply(lend(first))
    assert rig.queued(NARROW) == ["1", "2", "3"]
    assert rig.held(run_id, "narrow") == ["4"]
    assert slots(rig, run_id) == (3, 1)
    where = rig.client.hget(rig.keys.open(run_id), first.id).decode()
    assert where == f"stream {first.entry} {NARROW.label} lent"


@pytest.mark.parametrize("batch", [False, True])
def test_a_slot_is_lent_once(rig: Rig, batch: bool) -> None:
    run_id = rig.start(emit(NARROW, 1, 2, 3, 4))
    commit = lend(rig.take(NARROW))
    words = rig.words(commit, commit) if batch else rig.words(commit) + rig.words(commit)
    assert words == ["applied", "applied"]
    assert slots(rig, run_id) == (3, 1)
    assert rig.held(run_id, "narrow") == ["4"]


@pytest.mark.parametrize("batch", [False, True])
def test_the_end_of_what_lent_its_slot_gives_back_none(rig: Rig, batch: bool) -> None:
    run_id = rig.start(emit(NARROW, 1, 2, 3, 4))
    first = rig.take(NARROW)
    commits = [lend(first), settle(first)]
    assert (rig.words(*commits) if batch else [rig.words(one)[0] for one in commits]) == [
        "applied"
    ] * 2
    assert slots(rig, run_id) == (3, 0)
    assert rig.queued(NARROW) == ["2", "3"]
    assert rig.held(run_id, "narrow") == ["4"]
    assert "1" not in rig.open(run_id)


def test_the_others_still_give_theirs_back(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, 1, 2, 3, 4))
    first, second = rig.read(NARROW, count=2)
    rig.apply(lend(first))
    rig.apply(settle(second))
    assert rig.queued(NARROW) == ["1", "3", "4"]
    assert slots(rig, run_id) == (2, 1)


def test_a_later_attempt_takes_a_slot_again(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, 1, 2, 3))
    first = rig.take(NARROW)
    rig.apply(lend(first))
    rig.apply(settle(first, emit(NARROW, 1, awaitable=False)))
    assert slots(rig, run_id) == (3, 0)
    assert rig.held(run_id, "narrow") == ["1"]
    for _ in range(3):
        rig.apply(settle(rig.take(NARROW)))
    assert slots(rig, run_id) == (0, 0)


def test_a_back_off_behind_a_wait_forgets_that_it_lent(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, 1))
    first = rig.take(NARROW)
    rig.apply(lend(first))
    timer = SetTimer(f"{run_id}/t", 60_000, b"data")
    rig.apply(settle(first, timer, Note(first.id, "timer back-off")))
    assert rig.open(run_id)["1"] == "timer"
    assert slots(rig, run_id) == (0, 0)


def test_whoever_takes_it_over_holds_no_slot_either(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, 1, 2, 3))
    first = rig.take(NARROW, "dead")
    rig.apply(lend(first), "dead")
    rig.claim(first, "me")
    assert rig.words(lend(first), consumer="dead") == ["gone"]
    rig.apply(lend(first))
    assert slots(rig, run_id) == (2, 1)
    rig.apply(settle(first))
    assert slots(rig, run_id) == (2, 0)


def test_a_loss_while_it_waits_does_not_count(rig: Rig) -> None:
    rig.start(emit(NARROW, 1))
    first = rig.take(NARROW, "dead")
    rig.claim(first, "other")
    rig.claim(first, "me")
    assert rig.pending(NARROW, "me") == {first.entry: 3}
    rig.apply(lend(first))
    assert rig.pending(NARROW, "me") == {first.entry: 1}
    recount = effect(first, Recount(NARROW, first.entry, 3))
    assert rig.words(recount, recount) == ["applied", "applied"]
    assert rig.pending(NARROW, "me") == {first.entry: 3}


def test_an_ended_run_lends_nothing(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, 1, 2, 3))
    first = rig.take(NARROW)
    rig.apply(cancel(run_id))
    before = rig.run(run_id)
    assert rig.words(lend(first)) == ["over"]
    assert rig.run(run_id) == before


def places(rig: Rig) -> tuple[int, int]:
    """Returns the places of ONE that are reserved, and those that are lent."""
    counts = rig.client.hmget(rig.keys.gauge(WORKFLOW, "one"), "reserved", "lent")
    return int(counts[0] or 0), int(counts[1] or 0)


def lent_places(rig: Rig) -> list[bytes]:
    fields = rig.client.hkeys(rig.keys.gauge(WORKFLOW, "one"))
    return [field for field in fields if field.startswith(b"lent:")]


def test_a_place_under_a_ceiling_is_lent_to_the_run_that_waits(rig: Rig) -> None:
    rig.start(emit(ONE, 1))
    second = rig.start(emit(ONE, 2))
    first = rig.take(ONE)
    assert rig.queued(ONE) == ["1"]
    rig.apply(lend(first))
    alarm = rig.take(SYS)
    assert alarm.run_id == second
    rig.apply(Commit(second, alarm.fence, [Wake(ONE)]))
    assert rig.queued(ONE) == ["1", "2"]
    assert places(rig) == (0, 1)


@pytest.mark.parametrize("how", ["settled", "over", "unknown", "stray"])
def test_a_lent_place_comes_back_however_its_delivery_ends(rig: Rig, how: str) -> None:
    run_id = rig.start(emit(ONE, 1))
    first = rig.take(ONE)
    rig.apply(lend(first))
    rig.start(emit(ONE, 2))
    assert rig.queued(ONE) == ["1", "2"]
    last: Commit = settle(first)
    if how == "over":
        rig.apply(Commit(run_id, cancel(run_id).fence, [end("cancelled")]))
    elif how == "unknown":
        rig.client.delete(rig.keys.run(run_id))
    elif how == "stray":
        last = Commit(run_id, StrayFence(first.route, first.entry))
    words = {"settled": "applied", "stray": "applied", "over": "over", "unknown": "unknown-run"}
    assert rig.words(last, last) == [words[how], "gone"]
    assert places(rig) == (0, 0)
    assert lent_places(rig) == []
    rig.start(emit(ONE, 3))
    assert rig.queued(ONE) == ["2"], "the place is taken by the second"
    rig.apply(settle(rig.take(ONE)))
    alarm = rig.take(SYS)
    rig.apply(Commit(alarm.run_id, alarm.fence, [Wake(ONE)]))
    assert rig.queued(ONE) == ["3"]


def test_a_parked_delivery_gives_its_lent_place_back(rig: Rig) -> None:
    run_id = rig.start(emit(ONE, 1))
    first = rig.take(ONE)
    rig.apply(lend(first))
    rig.apply(cancel(run_id))
    assert rig.words(settle(first)) == ["parking"]
    assert places(rig) == (0, 1)
    from stepfleet.core.commit import Park

    park = Commit(run_id, first.fence, [Park(ONE, first.entry)])
    assert rig.words(park) == ["over"]
    assert places(rig) == (0, 0)


def test_a_damaged_key_stops_a_lend_before_it_writes(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, 1, 2, 3))
    first = rig.take(NARROW)
    rig.client.delete(rig.keys.hold(run_id, "narrow"))
    rig.client.set(rig.keys.hold(run_id, "narrow"), "no list")
    before = rig.run(run_id)
    assert rig.commit(lend(first)) == Answer("broken")
    assert rig.run(run_id) == before


def test_the_end_of_a_system_entry_looks_at_no_slot(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, 1, 2))
    rig.apply(lend(rig.take(NARROW)))
    rig.client.xadd(rig.stream(SYS), {"r": run_id, "i": "", "w": "x"})
    alarm = rig.take(SYS)
    rig.apply(Commit(run_id, EntryFence(SYS, alarm.entry, "")))
    assert slots(rig, run_id) == (1, 1)
