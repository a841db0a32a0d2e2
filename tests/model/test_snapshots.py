"""Section 1.5: contexts as data, and runs that go on from them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pydantic import BaseModel

from stepfleet import Context, Workflow, step
from stepfleet.context import JsonSerializer
from stepfleet.errors import ContextSerdeError, ContextStateError
from stepfleet.events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
)


class Remembers(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        n = await ctx.store.get("n", default=0) + 1
        await ctx.store.set("n", n)
        return StopEvent(result=n)


@pytest.mark.feature("1.5: to_dict() and from_dict()")
async def test_a_context_becomes_json_and_a_context_again() -> None:
    workflow = Remembers()
    handler = workflow.run()
    assert await handler == 1
    text = json.dumps(handler.ctx.to_dict())
    ctx = Context.from_dict(workflow, json.loads(text))
    assert await ctx.store.get("n") == 1
    assert await workflow.run(ctx=ctx) == 2
    assert await workflow.run(ctx=ctx) == 3


@pytest.mark.feature("1.5: to_dict() and from_dict()")
async def test_the_data_tells_the_state_and_whether_the_run_went_on() -> None:
    workflow = Remembers()
    handler = workflow.run()
    await handler
    data = handler.ctx.to_dict()
    assert data["is_running"] is False
    assert json.loads(data["state"]["state_data"]["_data"]["n"]) == 1


class AsksForSnapshot(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> InputRequiredEvent:
        runs = await ctx.store.get("runs", default=0) + 1
        await ctx.store.set("runs", runs)
        return InputRequiredEvent(prefix="number?")

    @step
    async def end(self, ctx: Context, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=[await ctx.store.get("runs"), ev.response])


@pytest.mark.feature("1.5: resuming")
async def test_a_run_that_waits_for_a_human_goes_on_from_its_data() -> None:
    workflow = AsksForSnapshot()
    handler = workflow.run()
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            break
    data = handler.ctx.to_dict()
    assert data["is_running"] is True
    await handler.cancel_run()
    resumed = workflow.run(ctx=Context.from_dict(workflow, json.loads(json.dumps(data))))
    resumed.ctx.send_event(HumanResponseEvent(response="42"))
    assert await resumed == [1, "42"]


class WaitsForAnswer(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(
            HumanResponseEvent,
            waiter_event=InputRequiredEvent(),
            requirements={"kind": "good"},
        )
        return StopEvent(result=answer.response)


@pytest.mark.feature("1.5: resuming")
async def test_a_wait_goes_on_from_its_data_with_its_requirements() -> None:
    workflow = WaitsForAnswer()
    handler = workflow.run()
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            break
    data = handler.ctx.to_dict()
    await handler.cancel_run()
    resumed = workflow.run(ctx=Context.from_dict(workflow, data))
    resumed.ctx.send_event(HumanResponseEvent(response="no", kind="bad"))
    resumed.ctx.send_event(HumanResponseEvent(response="yes", kind="good"))
    assert await resumed == "yes"


class Interrupted(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> HumanResponseEvent:
        await ctx.store.set("begun", await ctx.store.get("begun", default=0) + 1)
        return HumanResponseEvent(response="go")

    @step
    async def works(self, ctx: Context, ev: HumanResponseEvent) -> StopEvent:
        times = await ctx.store.get("times", default=0) + 1
        await ctx.store.set("times", times)
        ctx.write_event_to_stream(InputRequiredEvent())
        if times == 1:
            await asyncio.sleep(30)
        return StopEvent(result=[await ctx.store.get("begun"), times, ev.response])


@pytest.mark.feature("1.4: E21 resuming a cancelled run")
async def test_a_cancelled_run_goes_on_with_what_was_left() -> None:
    workflow = Interrupted()
    handler = workflow.run()
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            break
    await handler.cancel_run()
    data = handler.ctx.to_dict()
    resumed = workflow.run(ctx=Context.from_dict(workflow, data))
    assert await resumed == [1, 2, "go"]


@pytest.mark.feature("1.4: E21 resuming a cancelled run")
async def test_a_cancelled_run_goes_on_with_its_own_context() -> None:
    workflow = Interrupted()
    handler = workflow.run()
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            break
    await handler.cancel_run()
    resumed = workflow.run(ctx=handler.ctx)
    assert await resumed == [1, 2, "go"]


class CounterState(BaseModel):
    n: int = 0
    names: list[str] = []


class TypedRemembers(Workflow):
    @step
    async def only(self, ctx: Context[CounterState], ev: StartEvent) -> StopEvent:
        async with ctx.store.edit_state() as state:
            state.n += 1
            state.names.append("x")
        state = await ctx.store.get_state()
        return StopEvent(result=[type(state).__name__, state.n, state.names])


@pytest.mark.feature("1.5: to_dict() and from_dict()")
async def test_a_typed_state_becomes_data_and_a_state_again() -> None:
    workflow = TypedRemembers()
    handler = workflow.run()
    await handler
    ctx = Context.from_dict(workflow, json.loads(json.dumps(handler.ctx.to_dict())))
    assert await workflow.run(ctx=ctx) == ["CounterState", 2, ["x", "x"]]


@pytest.mark.feature("1.5: to_dict() and from_dict()")
async def test_data_of_an_unknown_version_is_refused() -> None:
    with pytest.raises(ContextSerdeError):
        Context.from_dict(
            Remembers(), {"version": 99, "state": {}, "is_running": False, "workers": {}}
        )


class AsksItself(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        try:
            ctx.to_dict()
        except ContextStateError:
            return StopEvent(result="refused")
        return StopEvent(result="given")


@pytest.mark.feature("1.5: to_dict() and from_dict()")
async def test_a_step_cannot_take_its_context_apart() -> None:
    assert await AsksItself().run() == "refused"


@pytest.mark.feature("1.5: to_dict() and from_dict()")
async def test_a_context_may_become_data_before_any_run() -> None:
    workflow = Remembers()
    ctx: Context = Context(workflow)
    await ctx.store.set("n", 41)
    again = Context.from_dict(workflow, ctx.to_dict())
    assert await workflow.run(ctx=again) == 42


# -- serializers ---------------------------------------------------------------------------------------


class Noted(Event):
    text: str


class Model(BaseModel):
    n: int


@pytest.mark.feature("1.5: JsonSerializer")
@pytest.mark.parametrize("value", [1, "a", None, [1, 2], {"a": 1.5}, True])
def test_plain_values_survive_json(value: Any) -> None:
    serializer = JsonSerializer()
    assert serializer.deserialize(serializer.serialize(value)) == value


@pytest.mark.feature("1.5: JsonSerializer")
def test_models_and_events_survive_json() -> None:
    serializer = JsonSerializer(allowed_types=[Model, Noted])
    for value in (Model(n=1), Noted(text="a", more=2)):
        again = serializer.deserialize(serializer.serialize(value))
        assert type(again) is type(value)
        assert again == value
    nested = serializer.deserialize(serializer.serialize({"m": [Model(n=3)]}))
    assert nested == {"m": [Model(n=3)]}


@pytest.mark.feature("1.5: JsonSerializer")
def test_a_type_that_is_not_allowed_is_refused() -> None:
    text = JsonSerializer().serialize(Model(n=1))
    with pytest.raises(ValueError, match="is not in the serializer's allowed types"):
        JsonSerializer(allowed_types=[Noted]).deserialize(text)


@pytest.mark.feature("1.5: JsonSerializer")
def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="."):
        JsonSerializer().serialize(object())
