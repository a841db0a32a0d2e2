"""Deliveries whose worker stalls, stops or loses a reply run on, and each is committed once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import pytest

from stepfleet import Client
from tests.support.fleet import TestFleet, WorkerProcess, pid_of, while_holding
from tests.support.flows import FanOut, Sleep, Spin
from tests.support.load import Load
from tests.support.proxy import Proxy
from tests.support.wait import eventually

#: Seconds for anything to happen on a busy machine.
PATIENCE = 60.0
#: How the worker says that its commit was not applied.
DROPPED = "settled elsewhere"
#: Runs that a stopped worker owns.
STOPPED = 8


@pytest.mark.parametrize("lease", [1.5, pytest.param(3.0, marks=pytest.mark.slow)])
@pytest.mark.timeout(120)
async def test_a_step_that_keeps_the_cpu_for_four_leases_runs_once(
    tmp_path: Path, lease: float
) -> None:
    with TestFleet(tmp_path, lease=f"{lease}s") as fleet:
        fleet.start(2)
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            handler = await client.start(Spin, seconds=4 * lease)
            pid = await handler
        (execution,) = fleet.ledger.executions("spin")
        assert execution.pid == pid
        assert execution.ended is not None
        assert execution.ended - execution.began >= 4 * lease
        fleet.wait_until_tidy([handler.run_id])
        record = fleet.record()
        assert record.check_settled(fleet.ledger, [handler.run_id]) == 1
        assert not record.reclaimed([handler.run_id])


@pytest.mark.parametrize("lease", [1.0, pytest.param(3.0, marks=pytest.mark.slow)])
@pytest.mark.timeout(240)
async def test_a_worker_that_was_stopped_for_three_leases_changes_nothing(
    tmp_path: Path, lease: float
) -> None:
    with TestFleet(tmp_path, lease=f"{lease}s") as fleet:
        (stopped,) = fleet.start()
        runs: dict[str, int] = {}
        async with Client(fleet.url) as client, asyncio.timeout(4 * PATIENCE):
            # Now and then it learns that it is buried before it commits anything: then once more.
            while DROPPED not in stopped.log() and len(runs) < 4 * STOPPED:
                runs |= await _stopped_for_three_leases(fleet, client, stopped, lease)
            assert DROPPED in stopped.log()
            again = await client.start(Sleep, seconds=0.0)
            assert await again == stopped.pid

        fleet.wait_until_tidy([*runs, again.run_id])
        record = fleet.record()
        assert record.check_settled(fleet.ledger, [*runs, again.run_id]) == len(runs) + 1
        settled = {entry.run_id: entry.settled_by for entry in record.of_runs(runs)}
        assert settled == runs
        assert len(record.reclaimed(runs)) == len(runs)


async def _stopped_for_three_leases(
    fleet: TestFleet, client: Client, stopped: WorkerProcess, lease: float
) -> dict[str, int]:
    """Stops and continues a worker that owns runs; returns the runs and who ended them."""
    # Their time is over when the worker goes on: it commits what is no longer its own.
    handlers = [await client.start(Sleep, seconds=3 * lease) for _ in range(STOPPED)]
    await eventually(lambda: _armed(fleet) == STOPPED, PATIENCE)
    stopped.pause()
    assert fleet.owned_by(stopped) == STOPPED
    (other,) = fleet.start()
    await asyncio.sleep(3 * lease)  # the stop is the length of time that this is about
    old_names = _names_of(fleet, stopped)
    stopped.go_on()
    await eventually(lambda: _names_of(fleet, stopped) - old_names, PATIENCE)
    assert "others took this worker's deliveries" in stopped.log()
    assert await asyncio.gather(*handlers) == [other.pid] * STOPPED
    assert await asyncio.to_thread(other.leave) == 0
    return {handler.run_id: other.pid for handler in handlers}


def _armed(fleet: TestFleet) -> int:
    """Returns how many runs have a deadline: their workers have nothing more to say before their end."""
    with fleet.redis() as redis:
        return sum(redis.zcount(key, "-inf", "(+inf") for key in redis.keys("*}:live"))


def _names_of(fleet: TestFleet, worker: WorkerProcess) -> set[str]:
    """Returns the names under which a worker has a lease: those of the dead have a negative end."""
    with fleet.redis() as redis:
        (key,) = redis.keys("*:leases")
        names = {name.decode(): end for name, end in redis.zrange(key, 0, -1, withscores=True)}
    return {name for name, end in names.items() if end > 0 and pid_of(name) == worker.pid}


@pytest.mark.parametrize("then", ["close", "silence"])
@pytest.mark.parametrize("connection", ["worker-read", "worker-commit", "worker"])
@pytest.mark.timeout(120)
async def test_a_reply_that_is_lost_loses_nothing(
    tmp_path: Path, connection: str, then: Literal["close", "silence"]
) -> None:
    # A lease that never ends within the test: nobody but the worker itself can find what was lost.
    with TestFleet(tmp_path, lease="60s") as fleet:
        proxy = Proxy(fleet.server.port)
        (worker,) = fleet.start(url=proxy.url)
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            assert await (await client.start(Sleep, seconds=0.0)) == worker.pid
            proxy.lose_next_reply(f"stepfleet-{connection}", then)
            handler = await client.start(FanOut, width=20)
            result = await handler
        assert proxy.lost == [f"stepfleet-{connection}"]
        assert sorted(result["numbers"]) == list(range(20))
        fleet.wait_until_tidy([handler.run_id])
        record = fleet.record()
        assert record.check_settled(fleet.ledger, [handler.run_id]) == 41
        assert not record.reclaimed([handler.run_id])
        assert len(fleet.ledger.executions(run_id=handler.run_id)) >= 41
        proxy.close()


@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.timeout(300)
async def test_workers_that_are_told_to_leave_one_by_one_execute_nothing_twice(
    tmp_path: Path, rounds: int
) -> None:
    with TestFleet(tmp_path, lease="15s") as fleet:
        fleet.start(3)
        async with Client(fleet.url) as client, asyncio.timeout(4 * PATIENCE):
            load = Load(client, width=100, at_once=6)
            for _ in range(3 * rounds):
                await asyncio.to_thread(fleet.start)
                leaving = fleet.live[0]
                await asyncio.to_thread(while_holding, leaving, fleet, leaving.terminate)
                assert await asyncio.to_thread(leaving.process.wait, PATIENCE) == 0
            runs = await load.stop()
        fleet.wait_until_tidy(runs)
        assert len(runs) >= 3 * rounds
        assert (
            fleet.record().check_settled(fleet.ledger, runs) == len(runs) * load.deliveries_per_run
        )
        executions = [
            execution.delivery
            for execution in fleet.ledger.executions()
            if execution.step != "join"  # the last one of a join runs again, informed of the others
        ]
        assert len(executions) == len(set(executions)) == len(runs) * 101
        assert len(fleet.live) == 3
        assert len(fleet.workers) == 3 + 3 * rounds
