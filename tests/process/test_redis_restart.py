"""Redis is killed and comes back: workers and clients go on by themselves, and nothing is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from stepfleet import Client, WorkflowHandler
from stepfleet.errors import RunNotFound
from tests.support.fleet import TestFleet
from tests.support.flows import NotedChain, Streaming, Token
from tests.support.load import Load
from tests.support.wait import eventually

PATIENCE = 60.0


@pytest.mark.parametrize("restarts", [1, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.timeout(300)
async def test_redis_is_killed_under_load_and_every_run_ends_correctly(
    tmp_path: Path, restarts: int
) -> None:
    with TestFleet(tmp_path) as fleet:
        fleet.start(3)
        pids = {worker.pid for worker in fleet.live}
        async with Client(fleet.url) as client, asyncio.timeout(4 * PATIENCE):
            load = Load(client)
            slow = [await client.start(NotedChain, seconds=2.0, number=n) for n in range(10)]
            stream = await client.start(Streaming, count=100, seconds=0.03)
            reading = asyncio.create_task(_texts(stream))
            for _ in range(restarts):
                before = load.started
                await eventually(lambda before=before: load.started >= before + 5, PATIENCE)
                await asyncio.to_thread(fleet.server.kill)
                await asyncio.sleep(1.0)  # the outage is the length of time that this is about
                await asyncio.to_thread(fleet.server.start)
            before = load.started
            await eventually(lambda: load.started >= before + 5, PATIENCE)
            runs = await load.stop()
            assert await asyncio.gather(*slow) == [number + 2 for number in range(10)]
            assert await reading == [f"token {number}" for number in range(100)]
            assert await stream == 100
        assert {worker.pid for worker in fleet.live} == pids
        runs += [handler.run_id for handler in (*slow, stream)]
        fleet.wait_until_tidy(runs)
        deliveries = (len(runs) - 11) * load.deliveries_per_run + 3 * 10 + 1
        assert fleet.record().check_settled(fleet.ledger, runs) == deliveries


@pytest.mark.timeout(120)
async def test_workers_serve_again_after_redis_has_lost_everything(tmp_path: Path) -> None:
    with TestFleet(tmp_path) as fleet:
        fleet.start(2)
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            assert await (await client.start(NotedChain, number=1)) == 3
            lost = await client.start(NotedChain, seconds=1.0)
            await eventually(lambda: fleet.ledger.executions(run_id=lost.run_id), PATIENCE)
            with fleet.redis() as redis:
                redis.flushall()
                redis.script_flush()
            with pytest.raises(RunNotFound):
                await lost
            handlers = [await client.start(NotedChain, number=n) for n in range(10)]
            assert await asyncio.gather(*handlers) == [number + 2 for number in range(10)]
        assert len({execution.pid for execution in fleet.ledger.executions()}) == 2
        assert len(fleet.live) == 2
        fleet.wait_until_tidy([handler.run_id for handler in handlers])


async def _texts(handler: WorkflowHandler) -> list[str]:
    return [event.text async for event in handler.stream_events() if isinstance(event, Token)]
