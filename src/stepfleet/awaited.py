"""The ends that callers of one client await: many futures, few reads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

from stepfleet.errors import StoreError
from stepfleet.remote_run import not_found
from stepfleet.storage.reader import RunReader, RunRecord
from stepfleet.storage.watcher import RECHECK

logger = logging.getLogger("stepfleet.client")


class Awaited:
    """Who waits for which run."""

    def __init__(
        self, reader: RunReader, spawn: Callable[[Coroutine[Any, Any, None]], object]
    ) -> None:
        self._reader = reader
        self._spawn = spawn
        self._waiting: dict[str, asyncio.Future[RunRecord]] = {}

    @property
    def runs(self) -> Collection[str]:
        """Runs that somebody waits for."""
        return self._waiting.keys()

    async def end_of(self, run_id: str) -> RunRecord:
        """Wait for the end of a run, which is announced from now on, and return its record.

        Raises:
            RunNotFound: no such run.
        """
        future = self._waiting.get(run_id)
        if future is None:
            future = self._waiting[run_id] = asyncio.get_running_loop().create_future()
            self._spawn(self._look([run_id]))
        return await asyncio.shield(future)

    def told(self, run_ids: list[str]) -> None:
        """Note that runs have ended."""
        awaited = [run_id for run_id in run_ids if run_id in self._waiting]
        if awaited:
            self._spawn(self._look(awaited))

    async def _look(self, run_ids: Sequence[str]) -> None:
        try:
            records = await self._reader.runs(run_ids)
        except StoreError as error:
            logger.debug("a look at awaited runs failed, the next one is due: error=%s", error)
            return
        for run_id, record in zip(run_ids, records, strict=True):
            future = self._waiting.get(run_id)
            if future is None or (record is not None and record.status == "running"):
                continue
            del self._waiting[run_id]
            if future.done():
                continue
            if record is None:
                future.set_exception(not_found(run_id))
                future.exception()
            else:
                future.set_result(record)

    async def recheck(self) -> None:
        """Look at awaited runs now and then: an announcement may be lost with a connection or trimmed."""
        while True:
            await asyncio.sleep(RECHECK)
            for run_id in [
                run_id for run_id, future in self._waiting.items() if future.cancelled()
            ]:
                del self._waiting[run_id]
            waiting = list(self._waiting)
            for first in range(0, len(waiting), 500):
                await self._look(waiting[first : first + 500])
