"""F17: clocks that are wrong, and clocks that jump."""

from __future__ import annotations

import asyncio
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from stepfleet import Client
from tests.chaos.scenarios.flows import ATTEMPTS, DELAY
from tests.chaos.scenarios.network import check
from tests.chaos.scenarios.scenario import PATIENCE, Figures, scenario
from tests.support.fleet import Execution, TestFleet, recording_server
from tests.support.load import Load
from tests.support.wait import eventually

TARGET = "tests.chaos.scenarios.flows:FLOWS"
LEASE = "5s"


class FakeClock:
    """The wall clock of a process, which can be set while it runs; its steady clock stays right."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)

    def set(self, seconds: int, *, speed: float = 1.0) -> None:
        """Moves it to so many seconds from the right time; from there it goes at this speed."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d} x{speed:g}\n" if speed != 1.0 else f"{seconds:+d}\n")
        fresh.replace(self._file)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to see it."""
        (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
        return {
            "LD_PRELOAD": os.fspath(library),
            "FAKETIME_TIMESTAMP_FILE": os.fspath(self._file),
            "FAKETIME_CACHE_DURATION": "1",  # else each look at the clock reads the file
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


@scenario(
    "F17",
    fault="the clocks of three workers are an hour ahead and 5 % fast, an hour behind and 5 % slow, and "
    "jump by an hour and back; then Redis' clock jumps 10 s forward and 10 s back, under load",
    seen="nothing with workers' clocks; timers come earlier or later by what Redis' clock jumps",
    lost="nothing; no live worker is taken for dead (the lease is 5 s here)",
    needs=("faketime",),
)
async def clocks_jump(directory: Path) -> Figures:
    for part in ("workers", "server"):
        (directory / part).mkdir()
    of_workers = await _clocks_of_workers(directory / "workers")
    of_server, reclaimed = await _clock_of_redis(directory / "server")
    assert min(of_workers) >= DELAY
    return Figures(
        recovery=(),
        counted=f"a back-off of {DELAY:.0f} s took {_range(of_workers)} with workers' clocks wrong, "
        f"{_range(of_server)} with Redis' clock jumping; {reclaimed} deliveries reclaimed",
    )


async def _clocks_of_workers(directory: Path) -> list[float]:
    """Returns the seconds between attempts."""
    clocks = [FakeClock(directory / f"clock-{number}") for number in range(3)]
    clocks[0].set(3600, speed=1.05)
    clocks[1].set(-3600, speed=0.95)
    with TestFleet(directory, target=TARGET, lease=LEASE) as fleet:
        for clock in clocks:
            fleet.start(environment=clock.environment)
        hours = {json.loads(worker.log().splitlines()[0])["ts"][11:13] for worker in fleet.workers}
        assert len(hours) == 3, "the workers do not see their clocks"
        async with Client(fleet.url) as client, asyncio.timeout(2 * PATIENCE):
            load = Load(client, width=10)
            handlers = [await client.start("Delayed") for _ in range(30)]
            for jump in (3600, 0, -3600, 0):
                before = load.started
                await eventually(lambda before=before: load.started >= before + 4, PATIENCE)
                clocks[2].set(jump)
            assert set(await asyncio.gather(*handlers)) == {ATTEMPTS}
            runs = await load.stop()
        check(fleet, load, runs)
        delayed = [handler.run_id for handler in handlers]
        fleet.wait_until_tidy(delayed)
        fleet.record().check_settled(fleet.ledger, delayed)
        assert not fleet.record().reclaimed([*runs, *delayed])
        return _between_attempts(fleet.ledger.executions("delayed"))


async def _clock_of_redis(directory: Path) -> tuple[list[float], int]:
    """Returns the seconds between attempts, and how many deliveries were taken from live workers."""
    clock = FakeClock(directory / "clock")
    server = recording_server(directory, "valkey", environment=clock.environment)
    with TestFleet(directory, server, target=TARGET, lease=LEASE) as fleet:
        fleet.start(3)
        async with Client(fleet.url) as client, asyncio.timeout(3 * PATIENCE):
            load = Load(client, width=10)
            handlers = []
            for jump in (10, 0, 10, 20, 0):
                handlers += [await client.start("Delayed") for _ in range(10)]
                before = load.started
                await eventually(lambda before=before: load.started >= before + 8, PATIENCE)
                with fleet.redis() as redis:
                    told = redis.time()[0]
                    clock.set(jump)
                    await eventually(lambda told=told: abs(redis.time()[0] - told) >= 5, 5.0)
            assert set(await asyncio.gather(*handlers)) == {ATTEMPTS}
            runs = await load.stop()
        check(fleet, load, runs)
        delayed = [handler.run_id for handler in handlers]
        fleet.wait_until_tidy(delayed)
        record = fleet.record()
        record.check_settled(fleet.ledger, delayed)
        reclaimed = len(record.reclaimed([*runs, *delayed]))
        assert reclaimed == 0
        return _between_attempts(fleet.ledger.executions("delayed")), reclaimed


def _between_attempts(executions: Iterable[Execution]) -> list[float]:
    begun: dict[str, list[float]] = defaultdict(list)
    for execution in executions:
        begun[execution.key].append(execution.began)
    return [after - before for times in begun.values() for before, after in pairwise(times)]


def _range(seconds: list[float]) -> str:
    return f"{min(seconds):.1f} to {max(seconds):.1f} s"
