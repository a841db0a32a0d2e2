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
@pytest.mark.timeout(120)
async def test_a_worker_that_was_stopped_for_three_leases_changes_nothing(
    tmp_path: Path, lease: float
) -> None:
    with TestFleet(tmp_path, lease=f"{lease}s") as fleet:
        (stopped,) = fleet.start()
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            handlers = [await client.start(Sleep, seconds=lease) for _ in range(7)]
            await eventually(lambda: len(fleet.ledger.lines("start")) == 7, PATIENCE)
            # Its time is over when the worker goes on: it commits what is no longer its own.
            handlers.append(await client.start(Spin, seconds=lease))
            await eventually(lambda: fleet.ledger.executions("spin"), PATIENCE)
            stopped.pause()
            runs = [handler.run_id for handler in handlers]
            assert fleet.owned_by(stopped) == len(runs)
            (other,) = fleet.start()
            await asyncio.sleep(3 * lease)  # the stop is the length of time that this is about
            assert set(await asyncio.gather(*handlers)) == {other.pid}
            old_name = _names_of(fleet, stopped)
            stopped.go_on()

            await eventually(lambda: _names_of(fleet, stopped) - old_name, PATIENCE)
            await eventually(lambda: DROPPED in stopped.log(), PATIENCE)
            assert "others took this worker's deliveries" in stopped.log()
            assert other.leave() == 0
            again = await client.start(Sleep, seconds=0.0)
            assert await again == stopped.pid

        runs.append(again.run_id)
        fleet.wait_until_tidy(runs)
        record = fleet.record()
        assert record.check_settled(fleet.ledger, runs) == len(runs)
        assert {entry.settled_by for entry in record.of_runs(runs[:-1])} == {other.pid}
        assert len(record.reclaimed(runs)) == len(runs) - 1


def _names_of(fleet: TestFleet, worker: WorkerProcess) -> set[str]:
    """Returns the names under which a worker has a lease: those of the dead have a negative end."""
    with fleet.redis() as redis:
        (key,) = redis.keys("*:leases")
        names = {name.decode(): end for name, end in redis.zrange(key, 0, -1, withscores=True)}
    return {
        name for name, end in names.items() if end > 0 and pid_of(name) == worker.pid
    }


@pytest.mark.parametrize("then", ["close", "silence"])
@pytest.mark.parametrize("connection", ["worker-read", "worker-commit"])
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
            load = Load(client)
            for _ in range(3 * rounds):
                await asyncio.to_thread(fleet.start)
                leaving = fleet.live[0]
                await asyncio.to_thread(while_holding, leaving, fleet, leaving.terminate)
                assert await asyncio.to_thread(leaving.process.wait, PATIENCE) == 0
            runs = await load.stop()
        fleet.wait_until_tidy(runs)
        deliveries = 2 * Load.WIDTH + 1
        assert len(runs) >= 3 * rounds
        assert fleet.record().check_settled(fleet.ledger, runs) == len(runs) * deliveries
        executions = [
            execution.delivery
            for execution in fleet.ledger.executions()
            if execution.step != "join"  # the last one of a join runs again, informed of the others
        ]
        assert len(executions) == len(set(executions)) == len(runs) * (Load.WIDTH + 1)
        assert len(fleet.live) == 3
        assert len(fleet.workers) == 3 + 3 * rounds
