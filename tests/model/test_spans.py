"""Section 1.14: spans and tags of llama_index_instrumentation, over all processes of a run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import active_instrument_tags, instrument_tags
from llama_index_instrumentation.span import active_span_id

from stepfleet import Context, Workflow, step
from stepfleet.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent
from tests.model.spans import RECORDER
from tests.support.wait import eventually

pytestmark = [pytest.mark.feature("1.14: spans and tags")]


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    root = get_dispatcher()
    root.add_span_handler(RECORDER)
    yield
    root.span_handlers.remove(RECORDER)


class Passed(Event):
    above: str | None


class Spanned(Workflow):
    @step
    async def first(self, ev: StartEvent) -> Passed:
        return Passed(above=RECORDER.parent_of(active_span_id.get()))

    @step
    def second(self, ev: Passed) -> StopEvent:
        own = active_span_id.get() or ""
        return StopEvent(result=[ev.above, own.split("-")[0], RECORDER.parent_of(own)])


async def test_every_step_has_a_span_below_that_of_its_run() -> None:
    above = active_span_id.set("caller")
    try:
        handler = Spanned().run()
    finally:
        active_span_id.reset(above)
    first, own, second = await handler
    assert first == second
    assert own.endswith("Spanned.second")
    assert first.startswith("Spanned.run-")
    assert RECORDER.parent_of(first) == "caller"
    await eventually(lambda: RECORDER.has_exited(first), 5)


class Tagged(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        tags = active_instrument_tags.get()
        names = ("llamaindex.run_id", "user", "llamaindex.step.input_event")
        return StopEvent(result=[tags.get(name) for name in names])


async def test_a_step_sees_the_tags_of_its_caller_and_those_of_its_run() -> None:
    with instrument_tags({"user": "u1"}):
        handler = Tagged().run()
    assert await handler == [handler.run_id, "u1", "StartEvent"]


class FailsInSpan(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        raise ValueError("no")


class AsksInSpan(Workflow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=InputRequiredEvent())
        return StopEvent(result=answer.response)


@pytest.mark.one_process("spans of steps are seen in the process of their worker")
async def test_a_failure_drops_the_spans_of_step_and_run() -> None:
    with pytest.raises(ValueError, match="no"):
        await FailsInSpan().run()
    await eventually(lambda: RECORDER.drops_of("FailsInSpan.run") == ["ValueError('no')"], 5)
    assert any("ValueError('no')" in RECORDER.drops_of(name) for name in _names("FailsInSpan.only"))


@pytest.mark.one_process("spans of steps are seen in the process of their worker")
async def test_a_wait_is_no_error() -> None:
    handler = AsksInSpan().run()
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            await handler.send_event(HumanResponseEvent(response="yes"))
    assert await handler == "yes"
    assert sum(RECORDER.exits_of(name) for name in _names("AsksInSpan.ask")) == 2
    assert not any(RECORDER.drops_of(name) for name in _names("AsksInSpan.ask"))


@pytest.mark.one_process("spans of runs are seen in the process that started them")
async def test_a_cancelled_run_is_no_error() -> None:
    handler = AsksInSpan().run()
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            break
    before = RECORDER.exits_of("AsksInSpan.run")
    await handler.cancel_run()
    await eventually(lambda: RECORDER.exits_of("AsksInSpan.run") == before + 1, 5)
    assert not RECORDER.drops_of("AsksInSpan.run")


def _names(step: str) -> list[str]:
    """The model names spans of steps by the module too."""
    return [step, f"{__name__}.{step}", step.split(".", 1)[1]]
