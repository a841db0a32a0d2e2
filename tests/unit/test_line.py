"""Steps that do not wait share a task, and nothing else."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from math import inf
from typing import Any

import pytest

from stepfleet.core.commit import Route
from stepfleet.core.delivery import Delivery, Record
from stepfleet.worker import line
from stepfleet.worker.held import Held
from stepfleet.worker.line import AT_ONCE, OF_ONE_RUN, TOO_LONG, Line
from tests.support.wait import eventually

#: Seconds until a test gives up on something that should happen.
SOON = 20.0

_seen: ContextVar[str] = ContextVar("seen", default="")

Step = Callable[[], Awaitable[None]]


class Runs:
    """A line whose deliveries run the functions that they are given."""

    def __init__(self) -> None:
        self.line = Line(self._run)
        self.tasks: list[asyncio.Task[Any] | None] = []
        self.left = 0
        self.over = asyncio.Event()
        self._steps: dict[str, Step] = {}

    def add(self, step: Step, run_id: str = "") -> Held:
        name = str(len(self._steps))
        self._steps[name] = step
        delivery = Delivery(
            run_id or f"run {name}",
            name,
            Route("Flow", "Type", "step"),
            name,
            Record("", "Type", b""),
        )
        held = Held(delivery, 0.0)
        self.left += 1
        self.line.add(held)
        return held

    def _run(self, held: Held) -> Coroutine[Any, Any, None]:
        async def run() -> None:
            self.tasks.append(asyncio.current_task())
            try:
                await self._steps[held.delivery.id]()
            except asyncio.CancelledError:
                if not held.cancelled:
                    raise
            finally:
                self.left -= 1
                if not self.left:
                    self.over.set()

        return run()


async def _at_once() -> None:
    pass


async def test_steps_that_do_not_wait_share_a_task() -> None:
    runs = Runs()
    for _ in range(AT_ONCE):
        runs.add(_at_once)
    await runs.over.wait()
    assert len(set(runs.tasks)) == 1


async def test_others_have_their_turn_before_a_long_line_is_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line, "TOO_LONG", inf)
    runs = Runs()
    for _ in range(3 * AT_ONCE):
        runs.add(_at_once)
    left: list[int] = []
    while runs.left:
        left.append(runs.left)
        await asyncio.sleep(0)
    assert sorted({*left}, reverse=True) == [3 * AT_ONCE, 2 * AT_ONCE, AT_ONCE]


async def test_others_have_their_turn_behind_each_step_that_computes() -> None:
    async def computes() -> None:
        time.sleep(TOO_LONG)  # noqa: ASYNC251 - it keeps the loop

    runs = Runs()
    for _ in range(5):
        runs.add(computes)
    left: list[int] = []
    while runs.left:
        left.append(runs.left)
        await asyncio.sleep(0)
    assert set(left) == {5, 4, 3, 2, 1}


async def test_steps_of_one_run_stop_for_the_others_sooner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line, "TOO_LONG", inf)
    runs = Runs()
    for _ in range(AT_ONCE):
        runs.add(_at_once, "run")
    left: list[int] = []
    while runs.left:
        left.append(runs.left)
        await asyncio.sleep(0)
    some = AT_ONCE - AT_ONCE // OF_ONE_RUN
    assert some - 1 <= sorted({*left})[-2] <= some


async def test_a_reply_that_came_meanwhile_is_answered_before_the_line_goes_on() -> None:
    runs, loop = Runs(), asyncio.get_running_loop()
    mine, theirs = socket.socketpair()
    reply: asyncio.Future[None] = loop.create_future()
    left_when_answered = 0

    async def whoever_asked() -> None:
        nonlocal left_when_answered
        await reply
        left_when_answered = runs.left

    def arrived() -> None:
        loop.remove_reader(mine)
        reply.set_result(None)

    asking = asyncio.create_task(whoever_asked())
    with mine, theirs:
        await asyncio.sleep(0)
        loop.add_reader(mine, arrived)
        for _ in range(3 * AT_ONCE):
            runs.add(_at_once)
        runs.add(_at_once)
        await asyncio.sleep(0)
        theirs.send(b"x")
        await asking
    assert left_when_answered > AT_ONCE
    await runs.over.wait()


async def test_a_step_that_waits_keeps_its_task_and_those_behind_it_begin() -> None:
    runs, gate, begun = Runs(), asyncio.Event(), 0

    async def wait() -> None:
        nonlocal begun
        begun += 1
        await gate.wait()
        assert asyncio.current_task() in runs.tasks

    for _ in range(5):
        runs.add(wait)
    await eventually(lambda: begun == 5, SOON)
    assert len(set(runs.tasks)) == 5
    runs.add(_at_once)
    await eventually(lambda: runs.left == 5, SOON)
    gate.set()
    await runs.over.wait()


async def test_each_step_has_a_context_of_its_own_before_and_after_it_waits() -> None:
    runs = Runs()
    found: list[tuple[str, str]] = []

    def step(name: str, waits: bool) -> Step:
        async def run() -> None:
            before = _seen.get()
            _seen.set(name)
            if waits:
                await asyncio.sleep(0)
            found.append((before, _seen.get()))
            runs.add(later)

        return run

    async def later() -> None:
        found.append((_seen.get(), "later"))

    for number in range(6):
        runs.add(step(f"s{number}", waits=number % 2 == 1))
    await runs.over.wait()
    assert sorted(found) == sorted(
        [("", f"s{number}") for number in range(6)] + [("", "later")] * 6
    )
    assert _seen.get() == ""


async def test_a_limit_on_time_inside_of_a_step_ends_that_step_only() -> None:
    runs, timed_out = Runs(), 0

    async def limited() -> None:
        nonlocal timed_out
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            timed_out += 1

    for _ in range(3):
        runs.add(_at_once)
        runs.add(limited)
    await runs.over.wait()
    assert timed_out == 3


async def test_cancelling_one_that_waits_leaves_the_others_alone() -> None:
    runs, gate, ended = Runs(), asyncio.Event(), 0

    async def wait() -> None:
        nonlocal ended
        await gate.wait()
        ended += 1

    held = [runs.add(wait) for _ in range(3)]
    await eventually(lambda: len(runs.tasks) == 3, SOON)
    held[1].cancelled = "over"
    assert held[1].task is not None
    held[1].task.cancel()
    await eventually(lambda: runs.left == 2, SOON)
    gate.set()
    await runs.over.wait()
    assert ended == 2


async def test_one_that_was_cancelled_before_it_began_does_not_begin() -> None:
    runs = Runs()
    runs.add(_at_once)
    given_up = runs.add(_at_once)
    given_up.cancelled = "over"
    runs.left -= 1
    await runs.over.wait()
    assert len(runs.tasks) == 1


async def test_a_step_that_cancels_its_own_task_does_not_cancel_the_next_one() -> None:
    runs, ended = Runs(), 0

    async def cancels() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def waits() -> None:
        nonlocal ended
        await asyncio.sleep(0)
        ended += 1

    for _ in range(3):
        runs.add(cancels)
        runs.add(waits)
    await runs.over.wait()
    assert ended == 3


async def test_a_cancellation_that_a_step_takes_back_is_not_left_to_the_next_one() -> None:
    runs, ended = Runs(), 0

    async def cancels() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        task.uncancel()

    async def waits() -> None:
        nonlocal ended
        await asyncio.sleep(0)
        ended += 1

    runs.add(cancels)
    runs.add(waits)
    await runs.over.wait()
    assert ended == 1


async def test_steps_begin_when_the_loop_turns_whatever_makes_its_tasks() -> None:
    """A factory of tasks that begins them at once (`asyncio.eager_task_factory`) is not asked."""
    runs, made = Runs(), 0
    loop = asyncio.get_running_loop()

    def make(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        nonlocal made
        made += 1
        return asyncio.Task(coro, loop=loop, **options)

    loop.set_task_factory(make)
    for _ in range(3):
        runs.add(_at_once)
    await runs.over.wait()
    assert made == 0
