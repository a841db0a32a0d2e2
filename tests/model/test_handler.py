"""Section 1.11: the handler of a run."""

from __future__ import annotations

import asyncio

import pytest

from stepfleet import Context, Workflow, step
from stepfleet.errors import WorkflowCancelledByUser, WorkflowRuntimeError, WorkflowTimeoutError
from stepfleet.events import Event, StartEvent, StopEvent
from stepfleet.handler import WorkflowHandler


class Tick(Event):
    n: int


class Ticks(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for n in range(3):
            ctx.write_event_to_stream(Tick(n=n))
        return StopEvent(result="end")


class Sleeps(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Tick(n=1))
        await asyncio.sleep(30)
        return StopEvent()


class Breaks(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        raise ValueError("broken")


class OwnEnd(StopEvent):
    n: int


class EndsWithOwn(Workflow):
    @step
    async def only(self, ev: StartEvent) -> OwnEnd:
        return OwnEnd(n=3)


@pytest.mark.feature("1.11: awaiting")
async def test_a_handler_may_be_awaited_often_and_by_many() -> None:
    handler = Ticks().run()
    assert isinstance(handler, WorkflowHandler)
    assert await asyncio.gather(wait(handler), wait(handler)) == ["end", "end"]
    assert await handler == "end"


async def wait(handler: WorkflowHandler) -> object:
    return await handler


@pytest.mark.feature("1.11: streaming")
async def test_a_stream_gives_what_was_published_and_ends_with_the_stop_event() -> None:
    handler = Ticks().run()
    events = [event async for event in handler.stream_events()]
    assert events == [Tick(n=0), Tick(n=1), Tick(n=2), StopEvent(result="end")]


@pytest.mark.feature("1.11: streaming")
async def test_a_stream_that_begins_late_gives_everything() -> None:
    handler = Ticks().run()
    assert await handler == "end"
    assert len([event async for event in handler.stream_events()]) == 4


@pytest.mark.feature("1.11: streaming")
async def test_a_stream_can_be_read_once() -> None:
    handler = Ticks().run()
    async for _ in handler.stream_events():
        pass
    with pytest.raises(
        WorkflowRuntimeError, match="All the streamed events have already been consumed."
    ):
        async for _ in handler.stream_events():
            pass


@pytest.mark.feature("1.11: streaming")
async def test_of_two_readers_the_second_waits_and_is_told() -> None:
    handler = Ticks().run()

    async def read() -> int:
        return len([event async for event in handler.stream_events()])

    results = await asyncio.gather(read(), read(), return_exceptions=True)
    assert results[0] == 4
    assert isinstance(results[1], WorkflowRuntimeError)
    assert "already" in str(results[1])


@pytest.mark.feature("1.11: streaming")
async def test_a_reader_may_leave_and_come_back() -> None:
    handler = Ticks().run()
    seen = []
    async for event in handler.stream_events():
        seen.append(event)
        break
    seen += [event async for event in handler.stream_events()]
    assert seen == [Tick(n=0), Tick(n=1), Tick(n=2), StopEvent(result="end")]


@pytest.mark.feature("1.11: stop_event_result()")
async def test_the_event_that_ended_the_run_can_be_had() -> None:
    handler = Ticks().run()
    assert handler.get_stop_event() is None
    stop = await handler.stop_event_result()
    assert stop == StopEvent(result="end")
    assert handler.get_stop_event() == stop


@pytest.mark.feature("1.11: stop_event_result()")
async def test_an_own_stop_event_is_result_and_stop_event() -> None:
    handler = EndsWithOwn().run()
    assert await handler == OwnEnd(n=3)
    assert await handler.stop_event_result() == OwnEnd(n=3)


@pytest.mark.feature("1.11: stop_event_result()")
async def test_a_run_that_failed_has_no_stop_event() -> None:
    handler = Breaks().run()
    with pytest.raises(ValueError, match="broken"):
        await handler.stop_event_result()
    assert handler.get_stop_event() is None


@pytest.mark.feature("1.11: is_done()")
async def test_a_handler_tells_whether_its_run_has_ended() -> None:
    handler = Sleeps().run()
    async for _ in handler.stream_events():
        break
    assert not handler.is_done()
    await handler.cancel_run()
    with pytest.raises(WorkflowCancelledByUser):
        await handler
    assert handler.is_done()


@pytest.mark.feature("1.11: str(handler)")
async def test_a_handler_prints_its_run() -> None:
    workflow = Ticks()
    handler = workflow.run()
    await handler
    text = str(handler)
    assert text.startswith("WorkflowHandler(workflow=")
    assert f"run_id={handler.run_id}" in text
    assert "end" in text


@pytest.mark.feature("1.11: ctx")
async def test_a_handler_has_the_context_of_its_run() -> None:
    handler = Ticks().run()
    assert isinstance(handler.ctx, Context)
    assert handler.ctx.is_running
    await handler
    assert not handler.ctx.is_running


@pytest.mark.feature("1.11: limits of the caller")
async def test_a_caller_may_wait_for_a_limited_time() -> None:
    handler = Sleeps().run()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await handler


@pytest.mark.feature("1.11: errors")
async def test_a_time_out_is_raised_every_time() -> None:
    handler = Sleeps(timeout=0.3).run()
    for _ in range(2):
        with pytest.raises(WorkflowTimeoutError):
            await handler
