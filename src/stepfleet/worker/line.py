"""Begins what may run, in as few tasks as it takes: one after the other, until one of them has to wait.

A task for each step, and a turn of the loop for the answer to its commit, took 10 us of the 74 of a
worker per step. So a task runs steps one after the other, each in a context of its own; the first
one that has to wait keeps the task, and what was not begun gets others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from functools import partial
from types import coroutine
from typing import Any, Final, cast

from stepfleet.worker.held import Held

#: Steps that run before other parts of the worker have their turn: their commits go out while the next
#: ones run. With 50 there are 0.053 calls per step under load instead of 0.049, and no more steps a second.
AT_ONCE: Final = 100
#: A step of the same run as the one before it counts for so many: their join waits for all of them, so
#: commits that go out sooner end it sooner. With 1, 1->100->1 takes a quarter longer.
OF_ONE_RUN: Final = 3
#: Seconds after which the others have their turn as well: what has ended behind steps that compute would wait
#: for them with its commit. With a fifth of it, steps of 5 ms take a call each, and a twentieth longer.
TOO_LONG: Final = 0.05
#: Turns of the loop that the others have then: in them a reply is read, whoever asked for it goes on, and the
#: next call is sent. With one, an answer lay here for up to 100 steps: 1->100->1 took a quarter longer.
TURNS: Final = 3


class Line:
    """What may run and was not begun yet, in order."""

    def __init__(self, run: Callable[[Held], Coroutine[Any, Any, None]]) -> None:
        self._run = run
        self._next: deque[Held] = deque()
        #: Tasks that have not had to wait: each of them goes on with what is next.
        self._going = set[asyncio.Task[None]]()
        #: What every step begins with: nothing that another step has set.
        self._context: Context | None = None

    def add(self, held: Held) -> None:
        """Begin a delivery as soon as the loop turns."""
        self._next.append(held)
        if not self._going:
            self._add_task()

    def _add_task(self) -> None:
        if self._context is None:
            self._context = copy_context()
        # Not by the loop's factory: an eager one would begin it here, inside of another step.
        loop = asyncio.get_running_loop()
        self._going.add(asyncio.Task(self._go(self._context), loop=loop, context=self._context))

    async def _go(self, context: Context) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        waits = partial(self._waits, task)
        clock = asyncio.get_running_loop().time
        left, until, run_id = AT_ONCE, clock() + TOO_LONG, ""
        try:
            while self._next and task in self._going and not _is_cancelled(task):
                if left <= 0 or clock() >= until:
                    for _ in range(TURNS):
                        await asyncio.sleep(0)
                    left, until = AT_ONCE, clock() + TOO_LONG
                    continue
                held = self._next.popleft()
                left -= OF_ONE_RUN if held.delivery.run_id == run_id else 1
                run_id = held.delivery.run_id
                if not held.cancelled:
                    held.task = task
                    await _apart(self._run(held), context.copy(), waits)
        finally:
            self._going.discard(task)
            if self._next and not self._going:
                self._add_task()

    def _waits(self, task: asyncio.Task[None]) -> None:
        """Note that the step of a task has to wait: it keeps the task, and what is next needs others."""
        self._going.discard(task)
        for _ in range(len(self._next) - len(self._going)):
            self._add_task()


def _is_cancelled(task: asyncio.Task[None]) -> bool:
    # Until Python 3.13 `uncancel` leaves the cancellation to whatever waits next in the task.
    return bool(task.cancelling() or getattr(task, "_must_cancel", False))


@coroutine
def _apart(
    running: Coroutine[Any, Any, None], context: Context, waits: Callable[[], None]
) -> Generator[Any, Any, None]:
    """Run a coroutine in a context of its own; `waits` is called when it has to wait for the first time."""
    run = context.run
    try:
        asked = run(running.send, None)
        waits()
        while True:
            try:
                yield asked
            except BaseException as error:  # noqa: BLE001 - a cancellation, mostly: it belongs inside
                asked = run(running.throw, error)
            else:
                asked = run(running.send, None)
    except StopIteration:
        return
