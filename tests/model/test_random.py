"""Random workflows give the same result and the same public events everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import stepfleet
from tests.model.random_flows import QUICK, SEEDS, Outcome, outcome, program

#: How many run at once.
AT_ONCE = 20
ALL = pytest.param(SEEDS, marks=pytest.mark.slow, id="all")

pytestmark = [
    pytest.mark.differs("it is the model that stepfleet is compared with"),
    pytest.mark.feature("1.4: random workflows"),
]


@pytest.mark.one_process("the next test is about processes")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seeds", [QUICK, ALL])
async def test_random_workflows_are_the_same_in_memory_and_on_the_model(seeds: range) -> None:
    assert await outcomes(seeds, stepfleet) == await outcomes(seeds, the_model())


@pytest.mark.one_process("it starts four worker processes of its own")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seeds", [QUICK, ALL])
async def test_random_workflows_are_the_same_on_four_processes_of_which_one_is_killed(
    seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.fleet import TestFleet

    expected = await outcomes(seeds, the_model())
    target = "quick_flows" if seeds is QUICK else "flows"
    with TestFleet(tmp_path, target=f"tests.model.random_flows:{target}") as fleet:
        fleet.start(4)
        monkeypatch.setenv("STEPFLEET_REDIS_URL", fleet.url)
        running = asyncio.create_task(outcomes(seeds, stepfleet))
        await asyncio.to_thread(kill_one_that_works, fleet)
        assert await running == expected


def kill_one_that_works(fleet: Any) -> None:
    from tests.support.fleet import while_holding

    victim = fleet.live[0]
    while_holding(victim, fleet, victim.kill)


async def outcomes(seeds: Iterable[int], api: Any) -> dict[int, Outcome]:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(seed: int) -> Outcome:
        async with places:
            return await outcome(program(seed, api)(timeout=120))

    found = await asyncio.gather(*(one(seed) for seed in seeds))
    return dict(zip(seeds, found, strict=True))


def the_model() -> Any:
    import workflows

    return workflows
