"""The ends of runs that callers of one client await: many waits, few reads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any
from weakref import WeakValueDictionary

from stepfleet.errors import (
    ConnectionLost,
    DecodeError,
    RunNotFound,
    StoreError,
    StoreRefused,
    WorkflowError,
)
from stepfleet.storage.reader import Announcement, Ended, RunReader, damage
from stepfleet.storage.watcher import RECHECK

logger = logging.getLogger("stepfleet.client")

#: Records read at once.
COUNT = 500


class Ending:
    """The end of one run, for all in this process who wait for it."""

    __slots__ = ("__weakref__", "_awaited", "ended", "must_look", "run_id", "waits")

    def __init__(self, awaited: Awaited, run_id: str, *, must_look: bool) -> None:
        self._awaited = awaited
        self.run_id = run_id
        #: How the run ended, once it is known here.
        self.ended: Ended | None = None
        #: Whether the run may have ended without an announcement that was heard here.
        self.must_look = must_look
        #: One for each who waits, since any of them may be cancelled.
        self.waits: tuple[asyncio.Future[Ended], ...] = ()

    def seen(self) -> Coroutine[Any, Any, Ended]:
        """Wait for the end and return how the run ended.

        Raises:
            RunNotFound: no such run.
            ConnectionLost: the client was closed before.
        """
        return self._awaited.end(self)


class Awaited:
    """Who waits for which run. An announcement answers where it can, else the run's record."""

    def __init__(
        self,
        reader: RunReader,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        *,
        hearing: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._reader = reader
        self._hearing = hearing
        self._hears = False
        self._spawn = spawn
        self._endings: WeakValueDictionary[str, Ending] = WeakValueDictionary()
        self._waiting: dict[str, Ending] = {}
        self._to_look: list[Ending] = []
        self._looking = False

    @property
    def runs(self) -> Collection[str]:
        """Runs that somebody waits for."""
        return self._waiting.keys()

    def ending(self, run_id: str, *, is_heard: bool) -> Ending:
        """Return the end of a run; `is_heard`: it begins later, and ends are heard by now."""
        ending = self._endings.get(run_id)
        if ending is None:
            ending = self._endings[run_id] = Ending(self, run_id, must_look=not is_heard)
        return ending

    async def end(self, ending: Ending) -> Ended:
        """Wait for the end of a run (`Ending.seen`)."""
        if not self._hears:
            await self._hearing()
            self._hears = True
        if ending.ended is not None:
            return ending.ended
        if not ending.waits:
            self._waiting[ending.run_id] = ending
            if ending.must_look:
                self._look_soon(ending)
        future: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        ending.waits += (future,)
        try:
            return await future
        finally:
            if future in ending.waits:
                # Given up. An announcement is heard as long as somebody has the handler.
                ending.waits = tuple(one for one in ending.waits if one is not future)
                if not ending.waits:
                    self._waiting.pop(ending.run_id, None)

    def told(self, announced: Sequence[Announcement]) -> None:
        """Hear of ends."""
        for one in announced:
            ending = self._endings.get(one.run_id)
            if ending is None or ending.ended is not None:
                continue
            try:
                ended = one.ended()
            except DecodeError as error:
                self._settle(ending, error)
                continue
            if ended is not None:
                self._settle(ending, ended)
                continue
            ending.must_look = True
            if ending.waits:
                self._look_soon(ending)

    def close(self) -> None:
        """Tell who still waits that no end will be heard here."""
        for ending in tuple(self._waiting.values()):
            self._settle(
                ending,
                ConnectionLost(f"the client was closed before run {ending.run_id} ended"),
            )

    def _settle(self, ending: Ending, how: Ended | WorkflowError) -> None:
        waits, ending.waits = ending.waits, ()
        self._waiting.pop(ending.run_id, None)
        if isinstance(how, Ended):
            ending.ended = how
        else:
            ending.must_look = True
        for future in waits:
            if future.done():
                continue
            if isinstance(how, Ended):
                future.set_result(how)
            else:
                future.set_exception(how)

    def _look_soon(self, ending: Ending) -> None:
        """Read its record, together with all those that are asked for until then."""
        self._to_look.append(ending)
        if not self._looking:
            self._looking = True
            self._spawn(self._look())

    async def _look(self) -> None:
        try:
            while self._to_look:
                some = self._to_look[:COUNT]
                del self._to_look[:COUNT]
                await self._look_at(some)
        except StoreError as error:
            self._to_look.clear()
            logger.debug("a look at awaited runs failed, the next one is due: error=%s", error)
        finally:
            self._looking = False

    async def _look_at(self, some: Sequence[Ending]) -> None:
        try:
            records = await self._reader.runs([ending.run_id for ending in some])
        except (DecodeError, StoreRefused) as error:
            # One record that cannot be read does not keep the others from being told.
            if len(some) > 1:
                for ending in some:
                    await self._look_at([ending])
            elif isinstance(error, DecodeError):
                self._settle(some[0], error)
            elif "WRONGTYPE" in str(error):
                reason = f"the record of run {some[0].run_id} is damaged: {damage(some[0].run_id)}"
                self._settle(some[0], DecodeError(reason))
            else:
                logger.debug("run_id=%s: its record cannot be read: %s", some[0].run_id, error)
            return
        for ending, record in zip(some, records, strict=True):
            if record is None:
                self._settle(ending, not_found(ending.run_id))
            elif record.status != "running":
                self._settle(ending, record.how_it_ended())

    async def recheck(self) -> None:
        """Look now and then at runs that are awaited for long: an announcement may have been trimmed."""
        before: set[str] = set()
        while True:
            await asyncio.sleep(RECHECK)
            for run_id, ending in tuple(self._waiting.items()):
                if run_id in before or ending.must_look:
                    self._look_soon(ending)
            before = set(self._waiting)


def not_found(run_id: str) -> RunNotFound:
    """Return the error for an id that names no run."""
    return RunNotFound(
        f"no run {run_id!r} is recorded in this namespace: it was never started here, "
        "or its retention has passed"
    )
