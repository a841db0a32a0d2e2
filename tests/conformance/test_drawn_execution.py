"""`draw_most_recent_execution`: what a run did, from its record, in any program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, catch_error, step
from stepfleet.drawing import draw_most_recent_execution, draw_most_recent_execution_mermaid
from stepfleet.errors import RunNotFound, WorkflowRuntimeError
from stepfleet.events import StepFailedEvent
from tests.conformance.place import Place


class Item(Event):
    n: int = 0


class Done(Event):
    n: int = 0


class Flow(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
        for n in range(5):
            ctx.send_event(Item(n=n))
        return None

    @step(num_workers=2)
    async def work(self, ev: Item) -> Done:
        if ev.n == 3:
            raise ValueError("three")
        return Done(n=ev.n)

    @catch_error
    async def rescue(self, ev: StepFailedEvent) -> Done:
        return Done(n=ev.input_event.n)

    @step
    async def join(self, ctx: Context, ev: Done) -> StopEvent | None:
        return StopEvent() if ctx.collect_events(ev, [Done] * 5) else None


def labels(mermaid: str) -> dict[str, str]:
    return dict(re.findall(r'^    (\S+?)(?:\(\[|\[)"(.*?)"', mermaid, re.MULTILINE))


def arrows(mermaid: str) -> set[tuple[str, str]]:
    names = labels(mermaid)
    return {
        (names[a], names[b]) for a, b in re.findall(r"^    (\S+) --> (\S+)$", mermaid, re.MULTILINE)
    }


async def test_what_a_run_did_is_drawn_from_its_record(place: Place, tmp_path: Path) -> None:
    place.keep_history()
    flow = await place.serve(Flow)
    handler = flow.run()
    await handler
    mermaid = draw_most_recent_execution_mermaid(handler, tmp_path / "run.mmd")
    assert mermaid == (tmp_path / "run.mmd").read_text()
    assert {
        ("StartEvent", "begin"),
        ("begin", "Item x5"),
        ("Item x5", "work x5"),
        ("work x5", "Done x4"),
        ("work x5", "StepFailedEvent"),
        ("StepFailedEvent", "rescue"),
        ("rescue", "Done"),
    } <= arrows(mermaid)
    assert any(b == "StopEvent" and a.startswith("join") for a, b in arrows(mermaid))
    page = draw_most_recent_execution(handler, tmp_path / "run.html").read_text()
    assert "default-src &#x27;none&#x27;" in page
    assert handler.run_id in page
    assert "completed" in page
    # A run id and the instance name the same run.
    runs = place.client if not place.in_memory else place.runtime.client  # type: ignore[attr-defined]
    assert draw_most_recent_execution_mermaid(handler.run_id, client=runs) == mermaid
    assert draw_most_recent_execution_mermaid(flow) == mermaid


async def test_a_failed_run_shows_where(place: Place) -> None:
    class Failing(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item()

        @step
        async def work(self, ev: Item) -> StopEvent:
            raise ValueError("no")

    place.keep_history()
    flow = await place.serve(Failing)
    handler = flow.run()
    with pytest.raises(ValueError, match="no"):
        await handler
    mermaid = draw_most_recent_execution_mermaid(handler)
    assert "work (failed)" in mermaid.replace("#40;", "(").replace("#41;", ")")
    assert "classDef failed" in mermaid


async def test_a_wait_is_drawn_with_its_answer(place: Place) -> None:
    class Waiting(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(Done, waiter_event=Item())
            return StopEvent()

    place.keep_history()
    flow = await place.serve(Waiting)
    handler = flow.run()
    async for event in handler.stream_events():
        if isinstance(event, Item):
            await handler.send_event(Done())
    assert arrows(draw_most_recent_execution_mermaid(handler)) == {
        ("StartEvent", "begin"),
        ("external_step", "Done"),
        ("Done", "begin"),
        ("begin", "StopEvent"),
    }


async def test_a_long_run_has_one_node_for_each_step(place: Place) -> None:
    class Loop(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item()

        @step
        async def again(self, ev: Item) -> Item | StopEvent:
            return Item(n=ev.n + 1) if ev.n < 150 else StopEvent()

    place.keep_history()
    flow = await place.serve(Loop)
    handler = flow.run()
    await handler
    assert arrows(draw_most_recent_execution_mermaid(handler)) == {
        ("StartEvent", "begin"),
        ("begin", "Item x151"),
        ("Item x151", "again x151"),
        ("again x151", "Item x151"),
        ("again x151", "StopEvent"),
    }


async def test_what_was_not_kept_cannot_be_drawn(fleet: Place) -> None:
    class Plain(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    flow = await fleet.serve(Plain)
    with pytest.raises(WorkflowRuntimeError, match="has started no run"):
        draw_most_recent_execution_mermaid(flow)
    handler = flow.run()
    await handler
    with pytest.raises(WorkflowRuntimeError, match="keeps no history.*STEPFLEET_HISTORY=on"):
        draw_most_recent_execution_mermaid(handler)
    with pytest.raises(RunNotFound):
        draw_most_recent_execution_mermaid("nobody", client=fleet.client)
