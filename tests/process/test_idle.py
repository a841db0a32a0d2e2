"""A worker without work costs next to nothing, and a step costs few calls: counted, not timed."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stepfleet import Client
from stepfleet.client import Start
from stepfleet.embedded.memory import MemoryLink
from tests.support import costs
from tests.support.fleet import TestFleet, calls
from tests.support.flows import Begin, Chain, Sleep

#: Seconds over which an idle worker is watched.
WATCHED_S = 4.0
#: Of one core, with the default lease and sweep.
MOST_CPU = 0.02
#: Calls per second of an idle worker; a busy loop makes thousands.
MOST_CALLS = 12.0
COSTS = Path(__file__).with_name("counted_costs.json")
#: Set to write the figures anew.
UPDATE = "UPDATE_COUNTED_COSTS"
#: How much a figure may be above the one that was written down: batches differ with timing.
TOLERANCE = 1.3
#: Round trips per step that worker and client make together at most, 500 chains at once.
MOST_TRIPS = 0.1
#: Commands of an idle worker.
SENT = ("evalsha", "xreadgroup", "xread")
STEPS = 3


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
    handler = Sleep(timeout=None).run(seconds=WATCHED_S + 2.0)
    await asyncio.sleep(1.0)  # the run has started: its step sleeps, and the worker only waits
    made.clear()
    cpu, began = time.process_time(), time.monotonic()
    await asyncio.sleep(WATCHED_S)
    seconds, spent = time.monotonic() - began, time.process_time() - cpu
    rate = made.total() / seconds
    assert await handler == os.getpid()
    assert spent / seconds < MOST_CPU
    # While a step runs the worker looks for the ends of runs ten times a second.
    assert 1.0 < rate < MOST_CALLS + 10.0


@pytest.mark.timeout(120)
async def test_a_step_of_a_chain_costs_what_was_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All that worker and client send is counted, with the default settings and thirteen workflows."""
    sent = costs.Sent(tmp_path / "sent")
    monkeypatch.setenv(costs.SENT, os.fspath(sent.path))
    with TestFleet(tmp_path, lease="15s", sweep="5s") as fleet:
        fleet.start()
        with costs.written_down(sent.path):
            async with Client(fleet.url) as client:
                for _ in range(5):
                    assert await (await client.start(Chain, number=0)) == 2  # connections, scripts
                one = await _counted(fleet, client, sent, runs=20, at_once=1)
                many = min(
                    [await _counted(fleet, client, sent, runs=500, at_once=500) for _ in range(3)],
                    key=lambda figures: figures["calls_per_step"],
                )
    counted = {"one at a time": one, "500 at once": many}
    if os.environ.get(UPDATE):
        COSTS.write_text(json.dumps(counted, indent=2) + "\n")
    assert many["calls_per_step"] <= MOST_TRIPS
    for how, expected in json.loads(COSTS.read_text()).items():
        for what, figure in expected.items():
            assert counted[how][what] <= TOLERANCE * figure, (how, what)


async def _counted(
    fleet: TestFleet, client: Client, sent: costs.Sent, *, runs: int, at_once: int
) -> dict[str, float]:
    """Counts what runs of a three-step chain cost, their start and end included."""
    with fleet.redis() as redis:
        sent.since()
        before, bytes_before = calls(redis), _bytes(redis)
        for _ in range(runs // at_once):
            starts = [Start(Begin(number=number)) for number in range(at_once)]
            handlers = await client.start_many(Chain, starts)
            results = await asyncio.gather(*handlers)
            assert results == [number + 2 for number in range(at_once)]
        trips, commands = sent.since()
        used, moved = calls(redis) - before, _bytes(redis) - bytes_before
    steps = STEPS * runs
    return {
        "calls_per_step": round(trips / steps, 3),
        "commands_sent_per_step": round(commands.total() / steps, 3),
        "commands_run_per_step": round(used.total() / steps, 2),
        "bytes_per_step": round(moved / steps),
    }


def _bytes(redis: Any) -> int:
    stats = redis.info("stats")
    return stats["total_net_input_bytes"] + stats["total_net_output_bytes"]
