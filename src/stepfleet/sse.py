"""A run's public events as server-sent events, for Starlette and FastAPI: the extra `server` installs it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import timedelta
from typing import Final

from stepfleet.codec.shown import fields_of, type_of
from stepfleet.events import Event
from stepfleet.handler import WorkflowHandler

try:
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
except ImportError as error:  # pragma: no cover - tested in a process of its own
    raise ImportError(
        "stepfleet.sse needs starlette, which is an extra: pip install 'stepfleet[server]'"
    ) from error

#: Below the minute after which proxies usually close a silent connection.
HEARTBEAT: Final = timedelta(seconds=15)

_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def event_stream(
    request: Request,
    handler: WorkflowHandler,
    *,
    after: int = 0,
    heartbeat: timedelta = HEARTBEAT,
) -> Response:
    """Answer a request with the public events of a run, up to and with the one that ends it.

    A frame has the event's sequence as `id:` and `{"type": ..., "value": {...}}` as `data:`. The
    stream begins behind the request's `Last-Event-ID`, which browsers send when they connect
    again, else behind `after`. Who has seen the end of the run gets 204, which tells a browser
    not to come back. Give each request a handler of its own: `client.handler(run_id)`.

    Args:
        heartbeat: after how long a silence a comment is sent, which also notices who has gone.

    Raises:
        RunNotFound: no such run.
        HTTPException: 400, the `Last-Event-ID` is no sequence.
    """
    seen = _last_seen(request, after)
    status = await handler.status()
    if status.ended is not None and status.last_sequence <= seen:
        return Response(status_code=204)
    frames = _frames(handler, seen, heartbeat.total_seconds())
    return StreamingResponse(frames, media_type="text/event-stream", headers=_HEADERS)


def frame(sequence: int, event: Event) -> str:
    """Return one event as a frame; a value that JSON does not know is shown as its text."""
    shown = {"type": type_of(event), "value": fields_of(event)}
    return f"id: {sequence}\ndata: {json.dumps(shown, ensure_ascii=False, default=str)}\n\n"


def _last_seen(request: Request, after: int) -> int:
    text = request.headers.get("last-event-id")
    if text is None:
        return after
    if not (text.isascii() and text.isdecimal()):
        raise HTTPException(400, f"Last-Event-ID {text[:40]!r} is no sequence of an event")
    return int(text)


async def _frames(handler: WorkflowHandler, after: int, heartbeat: float) -> AsyncGenerator[str]:
    async with aclosing(handler.stream_events(after=after)) as events:
        while True:
            # A silence must not cancel the read, so it waits in a task of its own.
            reading = asyncio.ensure_future(anext(events, None))
            try:
                while not (await asyncio.wait({reading}, timeout=heartbeat))[0]:
                    yield ": heartbeat\n\n"
                event = await reading
            finally:
                if reading.cancel():
                    await asyncio.wait({reading})
            if event is None:
                return
            yield frame(handler.last_sequence, event)
