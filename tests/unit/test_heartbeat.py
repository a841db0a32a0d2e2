"""When a worker may take from others whose lease ran out."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest

from stepfleet.clock import Clock
from stepfleet.embedded.memory import memory_fleet
from stepfleet.testing import run_in_virtual_time
from stepfleet.worker import heartbeat
from stepfleet.worker.heartbeat import BEATS, Heartbeat
from tests.support.wait import eventually

LEASE = 3.0


class Hands(Clock):
    """A clock that stands until it is moved."""

    now = 0.0

    def steady(self) -> float:
        return self.now


class Beating:
    """A heartbeat whose Redis is a clock."""

    def __init__(self) -> None:
        self.clock = Hands()
        self.redis_ahead_ms = 1_000_000.0
        fleet = replace(memory_fleet("beating"), clock=self.clock)
        self.heart = Heartbeat(fleet, "me", lease=LEASE, describe=dict, running=lambda: "spin")

    def beat_for(self, seconds: float) -> bool:
        """Beats once a second, and tells whether it may bury then."""
        for _ in range(round(seconds)):
            self.clock.now += 1.0
            self.heart._beat(self._reply)
        return self.heart.may_bury

    def _reply(self, *_: Any) -> list[int]:
        return [1, int(self.clock.now * 1000 + self.redis_ahead_ms), 1, 0, 0]


def test_it_buries_after_a_lease_of_beats_without_a_gap() -> None:
    beating = Beating()
    assert not beating.beat_for(LEASE)
    assert beating.beat_for(1.0)


@pytest.mark.parametrize(("jump_ms", "may_bury"), [(10_000, False), (1_000, True), (-10_000, True)])
def test_after_a_jump_of_redis_clock_it_buries_nobody_for_a_lease(
    jump_ms: int, may_bury: bool
) -> None:
    beating = Beating()
    assert beating.beat_for(LEASE + 1)
    beating.redis_ahead_ms += jump_ms
    assert beating.beat_for(1.0) is may_bury
    assert beating.beat_for(LEASE)


def test_a_jump_after_the_last_beat_is_one_that_it_did_not_expect() -> None:
    beating = Beating()
    assert beating.heart.buries_until_ms == 0
    assert beating.beat_for(LEASE + 1)
    beating.clock.now += 0.5
    now_ms = int(beating.clock.now * 1000 + beating.redis_ahead_ms)
    assert now_ms < beating.heart.buries_until_ms <= now_ms + LEASE * 1000 / 2


class OfLoop(Clock):
    """The clock of the running loop."""

    def steady(self) -> float:
        return asyncio.get_running_loop().time()


def test_a_worker_whose_tasks_all_wait_for_redis_is_none_whose_loop_is_blocked(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[bool] = []
    is_stalled = Heartbeat._is_stalled
    monkeypatch.setattr(Heartbeat, "_is_stalled", lambda heart: looks.append(is_stalled(heart)))
    monkeypatch.setattr(heartbeat, "STALL", 2)

    async def main() -> None:
        fleet = replace(memory_fleet("waiting"), clock=OfLoop())
        heart = Heartbeat(fleet, "me", lease=LEASE, describe=dict, running=lambda: "spin")
        await heart.start()
        await eventually(lambda: len(looks) > 3 * BEATS, 30.0)
        await heart.stop()

    run_in_virtual_time(main())
    assert not any(looks)
    assert caplog.records == []


def test_it_says_once_that_a_step_keeps_the_loop_and_once_that_it_has_kept_it_for_too_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heart = (beating := Beating()).heart
    stalled: list[bool] = []
    for leases in (0.5, 1.0, 2.0, 19.0, 21.0, 22.0):
        beating.clock.now = leases * LEASE + 0.1
        stalled.append(heart._is_stalled())
    assert stalled == [False, False, False, False, True, True]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (
            logging.WARNING,
            "the event loop has not turned for 3 s, nothing else goes on in this process; a step that "
            "computes or blocks belongs into a plain `def`, which gets a thread: running=spin",
        ),
        (
            logging.ERROR,
            "the event loop has not turned for 63 s, its deliveries go to others: running=spin",
        ),
    ]
    heart._loop_seen = beating.clock.now
    assert not heart._is_stalled()
    beating.clock.now += LEASE + 0.1
    heart._is_stalled()
    assert len(caplog.records) == 3
