"""How much is read ahead follows how long steps have taken."""

from __future__ import annotations

from stepfleet.core.commit import Route
from stepfleet.worker.pace import LONG, SOON, Paces

FAST, SLOW = Route("Flow", "A", "fast"), Route("Flow", "B", "slow")


def _took(paces: Paces, route: Route, seconds: float | None, *, times: int = 1) -> None:
    for _ in range(times):
        paces.of(route).running += 1
        paces.of(route).ended(seconds)


def test_nothing_is_expected_of_a_step_that_never_ended() -> None:
    paces = Paces()
    paces.of(FAST).running = 100
    assert paces.soon() == 0
    _took(paces, FAST, None)
    assert paces.soon() == 0


def test_steps_that_end_soon_count_and_others_in_part() -> None:
    paces = Paces()
    _took(paces, FAST, SOON / 10)
    _took(paces, SLOW, SOON * 4)
    paces.of(FAST).running = paces.of(SLOW).running = 100
    assert paces.soon() == 125
    paces.of(FAST).running = 0
    assert paces.soon() == 25


def test_nothing_is_expected_of_long_steps_however_many_run() -> None:
    paces = Paces()
    _took(paces, SLOW, LONG)
    paces.of(SLOW).running = 1000
    assert paces.soon() == 0


def test_one_that_takes_long_counts_before_it_has_ended() -> None:
    paces = Paces()
    _took(paces, FAST, SOON / 10)
    paces.of(FAST).running = 10
    paces.of(FAST).lasts(SOON / 20)
    assert paces.soon() == 10
    paces.of(FAST).lasts(SOON * 4)
    assert paces.soon() == 2
    paces.of(FAST).lasts(LONG)
    assert paces.soon() == 0


def test_one_execution_that_takes_long_counts_at_once_and_is_forgotten_slowly() -> None:
    paces = Paces()
    _took(paces, FAST, SOON / 10, times=100)
    paces.of(FAST).running = 10
    assert paces.soon() == 10
    _took(paces, FAST, SOON * 100)
    assert paces.soon() == 0
    _took(paces, FAST, SOON / 10, times=10)
    assert paces.soon() == 0
    _took(paces, FAST, SOON / 10, times=50)
    assert paces.soon() == 10
