"""Plain commits: applied straight ahead, they leave what the interpreter would have left, without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from stepfleet.core.commit import (
    Append,
    Commit,
    ControlFence,
    Deadline,
    Emit,
    End,
    Join,
    Lend,
    Place,
    Publish,
    Quota,
    Room,
    Wait,
)
from tests.scripts.rig import NARROW, SYS, WIDE, WORKFLOW, Rig, did, effect, emit, end, settle
from tests.scripts.two_ways import OneWay

RUN: Final = "the-run"
#: A step with two slots and two types.
TYPED: Final = NARROW._replace(type="F", step="typed", types=("F", "G"))
#: A step with a ceiling over all runs.
CEILED: Final = NARROW._replace(type="C", step="ceiled", types=("C",), ceiling=5)

Scenario = Callable[[Rig], list[Commit]]


def _new(rig: Rig, *words: Any, timeout_ms: int = 0) -> Commit:
    return rig.new(*words, run_id=RUN, timeout_ms=timeout_ms)._replace(expects=[Room()])


def _collected(rig: Rig, need: int = 4) -> Commit:
    quota = Quota("b", "A", (("A", need),))
    return settle(rig.take(WIDE), Append("b", "A", b"x"), expects=[quota])


# -- what is plain -----------------------------------------------------------------------------------


def a_start(rig: Rig) -> list[Commit]:
    return [_new(rig, emit(NARROW, "a"), timeout_ms=5000)]


def a_start_that_is_repeated(rig: Rig) -> list[Commit]:
    start = _new(rig, emit(NARROW, "a"))
    return [start, start, start._replace(fence=start.fence._replace(digest="other"))]


def a_start_beyond_the_limit_on_runs(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a")))
    rig.bounds = replace(rig.bounds, pending_runs_limit=1)
    return [_new(rig, emit(WIDE, "b"))._replace(run_id="another")]


def a_step_goes_on(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a"), timeout_ms=5000))
    return [settle(rig.take(WIDE), Deadline(3), emit(NARROW, "b"))]


def a_step_goes_on_with_itself(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b")))
    return [settle(rig.take(WIDE), emit(WIDE, "c"))]


def a_step_goes_on_where_nobody_can_wait(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a")))
    return [settle(rig.take(WIDE), emit(NARROW, "b", awaitable=False))]


def what_is_held_is_let_go(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(NARROW, "a", "b", "c", "d")))
    return [settle(entry, emit(WIDE, f"{entry.id[0]}1")) for entry in rig.read(NARROW)]


def what_is_held_is_let_go_to_another_stream(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(TYPED, "a", "b"), emit(TYPED._replace(type="G"), "c", "d")))
    return [settle(rig.take(TYPED), emit(WIDE, "e"))]


def what_finds_no_slot_waits_behind_others(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b"), emit(NARROW, "c", "d", "e")))
    return [settle(entry, emit(NARROW, f"{entry.id[0]}1")) for entry in rig.read(WIDE)]


def an_event_is_collected(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b", "c", "d")))
    rig.apply(_collected(rig))
    return [_collected(rig), _collected(rig)]


def a_run_ends(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a"), timeout_ms=5000))
    return [settle(rig.take(WIDE), Deadline(3), end())]


def a_run_ends_with_work_left_and_keys_of_its_own(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a"), emit(NARROW, "b", "c", "d")))
    return [settle(rig.take(WIDE), End("failed", b"x" * 1000, ("error", "E"), True))]


def a_run_that_another_one_belongs_to_ends(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a")))
    rig.apply(rig.new(Join(RUN), emit(WIDE, "x"), run_id="its-child"))
    return [settle(rig.take(WIDE), end())]


def a_commit_is_repeated(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b")))
    commit = settle(rig.take(WIDE), emit(NARROW, "c"))
    return [commit, commit]


@pytest.mark.parametrize(
    "scenario",
    [
        a_start,
        a_start_that_is_repeated,
        a_start_beyond_the_limit_on_runs,
        a_step_goes_on,
        a_step_goes_on_with_itself,
        a_step_goes_on_where_nobody_can_wait,
        what_is_held_is_let_go,
        what_is_held_is_let_go_to_another_stream,
        what_finds_no_slot_waits_behind_others,
        an_event_is_collected,
        a_run_ends,
        a_run_ends_with_work_left_and_keys_of_its_own,
        a_run_that_another_one_belongs_to_ends,
        a_commit_is_repeated,
    ],
)
def test_a_plain_commit_leaves_what_the_interpreter_leaves(rig: Rig, scenario: Scenario) -> None:
    _assert_the_same_is_left(rig, scenario, hit="1")


# -- what is left to the interpreter -----------------------------------------------------------------


def a_start_where_a_stranger_counted(rig: Rig) -> list[Commit]:
    rig.client.hset(rig.keys.run(RUN), "s:narrow", 2)
    return [_new(rig, emit(NARROW, "a"))]


def a_start_with_a_ceiling(rig: Rig) -> list[Commit]:
    return [_new(rig, emit(CEILED, "a"))]


def a_run_that_has_ended(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b")))
    rig.apply(settle(rig.take(WIDE), end("failed", parks=True)))
    return [settle(rig.take(WIDE), emit(WIDE, "c"))]


def a_run_that_waits_for_its_place(rig: Rig) -> list[Commit]:
    rig.apply(rig.new(Place(WORKFLOW, 1), emit(WIDE, "x"), run_id="another"))
    rig.apply(_new(rig, Place(WORKFLOW, 1), emit(WIDE, "a")))
    # An event from outside came before its place; somebody lets its delivery go.
    rig.client.hset(rig.keys.run(RUN), "admitted", 1)
    rig.apply(Commit(RUN, ControlFence(), [emit(WIDE, "b")]))
    rig.client.hset(rig.keys.run(RUN), "admitted", 0)
    entry = next(entry for entry in rig.read(WIDE) if entry.run_id == RUN)
    return [settle(entry, emit(NARROW, "c"))]


def a_run_with_a_place_ends(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, Place(WORKFLOW, 1), emit(WIDE, "a")))
    return [settle(rig.take(WIDE), end())]


def a_slot_was_lent(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b")))
    entry = rig.take(WIDE)
    rig.apply(effect(entry, Lend(entry.route, entry.entry, entry.id, 2)))
    return [settle(entry, emit(NARROW, "c"))]


def somebody_waits_for_events(rig: Rig) -> list[Commit]:
    rig.stream(SYS)
    rig.apply(_new(rig, emit(WIDE, "a", "b")))
    first, second = rig.read(WIDE)
    rig.apply(settle(first, Wait(first.id, "B", b"w")))
    return [settle(second, emit(NARROW, "c"))]


def a_step_with_a_ceiling_goes_on(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(CEILED, "a")))
    return [settle(rig.take(CEILED), emit(WIDE, "b"))]


def a_step_goes_on_to_one_with_a_ceiling(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a")))
    return [settle(rig.take(WIDE), emit(CEILED, "b"))]


def a_delivery_by_another_entry(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b")))
    first, _ = rig.read(WIDE)
    rig.apply(settle(first, emit(NARROW, "c")))
    rig.client.xadd(rig.stream(WIDE), {"r": RUN, "i": first.id, "d": "again"}, "1800000000000-0")
    return [settle(rig.take(WIDE), emit(NARROW, "d"))]


def its_own_delivery_again(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a")))
    entry = rig.take(WIDE)
    return [settle(entry, Emit(WIDE, ((entry.id, b"next attempt"),)))]


def the_first_event_of_a_buffer(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a")))
    return [_collected(rig)]


def the_last_event_of_a_buffer(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b")))
    rig.apply(_collected(rig, need=2))
    return [_collected(rig, need=2)]


def a_buffer_whose_counts_are_gone(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b")))
    rig.apply(_collected(rig))
    rig.client.delete(rig.keys.buffer(RUN, "b")[0])
    return [_collected(rig)]


def a_buffer_whose_events_are_gone(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b")))
    rig.apply(_collected(rig))
    rig.client.delete(rig.keys.buffer(RUN, "b")[1])
    return [_collected(rig)]


def an_event_for_another_buffer_than_its_quota(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b", "c", "d")))
    rig.apply(_collected(rig))
    quota = Quota("b", "A", (("A", 4),))
    return [settle(rig.take(WIDE), Append("other", "A", b"x"), expects=[quota])]


def a_buffer_that_waits_for_two_types(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b", "c", "d")))
    rig.apply(_collected(rig))
    quota = Quota("b", "A", (("A", 4), ("B", 1)))
    return [settle(rig.take(WIDE), Append("b", "A", b"x"), expects=[quota])]


def the_last_event_where_a_counter_is_damaged(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b")))
    rig.apply(_collected(rig, need=2))
    rig.client.hset(rig.keys.run(RUN), "deliveries", "x")
    return [_collected(rig, need=2)]


def a_run_with_too_many_deliveries_collects(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b", "c", "d")))
    rig.apply(_collected(rig))
    rig.bounds = replace(rig.bounds, deliveries_limit=3)
    return [_collected(rig)]


def a_run_with_too_many_deliveries_goes_on(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b")))
    rig.bounds = replace(rig.bounds, deliveries_limit=2)
    return [settle(rig.take(WIDE), emit(NARROW, "c"))]


def a_run_with_public_events_ends(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a")))
    entry = rig.take(WIDE)
    rig.apply(effect(entry, Publish(b"p")))
    return [settle(entry, end())]


def a_run_whose_public_events_are_gone_ends(rig: Rig) -> list[Commit]:
    commits = a_run_with_public_events_ends(rig)
    rig.client.delete(rig.keys.events(RUN))
    return commits


def a_run_that_knows_nothing_of_its_public_events_ends(rig: Rig) -> list[Commit]:
    commits = a_run_with_public_events_ends(rig)
    rig.client.hdel(rig.keys.run(RUN), "seq")
    return commits


def a_deadline_that_runs_already(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b"), timeout_ms=5000))
    rig.apply(settle(rig.take(WIDE), Deadline(3), emit(NARROW, "c")))
    rig.client.hset(rig.keys.run(RUN), "timeout", "x")
    return [settle(rig.take(WIDE), Deadline(4), emit(NARROW, "d"))]


def a_step_goes_on_with_itself_behind_what_is_held(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(NARROW, "a", "b", "c")))
    return [settle(rig.take(NARROW), emit(NARROW, "d"))]


def more_than_one_held_delivery_fits(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(NARROW, "a", "b", "c", "d", "e")))
    wider = rig.take(NARROW)._replace(route=NARROW._replace(limit=3))
    return [settle(wider, emit(WIDE, "f"))]


def none_that_is_held_fits(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(NARROW, "a", "b", "c")))
    narrower = rig.take(NARROW)._replace(route=NARROW._replace(limit=1))
    return [settle(narrower, emit(WIDE, "d"))]


def something_held_that_is_none(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(NARROW, "a", "b", "c")))
    rig.client.lset(rig.keys.hold(RUN, "narrow"), 0, "x")
    return [settle(rig.take(NARROW), emit(WIDE, "d"))]


def the_first_that_finds_no_slot(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a"), emit(NARROW, "b", "c")))
    return [settle(rig.take(WIDE), emit(NARROW, "d"))]


def what_is_held_would_fit_first(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a"), emit(NARROW, "b", "c", "d")))
    return [settle(rig.take(WIDE), emit(NARROW._replace(limit=3), "e"))]


def what_comes_back_waits_behind_others(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a"), emit(NARROW, "c", "d", "e")))
    rig.client.hset(rig.keys.open(RUN), did("z"), "timer")
    return [settle(rig.take(WIDE), emit(NARROW, "z", awaitable=False))]


def a_step_whose_counter_is_gone(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a")))
    rig.client.hdel(rig.keys.run(RUN), "s:wide")
    return [settle(rig.take(WIDE), emit(WIDE, "b"))]


def a_step_whose_counter_is_below_one(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a")))
    rig.client.hset(rig.keys.run(RUN), "s:wide", 0)
    return [settle(rig.take(WIDE), end())]


@pytest.mark.parametrize(
    "scenario",
    [
        a_start_where_a_stranger_counted,
        a_start_with_a_ceiling,
        a_run_that_has_ended,
        a_run_that_waits_for_its_place,
        a_run_with_a_place_ends,
        a_slot_was_lent,
        somebody_waits_for_events,
        a_step_with_a_ceiling_goes_on,
        a_step_goes_on_to_one_with_a_ceiling,
        a_delivery_by_another_entry,
        its_own_delivery_again,
        the_first_event_of_a_buffer,
        the_last_event_of_a_buffer,
        a_buffer_whose_counts_are_gone,
        a_buffer_whose_events_are_gone,
        an_event_for_another_buffer_than_its_quota,
        a_buffer_that_waits_for_two_types,
        the_last_event_where_a_counter_is_damaged,
        a_run_with_too_many_deliveries_collects,
        a_run_with_too_many_deliveries_goes_on,
        a_run_with_public_events_ends,
        a_run_whose_public_events_are_gone_ends,
        a_run_that_knows_nothing_of_its_public_events_ends,
        a_deadline_that_runs_already,
        a_step_goes_on_with_itself_behind_what_is_held,
        more_than_one_held_delivery_fits,
        none_that_is_held_fits,
        something_held_that_is_none,
        the_first_that_finds_no_slot,
        what_is_held_would_fit_first,
        what_comes_back_waits_behind_others,
        a_step_whose_counter_is_gone,
        a_step_whose_counter_is_below_one,
    ],
)
def test_what_is_not_plain_is_left_to_the_interpreter(rig: Rig, scenario: Scenario) -> None:
    _assert_the_same_is_left(rig, scenario, hit="0")


def _assert_the_same_is_left(rig: Rig, scenario: Scenario, *, hit: str) -> None:
    """Applies what a scenario ends with in one call, straight ahead where it is plain, and only interpreted."""
    straight, interpreted = (OneWay(rig.client, rig.kind, straight=way) for way in (True, False))
    commits = scenario(straight)
    answers = straight.commits(*commits)
    assert straight.hits == hit * len(commits)
    assert answers == interpreted.commits(*scenario(interpreted))
    assert straight.content() == interpreted.content()
