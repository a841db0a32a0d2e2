"""What was written for older releases of the programming model still runs, and says what to write now."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.deprecation import warn_once
from stepfleet.errors import ContextStateError
from tests.conformance.place import Place


class Next(Event):
    text: str


@pytest.fixture(autouse=True)
def told() -> Iterator[list[warnings.WarningMessage]]:
    """Gives the warnings of a test: each comes once in a process, so they have to come again."""
    warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeprecationWarning)
        yield caught
    warn_once.cache_clear()


def told_of(old: str, told: list[warnings.WarningMessage]) -> bool:
    return any(str(warning.message).startswith(f"{old} is an old form: use ") for warning in told)


async def test_ctx_get_and_set_are_the_store(
    place: Place, told: list[warnings.WarningMessage]
) -> None:
    class Flow(Workflow):
        @step
        async def first(self, ctx: Context, ev: StartEvent) -> Next:
            await ctx.set("query", ev.get("query"))
            return Next(text="")

        @step
        async def second(self, ctx: Context, ev: Next) -> StopEvent:
            assert await ctx.get("nothing", default=None) is None
            assert await ctx.store.get("query") == await ctx.get("query")
            return StopEvent(result=await ctx.get("query"))

    flow = await place.serve(Flow)
    assert await flow.run(query="fleet") == "fleet"
    assert told_of("ctx.get", told)
    assert told_of("ctx.set", told)


async def test_a_key_that_was_never_set_is_an_error(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def first(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await ctx.get("nothing"))

    flow = await place.serve(Flow)
    with (
        pytest.raises(ValueError, match="Path 'nothing' not found in state"),
    ):
        await flow.run()


async def test_ctx_data_and_ctx_by_key_are_the_state(
    place: Place, told: list[warnings.WarningMessage]
) -> None:
    class Flow(Workflow):
        @step(pass_context=True)
        async def first(self, ctx: Context, ev: StartEvent) -> Next:
            ctx.data["words"] = ["a"]
            ctx["key"] = "val"
            return Next(text="")

        @step(pass_context=True)
        def second(self, ctx: Context, ev: Next) -> StopEvent | Next:
            if ev.text:
                return StopEvent(result=(ctx["words"], ctx.data.get("key"), "gone" in ctx.data))
            ctx.data["words"].append("b")
            ctx.data["gone"] = 1
            del ctx.data["gone"]
            return Next(text="again")

    flow = await place.serve(Flow)
    assert await flow.run() == (["a", "b"], "val", False)
    for old in ("@step(pass_context=...)", "ctx.data", 'ctx["key"]', 'ctx["key"] = value'):
        assert told_of(old, told)


async def test_what_a_step_wrote_to_ctx_data_stays_when_it_fails(place: Place) -> None:
    class Flow(Workflow):
        @step(pass_context=True)
        async def first(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx["seen"] = 1
            raise KeyError("broken")

    flow = await place.serve(Flow)
    handler = flow.run()
    with pytest.raises(KeyError):
        await handler
    assert await handler.ctx.store.get("seen") == 1


async def test_data_sees_what_the_same_step_set_before(place: Place) -> None:
    class Flow(Workflow):
        @step(pass_context=True)
        async def first(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.set("one", 1)
            assert ctx.data["one"] == 1
            ctx.data["two"] = 2
            return StopEvent()

    flow = await place.serve(Flow)
    handler = flow.run()
    await handler
    assert [await handler.ctx.store.get(name) for name in ("one", "two")] == [1, 2]


async def test_ctx_data_without_the_mark_names_the_cure(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def first(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=ctx.data)

    flow = await place.serve(Flow)
    with (
        pytest.raises(ContextStateError, match=r"mark the step with @step\(pass_context=True\)"),
    ):
        await flow.run()


async def test_self_send_event_is_ctx_send_event(
    place: Place, told: list[warnings.WarningMessage]
) -> None:
    class Flow(Workflow):
        @step
        async def first(self, ev: StartEvent) -> Next | None:
            self.send_event(Next(text="sent"))

        @step
        async def second(self, ev: Next) -> StopEvent:
            return StopEvent(result=ev.text)

    flow = await place.serve(Flow)
    assert await flow.run() == "sent"
    assert told_of("self.send_event", told)


def bare(**options: Any) -> Workflow:
    flow = Workflow(**options)

    @step(workflow=flow)
    async def first(ev: StartEvent) -> Next:
        return Next(text=ev.word)

    @step(workflow=flow)
    async def second(ev: Next) -> StopEvent:
        return StopEvent(result=ev.text.upper())

    return flow


async def test_a_bare_workflow_gets_its_steps_afterwards(place: Place) -> None:
    flow = await place.serve(bare, timeout=20, workflow_name="bare")
    assert await flow.run(word="plain") == "PLAIN"
    assert await flow.run(word="again") == "AGAIN"


async def test_an_old_form_warns_once(place: Place, told: list[warnings.WarningMessage]) -> None:
    class Flow(Workflow):
        @step
        async def first(self, ctx: Context, ev: StartEvent) -> StopEvent:
            for number in range(3):
                await ctx.set("number", number)
            return StopEvent()

    flow = await place.serve(Flow)
    await asyncio.gather(flow.run(), flow.run())
    assert len(told) == 1
    assert told[0].filename == __file__
