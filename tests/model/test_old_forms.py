"""Section 1.18: forms of older releases. The model has dropped all of them."""

from __future__ import annotations

import warnings

import pytest

from stepfleet import Context, Workflow, step
from stepfleet.events import Event, StartEvent, StopEvent

GONE = "the model has dropped it"

pytestmark = [
    pytest.mark.differs(GONE),
    pytest.mark.filterwarnings("ignore:.*is an old form:DeprecationWarning"),
]


class Old(Event):
    text: str


class GetAndSet(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Old:
        await ctx.set("topic", ev.topic)
        return Old(text="x")

    @step
    async def end(self, ctx: Context, ev: Old) -> StopEvent:
        found = [await ctx.get("topic"), await ctx.get("nope", default=None)]
        return StopEvent(result=found)


@pytest.mark.feature("1.18: ctx.get() and ctx.set()")
async def test_ctx_get_and_set_are_the_store() -> None:
    assert await GetAndSet().run(topic="ships") == ["ships", None]


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)

    class Data(Workflow):
        @step(pass_context=True)
        async def begin(self, ctx: Context, ev: StartEvent) -> Old:
            ctx.data["topic"] = ev.topic
            return Old(text="x")

        @step(pass_context=True)
        async def end(self, ctx: Context, ev: Old) -> StopEvent:
            return StopEvent(result=ctx.data["topic"])

    class Items(Workflow):
        @step(pass_context=True)
        async def begin(self, ctx: Context, ev: StartEvent) -> Old:
            ctx["topic"] = ev.topic
            return Old(text="x")

        @step(pass_context=True)
        async def end(self, ctx: Context, ev: Old) -> StopEvent:
            return StopEvent(result=ctx["topic"])


@pytest.mark.feature("1.18: ctx.data and @step(pass_context=True)")
async def test_ctx_data_is_shared_by_the_steps() -> None:
    assert await Data().run(topic="ships") == "ships"


@pytest.mark.feature('1.18: ctx["key"]')
async def test_a_context_may_be_used_like_a_dict() -> None:
    assert await Items().run(topic="ships") == "ships"


@pytest.mark.feature("1.18: a bare Workflow with @step(workflow=instance)")
@pytest.mark.one_process("the steps belong to one instance of this process")
async def test_steps_may_be_added_to_an_instance() -> None:
    bare = Workflow(timeout=10)

    @step(workflow=bare)
    async def begin(ev: StartEvent) -> Old:
        return Old(text=ev.topic)

    @step(workflow=bare)
    async def end(ev: Old) -> StopEvent:
        return StopEvent(result=ev.text)

    assert await bare.run(topic="ships") == "ships"


@pytest.mark.feature("1.18: run_step(), is_done() and get_result()")
@pytest.mark.one_process("stepwise execution runs on memory://")
async def test_a_workflow_may_be_run_step_by_step() -> None:
    workflow = GetAndSet()
    await workflow.run_step(topic="ships")
    assert not workflow.is_done()
    while not workflow.is_done():
        await workflow.run_step()
    assert workflow.get_result() == ["ships", None]
