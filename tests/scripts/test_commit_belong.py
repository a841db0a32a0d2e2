"""Runs that belong to another, and runs that wait for a place: nothing starts too early or stays for ever."""

from __future__ import annotations

import pytest

from stepfleet.core.commit import Admit, Answer, Commit, Join, Leave, Live, OperationFence, Place
from tests.scripts.rig import (
    NARROW,
    SYS,
    WIDE,
    WORKFLOW,
    Entry,
    Rig,
    cancel,
    emit,
    end,
    settle,
)


def child(rig: Rig, owner: str, name: str = "") -> Commit:
    start = rig.new(Join(owner), emit(WIDE, "a"), run_id=name)
    return start._replace(expects=[Live(owner)])


def children(rig: Rig, owner: str) -> set[str]:
    return {name.decode() for name in rig.client.smembers(rig.keys.children(owner))}


def ends(rig: Rig) -> list[tuple[str, bool]]:
    """Returns which runs have ended, and whether others belong to them."""
    return [
        (fields[b"r"].decode(), b"j" in fields) for _, fields in rig.client.xrange(rig.keys.ends)
    ]


def test_a_run_is_known_to_the_one_that_it_belongs_to(rig: Rig) -> None:
    owner = rig.start(emit(WIDE, "o"))
    starts = [child(rig, owner), child(rig, owner)]
    assert rig.words(*starts, *starts) == ["applied"] * 4
    assert children(rig, owner) == {start.run_id for start in starts}
    further = rig.client.smembers(rig.keys.further(owner))
    assert rig.keys.children(owner).encode() in further


@pytest.mark.parametrize("how", ["ended", "unknown"])
def test_nothing_begins_for_a_run_that_is_not_live(rig: Rig, how: str) -> None:
    owner = rig.start(emit(WIDE, "o")) if how == "ended" else "nobody"
    if how == "ended":
        rig.apply(cancel(owner))
    start = child(rig, owner)
    assert rig.words(start) == ["over"]
    assert rig.keys_of(start.run_id) == {}
    assert children(rig, owner) == set()
    assert rig.client.zscore(rig.keys.live, start.run_id) is None


def test_a_repeated_start_is_answered_after_the_end_of_its_owner_too(rig: Rig) -> None:
    owner = rig.start(emit(WIDE, "o"))
    start = child(rig, owner)
    assert rig.words(start, cancel(owner), start) == ["applied"] * 3


def test_the_end_of_an_owner_says_that_others_belong_to_it(rig: Rig) -> None:
    owner, alone = rig.start(emit(WIDE, "o")), rig.start(emit(WIDE, "x"))
    rig.apply(child(rig, owner))
    rig.apply(cancel(alone))
    rig.apply(cancel(owner))
    assert ends(rig) == [(alone, False), (owner, True)]
    assert rig.client.lrange(rig.keys.tidy, 0, -1) == [owner.encode()]


def test_runs_that_have_ended_are_taken_out(rig: Rig) -> None:
    owner = rig.start(emit(WIDE, "o"))
    entry = rig.take(WIDE)
    starts = [child(rig, owner) for _ in range(3)]
    for start in starts:
        rig.apply(start)
    gone = tuple(start.run_id for start in starts[:2])
    commit = settle(entry, Leave(gone))
    assert rig.words(commit, commit) == ["applied", "gone"]
    assert children(rig, owner) == {starts[2].run_id}


@pytest.mark.parametrize("key", ["children", "further", "run"])
def test_a_damaged_key_of_the_owner_lets_nothing_begin(rig: Rig, key: str) -> None:
    owner = rig.start(emit(WIDE, "o"))
    name = getattr(rig.keys, key)(owner)
    rig.client.delete(name)
    rig.client.set(name, "damaged")
    start = child(rig, owner)
    assert rig.commit(start) == Answer("broken")
    assert rig.keys_of(start.run_id) == {}


# -- places -------------------------------------------------------------------------------------------


def limited(rig: Rig, limit: int, *, run_id: str = "") -> Commit:
    return rig.new(Place(WORKFLOW, limit), emit(NARROW, 1, 2, 3, awaitable=False), run_id=run_id)


def begin(rig: Rig, limit: int) -> str:
    start = limited(rig, limit)
    assert rig.words(start, start) == ["applied", "applied"]
    return start.run_id


def taken(rig: Rig) -> set[str]:
    return {name.decode() for name in rig.client.smembers(rig.keys.places(WORKFLOW)[0])}


def queue(rig: Rig) -> list[str]:
    rows = rig.client.lrange(rig.keys.places(WORKFLOW)[1], 0, -1)
    return [row.decode().partition(" ")[2] for row in rows]


def finish(rig: Rig, run_id: str) -> None:
    """Ends a run as whoever knows only its workflow does."""
    commit = Commit(run_id, cancel(run_id).fence, [end("completed")._replace(workflow=WORKFLOW)])
    assert rig.words(commit, commit) == ["applied", "over"]


def admit(entry: Entry) -> Commit:
    assert entry.wakes == ""
    return Commit(entry.run_id, entry.fence, [Admit(NARROW), Admit(WIDE)])


def test_runs_beyond_the_limit_hold_what_they_begin_with(rig: Rig) -> None:
    runs = [begin(rig, 2) for _ in range(4)]
    assert taken(rig) == set(runs[:2])
    assert queue(rig) == runs[2:]
    assert rig.queued(NARROW) == ["1", "2"] * 2
    assert [rig.held(run_id, "narrow") for run_id in runs[2:]] == [["1", "2", "3"]] * 2
    assert [rig.run(run_id)["admitted"] for run_id in runs] == ["1", "1", "0", "0"]


def test_who_waits_longest_gets_the_place_of_a_run_that_ends(rig: Rig) -> None:
    runs = [begin(rig, 1) for _ in range(3)]
    finish(rig, runs[0])
    assert taken(rig) == {runs[1]}
    assert queue(rig) == [runs[2]]
    alarm = rig.take(SYS)
    assert alarm.run_id == runs[1]
    commit = admit(alarm)
    assert rig.words(commit, commit) == ["applied", "gone"]
    assert rig.held(runs[1], "narrow") == ["3"]
    assert rig.run(runs[1])["admitted"] == "1"
    assert rig.read(SYS) == []


def test_an_end_that_comes_twice_gives_one_place(rig: Rig) -> None:
    runs = [begin(rig, 1) for _ in range(3)]
    entry = rig.take(NARROW)
    commit = settle(entry, end())
    assert rig.words(commit, commit) == ["applied", "gone"]
    assert taken(rig) == {runs[1]}
    assert queue(rig) == [runs[2]]


def test_a_queued_run_that_is_cancelled_leaves_the_queue(rig: Rig) -> None:
    runs = [begin(rig, 1) for _ in range(3)]
    finish(rig, runs[1])
    assert taken(rig) == {runs[0]}
    assert queue(rig) == [runs[2]]
    finish(rig, runs[0])
    assert taken(rig) == {runs[2]}


def test_a_run_that_ends_between_its_place_and_its_alarm_passes_the_place_on(rig: Rig) -> None:
    runs = [begin(rig, 1) for _ in range(3)]
    finish(rig, runs[0])
    finish(rig, runs[1])
    assert taken(rig) == {runs[2]}
    first, second = rig.read(SYS)
    assert rig.words(admit(first), admit(second)) == ["over", "applied"]
    assert rig.held(runs[2], "narrow") == ["3"]


def test_nobody_overtakes_whoever_waits(rig: Rig) -> None:
    first, second = begin(rig, 1), begin(rig, 1)
    third = begin(rig, 5)
    assert queue(rig) == [second, third]
    finish(rig, first)
    assert taken(rig) == {second, third}


def test_runs_without_a_limit_take_no_place(rig: Rig) -> None:
    begin(rig, 1)
    free = rig.start(emit(NARROW, 1))
    assert free not in taken(rig)
    assert rig.held(free, "narrow") == []
    finish(rig, free)
    assert len(taken(rig)) == 1


def test_what_is_sent_to_a_queued_run_waits_with_it(rig: Rig) -> None:
    first, second = begin(rig, 1), begin(rig, 1)
    rig.apply(Commit(second, OperationFence("op"), [emit(WIDE, "x", "y")]))
    assert rig.queued(WIDE) == []
    assert rig.held(second, "wide") == ["x", "y"]
    finish(rig, first)
    rig.apply(admit(rig.take(SYS)))
    assert rig.queued(WIDE) == ["x", "y"]
    rig.apply(Commit(second, OperationFence("op2"), [emit(WIDE, "z")]))
    assert rig.queued(WIDE) == ["x", "y", "z"]


def test_no_key_of_a_limit_is_left(rig: Rig) -> None:
    runs = [begin(rig, 1) for _ in range(3)]
    for run_id in runs:
        finish(rig, run_id)
    assert not [name for name in rig.everything() if ":runs:" in name]


def test_a_limit_whose_keys_are_damaged_ends_no_run_by_half(rig: Rig) -> None:
    run_id = begin(rig, 1)
    rig.client.delete(rig.keys.places(WORKFLOW)[0])
    rig.client.set(rig.keys.places(WORKFLOW)[0], "damaged")
    commit = Commit(run_id, cancel(run_id).fence, [end("completed")._replace(workflow=WORKFLOW)])
    assert rig.commit(commit) == Answer("broken")
    assert rig.run(run_id)["status"] == "running"


def test_as_many_runs_are_taken_out_as_a_step_awaited(rig: Rig) -> None:
    owner = rig.start(emit(WIDE, "o"))
    entry = rig.take(WIDE)
    kept = child(rig, owner)
    rig.apply(kept)
    gone = tuple(f"{owner}~{n}" for n in range(9_000))
    rig.client.sadd(rig.keys.children(owner), *gone)
    rig.apply(settle(entry, Leave(gone), emit(WIDE, "next")))
    assert children(rig, owner) == {kept.run_id}
    assert list(rig.open(owner)) == ["next"]
