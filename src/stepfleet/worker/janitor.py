"""Removes what ended runs and dead workers leave, and ends the children of ended runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, cast

from stepfleet.codec import Codec, TypeRegistry
from stepfleet.core import endings
from stepfleet.errors import StoreError
from stepfleet.storage.committer import Committer
from stepfleet.storage.consumer import Consumer
from stepfleet.storage.fleet import Fleet
from stepfleet.storage.link import Arg, Link
from stepfleet.storage.reader import RunReader
from stepfleet.worker.outage import Outage

logger = logging.getLogger("stepfleet.worker")

#: Seconds within which the children of an ended run are ended.
TIDY_WITHIN: Final = 0.3
#: Ended runs whose keys are expired at once.
TIDIED: Final = 500
#: Seconds between two rounds after dead workers.
ROUND: Final = 60.0
#: Age after which what a dead worker left is removed.
TOMBSTONE_MS: Final = 3_600_000


class Janitor:
    """Any worker may do any of it, at any time: whoever comes second finds nothing to do."""

    def __init__(
        self,
        fleet: Fleet,
        link: Link,
        consumer: Consumer,
        committer: Committer,
        reader: RunReader,
        *,
        lease: float,
    ) -> None:
        self._fleet = fleet
        self._link = link
        self._consumer = consumer
        self._committer = committer
        self._reader = reader
        self._lease_ms = int(lease * 1000)
        self._codec = Codec(TypeRegistry())
        self._children_left = asyncio.Event()
        self._last_round = 0.0

    def children_left(self) -> None:
        """Hear that a run has ended whose children may go on."""
        self._children_left.set()

    async def run(self, outage: Outage) -> None:
        """End the children of ended runs soon; the next sweep would find them as well."""
        while True:
            await self._children_left.wait()
            self._children_left.clear()
            # Every worker was told: those behind the first find nothing to do.
            await asyncio.sleep(self._fleet.random.uniform(0, TIDY_WITHIN))
            try:
                await self.tidy()
                outage.over()
            except StoreError as error:
                await outage.pause(error)

    async def tidy(self) -> None:
        """Expire what the end of a run could not name.

        Raises:
            ConnectionLost, StoreRefused: as `Link.call`.
        """
        keys = self._fleet.keys
        while ended := await self._link.call("LRANGE", keys.tidy, 0, TIDIED - 1):
            runs = [raw.decode("utf-8", "replace") for raw in ended]
            asked: list[tuple[Arg, ...]] = []
            for run_id in runs:
                asked += [("SMEMBERS", keys.further(run_id)), ("PTTL", keys.run(run_id))]
            replies = await self._link.calls(asked)
            told: list[tuple[Arg, ...]] = []
            await self._end_children(
                [
                    run_id
                    for run_id, further in zip(runs, replies[::2], strict=True)
                    if isinstance(further, list) and keys.children(run_id).encode() in further
                ]
            )
            for raw, run_id, further, left in zip(
                ended, runs, replies[::2], replies[1::2], strict=True
            ):
                # A run without an expiry is live: its id was used again after the retention.
                if isinstance(further, list) and isinstance(left, int) and left != -1:
                    names = [*cast("list[bytes]", further), keys.further(run_id)]
                    told += [("PEXPIRE", name, max(left, 1)) for name in names]
                # Last: what is cut off on its way is done again, by whoever looks next.
                told.append(("LREM", keys.tidy, 1, raw))
            await self._link.calls(told)

    async def _end_children(self, run_ids: Sequence[str]) -> None:
        """Cancel what belongs to ended runs; each of these is tidied in its turn, with its own children."""
        live = await self._reader.children(run_ids)
        cancels = [endings.cancelled(name, workflow, self._codec) for name, workflow in live]
        for answer in await asyncio.gather(*map(self._committer.commit, cancels)):
            if answer.word == "broken":
                logger.error("a child run cannot be ended, a key of it has a wrong type")

    async def clean(self) -> None:
        """Remove what only dead workers left, unless it was done lately.

        Raises:
            ConnectionLost, StoreRefused: as `Link.call`.
        """
        now = self._fleet.clock.steady()
        if now - self._last_round > ROUND:
            self._last_round = now
            await self._consumer.clean(
                tombstone_ms=TOMBSTONE_MS,
                retention_ms=int(self._fleet.bounds.retention.total_seconds() * 1000),
                lease_ms=self._lease_ms,
            )
