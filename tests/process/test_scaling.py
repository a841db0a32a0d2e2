"""Workers come and go under load, as an autoscaler would have it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from stepfleet import Client
from tests.support.fleet import LEAVE_S, TestFleet, WorkerProcess
from tests.support.flows import NotedChain
from tests.support.wait import eventually

#: Runs that go on at once.
WIDTH = 24
#: Seconds for anything to happen on a busy machine.
PATIENCE = 60.0


class Pressure:
    """Keeps a fleet busy: whenever a run ends, the next one begins."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._on = True
        self.results: dict[str, int] = {}
        self._lines = [asyncio.create_task(self._line()) for _ in range(WIDTH)]

    async def _line(self) -> None:
        while self._on:
            handler = await self._client.start(NotedChain, number=1, seconds=0.02)
            self.results[handler.run_id] = await handler

    async def end(self) -> None:
        """Lets every run that has begun come to its end."""
        self._on = False
        await asyncio.gather(*self._lines)


@pytest.mark.timeout(240)
async def test_from_one_worker_to_four_and_back_no_step_runs_twice(tmp_path: Path) -> None:
    # No lease runs out on a machine that is busy with other tests: who takes over here is a bug.
    with TestFleet(tmp_path, lease="30s") as fleet:
        (first,) = fleet.start()
        async with Client(fleet.url) as client, asyncio.timeout(3 * PATIENCE):
            load = Pressure(client)
            await eventually(lambda: len(load.results) > WIDTH, PATIENCE)
            more = await asyncio.to_thread(fleet.start, 3)
            await eventually(lambda: all(_works(fleet, worker) for worker in more), PATIENCE)
            for worker in more:
                worker.terminate()
            codes = [await asyncio.to_thread(worker.process.wait, LEAVE_S) for worker in more]
            ended = len(load.results)
            await eventually(lambda: len(load.results) > ended + WIDTH, PATIENCE)
            await load.end()
        codes.append(await asyncio.to_thread(first.leave))

        assert codes == [0, 0, 0, 0]
        assert set(load.results.values()) == {3}
        executed = Counter(execution.key for execution in fleet.ledger.executions())
        assert len(executed) == 3 * len(load.results)
        assert [key for key, count in executed.items() if count > 1] == []
        record = fleet.record()
        assert record.check_settled(fleet.ledger, load.results) == 3 * len(load.results)
        assert record.reclaimed(load.results) == []


def _works(fleet: TestFleet, worker: WorkerProcess) -> bool:
    return sum(execution.pid == worker.pid for execution in fleet.ledger.executions()) > WIDTH
