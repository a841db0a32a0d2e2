"""What the caller of a run can do with its handler: one idea per test."""

from __future__ import annotations

import asyncio

import pytest

from stepfleet import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from stepfleet.errors import WorkflowCancelledByUser, WorkflowTimeoutError
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_none


class Progress(Event):
    percent: int


class Download(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for percent in (0, 50, 100):
            ctx.write_event_to_stream(Progress(percent=percent))
        return StopEvent(result="file")


class Sleepy(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(60)
        return StopEvent()


async def test_awaiting_the_handler_gives_the_result() -> None:
    """As often as one likes, and by as many tasks."""
    handler = Download().run()
    assert await handler == "file"
    assert await handler == "file"


async def test_stream_events_shows_what_steps_publish() -> None:
    """The last event of the stream is the one that ended the run."""
    handler = Download().run()
    shown = [event async for event in handler.stream_events()]
    assert [event.percent for event in shown[:-1]] == [0, 50, 100]
    assert shown[-1].result == "file"


async def test_a_stream_goes_on_behind_any_event() -> None:
    """`last_sequence` remembers a place, also for another process, and `after=` goes there."""
    handler = Download().run()
    async for _ in handler.stream_events():
        break
    rest = [event async for event in handler.stream_events(after=handler.last_sequence)]
    assert [event.percent for event in rest[:-1]] == [50, 100]


async def test_a_run_asks_a_human_and_waits_for_the_answer() -> None:
    """A waiting step occupies no worker; it runs again from its top when the answer comes."""

    class Ask(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            answer = await ctx.wait_for_event(
                HumanResponseEvent, waiter_event=InputRequiredEvent(prefix="Your name?")
            )
            return StopEvent(result=f"hello {answer.response}")

    handler = Ask().run()
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            await handler.send_event(HumanResponseEvent(response="Ada"))
    assert await handler == "hello Ada"


async def test_the_error_of_a_step_is_raised_where_its_run_is_awaited() -> None:
    """As its own class; where the step ran elsewhere, a note has the traceback from there."""

    class Fail(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            raise KeyError(ev.key)

    with pytest.raises(KeyError, match="nothing"):
        await Fail().run(key="nothing")


async def test_a_retry_policy_tries_a_step_again() -> None:
    """What a failed attempt wrote to the store or sent stays."""

    class Flaky(Workflow):
        @step(retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(5)))
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            tries = await ctx.store.get("tries", default=0) + 1
            await ctx.store.set("tries", tries)
            if tries < 3:
                raise ConnectionError("not yet")
            return StopEvent(result=tries)

    assert await Flaky().run() == 3


async def test_a_run_that_takes_too_long_ends_in_an_error() -> None:
    """It names the steps that were active."""
    with pytest.raises(WorkflowTimeoutError, match="Currently active steps: begin"):
        await Sleepy(timeout=0.1).run()


async def test_a_run_can_be_cancelled() -> None:
    """Whoever awaits it gets to know."""
    handler = Sleepy().run()
    await handler.cancel_run()
    with pytest.raises(WorkflowCancelledByUser):
        await handler


async def test_the_status_says_how_a_run_stands() -> None:
    """It is what Redis has recorded, so it is the same for everybody who asks."""
    handler = Download().run()
    await handler
    status = await handler.status()
    assert (status.status, status.last_sequence, status.pending) == ("completed", 4, 0)
