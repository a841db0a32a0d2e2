"""What the simulation takes for wrong about leases, and what it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from stepfleet.embedded.memory_time import redis_time
from stepfleet.storage.keys import GROUP
from stepfleet.storage.scripts import script
from tests.simulation.simulation import LEASE, Simulation

FOR_EVER = 10**15


class Stage:
    """Two workers that do what they are told, on the Redis of a simulation."""

    def __init__(self) -> None:
        self.simulation = Simulation(0)
        self._server, self._keys = self.simulation.server, self.simulation.keys
        for name in ("beat", "reclaim"):
            self._server.ask("SCRIPT", "LOAD", script(name).source)
        route = self.simulation.plan.routes[0]
        self._stream = self._keys.stream(route.workflow, route.type, route.step)

    def at(self, seconds: float, *, ahead: float = 0.0) -> None:
        self.simulation.loop._virtual = seconds
        self._server.ahead = ahead

    def beat(self, worker: str) -> None:
        keys = (self._keys.leases, self._keys.workers)
        self._execute("EVALSHA", script("beat").sha, 2, *keys, worker, int(LEASE * 1000), "")

    def read(self, worker: str) -> None:
        self._execute("XGROUP", "CREATE", self._stream, GROUP, "0", "MKSTREAM")
        self._execute("XADD", self._stream, "*", "field", "value")
        self._execute("XREADGROUP", "GROUP", GROUP, worker, "STREAMS", self._stream, ">")

    def reclaim(self, worker: str) -> int:
        """Buries whoever is dead by Redis' clock, as one that has not noticed that it jumped."""
        keys, until = (self._keys.leases, self._stream), FOR_EVER
        arguments = (GROUP, worker, 10, 1, 1, until, int(LEASE * 1000))
        return len(self._execute("EVALSHA", script("reclaim").sha, 2, *keys, *arguments))

    def _execute(self, *command: str | int) -> list[object]:
        with redis_time(self.simulation._redis_now):
            return self._server.execute([str(part).encode() for part in command])

    @property
    def violations(self) -> list[str]:
        return [name for name, _ in self.simulation.ledger.violations]


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.simulation.loop.close()


@pytest.mark.parametrize(
    ("after", "jump", "violations"),
    [
        pytest.param(LEASE - 0.0005, 0.0, [], id="a lease is whole milliseconds"),
        pytest.param(LEASE - 0.25, 0.3, [], id="a jump that is too short to be noticed"),
        pytest.param(LEASE / 2 - 0.1, 10.0, ["lost count"], id="a jump that has to be noticed"),
        pytest.param(1.0, LEASE, ["lost count"], id="a jump just after a beat"),
    ],
)
def test_nobody_is_taken_for_dead_within_a_lease_of_its_beat(
    stage: Stage, after: float, jump: float, violations: list[str]
) -> None:
    begins = 1.0009
    stage.at(begins)
    stage.read("owner")
    stage.beat("owner")
    stage.at(begins + after, ahead=jump)
    assert stage.reclaim("other") == 1
    assert stage.violations == violations


def test_who_renews_is_told_by_beats_and_not_by_leases_that_a_jump_back_makes_longer(
    stage: Stage,
) -> None:
    stage.at(1.0, ahead=10.0)
    stage.beat("dead")
    stage.at(1.0 + LEASE, ahead=-10.0)
    stage.beat("renewing")
    assert stage.simulation.invariants.renewed() == ["renewing"]


def test_the_lease_thread_goes_on_when_the_loop_is_blocked_before_its_first_beat() -> None:
    simulation = Simulation(0, faults=False)
    silent: list[float] = []

    async def story() -> None:
        simulation.start_worker()
        beats = simulation.invariants.beats
        await asyncio.sleep(LEASE / 10)
        assert len(beats) == 1
        process, _ = simulation._live_workers["worker1"]
        process.blocked = True
        await asyncio.sleep(LEASE * 1.5)
        silent.extend(simulation.loop.time() - beat for beat in beats.values())

    simulation._story = story
    assert simulation.run().violations == []
    assert len(silent) == 1
    assert silent[0] < LEASE / 2
