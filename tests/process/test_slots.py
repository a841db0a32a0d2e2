"""`num_workers` and `max_concurrency` hold over all processes, and their slots survive a kill."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from stepfleet import Client
from tests.support.fleet import TestFleet, most_at_once
from tests.support.flows import Capped, Narrow
from tests.support.wait import eventually

#: What the steps of both workflows allow.
SLOTS = 3
PATIENCE = 60.0


# So much that most of the work is left when the dead worker's slots are taken over, on a busy machine too.
@pytest.mark.parametrize("width", [90, pytest.param(200, marks=pytest.mark.slow)])
async def test_a_step_runs_three_times_at_once_within_a_run_also_after_a_kill(
    tmp_path: Path, width: int
) -> None:
    with TestFleet(tmp_path) as fleet:
        fleet.start(4)
        async with Client(fleet.url) as client, asyncio.timeout(2 * PATIENCE):
            handlers = [await client.start(Narrow, width=width, seconds=0.2) for _ in range(2)]
            await _kill_one_that_runs(fleet, "three")
            assert await asyncio.gather(*handlers) == [width, width]
        runs = [handler.run_id for handler in handlers]
        (killed,) = fleet.deaths().items()
        for run_id in runs:
            executions = fleet.ledger.executions("three", run_id)
            assert len(executions) >= width
            assert most_at_once(executions, fleet.deaths()) == SLOTS
            after = [execution for execution in executions if execution.began > killed[1]]
            assert most_at_once(after, {}) == SLOTS
        assert len({execution.pid for execution in fleet.ledger.executions("three")}) >= 2
        fleet.wait_until_tidy(runs)
        record = fleet.record()
        assert record.check_settled(fleet.ledger, runs) == 2 * (1 + 2 * width)
        assert record.reclaimed(runs)
        assert all(record.slots[run_id, "three"] == 0 for run_id in runs)


@pytest.mark.parametrize("width", [8, pytest.param(40, marks=pytest.mark.slow)])
async def test_a_step_runs_three_times_at_once_over_all_runs_also_after_a_kill(
    tmp_path: Path, width: int
) -> None:
    with TestFleet(tmp_path) as fleet:
        fleet.start(4)
        async with Client(fleet.url) as client, asyncio.timeout(2 * PATIENCE):
            handlers = [await client.start(Capped, width=width, seconds=0.4) for _ in range(6)]
            await _kill_one_that_runs(fleet, "scarce")
            assert await asyncio.gather(*handlers) == [width] * 6
        runs = [handler.run_id for handler in handlers]
        (killed,) = fleet.deaths().items()
        executions = fleet.ledger.executions("scarce")
        assert len(executions) >= 6 * width
        assert most_at_once(executions, fleet.deaths()) == SLOTS
        after = [execution for execution in executions if execution.began > killed[1]]
        assert most_at_once(after, {}) == SLOTS
        fleet.wait_until_tidy(runs)
        record = fleet.record()
        record.check_settled(fleet.ledger, runs)
        assert record.reclaimed(runs)


async def _kill_one_that_runs(fleet: TestFleet, step: str) -> None:
    """Kills a worker in the middle of an execution, after some executions have come to their end."""

    def in_the_middle() -> bool:
        executions = fleet.ledger.executions(step)
        running = [execution.pid for execution in executions if execution.ended is None]
        if len(executions) - len(running) < SLOTS or not running:
            return False
        victim = next(worker for worker in fleet.live if worker.pid == running[-1])
        victim.pause()  # so that what it runs is still open when it dies
        if any(e.ended is None for e in fleet.ledger.executions(step) if e.pid == victim.pid):
            victim.kill()
            return True
        victim.go_on()
        return False

    await eventually(in_the_middle, PATIENCE)
