"""Deliveries that were lost with a worker: one of them may be what kills workers.

Those lost once run beside each other. One lost more often is suspect: it runs when no other that was lost
does, so that none of these has it counted once more. Whatever a worker has when it dies counts as lost with
it, so what may not run beside each other is not taken over together either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from stepfleet.core.delivery import Delivery
from stepfleet.worker.held import Held

#: From this many deliveries on, one is suspect.
SUSPECT: Final = 3


class Suspects:
    """Those of one process, but for those that wait for another run. `left` is called when others may come."""

    def __init__(self, left: Callable[[], None]) -> None:
        self._left = left
        #: Suspects; the first one runs, or is the next one to.
        self._queue: list[Held] = []
        self._running: Held | None = None
        self._lost_once = set[Held]()
        self._moved = asyncio.Event()
        #: Held by whoever may bring some, until they are here.
        self.on_their_way = asyncio.Lock()

    @property
    def takes_lost_once(self) -> bool:
        """Whether deliveries that were lost once may come."""
        return not self._queue

    @property
    def takes_suspect(self) -> bool:
        """Whether a suspect may come."""
        return not self._queue and not self._lost_once

    def add(self, held: Held) -> None:
        """Note a delivery that was lost, as soon as it is here."""
        if not is_suspect(held.delivery):
            self._lost_once.add(held)
        elif held not in self._queue:
            self._queue.append(held)

    def remove(self, held: Held) -> None:
        """Let others run."""
        if held in self._lost_once:
            self._lost_once.remove(held)
        elif held in self._queue:
            self._queue.remove(held)
            if self._running is held:
                self._running = None
        else:
            return
        self._moved.set()
        if self.takes_suspect or (self.takes_lost_once and is_suspect(held.delivery)):
            self._left()

    async def turn(self, held: Held) -> None:
        """Wait until this one may run."""
        while not self.may_run(held):
            self._moved.clear()
            await self._moved.wait()
        if held in self._queue:
            self._running = held

    def may_run(self, held: Held) -> bool:
        """Whether it is this one's turn."""
        if held in self._queue:
            return held is self._queue[0] and not self._lost_once
        return self._running is None


def is_suspect(delivery: Delivery) -> bool:
    """Tell whether a delivery was lost more than once."""
    return delivery.deliveries >= SUSPECT
