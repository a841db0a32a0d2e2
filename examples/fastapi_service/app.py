"""A service that orders reports from the fleet and shows how they get on.

uvicorn examples.fastapi_service.app:app
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel

from examples.fastapi_service.report import ReportFlow
from stepfleet import Client
from stepfleet.errors import RunConflictError, RunNotFound
from stepfleet.sse import event_stream

PAGE = Path(__file__).with_name("page.html")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    async with Client() as client:
        app.state.client = client
        yield


app = FastAPI(title="Reports", lifespan=lifespan)


def client_of(request: Request) -> Client:
    return request.app.state.client


Fleet = Annotated[Client, Depends(client_of)]


class Order(BaseModel):
    title: str
    pages: int = 5
    pause: float = 0.5
    #: Chosen by whoever orders, so that an order may be repeated.
    id: str | None = None


@app.post("/runs", status_code=202)
async def order(order: Order, client: Fleet) -> dict[str, str]:
    try:
        handler = await client.start(
            ReportFlow, run_id=order.id, title=order.title, pages=order.pages, pause=order.pause
        )
    except RunConflictError as error:
        raise HTTPException(409, str(error)) from error
    return {"run": handler.run_id}


@app.get("/runs/{run_id}")
async def status(run_id: str, client: Fleet) -> dict[str, str | None]:
    found = await client.handler(run_id).status()
    return {"status": found.status, "error": found.error}


@app.get("/runs/{run_id}/events", response_model=None)
async def events(run_id: str, request: Request, client: Fleet, after: int = 0) -> Response:
    return await event_stream(request, client.handler(run_id, workflow=ReportFlow), after=after)


@app.delete("/runs/{run_id}", status_code=204)
async def cancel(run_id: str, client: Fleet) -> None:
    await client.handler(run_id).cancel_run()


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(PAGE)


@app.exception_handler(RunNotFound)
async def not_found(request: Request, error: RunNotFound) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=404)
