"""Section 1.5: `Context` before, in and outside of a run."""

from __future__ import annotations

import asyncio

import pytest

from stepfleet import Context, Workflow, step
from stepfleet.errors import ContextStateError, WorkflowRuntimeError
from stepfleet.events import Event, StartEvent, StopEvent


class Go(Event):
    n: int = 0


class CountsInStore(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        n = await ctx.store.get("n", default=0)
        await ctx.store.set("n", n + 1)
        return StopEvent(result=n)


@pytest.mark.feature("1.5: faces")
async def test_a_context_without_a_run_says_so() -> None:
    ctx: Context = Context(CountsInStore())
    with pytest.raises(
        ContextStateError,
        match=r"send_event\(\) called before workflow started. Call workflow.run\(\) first.",
    ):
        ctx.send_event(Go())
    with pytest.raises(ContextStateError, match="requires a running workflow"):
        ctx.write_event_to_stream(Go())
    with pytest.raises(ContextStateError, match="requires a running workflow"):
        ctx.collect_events(Go(), [Go])
    with pytest.raises(ContextStateError, match="requires a running workflow"):
        await ctx.wait_for_event(Go)
    assert ctx.is_running is False


@pytest.mark.feature("1.5: faces")
async def test_outside_of_steps_a_context_refuses_what_belongs_into_steps() -> None:
    handler = CountsInStore().run()
    with pytest.raises(ContextStateError, match="is only available from within step functions"):
        handler.ctx.write_event_to_stream(Go())
    with pytest.raises(ContextStateError, match="is only available from within step functions"):
        handler.ctx.collect_events(Go(), [Go])
    with pytest.raises(ContextStateError, match="is only available from within step functions"):
        await handler.ctx.wait_for_event(Go)
    await handler


@pytest.mark.feature("1.5: get_step_context()")
async def test_outside_of_steps_there_is_no_step_context() -> None:
    with pytest.raises(
        WorkflowRuntimeError,
        match=r"Context.get_step_context\(\) may only be called from within a step function",
    ):
        Context.get_step_context()


class WithoutParameter(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        ctx = Context.get_step_context()
        await ctx.store.set("a", 1)
        return StopEvent(result=await deeper())


async def deeper() -> int:
    return await Context.get_step_context().store.get("a")


@pytest.mark.feature("1.5: get_step_context()")
async def test_a_step_finds_its_context_without_a_parameter() -> None:
    assert await WithoutParameter().run() == 1


class SameContext(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ctx is Context.get_step_context())


@pytest.mark.feature("1.5: get_step_context()")
async def test_it_is_the_context_of_the_parameter() -> None:
    assert await SameContext().run() is True


class SendsWrong(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Go | StopEvent:
        messages = []
        for event, name in ((Go(), "nope"), (StartEvent(), "end")):
            try:
                ctx.send_event(event, step=name)
            except WorkflowRuntimeError as error:
                messages.append(str(error))
        return StopEvent(result=messages)

    @step
    async def end(self, ev: Go) -> StopEvent:
        return StopEvent()


@pytest.mark.feature("1.5: send_event()")
async def test_a_send_to_a_step_that_cannot_take_it_is_refused_at_once() -> None:
    unknown, wrong = await SendsWrong().run()
    assert unknown == "Step nope does not exist"
    assert wrong.startswith("Step end does not accept event of type <class '")


class WaitsOutside(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> None:
        await asyncio.sleep(0)

    @step
    async def end(self, ev: Go) -> StopEvent:
        return StopEvent(result=ev.n)

    def __init__(self, **options: object) -> None:
        super().__init__(disable_validation=True, **options)  # type: ignore[arg-type]


@pytest.mark.feature("1.5: send_event()")
async def test_the_handler_sends_too() -> None:
    handler = WaitsOutside().run()
    handler.ctx.send_event(Go(n=3))
    assert await handler == 3
    other = WaitsOutside().run()
    await other.send_event(Go(n=4), step="end")
    assert await other == 4


@pytest.mark.feature("1.5: is_running")
async def test_a_context_tells_whether_its_run_goes_on() -> None:
    handler = WaitsOutside().run()
    assert handler.ctx.is_running is True
    handler.ctx.send_event(Go(n=1))
    await handler
    assert handler.ctx.is_running is False


@pytest.mark.feature("1.5: reuse")
async def test_a_context_carries_the_state_into_the_next_run() -> None:
    workflow = CountsInStore()
    ctx: Context = Context(workflow)
    assert [await workflow.run(ctx=ctx) for _ in range(3)] == [0, 1, 2]
    assert await workflow.run() == 0


@pytest.mark.feature("1.5: reuse")
async def test_the_context_of_a_handler_may_be_used_again() -> None:
    workflow = CountsInStore()
    handler = workflow.run()
    assert await handler == 0
    assert await workflow.run(ctx=handler.ctx) == 1


@pytest.mark.feature("1.5: reuse")
async def test_a_context_takes_one_run_at_a_time() -> None:
    workflow = WaitsOutside()
    ctx: Context = Context(workflow)
    handler = workflow.run(ctx=ctx)
    with pytest.raises(
        ContextStateError,
        match="Cannot start a new run while context is already running. "
        "Wait for completion or use a new Context.",
    ):
        workflow.run(ctx=ctx)
    handler.ctx.send_event(Go(n=1))
    assert await handler == 1
