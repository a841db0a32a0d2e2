"""`run_step()`, `is_done()`, `get_result()`: a run in this process that stops before every step.

The run has an event loop and a thread of its own, so that plain code can wait for a step, and code
in an event loop can await one.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any

from stepfleet.errors import WorkflowRuntimeError
from stepfleet.events import Event
from stepfleet.handler import WorkflowHandler


class Stepped:
    """One step that was let go; await it, or not: whatever is called next waits for it."""

    def __init__(self, outcome: Future[Event | None]) -> None:
        self._outcome = outcome

    def __await__(self) -> Generator[Any, None, Event | None]:
        """Return what the step returned; None when nothing was left to run, or the step failed."""
        return asyncio.wrap_future(self._outcome).__await__()

    def wait(self) -> Event | None:
        """Return what awaiting it returns, for code that cannot await."""
        return self._outcome.result()


class Stepwise:
    """One run that stops before every execution of a step."""

    def __init__(self, start: Callable[[], WorkflowHandler]) -> None:
        self._start = start
        self._loop = asyncio.new_event_loop()
        #: Executions that stand before the gate.
        self._standing: deque[asyncio.Future[None]] = deque()
        self._moved = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._is_inside = False
        self._is_started = False
        self._returned: Event | None = None
        self._is_done = False
        self._result: Any = None
        self._error: BaseException | None = None
        self._last: Stepped | None = None
        self._closing = threading.Lock()
        self._is_closed = False
        threading.Thread(target=self._live, name="stepfleet-stepwise", daemon=True).start()

    # -- for the caller ----------------------------------------------------------------------------

    def step(self) -> Stepped:
        """Let one execution of a step go."""
        if self._last is not None:
            self._last.wait()
        with self._closing:
            if self._is_closed:
                return Stepped(self._nothing())
            self._last = Stepped(asyncio.run_coroutine_threadsafe(self._step(), self._loop))
        return self._last

    def is_done(self) -> bool:
        """Whether the run has ended, after the step that was let go last."""
        if self._last is not None:
            self._last.wait()
        return self._is_done

    def result(self) -> Any:
        """Return the result of the run.

        Raises:
            WorkflowRuntimeError: it goes on.
            Exception: the error that ended the run.
        """
        if not self.is_done():
            raise WorkflowRuntimeError("The run goes on: call run_step() until is_done().")
        if self._error is not None:
            raise self._error
        return self._result

    def _nothing(self) -> Future[Event | None]:
        """Return the outcome of a step where none is left to run."""
        outcome: Future[Event | None] = Future()
        if self._error is not None and not self._is_started:
            outcome.set_exception(self._error)
        else:
            outcome.set_result(None)
        return outcome

    # -- for the worker ----------------------------------------------------------------------------

    async def enter(self) -> None:
        """Stand before the gate until a step is let go; returns at once in another event loop."""
        if asyncio.get_running_loop() is not self._loop:
            return
        turn = self._loop.create_future()
        self._standing.append(turn)
        self._moved.set()
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._standing:
                self._standing.remove(turn)
            raise

    def leave(self, returned: object) -> None:
        """Tell that an execution has ended, and what it returned."""
        if asyncio.get_running_loop() is self._loop:
            self._returned = returned if isinstance(returned, Event) else None
            self._is_inside = False
            self._moved.set()

    # -- in the thread -----------------------------------------------------------------------------

    def _live(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        try:
            handler = self._start()
            self._is_started = True
            self._result = await handler
        except Exception as error:  # noqa: BLE001 - whoever asks for the result gets it
            self._error = error
        self._is_done = True
        self._moved.set()
        with self._closing:
            self._is_closed = True
        await asyncio.sleep(0)  # a step that was asked for a moment ago asks for the lock now
        async with self._one_at_a_time:
            pass  # and gets its answer before the loop ends

    async def _step(self) -> Event | None:
        async with self._one_at_a_time:
            await self._until(lambda: bool(self._standing))
            if self._error is not None and not self._is_started:
                raise self._error
            if self._is_done:
                return None
            self._returned, self._is_inside = None, True
            self._standing.popleft().set_result(None)
            await self._until(lambda: not self._is_inside)
            # The next step stands before the gate, or the run has ended: is_done() can tell.
            await self._until(lambda: bool(self._standing))
            return self._returned

    async def _until(self, true: Callable[[], bool]) -> None:
        while not (true() or self._is_done):
            self._moved.clear()
            await self._moved.wait()
