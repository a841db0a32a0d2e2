"""A delivery that kills its workers ends as a dead letter, and the work beside it goes on."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from stepfleet import Client
from stepfleet.errors import DeadLettered
from tests.support.fleet import TestFleet
from tests.support.flows import Poison
from tests.support.load import Load
from tests.support.wait import eventually

PATIENCE = 60.0
MAX_DELIVERIES = 3


@pytest.mark.timeout(120)
async def test_a_step_that_kills_its_workers_is_given_up_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    with TestFleet(tmp_path, max_deliveries=MAX_DELIVERIES) as fleet:
        fleet.start(2)
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            load = Load(client)
            replacing = asyncio.create_task(_replace_the_dead(fleet))
            poison = await client.start(Poison)
            with pytest.raises(DeadLettered, match="its worker died 3 times"):
                await poison
            before = load.started
            await eventually(lambda: load.started >= before + 4, PATIENCE)
            runs = await load.stop()
            replacing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await replacing
        assert len(fleet.ledger.lines("start")) > MAX_DELIVERIES
        assert len(fleet.ledger.executions("kill")) == MAX_DELIVERIES
        assert sum(worker.process.poll() == -9 for worker in fleet.workers) == MAX_DELIVERIES
        fleet.wait_until_tidy([*runs, poison.run_id])
        assert fleet.record().check_settled(fleet.ledger, runs) == (
            len(runs) * load.deliveries_per_run
        )
        with fleet.redis() as redis:
            (key,) = redis.keys("*}:dead")
            ((_, letter),) = redis.xrange(key)
            assert letter[b"run"].decode() == poison.run_id


async def _replace_the_dead(fleet: TestFleet) -> None:
    """Starts a worker for each that died, as whatever runs them does."""
    while True:
        if len(fleet.live) < 2:
            await asyncio.to_thread(fleet.start)
        await asyncio.sleep(0.05)
