"""F22, F23: workers of two versions of the code at once, and workers that are told to leave."""

from __future__ import annotations

import asyncio
from pathlib import Path

from stepfleet import Client
from tests.chaos.scenarios.network import check
from tests.chaos.scenarios.scenario import PATIENCE, Figures, scenario
from tests.support.fleet import TestFleet, while_holding
from tests.support.load import Load
from tests.support.wait import eventually

OLD = "tests.chaos.scenarios.code_before:FLOWS"
NEW = "tests.chaos.scenarios.code_after:FLOWS"


# -- F22 ---------------------------------------------------------------------------------------------


@scenario(
    "F22",
    fault="workers of two versions of the code take turns ten times (a field, a step and an event more, "
    "an event less), under load",
    seen="an event for a step that only one version has waits for a worker of it",
    lost="nothing",
    recovery="a version is gone to the last run that needs it ends, when it is back",
)
async def two_versions_take_turns(directory: Path, *, turns: int = 10) -> Figures:
    with TestFleet(directory, target=OLD) as fleet:
        fleet.start()
        async with Client(fleet.url) as client, asyncio.timeout(4 * PATIENCE):
            handlers = [await client.start("Rolling", number=0)]
            for turn in range(turns):
                (leaving,) = fleet.live
                await asyncio.to_thread(fleet.start, target=NEW if turn % 2 == 0 else OLD)
                handlers += [await client.start("Rolling", number=n) for n in range(20)]
                # in the middle of the work, so that each version finds what the other one left
                await eventually(lambda leaving=leaving: fleet.owned_by(leaving) > 0, PATIENCE)
                assert await asyncio.to_thread(leaving.leave) == 0
            loop = asyncio.get_running_loop()
            began = loop.time()
            await asyncio.to_thread(fleet.start, target=NEW)
            results = await asyncio.gather(*handlers)
            took = loop.time() - began
        runs = [handler.run_id for handler in handlers]
        fleet.wait_until_tidy(runs)
        record = fleet.record()
        record.check_settled(fleet.ledger, runs)
        assert not record.reclaimed(runs)
    by = {version: results.count(version) for version in sorted(set(results))}
    assert set(by) == {"before", "after"}
    ended = ", ".join(f"{count} by the code {version}" for version, count in by.items())
    return Figures(recovery=[took], counted=f"{turns} changes, {len(runs)} runs: ended {ended}")


# -- F23 ---------------------------------------------------------------------------------------------


@scenario(
    "F23",
    fault="all workers are replaced one by one (`SIGTERM`, 6 times), under load",
    seen="nothing",
    lost="nothing, and nothing runs twice",
    recovery="signal to the worker's end: its steps finish first",
)
async def workers_leave_one_by_one(directory: Path) -> Figures:
    return await replaced_one_by_one(directory, rounds=2)


async def replaced_one_by_one(directory: Path, *, rounds: int) -> Figures:
    gaps: list[float] = []
    with TestFleet(directory, lease="15s") as fleet:
        fleet.start(3)
        async with Client(fleet.url) as client, asyncio.timeout(4 * PATIENCE):
            load = Load(client, width=100, at_once=6)
            for _ in range(3 * rounds):
                await asyncio.to_thread(fleet.start)
                leaving = fleet.live[0]
                await asyncio.to_thread(while_holding, leaving, fleet, leaving.terminate)
                began = asyncio.get_running_loop().time()
                assert await asyncio.to_thread(leaving.process.wait, PATIENCE) == 0
                gaps.append(asyncio.get_running_loop().time() - began)
            runs = await load.stop()
        check(fleet, load, runs)
        assert len(runs) >= 3 * rounds
        executions = [
            execution.delivery
            for execution in fleet.ledger.executions()
            if execution.step != "join"  # the last one of a join runs again, informed of the others
        ]
        assert len(executions) == len(set(executions)) == len(runs) * 101
        assert len(fleet.live) == 3
        assert len(fleet.workers) == 3 + 3 * rounds
    return Figures(
        recovery=gaps,
        counted=f"{3 * rounds} workers left with exit code 0, {len(executions)} steps executed once each",
    )
