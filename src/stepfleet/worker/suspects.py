"""Deliveries that were lost more than once: one may be what kills workers, so one runs at a time.

Whatever a worker has when it dies counts as lost with it, so it also takes none over while it has one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from stepfleet.core.delivery import Delivery
from stepfleet.worker.held import Held

#: From this many deliveries on, one runs alone among its like.
SUSPECT: Final = 3


class Suspects:
    """Those of one process, but for those that wait for another run. `left` is called when one leaves."""

    def __init__(self, left: Callable[[], None]) -> None:
        self._left = left
        #: The first one runs.
        self._queue: list[Held] = []
        self._moved = asyncio.Event()
        #: Held by whoever may bring one, until it is here.
        self.on_their_way = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, held: Held) -> None:
        """Let a delivery stand in the queue, if it is one."""
        if is_suspect(held.delivery) and held not in self._queue:
            self._queue.append(held)

    def remove(self, held: Held) -> None:
        """Let the next one run."""
        if held in self._queue:
            self._queue.remove(held)
            self._moved.set()
            self._left()

    async def turn(self, held: Held) -> None:
        """Wait until this one may run."""
        while held in self._queue and self._queue[0] is not held:
            self._moved.clear()
            await self._moved.wait()


def is_suspect(delivery: Delivery) -> bool:
    """Tell whether a delivery was lost more than once."""
    return delivery.deliveries >= SUSPECT
