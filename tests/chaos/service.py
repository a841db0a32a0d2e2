"""A web service that shows the events of runs, for F18: `uvicorn tests.chaos.service:app`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stepfleet import Client
from stepfleet.sse import event_stream
from tests.support.flows import Streaming


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None]:
    async with Client() as client:
        app.state.client = client
        yield


async def events(request: Request) -> Response:
    handler = request.app.state.client.handler(request.path_params["run"], workflow=Streaming)
    return await event_stream(request, handler)


app = Starlette(routes=[Route("/{run}", events)], lifespan=lifespan)
