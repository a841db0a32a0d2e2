"""Gives deliveries back that are not begun here, or not finished: others take them at once, and uncounted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from stepfleet.errors import StoreError
from stepfleet.storage.committer import Committer
from stepfleet.storage.consumer import Arrival, Consumer
from stepfleet.storage.link import Link
from stepfleet.worker.processor import Processor

logger = logging.getLogger("stepfleet.worker")

#: Status under which a worker announces that it handed deliveries back.
RETURNED: Final = "returned"


class HandBack:
    """Gives them back and says so in the stream of ended runs (`ends`)."""

    def __init__(
        self, link: Link, ends: str, consumer: Consumer, committer: Committer, processor: Processor
    ) -> None:
        self._link = link
        self._ends = ends
        self._consumer = consumer
        self._committer = committer
        self._processor = processor

    async def what_was_read(self, arrivals: Sequence[Arrival]) -> None:
        """Let others have at once what was read and will not begin here."""
        if not arrivals:
            return
        try:
            rows = [(arrival.route, arrival.entry) for arrival in arrivals]
            await self._tell(await self._consumer.give_back(rows))
        except StoreError as error:
            logger.debug("it goes back when this worker leaves: error=%s", error)

    async def what_stands_in_line(self, seconds: float) -> None:
        """Let others begin what has stood in line here for so long.

        Raises:
            ConnectionLost, StoreRefused: as `Link.call`; they go back when this worker leaves.
        """
        if rows := self._processor.let_go(seconds):
            await self._tell(await self._consumer.give_back(rows))

    async def everything(self) -> int:
        """Cancel what still runs, give up the lease, and return how many deliveries were left."""
        rest = list(self._processor.held)
        self._processor.drop_all("drain")
        try:
            async with asyncio.timeout(5.0):
                await self._committer.drained()
            pending = await self._consumer.pending()
            unseen = set(pending) - self._consumer.held_rows(rest)
            await self._tell(
                await self._consumer.hand_back([*rest, *self._consumer.rows_named(unseen)])
            )
        except (StoreError, TimeoutError) as error:
            logger.warning(
                "could not hand back, the lease has to run out: count=%d error=%s", len(rest), error
            )
        return len(rest)

    async def _tell(self, count: int) -> None:
        if count:
            await self._link.call("XADD", self._ends, "*", "r", "", "s", RETURNED)
            logger.warning("handed back: count=%d", count)
