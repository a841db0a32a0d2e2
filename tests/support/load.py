"""Runs that go on while a test does something to the fleet."""

from __future__ import annotations

import asyncio
from random import SystemRandom
from typing import Any, Final

from stepfleet import Client, WorkflowHandler
from stepfleet.client import new_run_id
from stepfleet.errors import ConnectionLost, RunNotFound, StoreRefused
from tests.support.flows import FanOut


class Load:
    """Keeps a few fan-outs under way, until it is told to stop; each has to end with its result."""

    #: Seconds of each of their events.
    SECONDS: Final = 0.1

    def __init__(
        self, client: Client, *, width: int = 20, at_once: int = 4, may_vanish: bool = False
    ) -> None:
        self._client = client
        self._may_vanish = may_vanish
        self.width = width
        #: What a run puts into streams: its start, and a work and a join for each event.
        self.deliveries_per_run = 2 * width + 1
        self._runs: list[str] = []
        self._stopping = False
        #: How often a start had to be repeated because Redis was away.
        self.repeated = 0
        #: Runs that were recorded, were lost by the server, and were started again.
        self.vanished: list[str] = []
        self._tasks = [asyncio.create_task(self._produce()) for _ in range(at_once)]

    @property
    def started(self) -> int:
        """Runs so far."""
        return len(self._runs)

    async def stop(self) -> list[str]:
        """Waits until every run has ended, and returns their ids."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        return self._runs

    async def _produce(self) -> None:
        while not self._stopping:
            run_id = new_run_id(SystemRandom())
            self._runs.append(run_id)
            result = await self._result(run_id)
            assert sorted(result["numbers"]) == list(range(self.width))

    async def _result(self, run_id: str) -> dict[str, Any]:
        while True:
            try:
                return await (await self._started(run_id))
            except RunNotFound:
                if not self._may_vanish:
                    raise
                self.vanished.append(run_id)

    async def _started(self, run_id: str) -> WorkflowHandler:
        while True:
            try:
                return await self._client.start(
                    FanOut, run_id=run_id, width=self.width, seconds=self.SECONDS
                )
            except (ConnectionLost, StoreRefused):
                self.repeated += 1  # as documented: with the same id it names the same run
                await asyncio.sleep(0.05)  # a refusal comes at once
