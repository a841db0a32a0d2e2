"""Section 1.4: where events go, how runs end, and what each end leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stepfleet import Context, Workflow, step
from stepfleet.errors import WorkflowCancelledByUser, WorkflowRuntimeError, WorkflowTimeoutError
from stepfleet.events import Event, StartEvent, StopEvent, WorkflowFailedEvent
from stepfleet.testing import WorkflowTestRunner


class Ev(Event):
    n: int = 0


class Other(Event):
    n: int = 0


class Trace(Event):
    text: str


async def traces(handler: Any) -> list[str]:
    """Returns what steps published, in its order."""
    return [event.text async for event in handler.stream_events() if isinstance(event, Trace)]


# -- routing -------------------------------------------------------------------------------------------


class EveryStep(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Ev:
        return Ev(n=1)

    @step
    async def one(self, ev: Ev) -> Other:
        return Other(n=1)

    @step
    async def two(self, ev: Ev) -> Other:
        return Other(n=2)

    @step
    async def end(self, ctx: Context, ev: Other) -> StopEvent | None:
        found = ctx.collect_events(ev, [Other] * 2)
        return None if found is None else StopEvent(result=sorted(e.n for e in found))


@pytest.mark.feature("1.4: E1 routing")
async def test_every_step_that_accepts_an_event_gets_it() -> None:
    assert await EveryStep().run() == [1, 2]


class OneStep(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Ev | None:
        ctx.send_event(Ev(), step="two")

    @step
    async def one(self, ev: Ev) -> StopEvent:
        return StopEvent(result="one")

    @step
    async def two(self, ev: Ev) -> StopEvent:
        return StopEvent(result="two")


@pytest.mark.feature("1.4: E1 routing")
async def test_an_event_may_be_sent_to_one_step() -> None:
    assert await OneStep().run() == "two"


class Loops(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Ev:
        return Ev(n=0)

    @step
    async def turn(self, ev: Ev) -> Ev | StopEvent:
        return StopEvent(result=ev.n) if ev.n == 25 else Ev(n=ev.n + 1)


@pytest.mark.feature("1.4: E1 routing")
async def test_a_step_may_return_to_itself() -> None:
    assert await Loops().run() == 25


class Idles(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Ev | None:
        return None

    @step
    async def end(self, ev: Ev) -> StopEvent:
        return StopEvent(result=ev.n)


@pytest.mark.feature("1.4: E2 a step that returns nothing")
async def test_a_run_without_work_waits_for_an_event_from_outside() -> None:
    handler = Idles().run()
    await handler.send_event(Ev(n=4))
    assert await handler == 4


@pytest.mark.feature("1.4: E2 a step that returns nothing")
async def test_a_run_without_work_times_out() -> None:
    with pytest.raises(WorkflowTimeoutError, match=r"Operation timed out after 0.3 seconds"):
        await Idles(timeout=0.3).run()


class Unread(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Ev | None:
        ctx.send_event(Other(n=1))
        return Ev(n=2)

    @step
    async def end(self, ev: Ev) -> StopEvent:
        return StopEvent(result=ev.n)


@pytest.mark.feature("1.4: E3 an event that nobody accepts")
async def test_an_event_that_nobody_accepts_is_dropped() -> None:
    assert await Unread().run() == 2


class NoEvent(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return {"a": 1}  # type: ignore[return-value]


@pytest.mark.feature("1.4: E4 a step that returns no event")
async def test_a_step_that_returns_something_else_fails_the_run() -> None:
    with pytest.raises(
        WorkflowRuntimeError, match="Step function only returned dict instead of an Event instance."
    ):
        await NoEvent().run()


# -- the end -------------------------------------------------------------------------------------------


class TwoEnds(Workflow):
    @step
    async def quick(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result="quick")

    @step
    async def slow(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(30)
        return StopEvent(result="slow")


@pytest.mark.feature("1.4: E5 the stop event")
async def test_the_first_stop_event_ends_the_run() -> None:
    handler = TwoEnds().run()
    events = [event async for event in handler.stream_events()]
    assert events == [StopEvent(result="quick")]
    assert await handler == "quick"


class TwoQuickEnds(Workflow):
    @step
    async def one(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result="a")

    @step
    async def two(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result="b")


@pytest.mark.feature("1.4: E6 two stop events")
async def test_of_two_stop_events_one_counts() -> None:
    handler = TwoQuickEnds().run()
    stops = [event async for event in handler.stream_events() if isinstance(event, StopEvent)]
    assert len(stops) == 1
    assert stops[0].result == await handler
    assert await handler in {"a", "b"}


class SendsStop(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Ev:
        ctx.send_event(StopEvent(result="sent"))
        await asyncio.sleep(0.05)
        return Ev(n=1)

    @step
    async def end(self, ev: Ev) -> StopEvent:
        return StopEvent(result="returned")


@pytest.mark.feature("1.4: E7 a stop event that is sent")
async def test_a_stop_event_that_is_sent_does_not_end_the_run() -> None:
    assert await SendsStop().run() == "returned"


@pytest.mark.feature("1.4: E7 a stop event that is sent")
async def test_a_stop_event_from_outside_does_not_end_the_run() -> None:
    handler = Idles().run()
    await handler.send_event(StopEvent(result="outside"))
    await handler.send_event(Ev(n=5))
    assert await handler == 5


class PublishesStop(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Ev:
        ctx.write_event_to_stream(Trace(text="one"))
        ctx.write_event_to_stream(StopEvent(result="published"))
        ctx.write_event_to_stream(Trace(text="two"))
        return Ev(n=1)

    @step
    async def end(self, ev: Ev) -> StopEvent:
        return StopEvent(result="real")


@pytest.mark.feature("1.4: E8 a stop event that is published")
async def test_a_published_stop_event_ends_the_reading_but_not_the_run() -> None:
    handler = PublishesStop().run()
    seen = [event async for event in handler.stream_events()]
    assert seen == [Trace(text="one"), StopEvent(result="published")]
    assert await handler == "real"


# -- failures ------------------------------------------------------------------------------------------


class OwnError(Exception):
    pass


class Raises(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        if ev.kind == "value":
            raise ValueError("wrong value")
        if ev.kind == "own":
            raise OwnError("own trouble")
        raise ZeroDivisionError


@pytest.mark.feature("1.4: E9 a step that raises")
async def test_the_error_of_a_step_is_raised_by_the_handler() -> None:
    with pytest.raises(ValueError, match="wrong value"):
        await Raises().run(kind="value")
    with pytest.raises(OwnError, match="own trouble"):
        await Raises().run(kind="own")
    with pytest.raises(ZeroDivisionError):
        await Raises().run(kind="zero")


@pytest.mark.feature("1.4: E9 a step that raises")
async def test_the_error_may_be_awaited_again() -> None:
    handler = Raises().run(kind="value")
    for _ in range(2):
        with pytest.raises(ValueError, match="wrong value"):
            await handler


class FailsBeside(Workflow):
    @step
    async def fails(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Trace(text="before"))
        raise ValueError("beside")

    @step
    async def works(self, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(30)
        return StopEvent()


@pytest.mark.feature("1.4: E9 a step that raises")
async def test_a_step_that_raises_ends_the_other_steps() -> None:
    handler = FailsBeside().run()
    events = [event async for event in handler.stream_events()]
    assert [type(e) for e in events] == [Trace, WorkflowFailedEvent]
    with pytest.raises(ValueError, match="beside"):
        await handler


class CancelsItself(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        raise asyncio.CancelledError("by itself")


@pytest.mark.feature("1.4: E10 a step that raises CancelledError")
@pytest.mark.differs("the step hangs there until the run times out")
async def test_a_step_that_raises_cancelled_error_fails_the_run() -> None:
    with pytest.raises(BaseException, match="by itself") as caught:
        await CancelsItself(timeout=5).run()
    assert not isinstance(caught.value, WorkflowTimeoutError)


class Exits(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        raise BaseOops("base")


class BaseOops(BaseException):
    pass


@pytest.mark.feature("1.4: E11 a step that raises a BaseException")
@pytest.mark.differs("there nothing ends the stream, so its reader hangs")
async def test_a_base_exception_of_a_step_ends_the_stream_too() -> None:
    handler = Exits(timeout=5).run()
    events = [event async for event in handler.stream_events()]
    assert [type(event) for event in events] == [WorkflowFailedEvent]
    with pytest.raises(BaseException, match="base"):
        await handler


# -- sends ---------------------------------------------------------------------------------------------


class SendsInOrder(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Ev | None:
        for n in range(5):
            ctx.send_event(Ev(n=n))

    @step(num_workers=1)
    async def work(self, ctx: Context, ev: Ev) -> StopEvent | None:
        ctx.write_event_to_stream(Trace(text=str(ev.n)))
        return StopEvent() if ev.n == 4 else None


@pytest.mark.feature("1.4: E12 sends")
async def test_sends_keep_their_order() -> None:
    assert await traces(SendsInOrder().run()) == ["0", "1", "2", "3", "4"]


class SendsThenReturns(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Ev:
        for n in range(3):
            ctx.send_event(Ev(n=n))
        return Ev(n=100)

    @step(num_workers=1)
    async def work(self, ctx: Context, ev: Ev) -> StopEvent | None:
        found = ctx.collect_events(ev, [Ev] * 4)
        return None if found is None else StopEvent(result=[e.n for e in found])


@pytest.mark.feature("1.4: E12 sends")
@pytest.mark.differs("there the returned event overtakes what was sent before")
async def test_what_was_sent_comes_before_what_is_returned() -> None:
    assert await SendsThenReturns().run() == [0, 1, 2, 100]


class SendsWhileRunning(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Ev | None:
        ctx.send_event(Ev(n=1))
        await asyncio.sleep(30)

    @step
    async def end(self, ev: Ev) -> StopEvent:
        return StopEvent(result=ev.n)


@pytest.mark.feature("1.4: E12 sends")
async def test_a_send_takes_effect_while_the_step_still_runs() -> None:
    assert await SendsWhileRunning(timeout=25).run() == 1


class SendsThenFails(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Ev:
        ctx.send_event(Ev(n=1))
        ctx.write_event_to_stream(Trace(text="told"))
        while not await ctx.store.get("got", default=False):  # noqa: ASYNC110 - another process sets it
            await asyncio.sleep(0.02)
        raise ValueError("late")

    @step
    async def end(self, ctx: Context, ev: Ev) -> StopEvent | None:
        ctx.write_event_to_stream(Trace(text=f"got {ev.n}"))
        await ctx.store.set("got", True)
        await asyncio.sleep(30)


@pytest.mark.feature("1.4: E12 sends")
async def test_a_send_stays_although_the_step_fails_afterwards() -> None:
    handler = SendsThenFails(timeout=60).run()
    assert await traces(handler) == ["told", "got 1"]
    with pytest.raises(ValueError, match="late"):
        await handler


class Background(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Ev | None:
        async def later() -> None:
            await asyncio.sleep(0.05)
            ctx.send_event(Ev(n=3))

        self.task = asyncio.create_task(later())

    @step
    async def end(self, ev: Ev) -> StopEvent:
        return StopEvent(result=ev.n)


@pytest.mark.feature("1.4: E14 background tasks of a step")
@pytest.mark.differs(
    "here what a task sends after its step has ended is refused, because no commit holds it"
)
async def test_a_task_that_outlives_its_step_cannot_send() -> None:
    with pytest.raises(WorkflowTimeoutError):
        await Background(timeout=0.5).run()


# -- time and cancelling -------------------------------------------------------------------------------


class TwoSlow(Workflow):
    @step
    async def a(self, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(30)
        return StopEvent()

    @step
    async def b(self, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(30)
        return StopEvent()


@pytest.mark.feature("1.4: E15 the time-out of a run")
async def test_a_time_out_names_the_steps_that_run() -> None:
    with pytest.raises(
        WorkflowTimeoutError,
        match=r"Operation timed out after 2.5 seconds. Currently active steps: a, b",
    ):
        await TwoSlow(timeout=2.5).run()


class Reused(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(0.9)
        return StopEvent(result="in time")


@pytest.mark.feature("1.4: E16 the time-out of a context that is used again")
@pytest.mark.differs(
    "there the time of all runs of one context adds up, so later ones time out at once"
)
async def test_each_run_of_a_context_has_all_of_its_time() -> None:
    workflow = Reused(timeout=3.0)
    ctx: Context = Context(workflow)
    for _ in range(4):
        assert await workflow.run(ctx=ctx) == "in time"


class Cancellable(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Trace(text="began"))
        await asyncio.sleep(30)
        return StopEvent(result="never")


@pytest.mark.feature("1.4: E17 cancel_run()")
async def test_a_run_may_be_cancelled() -> None:
    handler = Cancellable().run()
    async for _ in handler.stream_events():
        break
    await handler.cancel_run()
    with pytest.raises(WorkflowCancelledByUser):
        await handler
    assert handler.is_done()


@pytest.mark.feature("1.4: E17 cancel_run()")
async def test_cancelling_an_ended_run_does_nothing() -> None:
    handler = Raises().run(kind="value")
    with pytest.raises(ValueError, match="wrong value"):
        await handler
    await handler.cancel_run()
    with pytest.raises(ValueError, match="wrong value"):
        await handler


class Quick(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result="done")


@pytest.mark.feature("1.4: E22 events after the end")
async def test_an_event_through_the_context_after_the_end_is_ignored() -> None:
    handler = Quick().run()
    assert await handler == "done"
    handler.ctx.send_event(StartEvent())
    assert await handler == "done"


@pytest.mark.feature("1.4: the runner of tests")
async def test_the_runner_gives_everything_that_was_published() -> None:
    result = await WorkflowTestRunner(PublishesTwice()).run(expose_internal=False)
    assert result.result == "end"
    assert result.collected == [Trace(text="a"), Trace(text="b"), StopEvent(result="end")]
    assert result.event_types == {Trace: 2, StopEvent: 1}


class PublishesTwice(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Trace(text="a"))
        ctx.write_event_to_stream(Trace(text="b"))
        return StopEvent(result="end")
