"""Child runs when processes die: attached again, ended with their parent, and blamed for nobody else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from stepfleet import Client
from stepfleet.errors import DeadLettered, WorkflowCancelledByUser
from tests.chaos.scenarios.entries import replaced
from tests.support.families import Careful, Doomed, Family
from tests.support.fleet import TestFleet
from tests.support.wait import eventually

TARGET = "tests.support.families:FLOWS"
PATIENCE = 60.0
MAX_DELIVERIES = 3


def live(fleet: TestFleet) -> int:
    with fleet.redis() as redis:
        return sum(redis.zcard(key) for key in redis.keys("*}:live"))


def children(fleet: TestFleet) -> set[str]:
    return {line["key"] for line in fleet.ledger.lines("child")}


async def test_one_worker_that_runs_one_step_at_a_time_ends_a_deep_recursion(
    tmp_path: Path,
) -> None:
    with TestFleet(tmp_path, target=TARGET) as fleet:
        fleet.start(concurrency=1)
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            handler = await client.start(Family, depth=20)
            assert await handler == 20
        fleet.wait_until_tidy([handler.run_id, *children(fleet)])


async def test_a_parent_whose_worker_is_killed_attaches_to_its_child(tmp_path: Path) -> None:
    with TestFleet(tmp_path, target=TARGET) as fleet:
        workers = fleet.start(2)
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            handler = await client.start(Family, depth=2, seconds=5.0)
            await eventually(lambda: live(fleet) == 3, PATIENCE)
            await eventually(lambda: len(fleet.ledger.executions("call")) == 3, PATIENCE)
            (first,) = [line for line in fleet.ledger.lines("start") if line["depth"] == 2]
            (killed,) = [worker for worker in workers if worker.pid == first["pid"]]
            killed.kill()
            assert await handler == 2
        runs = {handler.run_id, *children(fleet)}
        assert len(runs) == 3, "the same children"
        assert len(fleet.ledger.executions("call", handler.run_id)) == 2
        fleet.wait_until_tidy(runs)
        assert fleet.record().check_settled(fleet.ledger, runs) == 3


async def test_children_end_with_a_parent_whose_worker_was_killed(tmp_path: Path) -> None:
    # Nothing of the parent runs on another worker before it ends: the lease is long.
    with TestFleet(tmp_path, target=TARGET, lease="60s") as fleet:
        (first,) = fleet.start()
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            handler = await client.start(Family, depth=3, seconds=600.0)
            await eventually(lambda: live(fleet) == 4, PATIENCE)
            first.kill()
            fleet.start()
            await handler.cancel_run()
            with pytest.raises(WorkflowCancelledByUser):
                await handler
            await eventually(lambda: live(fleet) == 0, 20.0)
            for run_id in children(fleet):
                assert (await client.handler(run_id).status()).status == "cancelled"


async def test_a_parent_is_told_of_a_child_that_killed_the_worker_of_both(tmp_path: Path) -> None:
    with TestFleet(tmp_path, target=TARGET, max_deliveries=MAX_DELIVERIES) as fleet:
        fleet.start()
        async with Client(fleet.url) as client, asyncio.timeout(2 * PATIENCE), replaced(fleet, 1):
            result = await (await client.start(Careful))
        assert "its worker died 3 times" in result
        assert len(fleet.ledger.executions("kill")) == MAX_DELIVERIES


async def test_a_parent_that_kills_its_worker_behind_its_child_is_given_up(tmp_path: Path) -> None:
    with TestFleet(tmp_path, target=TARGET, max_deliveries=MAX_DELIVERIES) as fleet:
        fleet.start()
        async with Client(fleet.url) as client, asyncio.timeout(2 * PATIENCE), replaced(fleet, 1):
            handler = await client.start(Doomed)
            with pytest.raises(DeadLettered, match="its worker died 3 times"):
                await handler
        killed = [line for line in fleet.ledger.lines("start") if line["run"] == handler.run_id]
        assert len(killed) == MAX_DELIVERIES
