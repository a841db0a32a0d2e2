"""`memory://` in a time of its own, for tests: the clock of fakeredis, and what is due next there."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import fakeredis._helpers
import fakeredis._socket._base
import fakeredis.commands_mixins.server_mixin
import fakeredis.model._stream
from fakeredis import FakeRedis, FakeServer

from stepfleet.clock import Clock
from stepfleet.embedded.memory import memory_fleet
from stepfleet.storage.fleet import Fleet

#: Modules of fakeredis that look at the clock.
_TIMED: Final[tuple[Any, ...]] = (
    fakeredis._helpers,
    fakeredis._socket._base,
    fakeredis.commands_mixins.server_mixin,
    fakeredis.model._stream,
)


@contextmanager
def redis_time(now: Callable[[], float]) -> Generator[None]:
    """Let every fakeredis of this process live in a time of its own: `now` gives seconds since the epoch."""
    with ExitStack() as stack:
        for module in _TIMED:
            stack.enter_context(patch.object(module, "time", SimpleNamespace(time=now)))
        yield


def timed_fleet(clock: Clock) -> tuple[Fleet, Callable[[], float | None]]:
    """Return a fleet in this process, and a function that tells when its next timer or deadline is due.

    In seconds since the epoch; None: there is none.
    """
    server = FakeServer(version=(7,))
    fleet = memory_fleet(server=server, clock=clock)
    redis: Any = FakeRedis(server=server)

    def next_due() -> float | None:
        keys = (fleet.keys.timers, fleet.keys.live)
        first = [redis.zrange(key, 0, 0, withscores=True) for key in keys]
        due = [rows[0][1] / 1000 for rows in first if rows and rows[0][1] != float("inf")]
        return min(due, default=None)

    return fleet, next_due
