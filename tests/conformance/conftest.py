"""The places where every behaviour is tested, and what each test has to leave behind: nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
import pytest_asyncio

from stepfleet.instrumentation import StepLogFilter
from tests.conformance.place import Place

#: `memory://`, and a server of each kind.
PLACES = ("memory", "redis", "valkey")
#: For tests that need several processes: `memory://` is one.
FLEETS = PLACES[1:]


@pytest_asyncio.fixture(params=PLACES)
async def place(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Place]:
    """Gives a place to run workflows."""
    async with clean_place(place_url(request), caplog) as place:
        yield place


@pytest_asyncio.fixture(params=FLEETS)
async def fleet(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Place]:
    """Gives a place that is a server with workers."""
    async with clean_place(place_url(request), caplog) as place:
        yield place


@asynccontextmanager
async def clean_place(url: str, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Place]:
    """Gives a place and checks afterwards that no key, no run, no task and no defect is left."""
    place = Place(url, f"t{uuid4().hex[:12]}")
    caplog.handler.addFilter(named := StepLogFilter())
    try:
        yield place
        await place.assert_nothing_leaks()
        taken = await _taken_from_live_workers(place, caplog)
    finally:
        caplog.handler.removeFilter(named)
        await place.close()
    await asyncio.sleep(0)  # what was cancelled last ends now
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks are left: {left}"
    defects = [
        record.getMessage()
        for record in caplog.get_records("call")
        if record.levelno >= logging.CRITICAL or "could not be settled" in record.getMessage()
    ]
    assert not [*defects, *taken]


async def _taken_from_live_workers(place: Place, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What workers say that they have lost, but to the continuation of a cancelled run: that may be first."""
    return [
        record.getMessage()
        for record in caplog.get_records("call")
        if "another worker took" in record.getMessage()
        and (await place.client.handler(vars(record)["run_id"]).status()).continued_by is None
    ]


def place_url(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory://"
    urls: dict[str, str] = request.getfixturevalue("server_urls")
    if request.param not in urls:
        pytest.skip(f"no {request.param} server on this machine")
    return urls[request.param]
