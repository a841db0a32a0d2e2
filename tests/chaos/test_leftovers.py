"""A run that ends while much of it is open leaves nothing that stays."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from stepfleet import Client, WorkflowHandler
from stepfleet.errors import WorkflowCancelledByUser
from tests.support.fleet import TestFleet
from tests.support.flows import Answer, Open
from tests.support.wait import eventually

PATIENCE = 60.0
COUNT = 10


@pytest.fixture(name="fleet")
def _fleet(tmp_path: Path):
    with TestFleet(tmp_path) as fleet:
        fleet.start()
        yield fleet


async def test_a_run_that_ends_with_open_work_leaves_no_key_that_stays(fleet: TestFleet) -> None:
    async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
        handler = await _open_run(fleet, client)
        await handler.send_event(Answer())
        assert await handler == "ended"
        _check(fleet, handler)


async def test_a_run_that_fails_with_open_work_leaves_no_key_that_stays(fleet: TestFleet) -> None:
    async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
        handler = await _open_run(fleet, client)
        await handler.send_event(Answer(fails=True))
        with pytest.raises(ValueError, match="as it was told"):
            await handler
        _check(fleet, handler)


async def test_a_run_that_is_cancelled_leaves_no_key_that_stays(fleet: TestFleet) -> None:
    async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
        handler = await _open_run(fleet, client)
        await handler.cancel_run()
        with pytest.raises(WorkflowCancelledByUser):
            await handler
        _check(fleet, handler, timers=1)  # of its wait


async def _open_run(fleet: TestFleet, client: Client) -> WorkflowHandler:
    """Starts a run and waits until it has deliveries held, buffered, waiting and published."""
    handler = await client.start(Open, count=COUNT)

    async def is_open() -> bool:
        status = await handler.status()
        return len(fleet.ledger.lines("published")) == 2 and status.pending == COUNT + 1

    await eventually(is_open, PATIENCE)
    return handler


def _check(fleet: TestFleet, handler: WorkflowHandler, *, timers: int = 0) -> None:
    with fleet.redis() as redis:
        assert len(redis.keys(f"*:run:{handler.run_id}*")) >= 5
    fleet.wait_until_tidy([handler.run_id], timers=timers)
