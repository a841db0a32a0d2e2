"""due.lua: what is due by Redis' clock, read only."""

from __future__ import annotations

from typing import Any

from tests.scripts.rig import Rig


def due(rig: Rig, most: int = 100) -> tuple[list[Any], list[Any], int]:
    keys = [rig.keys.timers, rig.keys.timer_data, rig.keys.live]
    now, fired, overdue, until = rig.script("due", keys, [most])
    assert abs(now - rig.now_ms()) < 1_000
    return fired, overdue, until


def test_nothing_is_due_where_nothing_is(rig: Rig) -> None:
    assert due(rig) == ([], [], -1)


def test_due_timers_come_with_their_data_earliest_first(rig: Rig) -> None:
    now = rig.now_ms()
    rig.client.zadd(rig.keys.timers, {"late": now - 10, "later": now - 20, "not yet": now + 50_000})
    rig.client.hset(rig.keys.timer_data, mapping={"late": "x", "not yet": "z"})
    before = rig.everything()
    fired, overdue, until = due(rig)
    assert fired == [b"later", b"", b"late", b"x"]
    assert overdue == []
    assert 49_000 < until <= 50_000
    assert rig.everything() == before


def test_runs_past_their_deadline_are_overdue_and_those_without_one_are_not(rig: Rig) -> None:
    now = rig.now_ms()
    rig.client.zadd(rig.keys.live, {"over": now - 1, "free": float("inf"), "soon": now + 9_000})
    fired, overdue, until = due(rig)
    assert (fired, overdue) == ([], [b"over"])
    assert 8_000 < until <= 9_000


def test_the_next_one_is_the_earlier_of_timer_and_deadline(rig: Rig) -> None:
    now = rig.now_ms()
    rig.client.zadd(rig.keys.live, {"soon": now + 50_000})
    rig.client.zadd(rig.keys.timers, {"sooner": now + 9_000})
    assert 8_000 < due(rig)[2] <= 9_000


def test_no_more_is_told_than_was_asked_for(rig: Rig) -> None:
    rig.client.zadd(rig.keys.timers, {f"t{number}": number + 1 for number in range(5)})
    rig.client.zadd(rig.keys.live, {f"r{number}": number + 1 for number in range(5)})
    fired, overdue, _ = due(rig, 2)
    assert fired[::2] == [b"t0", b"t1"]
    assert overdue == [b"r0", b"r1"]


def test_runs_without_a_deadline_are_not_waited_for(rig: Rig) -> None:
    rig.client.zadd(rig.keys.live, {"free": float("inf")})
    assert due(rig) == ([], [], -1)
