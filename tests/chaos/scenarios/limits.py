"""F25: a server without memory, and one whose disk is full."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import SystemRandom

from stepfleet import Client
from stepfleet.client import new_run_id
from stepfleet.errors import StoreRefused
from tests.chaos.scenarios.network import check
from tests.chaos.scenarios.scenario import PATIENCE, Figures, scenario, until_a_step_begins
from tests.support.fleet import TestFleet
from tests.support.flows import NotedChain
from tests.support.load import Load
from tests.support.wait import eventually

#: Seconds for which a limit is reached.
FULL = 4.0


@scenario(
    "F25",
    fault="Redis has no memory left (`maxmemory`, `noeviction`), or no room on its disk (`MISCONF`), for 4 s "
    "under load",
    seen="starting and sending raise `StoreRefused` with the reason; commits are kept and sent again",
    lost="nothing",
    recovery="room again to the next step",
    needs=("strace",),
)
async def a_limit_of_redis_is_reached(directory: Path) -> Figures:
    gaps: list[float] = []
    counts: list[str] = []
    with TestFleet(directory) as fleet:
        fleet.start(3)
        async with Client(fleet.url) as client, asyncio.timeout(4 * PATIENCE):
            load = Load(client, width=10)
            for name, reached in (("memory", _no_memory), ("disk", _no_disk)):
                before = load.started
                await eventually(lambda before=before: load.started >= before + 4, PATIENCE)
                async with reached(fleet):
                    refusals = await _refused(client, FULL)
                gaps.append(await until_a_step_begins(fleet, time.monotonic()))
                counts.append(f"{name}: {refusals} starts refused")
            before = load.started
            await eventually(lambda: load.started >= before + 4, PATIENCE)
            runs = await load.stop()
        check(fleet, load, runs)
        assert len(fleet.live) == 3
    return Figures(
        recovery=gaps, counted=f"{'; '.join(counts)}; {len(runs)} runs ended beside that"
    )


async def _refused(client: Client, seconds: float) -> int:
    """Tries to start runs, and returns how often Redis refused."""
    refused, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(StoreRefused):
            await client.start(NotedChain, run_id=new_run_id(SystemRandom()))
            refused -= 1
        refused += 1
        await asyncio.sleep(0.1)
    assert refused > 0
    return refused


@asynccontextmanager
async def _no_memory(fleet: TestFleet) -> AsyncIterator[None]:
    with fleet.redis() as redis:
        redis.config_set("maxmemory", redis.info("memory")["used_memory"])
        yield
        redis.config_set("maxmemory", 0)


@asynccontextmanager
async def _no_disk(fleet: TestFleet) -> AsyncIterator[None]:
    """Lets every write to the append-only file fail, by a tracer that is attached to the server."""
    (log,) = (fleet.directory / "redis").rglob("*.incr.aof")
    full = ("-P", str(log), "-e", "trace=write", "-e", "inject=write:error=ENOSPC")
    tracer = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-o", "/dev/null", "-p", str(fleet.server.pid), *full),
        stderr=subprocess.DEVNULL,
    )
    with fleet.redis() as redis:
        await eventually(lambda: redis.info("persistence")["aof_last_write_status"] == "err", 20.0)
        yield
        tracer.terminate()
        await tracer.wait()
        await eventually(lambda: redis.info("persistence")["aof_last_write_status"] == "ok", 20.0)
