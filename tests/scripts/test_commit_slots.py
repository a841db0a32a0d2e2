"""Slots: never more deliveries of a step in a run's streams than it may have, and none is lost."""

from __future__ import annotations

import pytest

from stepfleet.core.commit import (
    Commit,
    ControlFence,
    Note,
    Route,
    SetTimer,
    Stage,
    Staged,
    Unstage,
    Wait,
)
from tests.scripts.rig import (
    NARROW,
    SYS,
    WIDE,
    WORKFLOW,
    Rig,
    cancel,
    did,
    due,
    effect,
    emit,
    end,
    settle,
)


def drain(rig: Rig, *routes: Route, limit: int) -> list[str]:
    """Settles everything of a step, one by one, and returns the names in their order."""
    done: list[str] = []
    while entries := [entry for route in routes for entry in rig.read(route)]:
        assert len(entries) <= limit
        for entry in entries:
            rig.apply(settle(entry))
            assert sum(rig.client.xlen(rig.stream(route)) for route in routes) <= limit
            done.append(entry.id.rstrip("."))
    return done


def test_what_finds_no_slot_is_held_in_order_and_let_go_in_order(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, *range(7)))
    assert rig.queued(NARROW) == ["0", "1"]
    assert rig.held(run_id, "narrow") == ["2", "3", "4", "5", "6"]
    assert rig.open(run_id) == {"0": "stream", "1": "stream"}
    assert drain(rig, NARROW, limit=2) == [str(number) for number in range(7)]
    assert rig.run(run_id)["s:narrow"] == "0"
    assert rig.open(run_id) == {}


def test_an_event_does_not_overtake_those_that_are_held(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, "a", "b", "c"))
    first, _ = rig.read(NARROW)
    rig.apply(settle(first, emit(NARROW, "d")))
    assert rig.queued(NARROW) == ["b", "c"]
    assert rig.held(run_id, "narrow") == ["d"]


def test_runs_have_slots_of_their_own(rig: Rig) -> None:
    first, second = rig.start(emit(NARROW, *"abc")), rig.start(emit(NARROW, *"abc"))
    assert rig.client.xlen(rig.stream(NARROW)) == 4
    assert rig.held(first, "narrow") == rig.held(second, "narrow") == ["c"]


@pytest.mark.parametrize("how", ["commit", "retry", "suspension", "back-off"])
def test_a_slot_is_given_back_once(rig: Rig, how: str) -> None:
    run_id = rig.start(emit(NARROW, *"abcd"))
    first, _ = rig.read(NARROW)
    words = {
        "commit": [],
        "retry": [emit(NARROW, "a", awaitable=False)],
        "suspension": [Wait(did("a"), "T", b"w"), Note(did("a"), "waiting T")],
        "back-off": [SetTimer("t", 0, b""), Note(did("a"), "timer back-off")],
    }[how]
    commit = settle(first, *words)
    assert rig.words(commit, commit) == ["applied", "gone"]
    assert rig.words(commit) == ["gone"]
    assert rig.queued(NARROW) == ["b", "c"]
    expected = {"retry": ["d", "a"]}.get(how, ["d"])
    assert rig.held(run_id, "narrow") == expected
    assert rig.run(run_id)["s:narrow"] == str(2 + len(expected))


def test_a_delivery_that_comes_back_by_a_timer_needs_a_slot_again(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, *"abc"))
    first, _ = rig.read(NARROW)
    rig.apply(settle(first, SetTimer("t", 0, b"")))
    rig.apply(due(run_id, "t", emit(NARROW, "a", awaitable=False)))
    assert rig.queued(NARROW) == ["b", "c"]
    assert rig.held(run_id, "narrow") == ["a"]


def test_a_reclaim_a_stale_commit_and_an_effect_touch_no_slot(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, *"abc"))
    entry = rig.take(NARROW, "old")
    rig.claim(entry, "new")
    assert rig.words(settle(entry), consumer="old") == ["gone"]
    rig.apply(effect(entry, Note("x", "y")), consumer="new")
    assert rig.run(run_id)["s:narrow"] == "3"
    assert rig.queued(NARROW) == ["a", "b"]


def test_a_limit_that_was_raised_lets_more_go(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, *range(6)))
    wider = NARROW._replace(limit=4)
    first, _ = rig.read(NARROW)
    rig.apply(settle(first._replace(route=wider)))
    assert rig.queued(NARROW) == ["1", "2", "3", "4"]
    assert rig.held(run_id, "narrow") == ["5"]


def test_an_emit_under_a_raised_limit_lets_those_go_first_that_wait(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, *"abc"))
    rig.apply(Commit(run_id, ControlFence(), [emit(NARROW._replace(limit=4), "d", "e")]))
    assert rig.queued(NARROW) == ["a", "b", "c", "d"]
    assert rig.held(run_id, "narrow") == ["e"]


def test_a_limit_that_was_lowered_is_reached_by_settling(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, *range(5)))
    tighter = NARROW._replace(limit=1)
    first, second = rig.read(NARROW)
    rig.apply(settle(first._replace(route=tighter)))
    assert rig.queued(NARROW) == ["1"]
    rig.apply(settle(second._replace(route=tighter)))
    assert rig.queued(NARROW) == ["2"]
    assert rig.held(run_id, "narrow") == ["3", "4"]


def test_one_step_shares_its_slots_among_its_types(rig: Rig) -> None:
    one = Route(WORKFLOW, "A", "both", 2, 0, ("A", "B"))
    two = one._replace(type="B")
    run_id = rig.start(emit(one, "a1"), emit(two, "b1", "b2"), emit(one, "a2"))
    assert (rig.queued(one), rig.queued(two)) == (["a1"], ["b1"])
    assert rig.held(run_id, "both") == ["b2", "a2"]
    rig.apply(settle(rig.take(one)))
    assert (rig.queued(one), rig.queued(two)) == ([], ["b1", "b2"])
    rig.apply(settle(rig.take(two)))
    assert (rig.queued(one), rig.queued(two)) == (["a2"], ["b2"])


def test_what_is_held_goes_to_the_stream_of_its_own_workflow(rig: Rig) -> None:
    """Two workflows of one worker may have a step and a type of the same name."""
    mine, other = Route("One", "B", "narrow", 1), Route("Two", "B", "narrow", 1)
    rig.start(emit(mine, "m1", "m2"))
    rig.start(emit(other, "o1", "o2"))
    batch = [settle(rig.take(mine)), settle(rig.take(other))]
    assert rig.words(*batch) == ["applied", "applied"]
    assert (rig.queued(mine), rig.queued(other)) == (["m2"], ["o2"])


def test_what_older_code_held_goes_to_a_stream_that_this_code_does_not_know(rig: Rig) -> None:
    old = Route(WORKFLOW, "Old", "step", 1, 0, ("Old", "New"))
    rig.start(emit(old._replace(type="New"), "n"), emit(old, "o"))
    new = Route(WORKFLOW, "New", "step", 1, 0, ("New",))
    rig.apply(settle(rig.take(new)))
    assert rig.queued(old) == ["o"]


def test_the_end_of_a_run_leaves_what_is_held_where_it_is(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, *"abc"))
    first, second = rig.read(NARROW)
    rig.apply(cancel(run_id))
    assert rig.words(settle(first), settle(second)) == ["parking", "parking"]
    assert rig.held(run_id, "narrow") == ["c"]


# -- wide results ------------------------------------------------------------------------------------


def staged(first: bool, *names: object) -> Stage:
    return Stage(did("a"), NARROW, first, tuple((did(name), b"") for name in names))


def unstaging(rig: Rig, length: int, *words: object) -> Commit:
    entry = rig.take(WIDE)
    rig.apply(effect(entry, staged(True, *range(length))))
    return settle(
        entry, Unstage(did("a"), NARROW, length), expects=[Staged(did("a"), NARROW, length)]
    )


def test_a_staged_result_becomes_held_deliveries_when_it_is_whole(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    rig.apply(effect(entry, staged(True, 0, 1, 2)))
    rig.apply(effect(entry, staged(False, 3, 4)))
    assert rig.queued(NARROW) == []
    commit = settle(entry, Unstage(did("a"), NARROW, 5), expects=[Staged(did("a"), NARROW, 5)])
    assert rig.words(commit, commit) == ["applied", "gone"]
    assert rig.queued(NARROW) == ["0", "1"]
    assert rig.held(run_id, "narrow") == ["2", "3", "4"]
    assert rig.run(run_id)["s:narrow"] == "5"
    assert not rig.client.exists(rig.keys.stage(run_id, did("a"), "narrow"))
    assert drain(rig, NARROW, limit=2) == ["0", "1", "2", "3", "4"]


def test_a_part_that_was_lost_or_doubled_conflicts_and_staging_begins_anew(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    commit = settle(entry, Unstage(did("a"), NARROW, 3), expects=[Staged(did("a"), NARROW, 3)])
    assert rig.words(commit) == ["conflict"]
    rig.apply(effect(entry, staged(True, 0, 1)))
    assert rig.words(commit) == ["conflict"]
    rig.apply(effect(entry, staged(False, 2)))
    rig.apply(effect(entry, staged(False, 2)))
    assert rig.words(commit) == ["conflict"]
    rig.apply(effect(entry, staged(True, 0, 1)))
    rig.apply(effect(entry, staged(False, 2)))
    assert rig.words(commit) == ["applied"]
    assert rig.held(run_id, "narrow") == ["2"]


def test_a_staged_result_goes_behind_what_is_held_already(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"), emit(NARROW, "x", "y", "z"))
    assert rig.words(unstaging(rig, 3)) == ["applied"]
    assert rig.queued(NARROW) == ["x", "y"]
    assert rig.held(run_id, "narrow") == ["z", "0", "1", "2"]


def test_a_staged_result_of_an_awaited_type_goes_to_the_waiters(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a", "w"))
    commit = unstaging(rig, 3)
    rig.apply(settle(rig.take(WIDE), Wait(did("w"), "B", b"w")))
    assert rig.words(commit) == ["applied"]
    assert rig.queued(SYS) == ["0", "1", "2"]
    assert rig.queued(NARROW) == []
    assert rig.run(run_id).get("s:narrow", "0") == "0"


def test_a_very_wide_result_is_let_go_in_portions(rig: Rig) -> None:
    broad = Route(WORKFLOW, "C", "broad", 5000)
    run_id = rig.start(emit(broad, *range(600)))
    assert rig.client.xlen(rig.stream(broad)) == 256
    rig.apply(settle(rig.take(broad)))
    assert rig.client.xlen(rig.stream(broad)) == 511
    rig.apply(settle(rig.take(broad)))
    assert rig.client.xlen(rig.stream(broad)) == 598
    assert rig.held(run_id, "broad") == []


def test_the_stage_of_a_run_that_ends_meanwhile_expires_with_it(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a", "b"))
    first, second = rig.read(WIDE)
    rig.apply(effect(first, staged(True, 0, 1)))
    rig.apply(settle(second, end()))
    further = rig.client.smembers(rig.keys.further(run_id))
    assert rig.keys.stage(run_id, did("a"), "narrow").encode() in further
    assert rig.client.lrange(rig.keys.tidy, 0, -1) == [run_id.encode()]


def test_what_comes_back_from_a_timer_and_finds_no_slot_is_no_longer_open(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, "a"))
    first = rig.take(NARROW)
    words = [SetTimer(f"{run_id}/a", 0, b"data"), Note(did("a"), "timer back-off")]
    rig.apply(settle(first, *words))
    rig.apply(Commit(run_id, ControlFence(), [emit(NARROW, "b", "c")]))
    rig.apply(due(run_id, f"{run_id}/a", emit(NARROW, "a", awaitable=False)))
    assert rig.held(run_id, "narrow") == ["a"]
    assert rig.open(run_id) == {"b": "stream", "c": "stream"}
