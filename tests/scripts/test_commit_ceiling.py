"""Ceilings: never more deliveries of a step in streams over all runs, and no place is lost or leaked."""

from __future__ import annotations

import random

import pytest

from stepfleet.core.commit import Commit, StrayFence, Wake
from tests.scripts.rig import SYS, WORKFLOW, Entry, Rig, Route, cancel, emit, end, settle

ONE = Route(WORKFLOW, "C", "one", 4, 1, ("C",))
TWO = Route(WORKFLOW, "C", "two", 4, 2, ("C",))


def gauge(rig: Rig, route: Route = TWO) -> int:
    """Returns the places reserved for runs that are being woken."""
    return int(rig.client.hget(rig.keys.gauge(WORKFLOW, route.step), "reserved") or 0)


def queue(rig: Rig, route: Route = TWO) -> list[str]:
    """Returns the runs that wait for a place."""
    key = f"{rig.keys.gauge(WORKFLOW, route.step)}:queue"
    return [run_id.decode() for run_id in rig.client.lrange(key, 0, -1)]


def places(rig: Rig, *routes: Route) -> int:
    """Returns the places taken; each reserved one has its wake-up."""
    alarms = rig.client.xlen(rig.stream(SYS))
    assert alarms == gauge(rig, routes[0])
    return alarms + sum(rig.client.xlen(rig.stream(route)) for route in routes)


def wake(entry: Entry, route: Route = TWO) -> Commit:
    assert entry.wakes == route.step
    return Commit(entry.run_id, entry.fence, [Wake(route)])


def test_deliveries_of_all_runs_share_the_places_of_a_step(rig: Rig) -> None:
    runs = [rig.start(emit(TWO, "a")) for _ in range(4)]
    assert places(rig, TWO) == 2
    assert queue(rig) == runs[2:]
    assert [rig.held(run_id, "two") for run_id in runs] == [[], [], ["a"], ["a"]]


def test_a_place_that_gets_free_is_kept_for_the_run_that_waits_longest(rig: Rig) -> None:
    runs = [rig.start(emit(TWO, "a")) for _ in range(4)]
    rig.apply(settle(rig.take(TWO)))
    assert places(rig, TWO) == 2
    late = rig.start(emit(TWO, "a"))
    alarm = rig.take(SYS)
    assert alarm.run_id == runs[2]
    rig.apply(wake(alarm))
    assert places(rig, TWO) == 2
    assert rig.held(runs[2], "two") == []
    assert queue(rig) == [runs[3], late]


def test_a_run_stands_in_the_queue_once(rig: Rig) -> None:
    first = rig.start(emit(TWO, *range(8)))
    second = rig.start(emit(TWO, *range(8)))
    assert queue(rig) == [first, second]
    rig.apply(settle(rig.take(TWO)))
    assert queue(rig) == [second], "the wake-up of the first is on its way"
    rig.apply(wake(rig.take(SYS)))
    assert queue(rig) == [second, first]


@pytest.mark.parametrize("batch", [False, True])
def test_a_wake_up_is_used_once(rig: Rig, batch: bool) -> None:
    for _ in range(3):
        rig.start(emit(ONE, "a"))
    rig.apply(settle(rig.take(ONE)))
    commit = wake(rig.take(SYS), ONE)
    words = rig.words(commit, commit) if batch else rig.words(commit) + rig.words(commit)
    assert words == ["applied", "gone"]
    assert places(rig, ONE) == 1


@pytest.mark.parametrize("how", ["completed", "cancelled", "unknown", "broken"])
def test_the_place_of_a_run_that_is_gone_goes_to_the_next_one(rig: Rig, how: str) -> None:
    runs = [rig.start(emit(ONE, "a")) for _ in range(3)]
    rig.apply(settle(rig.take(ONE)))
    alarm = rig.take(SYS)
    commit = wake(alarm, ONE)
    if how == "unknown":
        rig.client.delete(rig.keys.run(runs[1]))
    elif how == "broken":
        rig.client.delete(rig.keys.run(runs[1]))
        rig.client.set(rig.keys.run(runs[1]), "no hash")
        assert rig.words(commit) == ["broken"]
        commit = Commit(alarm.run_id, StrayFence(SYS, alarm.entry), [Wake(ONE)])
    else:
        rig.apply(cancel(runs[1])._replace(words=[end(how, parks=how == "cancelled")]))
    answer = {"unknown": "unknown-run", "broken": "applied"}.get(how, "over")
    assert rig.words(commit) == [answer]
    assert places(rig, ONE) == 1
    following = rig.take(SYS)
    assert following.run_id == runs[2]
    rig.apply(wake(following, ONE))
    assert rig.queued(ONE) == ["a"]
    assert gauge(rig, ONE) == 0


@pytest.mark.parametrize("how", ["cancelled", "unknown", "stray"])
def test_an_entry_of_a_run_that_is_gone_gives_its_place_back(rig: Rig, how: str) -> None:
    first, second = rig.start(emit(ONE, "a")), rig.start(emit(ONE, "a"))
    entry = rig.take(ONE)
    if how == "cancelled":
        rig.apply(cancel(first)._replace(words=[end("cancelled")]))
        assert rig.words(settle(entry)) == ["over"]
    elif how == "unknown":
        rig.client.delete(rig.keys.run(first))
        assert rig.words(settle(entry)) == ["unknown-run"]
    else:
        assert rig.words(Commit(first, StrayFence(ONE, entry.entry))) == ["applied"]
    assert rig.take(SYS).run_id == second


def test_a_wake_up_without_anything_to_let_go_passes_its_place_on(rig: Rig) -> None:
    first, second = rig.start(emit(ONE, "a")), rig.start(emit(ONE, "b"))
    rig.apply(settle(rig.take(ONE)))
    rig.client.delete(rig.keys.hold(second, "one"))
    third = rig.start(emit(ONE, "c"))
    rig.apply(wake(rig.take(SYS), ONE))
    assert rig.take(SYS).run_id == third
    assert places(rig, ONE) == 1
    assert first not in queue(rig, ONE)


def test_a_run_does_not_exceed_its_own_slots_when_it_is_woken(rig: Rig) -> None:
    route = Route(WORKFLOW, "C", "two", 1, 2, ("C",))
    run_id = rig.start(emit(route, "a", "b", "c"))
    assert places(rig, route) == 1
    rig.apply(settle(rig.take(route)))
    assert rig.queued(route) == ["b"]
    assert queue(rig, route) == []
    assert rig.held(run_id, "two") == ["c"]


def test_a_raised_ceiling_is_used_by_those_that_wait(rig: Rig) -> None:
    runs = [rig.start(emit(ONE, "a")) for _ in range(4)]
    higher = ONE._replace(ceiling=3)
    rig.apply(settle(rig.take(ONE)._replace(route=higher)))
    assert places(rig, higher) == 3
    assert [entry.run_id for entry in rig.read(SYS)] == runs[1:]


def test_a_lowered_ceiling_is_reached_by_settling(rig: Rig) -> None:
    for _ in range(4):
        rig.start(emit(TWO, "a"))
    lower = TWO._replace(ceiling=1)
    rig.apply(settle(rig.take(TWO)._replace(route=lower)))
    assert places(rig, lower) == 1
    rig.apply(settle(rig.take(TWO)._replace(route=lower)))
    assert places(rig, lower) == 1


def test_a_ceiling_that_is_new_counts_what_was_there_before_it(rig: Rig) -> None:
    rig.start(emit(ONE._replace(ceiling=0), "a", "b"))
    second = rig.start(emit(ONE, "c"))
    assert rig.held(second, "one") == ["c"]
    rig.apply(settle(rig.take(ONE)))
    assert places(rig, ONE) == 1, "still one too many for another one"
    rig.apply(settle(rig.take(ONE)))
    rig.apply(wake(rig.take(SYS), ONE))
    assert rig.queued(ONE) == ["c"]


def test_types_of_a_step_share_its_ceiling(rig: Rig) -> None:
    one = Route(WORKFLOW, "C", "both", 4, 2, ("C", "D"))
    two = one._replace(type="D")
    rig.start(emit(one, "a"), emit(two, "b"), emit(one, "c"))
    assert places(rig, one, two) == 2
    rig.apply(settle(rig.take(two)))
    assert places(rig, one, two) == 2


def test_a_batch_knows_what_its_own_commits_took_and_gave_back(rig: Rig) -> None:
    rig.start(emit(TWO, "a", "b"))
    entries = rig.read(TWO)
    new = [rig.new(emit(TWO, "n")) for _ in range(3)]
    assert set(rig.words(settle(entries[0]), new[0], new[1], settle(entries[1]), new[2])) == {
        "applied"
    }
    assert places(rig, TWO) == 2
    assert [entry.run_id for entry in rig.read(SYS)] == [new[1].run_id]


def test_a_place_that_older_code_gave_back_in_the_same_call_is_free(rig: Rig) -> None:
    """The entry is deleted at the end of the call, and older code knows of no ceiling."""
    rig.start(emit(ONE._replace(ceiling=0), "a"))
    entry = rig.take(ONE._replace(ceiling=0))
    assert rig.words(settle(entry), rig.new(emit(ONE, "b"))) == ["applied", "applied"]
    assert rig.queued(ONE) == ["b"]


@pytest.mark.parametrize("seed", range(4))
def test_everything_is_done_in_the_end_and_no_place_is_left(rig: Rig, seed: int) -> None:
    chance = random.Random(seed)
    runs = [rig.start(emit(TWO, *range(chance.randint(1, 6)))) for _ in range(6)]
    cancelled = set(chance.sample(runs, 2))
    held: list[Entry] = []
    while True:
        held += rig.read(TWO) + rig.read(SYS)
        assert places(rig, TWO) <= 2
        if not held:
            break
        entry = held.pop(chance.randrange(len(held)))
        if entry.run_id in cancelled and chance.random() < 0.3:
            cancelled.discard(entry.run_id)
            rig.apply(cancel(entry.run_id)._replace(words=[end("cancelled")]))
        rig.commit(wake(entry) if entry.wakes else settle(entry))
    live = [run_id for run_id in runs if rig.run(run_id)["status"] == "running"]
    assert len(live) >= 4
    assert [rig.held(run_id, "two") for run_id in live] == [[]] * len(live)
    assert (places(rig, TWO), gauge(rig), queue(rig)) == (0, 0, [])
