"""Workflows that wait, in a test that does not: one idea per test."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from stepfleet import (
    Context,
    Event,
    HumanResponseEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowTimeoutError,
    step,
)
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from stepfleet.testing import NothingLeft, run_in_virtual_time

DAY = 86_400.0


class Answer(HumanResponseEvent):
    text: str


class Reminded(Event):
    pass


class Asking(Workflow, types=[Answer]):
    """Asks, waits three days for the answer, and does without it."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        try:
            answer = await ctx.wait_for_event(Answer, timeout=3 * DAY)
        except TimeoutError:
            return StopEvent("no answer")
        return StopEvent(answer.text)


class Sleepy(Workflow):
    @step
    async def sleep(self, ev: StartEvent) -> Reminded:
        await asyncio.sleep(ev.seconds)
        return Reminded()

    @step
    def end(self, ev: Reminded) -> StopEvent:
        return StopEvent("awake")


class Failing(Workflow):
    attempts = 0

    @step(retry_policy=retry_policy(wait=wait_fixed(6 * 3600), stop=stop_after_attempt(5)))
    async def fail(self, ev: StartEvent) -> StopEvent:
        self.attempts += 1
        if self.attempts < 5:
            raise ConnectionError("away")
        return StopEvent(self.attempts)


def elapsed(began: float) -> float:
    return round(asyncio.get_running_loop().time() - began, 1)


def test_a_wait_of_three_days_takes_no_time() -> None:
    """And is three days long for the workflow."""

    async def scenario() -> tuple[str, float]:
        began = asyncio.get_running_loop().time()
        return await Asking(timeout=None).run(), elapsed(began)

    began = time.process_time()
    answer, waited = run_in_virtual_time(scenario())

    assert answer == "no answer"
    assert 3 * DAY <= waited < 3 * DAY + 10
    assert time.process_time() - began < 5


def test_an_answer_that_comes_after_two_days_is_in_time() -> None:
    """The test sleeps as a person would."""

    async def scenario() -> str:
        handler = Asking(timeout=None).run()
        await asyncio.sleep(2 * DAY)
        await handler.send_event(Answer(text="yes"))
        return await handler

    assert run_in_virtual_time(scenario()) == "yes"


def test_time_passes_in_steps_too_and_stands_still_in_threads() -> None:
    """A step's own sleep is skipped; one that is not async runs in a thread, in real time."""

    async def scenario() -> tuple[str, float]:
        began = asyncio.get_running_loop().time()
        return await Sleepy(timeout=None).run(seconds=30.0), elapsed(began)

    result, waited = run_in_virtual_time(scenario())

    assert result == "awake"
    assert 30 <= waited < 31


def test_back_off_is_skipped() -> None:
    """Five attempts, six hours apart."""

    async def scenario() -> tuple[int, float]:
        began = asyncio.get_running_loop().time()
        return await Failing(timeout=None).run(), elapsed(began)

    attempts, waited = run_in_virtual_time(scenario())

    assert attempts == 5
    assert timedelta(hours=24).total_seconds() <= waited < 24 * 3600 + 60


def test_a_run_s_own_time_out_comes_before_a_longer_wait() -> None:
    """In its order: what is due first happens first."""

    async def scenario() -> float:
        began = asyncio.get_running_loop().time()
        with pytest.raises(WorkflowTimeoutError):
            await Asking(timeout=DAY).run()
        return elapsed(began)

    assert DAY <= run_in_virtual_time(scenario()) < DAY + 10


def test_two_runs_that_wait_at_once_keep_their_order() -> None:
    """Also on workers of two workflows, none of which is taken for dead meanwhile."""

    async def one(workflow: Workflow, told: list[str], **fields: Any) -> None:
        told.append(await workflow.run(**fields))

    async def scenario() -> list[str]:
        told: list[str] = []
        async with asyncio.TaskGroup() as group:
            group.create_task(one(Asking(timeout=None), told))
            group.create_task(one(Sleepy(timeout=None), told, seconds=2 * DAY))
            group.create_task(one(Sleepy(timeout=None), told, seconds=4 * DAY))
        return told

    assert run_in_virtual_time(scenario()) == ["awake", "no answer", "awake"]


def test_what_redis_records_has_the_same_clock() -> None:
    """A run that took three days says so."""

    async def scenario() -> tuple[datetime, datetime | None]:
        handler = Asking(timeout=None).run()
        await handler
        status = await handler.status()
        return status.started, status.ended

    started, ended = run_in_virtual_time(scenario())

    assert ended is not None
    assert timedelta(days=3) <= ended - started < timedelta(days=3, minutes=1)
    assert abs(started - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_wait_without_end_is_an_error_and_no_hang() -> None:
    """Nobody sends the answer, and nothing else can happen."""

    class Patient(Workflow, types=[Answer]):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(Answer, timeout=None)
            return StopEvent()

    async def scenario() -> None:
        await Patient(timeout=None).run()

    with pytest.raises(NothingLeft, match="nobody is going to send an event"):
        run_in_virtual_time(scenario())
