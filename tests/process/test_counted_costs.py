"""What a step costs, counted and never timed: it may not grow unnoticed.

Round trips and commands to Redis (but for the periodic ones), commands run inside of scripts too, bytes,
and calls of our Python functions, per step of a three-step chain, the run's start and end included. A
figure that grows by more than a tenth fails; UPDATE_COUNTED_COSTS=1 writes the figures anew. Calls of
functions and calls to Redis are recorded as on a busy machine, where batches are smaller.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any, Final

import pytest

import stepfleet
from stepfleet import Client
from stepfleet.client import Start
from stepfleet.connect import fleet_of
from stepfleet.planning import make_plan
from stepfleet.settings import Settings
from stepfleet.worker.worker import Worker
from tests.support import costs
from tests.support.fleet import TestFleet, calls
from tests.support.flows import Begin, Chain

Figures = dict[str, float]

COSTS: Final = Path(__file__).with_name("counted_costs.json")
ROOT: Final = Path(__file__).parents[2]
#: Where our functions are.
OURS: Final = os.fspath(Path(stepfleet.__file__).parent)
#: Set to write the figures anew.
UPDATE: Final = "UPDATE_COUNTED_COSTS"
#: How much a figure may grow.
GROWTH: Final = 1.1
#: A busy machine makes smaller batches now and then, so the best of up to this many rounds counts.
ROUNDS: Final = 8
#: Round trips per step that worker and client make together at most, 500 chains at once, periodic ones
#: included.
MOST_TRIPS: Final = 0.1
#: Objects of a run that was started, which Python's garbage collector looks at, with its handler.
MOST_OBJECTS: Final = 6
STEPS: Final = 3


async def test_what_worker_and_client_send_to_redis_for_a_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All of it, with the default settings and a worker that serves many workflows."""
    sent = costs.Sent(tmp_path / "sent")
    monkeypatch.setenv(costs.SENT, os.fspath(sent.path))
    target = "tests.support.flows:COUNTED_BESIDE"
    with TestFleet(tmp_path, target=target, lease="15s", sweep="5s") as fleet:
        fleet.start()
        with costs.written_down(sent.path), fleet.redis() as redis:
            async with Client(fleet.url) as client:
                await _warm_up(client)
                least_trips: list[float] = []

                async def counted(runs: int, at_once: int) -> Figures:
                    sent.since()
                    before, bytes_before = calls(redis), _bytes(redis)
                    await _chains(client, runs=runs, at_once=at_once)
                    trips, for_work, commands = sent.since()
                    least_trips.append(trips / (STEPS * runs))
                    used, moved = calls(redis) - before, _bytes(redis) - bytes_before
                    steps = STEPS * runs
                    return {
                        "calls": for_work / steps,
                        "commands_sent": sum(
                            count for name, count in commands.items() if name not in costs.PERIODIC
                        )
                        / steps,
                        "commands_run": used.total() / steps,
                        "bytes": moved / steps,
                    }

                await _check("one at a time", lambda: counted(20, 1))
                least_trips.clear()
                await _check("500 at once", lambda: counted(500, 500))
                while min(least_trips) > MOST_TRIPS and len(least_trips) < ROUNDS:
                    await counted(500, 500)
    assert min(least_trips) <= MOST_TRIPS


async def test_how_many_python_functions_are_called_for_a_step(tmp_path: Path) -> None:
    """Worker and client in one process. Only ours: the turns of the loop depend on how busy others are."""
    async with _in_this_process(tmp_path) as client:

        async def counted(runs: int, at_once: int) -> Figures:
            made = await _python_calls(lambda: _chains(client, runs=runs, at_once=at_once))
            return {"python_calls": made / (STEPS * runs)}

        await _check("one at a time", lambda: counted(20, 1))
        await _check("500 at once", lambda: counted(500, 500))


async def test_a_step_leaves_nothing_to_the_garbage_collector(tmp_path: Path) -> None:
    """Objects in cycles stay until Python looks for them, which stops a busy worker for 20 ms."""
    async with _in_this_process(tmp_path) as client:
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await _chains(client, runs=20, at_once=20)
            gc.collect()
            left = [type(one) for one in gc.garbage]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
    assert [one for one in left if one.__module__.startswith("stepfleet.")] == []


#: Starts so many runs and prints how many objects more it has for each of them.
PRODUCER: Final = """
import asyncio, gc, sys
from stepfleet import Client
from tests.support.flows import Chain

async def main(url, runs):
    starts = [{"number": number} for number in range(runs)]
    async with Client(url) as client:
        await client.start_many(Chain, starts[:2])
        gc.collect()
        before = len(gc.get_objects())
        handlers = await client.start_many(Chain, starts)
        gc.collect()
        print((len(gc.get_objects()) - before) / len(handlers))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def test_how_many_objects_a_started_run_is_in_its_producer(tmp_path: Path) -> None:
    """The garbage collector of the caller's process looks at each of them, now and then at all."""
    with TestFleet(tmp_path) as server:
        command = [sys.executable, "-c", PRODUCER, server.url, "500"]
        told = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        )
    assert float(told.stdout) <= MOST_OBJECTS


@asynccontextmanager
async def _in_this_process(tmp_path: Path) -> AsyncIterator[Client]:
    """Give the client of a worker that runs here and has run something."""
    with TestFleet(tmp_path) as server:
        fleet = fleet_of(server.worker_url, Settings())
        flow = Chain(timeout=None)
        plan = make_plan(flow, "Chain", limits=fleet.limits, open_types=False)
        worker = Worker(fleet, {"Chain": (plan, flow)})
        ready = asyncio.Event()
        working = asyncio.create_task(worker.run(on_ready=ready.set))
        await ready.wait()
        async with Client(server.url) as client:
            await _warm_up(client)
            yield client
        worker.stop()
        await working


async def _warm_up(client: Client) -> None:
    """Connections are made, scripts loaded, definitions read."""
    await _chains(client, runs=5, at_once=1)


async def _chains(client: Client, *, runs: int, at_once: int) -> None:
    for _ in range(runs // at_once):
        starts = [Start(Begin(number=number)) for number in range(at_once)]
        handlers = await client.start_many(Chain, starts)
        results = await asyncio.gather(*handlers)
        assert results == [number + 2 for number in range(at_once)]


async def _check(how: str, counted: Callable[[], Awaitable[Figures]]) -> None:
    """Counts until every figure was low enough once, or too often; or writes down the medians."""
    recorded: dict[str, Figures] = json.loads(COSTS.read_text())
    expected = recorded.setdefault(how, {})
    update = bool(os.environ.get(UPDATE))
    rounds: list[Figures] = []
    grown: dict[str, float] = {}
    while len(rounds) < ROUNDS and (update or grown or not rounds):
        rounds.append(await counted())
        best = {what: min(one[what] for one in rounds) for what in rounds[0]}
        grown = {
            what: figure
            for what, figure in best.items()
            if figure > GROWTH * expected.get(what, 0.0)
        }
    if update:
        for what in rounds[0]:
            expected[what] = float(f"{median(one[what] for one in rounds):.4g}")
        COSTS.write_text(json.dumps(recorded, indent=2) + "\n")
    else:
        assert grown == {}, f"recorded were {expected}"


async def _python_calls(work: Callable[[], Awaitable[None]]) -> int:
    made = 0

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal made
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            made += 1

    sys.setprofile(note)
    try:
        await work()
    finally:
        sys.setprofile(None)
    return made


def _bytes(redis: Any) -> int:
    stats = redis.info("stats")
    return stats["total_net_input_bytes"] + stats["total_net_output_bytes"]
