"""The store of a run is one store, whatever process writes to it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from stepfleet import Client
from tests.support.fleet import TestFleet
from tests.support.flows import Counter, Nested

PATIENCE = 120.0


@pytest.mark.parametrize("times", [200, pytest.param(1_000, marks=pytest.mark.slow)])
async def test_parallel_edits_of_four_processes_lose_no_increment(
    tmp_path: Path, times: int
) -> None:
    with TestFleet(tmp_path, lease="15s") as fleet:
        fleet.start(4)
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            handler = await client.start(Counter, times=times)
            assert await handler == times
        executions = fleet.ledger.executions("add")
        assert len(executions) == times
        assert len({execution.pid for execution in executions}) >= 2
        fleet.wait_until_tidy([handler.run_id])
        assert fleet.record().check_settled(fleet.ledger, [handler.run_id]) == 1 + 2 * times


@pytest.mark.parametrize("times", [40, pytest.param(200, marks=pytest.mark.slow)])
async def test_paths_of_one_field_that_are_set_at_the_same_time_all_stay(
    tmp_path: Path, times: int
) -> None:
    with TestFleet(tmp_path, lease="15s") as fleet:
        fleet.start(4)
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            handler = await client.start(Nested, times=times)
            tree = await handler
        assert sorted(tree) == sorted(f"leaf{number}" for number in range(times))
        assert len(set(tree.values())) >= 2
        fleet.wait_until_tidy([handler.run_id])
