"""A run's events as server-sent events; over HTTP with curl: tests/process/test_services.py."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from examples.fastapi_service.report import ReportFlow, Written
from stepfleet import (
    Context,
    Event,
    HumanResponseEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from stepfleet.handler import WorkflowHandler
from stepfleet.sse import event_stream, frame

HEARTBEAT = ": heartbeat\n\n"


class Silent(Workflow, types=[Written]):
    """Says nothing more until somebody answers."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> None:
        ctx.write_event_to_stream(Written(page=1, of=2))

    @step
    async def go_on(self, ctx: Context, ev: HumanResponseEvent) -> StopEvent:
        ctx.write_event_to_stream(Written(page=2, of=2))
        return StopEvent()


def request(last_event_id: str | None = None) -> Request:
    headers = [] if last_event_id is None else [(b"last-event-id", last_event_id.encode())]
    return Request({"type": "http", "method": "GET", "path": "/", "headers": headers})


async def text(response: Response) -> str:
    assert isinstance(response, StreamingResponse)
    return "".join([str(chunk) async for chunk in response.body_iterator])


async def ended(pages: int = 3) -> WorkflowHandler:
    handler = ReportFlow().run(title="News", pages=pages, pause=0)
    await handler
    return handler


def parsed(frames: str) -> list[tuple[int, dict[str, Any]]]:
    found: list[tuple[int, dict[str, Any]]] = []
    for one in frames.split("\n\n")[:-1]:
        number, data = one.split("\n")
        found.append((int(number.removeprefix("id: ")), json.loads(data.removeprefix("data: "))))
    return found


async def test_a_stream_has_every_public_event_with_its_sequence_and_then_ends() -> None:
    response = await event_stream(request(), await ended())

    assert response.media_type == "text/event-stream"
    assert parsed(await text(response)) == [
        (1, {"type": "Written", "value": {"page": 1, "of": 3}}),
        (2, {"type": "Written", "value": {"page": 2, "of": 3}}),
        (3, {"type": "Written", "value": {"page": 3, "of": 3}}),
        (4, {"type": "StopEvent", "value": {"result": "News: 3 pages"}}),
    ]


async def test_a_stream_goes_on_behind_the_last_event_that_the_browser_saw() -> None:
    response = await event_stream(request("2"), await ended(), after=1)

    assert [sequence for sequence, _ in parsed(await text(response))] == [3, 4]


async def test_without_that_header_it_begins_where_the_caller_says() -> None:
    response = await event_stream(request(), await ended(), after=3)

    assert [sequence for sequence, _ in parsed(await text(response))] == [4]


async def test_whoever_has_seen_the_end_is_told_not_to_come_back() -> None:
    assert (await event_stream(request("4"), await ended())).status_code == 204


@pytest.mark.parametrize("header", ["", "-1", "two", "1-0", "²"])
async def test_a_header_that_is_no_sequence_is_refused(header: str) -> None:
    bad = Request(
        {"type": "http", "headers": [(b"last-event-id", header.encode("latin-1"))], "path": "/"}
    )

    with pytest.raises(HTTPException, match="is no sequence") as refused:
        await event_stream(bad, await ended())
    assert refused.value.status_code == 400


async def test_a_silence_is_filled_with_comments_and_loses_no_event() -> None:
    handler = Silent().run()
    response = await event_stream(request(), handler, heartbeat=timedelta(milliseconds=5))
    assert isinstance(response, StreamingResponse)

    frames: list[str] = []
    async for chunk in response.body_iterator:
        frames.append(str(chunk))
        if chunk == HEARTBEAT and frames.count(HEARTBEAT) == 3:
            await handler.send_event(HumanResponseEvent())

    events = "".join(one for one in frames if one != HEARTBEAT)
    assert [sequence for sequence, _ in parsed(events)] == [1, 2, 3]


async def test_a_reader_that_goes_leaves_nothing_running() -> None:
    handler = ReportFlow().run(title="Left", pages=1, pause=60)
    await handler.status()
    before = asyncio.all_tasks()
    response = await event_stream(request(), handler, heartbeat=timedelta(milliseconds=5))
    assert isinstance(response, StreamingResponse)

    async with aclosing(response.body_iterator) as frames:  # type: ignore[type-var]
        assert await anext(frames) == HEARTBEAT
        assert asyncio.all_tasks() - before
    await asyncio.sleep(0)

    left = {task for task in asyncio.all_tasks() - before if "Ended" in repr(task)}
    readers = {task for task in asyncio.all_tasks() if "anext" in repr(task)}
    assert (left, readers) == (set(), set())
    await handler.cancel_run()


def test_a_value_that_json_does_not_know_is_shown_as_text() -> None:
    class Odd(Event):
        name: str
        value: Any

    shown = frame(7, Odd(name="Zoë\n", value={1}))

    assert shown == 'id: 7\ndata: {"type": "Odd", "value": {"name": "Zoë\\n", "value": "{1}"}}\n\n'


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=50
    )


def test_without_starlette_the_import_names_the_extra() -> None:
    done = run_python("import sys; sys.modules['starlette'] = None; import stepfleet.sse")

    assert "pip install 'stepfleet[server]'" in done.stderr


def test_importing_stepfleet_loads_no_extra() -> None:
    extras = "arq starlette fastapi flask uvicorn watchfiles prometheus_client pytest"
    program = f"import sys, stepfleet; print([n for n in {extras.split()} if n in sys.modules])"

    assert run_python(program).stdout == "[]\n"
