"""How the loops of a worker wait for a Redis that is away, and say so once."""

from __future__ import annotations

import asyncio
import logging
from random import Random
from typing import Final

from stepfleet.errors import StoreError, StoreRefused

logger = logging.getLogger("stepfleet.worker")

#: Seconds to wait between tries: from, to.
BACK_OFF: Final = (0.1, 2.0)


class Outage:
    """The waits of one loop for Redis; all loops together say once that it is away, and that it is back."""

    def __init__(self, doing: str, random: Random, away: set[str]) -> None:
        self._doing = doing
        self._random = random
        self._away = away
        self._tries = 0
        self._refused = False

    async def pause(self, error: StoreError) -> None:
        """Wait a little longer after each failure."""
        if isinstance(error, StoreRefused):
            if not self._refused:
                logger.warning("redis refuses, trying again: while=%s error=%s", self._doing, error)
            self._refused = True
        else:
            if not self._away:
                logger.warning(
                    "redis is away, waiting for it: while=%s error=%s", self._doing, error
                )
            self._away.add(self._doing)
        self._tries += 1
        longest = min(BACK_OFF[0] * 2**self._tries, BACK_OFF[1])
        await asyncio.sleep(self._random.uniform(longest / 2, longest))

    def over(self) -> None:
        """Note a success."""
        if self._doing in self._away:
            self._away.clear()
            logger.info("redis is back: while=%s", self._doing)
        if self._refused:
            self._refused = False
            logger.info("redis accepts again: while=%s", self._doing)
        self._tries = 0
