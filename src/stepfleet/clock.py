"""Time as it is injected everywhere: a steady clock, and Redis' clock as this process last saw it."""

from __future__ import annotations

import time


class Clock:
    """The clocks of one process. Tests and the simulation replace it."""

    def __init__(self) -> None:
        self._offset_ms: float | None = None

    def steady(self) -> float:
        """Return seconds that only ever grow."""
        return time.monotonic()

    def wall_ms(self) -> int:
        """Return this host's clock in ms since the epoch."""
        return int(time.time() * 1000)

    def saw_redis(self, now_ms: int) -> None:
        """Remember what Redis' clock showed a moment ago."""
        self._offset_ms = now_ms - self.steady() * 1000

    def redis_ms(self) -> int:
        """Return ms of Redis' clock, this host's until Redis was first seen."""
        if self._offset_ms is None:
            return self.wall_ms()
        return int(self.steady() * 1000 + self._offset_ms)
