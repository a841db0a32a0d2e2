"""A fan-out runs on every process and joins once, whatever becomes of the processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from stepfleet import Client, Workflow
from tests.support.fleet import TestFleet, calls, while_holding
from tests.support.flows import Counted, CountedList, FanOut, Listed

WIDTH = 200
#: Seconds for a run to end although a worker was killed and the machine is busy.
PATIENCE = 60.0


@contextlib.asynccontextmanager
async def fleet_of(
    directory: Path, workers: int, **settings: str
) -> AsyncIterator[tuple[TestFleet, Client]]:
    with TestFleet(directory, **settings) as fleet:
        fleet.start(workers)
        async with Client(fleet.url) as client:
            yield fleet, client


@pytest.mark.parametrize("repetitions", [3, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
async def test_a_fan_out_joins_once_although_a_worker_is_killed(
    tmp_path: Path, repetitions: int
) -> None:
    async with fleet_of(tmp_path, 4) as (fleet, client):
        runs: list[str] = []
        for _ in range(repetitions):
            handler = await client.start(FanOut, width=WIDTH, seconds=0.05)
            runs.append(handler.run_id)
            victim = fleet.live[0]
            await asyncio.to_thread(while_holding, victim, fleet, victim.kill)
            async with asyncio.timeout(PATIENCE):
                result = await handler
            assert sorted(result["numbers"]) == list(range(WIDTH))
            assert len(result["pids"]) >= 2
            await asyncio.to_thread(fleet.start)
        fleet.wait_until_tidy(runs)
        record = fleet.record()
        # one for the start, a work and a join for each item
        assert record.check_settled(fleet.ledger, runs) == repetitions * (1 + 2 * WIDTH)
        assert len(record.reclaimed(runs)) >= repetitions
        assert len(fleet.deaths()) == repetitions


@pytest.mark.timeout(300)
async def test_a_list_is_collected_once_although_a_worker_is_killed(tmp_path: Path) -> None:
    repetitions = 2
    async with fleet_of(tmp_path, 3) as (fleet, client):
        runs: list[str] = []
        for _ in range(repetitions):
            handler = await client.start(Listed, width=WIDTH, seconds=0.05)
            runs.append(handler.run_id)
            victim = fleet.live[0]
            await asyncio.to_thread(while_holding, victim, fleet, victim.kill)
            async with asyncio.timeout(PATIENCE):
                result = await handler
            assert sorted(result["numbers"]) == list(range(WIDTH))
            await asyncio.to_thread(fleet.start)
        fleet.wait_until_tidy(runs)
        record = fleet.record()
        # one for the start, one for each item, one for the whole list
        assert record.check_settled(fleet.ledger, runs) == repetitions * (2 + WIDTH)
        assert len(record.reclaimed(runs)) >= repetitions
        assert len(fleet.deaths()) == repetitions


@pytest.mark.parametrize("flow", [Counted, CountedList])
@pytest.mark.parametrize(
    ("narrow", "wide"), [(200, 1_000), pytest.param(1_000, 10_000, marks=pytest.mark.slow)]
)
@pytest.mark.timeout(300)
async def test_a_join_costs_the_same_per_event_however_wide_it_is(
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    flow: type[Workflow],
    narrow: int,
    wide: int,
) -> None:
    async with fleet_of(tmp_path, 1, lease="15s") as (fleet, client):
        await _costs(fleet, client, flow, narrow)  # the first run also pays for what is made once
        costs: dict[int, list[dict[str, float]]] = {narrow: [], wide: []}
        for _ in range(3):
            for width in (narrow, wide):
                costs[width].append(await _costs(fleet, client, flow, width))
    # What others do at the same time shows in processor time too (1.2 alone, 1.6 beside four builds).
    for what, most in {"cpu": 3, "commands": 1.5, "calls": 1.5}.items():
        before, after = (min(cost[what] for cost in costs[width]) for width in (narrow, wide))
        record_property(f"{what} per event", f"{before:.6f} at {narrow}, {after:.6f} at {wide}")
        assert before > 0
        assert after <= most * before, f"{what} per event: {before:.6f}, then {after:.6f}"


async def _costs(
    fleet: TestFleet, client: Client, flow: type[Workflow], width: int
) -> dict[str, float]:
    worker = fleet.live[0]
    with fleet.redis() as redis:
        before, cpu = calls(redis), worker.cpu_seconds()
        async with asyncio.timeout(PATIENCE):
            assert await (await client.start(flow, width=width)) == width
        used = calls(redis) - before
        spent = worker.cpu_seconds() - cpu
    per_event: dict[str, Any] = {
        "cpu": spent / width,
        "commands": used.total() / width,
        "calls": used["evalsha"] / width,
    }
    return per_event
