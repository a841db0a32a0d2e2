"""What a worker leaves behind when it is cut off in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any, cast

import pytest

from stepfleet.clock import Clock
from stepfleet.core.commit import Route
from stepfleet.core.delivery import Delivery, Record
from stepfleet.embedded.memory import memory_fleet
from stepfleet.errors import ConnectionLost, SettingsError, StoreRefused
from stepfleet.planning import make_plan
from stepfleet.storage.consumer import Consumer
from stepfleet.storage.fleet import Fleet
from stepfleet.storage.link import Link
from stepfleet.storage.reader import RunReader
from stepfleet.worker.outage import Outage
from stepfleet.worker.worker import Worker
from tests.support.flows import Chain


def worker_on(fleet: Fleet) -> Worker:
    flow = Chain()
    plan = make_plan(flow, "Chain", limits=fleet.limits, open_types=False)
    return Worker(fleet, {"Chain": (plan, flow)})


async def test_a_worker_without_a_workflow_does_not_start() -> None:
    with pytest.raises(SettingsError, match="give it a workflow"):
        await Worker(memory_fleet(), {}).run()


class Cut:
    """A connection that is lost in the middle of a pipeline."""

    def __init__(self, link: Link, carried_out: int) -> None:
        self._link = link
        self._left = carried_out

    async def call(self, *command: Any, **more: Any) -> Any:
        return await self._link.call(*command, **more)

    async def calls(self, commands: Sequence[tuple[Any, ...]], **more: Any) -> list[Any]:
        replies: list[Any] = []
        for command in commands:
            if self._left == 0:
                raise ConnectionLost("reset")
            if command[0] in ("LREM", "PEXPIRE"):
                self._left -= 1
            replies.append(await self._link.call(*command))
        return replies


@pytest.mark.parametrize("carried_out", [0, 1, 2, 3, 4])
async def test_every_key_of_an_ended_run_gets_its_expiry_wherever_a_worker_is_cut_off(
    carried_out: int,
) -> None:
    fleet = memory_fleet()
    keys, link = fleet.keys, fleet.link("test")
    further = [keys.store("r"), keys.inbox("r")]
    for key in (keys.run("r"), *further):
        await link.call("SET", key, "x")
    await link.call("PEXPIRE", keys.run("r"), 60_000)
    await link.call("SADD", keys.further("r"), *further)
    await link.call("RPUSH", keys.tidy, "r")
    cut = Worker(replace(fleet, link=cast(Any, lambda _: Cut(link, carried_out))), {})
    if carried_out < 4:
        with pytest.raises(ConnectionLost):
            await cut.tidy()
    else:
        await cut.tidy()
    await Worker(fleet, {}).tidy()
    left = [await link.call("PTTL", key) for key in (*further, keys.further("r"))]
    assert all(0 < ttl <= 60_000 for ttl in left), left
    assert await link.call("LLEN", keys.tidy) == 0


class Stopped(Clock):
    """A clock that goes on when it is told to."""

    now = 0.0

    def steady(self) -> float:
        return self.now


async def test_what_is_owned_for_a_while_makes_a_worker_look_more_often_at_ended_runs() -> None:
    """At idle 2.00 calls per step instead of 2.01."""
    clock = Stopped()
    processor = Worker(replace(memory_fleet(), clock=clock), {}).processor
    route = Route("Flow", "Work", "work")
    assert not processor.works_since(0.1)
    for entry in ("1-0", "2-0"):
        clock.now += 0.06
        processor.accept(Delivery("r", f"d{entry}", route, entry, Record("r", "Work", b"")))
    assert not processor.works_since(0.1)
    clock.now += 0.06
    assert processor.works_since(0.1)


class Refusing:
    """A connection to a Redis that does not allow groups."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._announced = False

    async def script(self, *args: Any) -> Any:
        return await self._link.script(*args)

    async def calls(self, commands: Sequence[tuple[Any, ...]], **more: Any) -> list[Any]:
        if self._announced:
            return [StoreRefused("NOPERM")]
        self._announced = True
        return []

    async def close(self) -> None:
        await self._link.close()


async def test_a_worker_that_cannot_start_renews_no_lease() -> None:
    fleet = memory_fleet()
    worker = worker_on(replace(fleet, link=cast(Any, lambda name: Refusing(fleet.link(name)))))
    with pytest.raises(StoreRefused):
        await worker.run()
    assert [task.get_name() for task in asyncio.all_tasks() if "heartbeat" in task.get_name()] == []


async def test_what_is_handed_back_behind_a_new_workers_first_sweep_is_announced_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It looks where the announcements end before it looks at what there is."""
    looked: list[str] = []
    swept = asyncio.Event()

    async def last_end(_: RunReader) -> str:
        looked.append("announcements")
        return "0-0"

    async def reclaim(_: Consumer, *args: Any, **options: Any) -> list[Any]:
        looked.append("handed back")
        swept.set()
        return []

    monkeypatch.setattr(RunReader, "last_end", last_end)
    monkeypatch.setattr(Consumer, "reclaim", reclaim)
    worker = worker_on(memory_fleet())
    working = asyncio.create_task(worker.run())
    await swept.wait()
    worker.stop()
    await working
    assert looked[:2] == ["announcements", "handed back"]


class AtOnce(Random):
    """Lets nobody wait."""

    def uniform(self, a: float, b: float) -> float:
        return 0.0


async def test_all_loops_together_say_once_that_redis_is_away_and_once_that_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    away = set[str]()
    reading, sweeping = (Outage(doing, AtOnce(), away) for doing in ("reading", "sweeping"))
    for _ in range(2):
        await reading.pause(ConnectionLost("gone"))
        await sweeping.pause(ConnectionLost("gone"))
    sweeping.over()
    reading.over()
    await reading.pause(StoreRefused("NOGROUP"))
    reading.over()
    sweeping.over()
    assert [record.getMessage() for record in caplog.records] == [
        "redis is away, waiting for it: while=reading error=gone",
        "redis is back: while=sweeping",
        "redis refuses, trying again: while=reading error=NOGROUP",
        "redis accepts again: while=reading",
    ]
