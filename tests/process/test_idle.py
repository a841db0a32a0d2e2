"""A worker without work costs next to nothing: counted, not timed."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stepfleet import Client
from stepfleet.embedded.memory import MemoryLink
from tests.support.fleet import TestFleet, calls
from tests.support.flows import Chain, Sleep
from tests.support.wait import eventually

#: Seconds over which an idle worker is watched.
WATCHED_S = 4.0
#: Of one core, with the default lease and sweep.
MOST_CPU = 0.02
#: Calls per second of an idle worker; a busy loop makes thousands.
MOST_CALLS = 12.0
#: Commands of an idle worker.
SENT = ("evalsha", "xreadgroup", "xread")


@pytest.mark.parametrize("binary", ["redis", "valkey"])
async def test_an_idle_worker_uses_neither_the_cpu_nor_redis(tmp_path: Path, binary: str) -> None:
    with TestFleet(tmp_path, binary=binary, lease="15s", sweep="5s") as fleet:
        (worker,) = fleet.start()
        async with Client(fleet.url) as client:
            assert await (await client.start(Chain, number=1)) == 3  # it does work
        with fleet.redis() as redis:
            await asyncio.sleep(
                1.0
            )  # what comes after the run: its end is told, keys get their TTL
            before, cpu, began = calls(redis), worker.cpu_seconds(), time.monotonic()
            await asyncio.sleep(WATCHED_S)
            seconds = time.monotonic() - began
            used, spent = calls(redis) - before, worker.cpu_seconds() - cpu
        sent = {name: used[name] / seconds for name in SENT}
        assert spent / seconds < MOST_CPU
        assert 1.0 < sum(sent.values()) < MOST_CALLS


async def test_an_idle_worker_of_memory_uses_neither_the_cpu_nor_its_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLEET_LEDGER", os.fspath(tmp_path / "ledger"))
    made: Counter[str] = Counter()
    call = MemoryLink.call

    async def counted(self: MemoryLink, *command: Any, **more: Any) -> Any:
        made[str(command[0])] += 1
        return await call(self, *command, **more)

    monkeypatch.setattr(MemoryLink, "call", counted)
    handler = Sleep(timeout=None).run(seconds=WATCHED_S + 3.0)
    await eventually((tmp_path / "ledger").exists, 30.0)  # its step sleeps
    await asyncio.sleep(1.0)  # and the worker only waits, when it has said so
    made.clear()
    cpu, began = time.process_time(), time.monotonic()
    await asyncio.sleep(WATCHED_S)
    seconds, spent = time.monotonic() - began, time.process_time() - cpu
    rate = made.total() / seconds
    assert await handler == os.getpid()
    assert spent / seconds < MOST_CPU
    # While a step runs the worker looks for the ends of runs ten times a second.
    assert 1.0 < rate < MOST_CALLS + 10.0
