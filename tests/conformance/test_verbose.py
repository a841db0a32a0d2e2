"""`verbose=True`: what a run does, as lines in the program that started it."""

from __future__ import annotations

import logging

import pytest

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.errors import WorkflowTimeoutError
from tests.conformance.place import Place


class Item(Event):
    n: int = 0


class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Item | None:
        return Item(n=1) if ev.topic == "t" else None

    @step
    async def end(self, ctx: Context, ev: Item) -> StopEvent:
        ctx.write_event_to_stream(Item(n=2))
        return StopEvent(result="done")


LINES = [
    "[tick] add: StartEvent(topic='t')",
    "[begin:0] started from StartEvent",
    "[begin:0] complete with Item",
    "[tick] add: Item(n=1)",
    "[end:0] started from Item",
    "[result] StopEvent(result='done')",
    "[end:0] complete with StopEvent",
]


async def test_every_step_is_printed_before_the_result_is_there(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    flow = await place.serve(Flow, verbose=True)
    assert await flow.run(topic="t") == "done"
    assert capsys.readouterr().out.splitlines() == LINES


async def test_the_lines_go_to_the_log_where_that_takes_them(
    place: Place, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    flow = await place.serve(Flow, verbose=True)
    with caplog.at_level(logging.INFO, logger="stepfleet.verbose"):
        await flow.run(topic="t")
    assert [one.getMessage() for one in caplog.records if one.name.endswith("verbose")] == LINES
    assert capsys.readouterr().out == ""


async def test_a_time_out_is_a_line(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    flow = await place.serve(Flow, verbose=True, timeout=2.0)
    with pytest.raises(WorkflowTimeoutError):
        await flow.run(topic="nothing")
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "[begin:0] complete with no result",
        "[tick] timeout: 2.0s",
    ]


async def test_without_it_nothing_is_printed(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    flow = await place.serve(Flow)
    await flow.run(topic="t")
    assert capsys.readouterr().out == ""
