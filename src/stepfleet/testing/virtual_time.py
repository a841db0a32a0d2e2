"""Virtual time for tests on `memory://`: waits, back-off and deadlines pass at once, in their order.

Time stands still while anything can run, and jumps to the next timer when nothing can. The loops of
workers that look again twice a second would make a wait of days long even so: after some looks that
found nothing, time goes on to what somebody really waits for.
"""

from __future__ import annotations

import asyncio
import inspect
import selectors
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context
from datetime import timedelta
from typing import Any, Final, TypeVar, cast
from weakref import WeakSet

from stepfleet.clock import Clock
from stepfleet.embedded.memory import MemoryRuntime, use_memory_runtime
from stepfleet.embedded.memory_time import redis_time, timed_fleet

T = TypeVar("T")

#: Looks of workers that find nothing before time goes on: some seconds of virtual time.
LOOKS: Final = 64
#: Looks that find nothing after which nothing will ever happen.
STUCK: Final = 1_000
#: Real seconds in which a connection that a step has opened may answer before time goes on.
PATIENCE: Final = 0.05
#: Longer than any wait: no lease runs out when days pass at once.
LEASE: Final = timedelta(days=36_500)

#: Modules that look again and again; what other code waits for is meant.
_LOOKING: Final = (
    "stepfleet.awaited",
    "stepfleet.embedded.memory",
    "stepfleet.storage.",
    "stepfleet.worker.heartbeat",
    "stepfleet.worker.janitor",
    "stepfleet.worker.sweep",
    "stepfleet.worker.timers",
    "stepfleet.worker.worker",
)


class NothingLeft(RuntimeError):
    """A run waits for something that will not come: no timer is set, and nobody is going to answer."""


def run_in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run` does, on a clock that skips whatever is waited for.

    Runs that it starts without a runtime are on a `memory://` of their own, whose clock is the same;
    so is `asyncio.sleep` in tests and steps. `time.time()` and `datetime.now()` stay real. A real
    connection that is open holds the clock up for a moment only: fake what steps call.

    Raises:
        NothingLeft: a run waits for something that will not come.
        RuntimeError: an event loop runs in this thread.
    """
    loop = _Loop()
    with redis_time(loop.wall), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(_with_runtime(loop, main))


async def _with_runtime(loop: _Loop, main: Coroutine[Any, Any, T]) -> T:
    fleet, loop.next_due = timed_fleet(_VirtualClock(loop))
    use_memory_runtime(MemoryRuntime(fleet, lease=LEASE))
    return await main


class _VirtualClock(Clock):
    def __init__(self, loop: _Loop) -> None:
        super().__init__()
        self._loop = loop

    def steady(self) -> float:
        return self._loop.time()

    def wall_ms(self) -> int:
        return int(self._loop.wall() * 1000)


class _Loop(asyncio.SelectorEventLoop):
    """asyncio's own loop, but for its clock."""

    def __init__(self) -> None:
        self._now = 0.0
        self._began = time.time()
        self._looking: WeakSet[asyncio.TimerHandle] = WeakSet()
        self._looks = 0
        #: Calls that are in threads, where time is real.
        self.in_threads = 0
        #: Wall time, in seconds, of what is due next in Redis; None: nothing.
        self.next_due: Callable[[], float | None] = lambda: None
        super().__init__(_Selector(self))

    def time(self) -> float:
        """Return virtual seconds."""
        return self._now

    def wall(self) -> float:
        """Return virtual seconds since the epoch."""
        return self._began + self._now

    def call_at(
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Set a timer, and remember who asked for it."""
        handle = super().call_at(when, callback, *args, context=context)
        if _asked_by_a_look():
            self._looking.add(handle)
        return handle

    def run_in_executor(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Call in a thread; time stands still until it is back."""
        future = super().run_in_executor(executor, func, *args)
        self.in_threads += 1
        future.add_done_callback(self._is_back)
        return future

    def _is_back(self, _: asyncio.Future[Any]) -> None:
        self.in_threads -= 1

    def jump(self) -> None:
        """Go on to the next moment at which something happens."""
        timers: list[asyncio.TimerHandle] = cast(Any, self)._scheduled
        if not timers:
            raise NothingLeft(_NOTHING)
        goal = timers[0].when()
        if timers[0] in self._looking:
            self._looks += 1
            if self._looks > LOOKS:
                goal = self._meant(timers, goal)
        else:
            self._looks = 0
        self._now = max(self._now, goal)

    def _meant(self, timers: list[asyncio.TimerHandle], next_look: float) -> float:
        """Return when the next thing happens that is no look."""
        goals = [one.when() for one in timers if one not in self._looking and not one.cancelled()]
        due = self.next_due()
        if due is not None:
            goals.append(due - self._began)
        if goals:
            self._looks = 0
            return min(goals)
        if self._looks > STUCK:
            raise NothingLeft(_NOTHING)
        return next_look


_NOTHING: Final = (
    "nothing is left to happen: no timer is set, no time-out, and nobody is going to send an event. "
    "Send it from the test before awaiting the run"
)


class _Selector(selectors.DefaultSelector):
    """Waits in virtual time, unless a thread or a connection may answer."""

    def __init__(self, loop: _Loop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; when nothing is, let time pass."""
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self._loop.in_threads:
            return super().select(None)
        # The loop itself listens on one descriptor.
        if len(self.get_map()) > 1 and (ready := super().select(PATIENCE)):
            return ready
        self._loop.jump()
        return []


def _asked_by_a_look() -> bool:
    """Tell whether the code that sets a timer, asyncio's own left out, is one that looks again and again."""
    frame = inspect.currentframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(("asyncio.", "stepfleet.testing.")):
            return module.startswith(_LOOKING)
        frame = frame.f_back
    return False
