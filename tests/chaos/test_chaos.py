"""Everything fails at random, again and again, and every run still ends with its result, once."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from stepfleet import Client
from tests.support.fleet import TestFleet, while_holding
from tests.support.load import Load

#: A seed to repeat a failure with.
SEED = "CHAOS_SEED"
WORKERS = 4
LEASE_S = 1.0


@pytest.mark.parametrize("faults", [6, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
async def test_random_faults_lose_nothing_and_repeat_nothing(tmp_path: Path, faults: int) -> None:
    seed = int(os.environ.get(SEED) or random.SystemRandom().getrandbits(32))
    sys.stdout.write(f"{SEED}={seed}\n")  # shown with a failure
    dice = random.Random(seed)
    with TestFleet(tmp_path, lease=f"{LEASE_S}s") as fleet:
        fleet.start(WORKERS)
        async with Client(fleet.url) as client, asyncio.timeout(500.0):
            load = Load(client)
            # each kind comes, however few there are
            kinds = [_kill, _stop, _drain, _crash_redis] * (faults // 4 + 1)
            dice.shuffle(kinds := kinds[: faults - faults % 4] + dice.sample(kinds, faults % 4))
            for fault in kinds:
                await asyncio.sleep(dice.uniform(0.1, 0.6))  # when a fault comes is chance
                await fault(fleet, dice)
            runs = await load.stop()
        assert len(runs) >= 2 * faults
        fleet.wait_until_tidy(runs, timeout=30.0)
        record = fleet.record()
        assert record.check_settled(fleet.ledger, runs) == len(runs) * load.deliveries_per_run
        done = Counter(fault.__name__ for fault in kinds)
        assert len(fleet.deaths()) == done["_kill"] > 0
        assert record.reclaimed(runs)
        assert len(fleet.live) == WORKERS


async def _kill(fleet: TestFleet, dice: random.Random) -> None:
    victim = dice.choice(fleet.live)
    await asyncio.to_thread(while_holding, victim, fleet, victim.kill)
    await asyncio.to_thread(fleet.start)


async def _stop(fleet: TestFleet, dice: random.Random) -> None:
    worker = dice.choice(fleet.live)
    worker.pause()
    await asyncio.sleep(dice.uniform(0.5, 2.5) * LEASE_S)
    worker.go_on()


async def _drain(fleet: TestFleet, dice: random.Random) -> None:
    assert await asyncio.to_thread(dice.choice(fleet.live).leave) == 0
    await asyncio.to_thread(fleet.start)


async def _crash_redis(fleet: TestFleet, dice: random.Random) -> None:
    await asyncio.to_thread(fleet.server.kill)
    await asyncio.sleep(dice.uniform(0.0, 1.0))
    await asyncio.to_thread(fleet.server.start)
