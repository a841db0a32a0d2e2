"""An event loop on virtual time that several simulated processes share.

Time stands still while anything can run and jumps to the next timer when nothing can. Every
callback belongs to the process whose task made it (a context variable says which), so that a
process can be paused or killed as a whole: what is ready for it stays where it is. Within a process
callbacks run in asyncio's order, between processes in an order drawn from the seed.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any


class Process:
    """What runs, stops and dies together."""

    def __init__(self, name: str, *, thread_of: Process | None = None) -> None:
        self.name = name
        self.ready: deque[asyncio.Handle] = deque()
        self.paused = False
        #: Its event loop does not turn, because a step keeps it; its threads go on.
        self.blocked = False
        self.dead = False
        self.tasks: list[asyncio.Task[Any]] = []
        #: The process that this is a thread of, which stops and dies with it.
        self.main = thread_of or self

    @property
    def stopped(self) -> bool:
        """Whether nothing of it runs now."""
        return self.main.paused or self.main.dead or self.blocked


OWNER: ContextVar[Process] = ContextVar("simulated_process")


class Stuck(Exception):
    """Nothing is ready and no timer is set."""


class SimLoop(asyncio.BaseEventLoop):
    """Runs callbacks of many processes, one after the other, on a clock of its own."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._virtual = 0.0
        self._random = random
        self.world = Process("world")
        self._processes = [self.world]
        self._nowhere = Context()
        #: What every process begins with.
        self.context = copy_context()
        #: Callbacks run so far.
        self.turns = 0
        #: Set by whoever found that the simulation need not go on.
        self.failure: Exception | None = None

    def time(self) -> float:
        """Returns virtual seconds."""
        return self._virtual

    def process(self, name: str) -> Process:
        """Makes a process."""
        process = Process(name)
        self._processes.append(process)
        return process

    def thread(self, process: Process) -> Process:
        """Makes what goes on while the event loop of a process is blocked."""
        thread = Process(f"{process.name}'s thread", thread_of=process)
        self._processes.append(thread)
        return thread

    def spawn(
        self, process: Process, coroutine: Coroutine[Any, Any, Any], name: str
    ) -> asyncio.Task[Any]:
        """Runs a coroutine, and all that it starts, as part of a process."""
        context = self.context.copy()
        context.run(OWNER.set, process)
        task = self.create_task(coroutine, name=name, context=context)
        process.tasks.append(task)
        return task

    def in_world(self, delay: float, callback: Callable[..., Any], *args: Any) -> asyncio.Handle:
        """Calls back as part of no process: what the network does goes on whoever is stopped."""
        return self.call_later(delay, callback, *args, context=self._nowhere)

    def all_processes(self) -> list[Process]:
        """Returns every process."""
        return list(self._processes)

    def forget(self, process: Process) -> None:
        """Leaves a process out for good."""
        self._processes.remove(process)

    def run_in_executor(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Calls at once: threads have no place in a simulation."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> Any:
        """There is one thread."""
        return self.call_soon(callback, *args, context=context)

    def _write_to_self(self) -> None: ...

    def _run_once(self) -> None:
        ready = self._ready  # pyright: ignore[reportAttributeAccessIssue]
        while ready:
            handle = ready.popleft()
            if not handle._cancelled:
                handle._context.get(OWNER, self.world).ready.append(handle)
        runnable = [one for one in self._processes if one.ready and not one.stopped]
        if not runnable:
            self._jump(ready)
            return
        process = runnable[0] if len(runnable) == 1 else self._random.choice(runnable)
        handle = process.ready.popleft()
        if not handle._cancelled:
            self.turns += 1
            handle._run()
            if self.failure is not None:
                failure, self.failure = self.failure, None
                raise failure

    def _jump(self, ready: deque[asyncio.Handle]) -> None:
        scheduled = self._scheduled  # pyright: ignore[reportAttributeAccessIssue]
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if not scheduled:
            raise Stuck("nothing is ready and no timer is set")
        self._virtual = max(self._virtual, scheduled[0]._when)
        while scheduled and scheduled[0]._when <= self._virtual:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
