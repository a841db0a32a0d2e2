"""Deliveries whose worker stalls, stops or loses a reply run on, and each is committed once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import pytest

from stepfleet import Client
from tests.chaos.proxy import Proxy
from tests.chaos.scenarios.crashes import keeps_the_cpu, stopped_for_three_leases
from tests.chaos.scenarios.deploys import replaced_one_by_one
from tests.support.fleet import TestFleet
from tests.support.flows import FanOut, Sleep

#: Seconds for anything to happen on a busy machine.
PATIENCE = 60.0


async def test_a_step_that_keeps_the_cpu_for_four_leases_runs_once(tmp_path: Path) -> None:
    await keeps_the_cpu(tmp_path, lease=2.0)


@pytest.mark.timeout(240)
async def test_a_worker_that_was_stopped_for_three_leases_changes_nothing(tmp_path: Path) -> None:
    await stopped_for_three_leases(tmp_path, lease=1.0)


@pytest.mark.parametrize("then", ["close", "silence"])
@pytest.mark.parametrize("connection", ["worker-read", "worker-commit", "worker"])
async def test_a_reply_that_is_lost_loses_nothing(
    tmp_path: Path, connection: str, then: Literal["close", "silence"]
) -> None:
    # A lease that never ends within the test: nobody but the worker itself can find what was lost.
    with TestFleet(tmp_path, lease="60s") as fleet:
        proxy = Proxy(fleet.server.port)
        (worker,) = fleet.start(url=proxy.url)
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            assert await (await client.start(Sleep, seconds=0.0)) == worker.pid
            proxy.lose_next_reply(f"stepfleet-{connection}", then)
            handler = await client.start(FanOut, width=20)
            result = await handler
        assert proxy.lost == [f"stepfleet-{connection}"]
        assert sorted(result["numbers"]) == list(range(20))
        fleet.wait_until_tidy([handler.run_id])
        record = fleet.record()
        assert record.check_settled(fleet.ledger, [handler.run_id]) == 41
        assert not record.reclaimed([handler.run_id])
        assert len(fleet.ledger.executions(run_id=handler.run_id)) >= 41
        proxy.close()


@pytest.mark.timeout(300)
async def test_workers_that_are_told_to_leave_one_by_one_execute_nothing_twice(
    tmp_path: Path,
) -> None:
    await replaced_one_by_one(tmp_path, rounds=1)


async def test_what_was_lost_twice_is_taken_over_one_by_one_and_not_one_by_sweep(
    tmp_path: Path,
) -> None:
    """Whoever was lost with two workers runs alone, but does not wait for the next sweep."""
    count = 10
    with TestFleet(tmp_path, sweep="5s") as fleet:
        (worker,) = fleet.start()
        assert worker.leave() == 0
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            handlers = await client.start_many(Sleep, [{"seconds": 0.0}] * count)
            with fleet.redis() as redis:
                (stream,) = redis.keys("*:s:Sleep:Busy:sleep")
                dead = "vm:1:dead"
                ((_, rows),) = redis.xreadgroup("workers", dead, {stream: ">"})
                entries = [entry for entry, _ in rows]
                redis.xclaim(stream, "workers", dead, 0, entries, retrycount=2, justid=True)
                redis.zadd(stream.partition(b":s:")[0] + b":leases", {dead: 1})
            await asyncio.to_thread(fleet.start)
            began = asyncio.get_running_loop().time()
            await asyncio.gather(*handlers)
            took = asyncio.get_running_loop().time() - began
        assert len(entries) == count
        assert took < 5.0 * count / 2
