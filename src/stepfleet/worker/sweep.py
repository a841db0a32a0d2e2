"""Takes over what other workers lost or handed back, and what came to this one unseen; has it tidied then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from stepfleet.core.delivery import Delivery
from stepfleet.errors import StoreError
from stepfleet.storage.consumer import Consumer
from stepfleet.storage.fleet import Fleet
from stepfleet.storage.link import BLOCK
from stepfleet.worker.heartbeat import Heartbeat
from stepfleet.worker.janitor import Janitor
from stepfleet.worker.observer import Observer
from stepfleet.worker.outage import Outage
from stepfleet.worker.processor import Processor

logger = logging.getLogger("stepfleet.worker")

#: Seconds after which a read that was under way has ended.
BEHIND_A_READ: Final = BLOCK + 0.5


class Sweep:
    """Sweeps about every `every` seconds, and soon when it is told that there is something."""

    def __init__(
        self,
        fleet: Fleet,
        consumer: Consumer,
        processor: Processor,
        heartbeat: Heartbeat,
        janitor: Janitor,
        observer: Observer | None,
        *,
        every: float,
        finished_reads: Callable[[], int],
        is_draining: Callable[[], bool],
    ) -> None:
        self._fleet = fleet
        self._consumer = consumer
        self._processor = processor
        self._heartbeat = heartbeat
        self._janitor = janitor
        self._observer = observer
        self._every = every
        self._finished_reads = finished_reads
        self._is_draining = is_draining
        self._now = asyncio.Event()
        self._now.set()
        #: There is work to take over, and was no place for it.
        self.reclaim_is_due = False
        #: What was pending here and not held: row -> finished reads when it was seen first.
        self._suspicious: dict[tuple[int, str], int] = {}
        self._audit_soon = False

    def soon(self) -> None:
        """Sweep at once: there may be something to take over."""
        self._now.set()

    def answer_lost(self) -> None:
        """Sweep at once, and once more soon: a lost answer may have brought a delivery."""
        self._audit_soon = True
        self._now.set()

    async def run(self, outage: Outage) -> None:
        """Sweep until the worker drains."""
        while True:
            pause = self._every * self._fleet.random.uniform(0.75, 1.25)
            if self._audit_soon and self._suspicious:
                # What a lost answer had is known by the second look, behind the next read.
                self._audit_soon, pause = False, min(pause, BEHIND_A_READ)
            try:
                async with asyncio.timeout(pause):
                    await self._now.wait()
                handed_back = True
            except TimeoutError:
                handed_back = False
            self._now.clear()
            if self._is_draining():
                return
            try:
                await self.reclaim(returned=handed_back or self._heartbeat.work_was_returned)
                await self._audit()
                await self._janitor.tidy()
                await self._janitor.clean()
                outage.over()
            except StoreError as error:
                await outage.pause(error)

    async def reclaim(self, *, returned: bool) -> None:
        """Take over what others left, as much as there are places for, if there may be anything.

        `returned`: somebody may have handed something back.

        Raises:
            ConnectionLost, StoreRefused: as `Link.call`.
        """
        buries_until_ms = self._heartbeat.buries_until_ms
        if not returned and not (buries_until_ms and self._heartbeat.work_was_left):
            self.reclaim_is_due = False
            return
        free = self._processor.places
        self.reclaim_is_due = free == 0
        if free == 0:
            return
        suspects = self._processor.suspects
        async with suspects.on_their_way:
            arrivals = await self._consumer.reclaim(
                self._fleet.keys.leases,
                most=free,
                lost_once=suspects.takes_lost_once,
                suspect=suspects.takes_suspect,
                buries_until_ms=buries_until_ms,
                lease_ms=int(self._heartbeat.lease * 1000),
            )
            for arrival in arrivals:
                if self._observer and isinstance(arrival, Delivery) and arrival.route.step:
                    self._observer.reclaimed(arrival)
                self._processor.accept(arrival)
        if arrivals:
            logger.warning("took over deliveries of other workers: count=%d", len(arrivals))
            self._now.set()

    async def _audit(self) -> None:
        """Take what is pending here in two audits, with a finished read between them, and not held."""
        held = self._consumer.held_rows(self._processor.held)
        pending = await self._consumer.pending()
        held |= self._consumer.held_rows(self._processor.held)
        strays = [row for row in pending if row not in held]
        reads = self._finished_reads()
        unseen = [row for row in strays if self._suspicious.get(row, reads) < reads]
        self._suspicious = {row: self._suspicious.get(row, reads) for row in strays}
        for arrival in await self._consumer.audit(unseen):
            logger.warning(
                "a delivery was never seen here, it starts now: run_id=%s", arrival.run_id
            )
            self._processor.accept(arrival)
