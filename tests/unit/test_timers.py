"""Timers are fired together; that of a run with a damaged key is not due for ever and stops no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fakeredis import FakeServer

from stepfleet.core.commit import Commit, ControlFence, NewRunFence, Route, SetTimer
from stepfleet.embedded.memory import memory_fleet
from stepfleet.storage.committer import Committer
from stepfleet.storage.fleet import Fleet
from stepfleet.storage.link import Link
from stepfleet.storage.reader import RunReader, damage
from stepfleet.storage.run_store import RunStore
from stepfleet.wire import Expiry, Promotion, encode_timer
from stepfleet.worker.timers import Timers

ROUTE = Route("Flow", "Work", "work", 4, 0, ("Work",))
PROMOTION = encode_timer(Promotion(ROUTE, "D" * 22, b"record"))


class Place:
    """Timers over a server in this process."""

    def __init__(self, fleet: Fleet, link: Link, store: RunStore, committer: Committer) -> None:
        self.keys = fleet.keys
        self.link = link
        self.store = store
        self.committer = committer
        self.timers = Timers(fleet, link, committer, RunReader(link, fleet.keys))

    async def start(self, run_id: str, *timers: tuple[str, bytes]) -> None:
        start = NewRunFence("d", ["status", "running", "workflow", "Flow"])
        assert (await self.committer.commit(Commit(run_id, start))).word == "applied"
        words = [SetTimer(f"{run_id}/{name}", 0, data) for name, data in timers]
        await self.committer.commit(Commit(run_id, ControlFence(), words))

    async def spoil(self, key: str) -> None:
        await self.link.call("DEL", key)
        await self.link.call("SET", key, "of another type")


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    fleet = memory_fleet(server=FakeServer(version=(7,)))
    link = fleet.link("test")
    store = RunStore(fleet.link("commit"), fleet.keys, consumer="me", bounds=fleet.bounds)
    committer = Committer(store)
    task = asyncio.create_task(committer.run())
    yield Place(fleet, link, store, committer)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await link.close()


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (PROMOTION, "run"),
        (PROMOTION, "open"),
        (encode_timer(Expiry("waiter")), "run"),
        (encode_timer(Expiry("waiter")), "wait"),
    ],
    ids=["back-off, record", "back-off, open", "wait, record", "wait, waiters"],
)
async def test_a_timer_of_a_broken_run_is_a_dead_letter(
    place: Place, data: bytes, key: str
) -> None:
    await place.start("broken", ("t", data))
    await place.start("whole", ("t", PROMOTION))
    await place.spoil(getattr(place.keys, key)("broken"))
    await place.timers.fire()
    assert await place.timers.fire() is None, "nothing is due any more"
    ((_, letter),) = await place.link.call("XRANGE", place.keys.dead, "-", "+")
    assert dict(zip(letter[::2], letter[1::2], strict=True)) == {
        b"run": b"broken",
        b"timer": b"broken/t",
        b"reason": b"a key of the run is damaged: " + damage("broken").encode(),
        b"record": data,
    }
    assert await place.link.call("XLEN", place.keys.stream("Flow", "Work", "work")) == 1


async def test_a_broken_run_past_its_deadline_is_not_overdue_for_ever(place: Place) -> None:
    await place.start("broken")
    await place.start("whole")
    await place.spoil(place.keys.run("broken"))
    await place.link.call("ZADD", place.keys.live, 1, "broken", 2, "whole")
    await place.timers.fire()
    assert await place.timers.fire() is None
    assert await place.link.call("HGET", place.keys.run("whole"), "status") == b"timed_out"


async def test_what_is_due_at_the_same_time_is_fired_in_few_calls(place: Place) -> None:
    for number in range(30):
        await place.start(f"backs-off-{number}", ("t", PROMOTION))
        await place.start(f"waits-{number}", ("t", encode_timer(Expiry("waiter"))))
        await place.start(f"late-{number}")
        await place.link.call("ZADD", place.keys.live, 1, f"late-{number}")
    before = place.store.link.calls_made
    await place.timers.fire()
    assert await place.timers.fire() is None, "nothing is due any more"
    assert place.store.link.calls_made - before <= 10
    assert await place.link.call("XLEN", place.keys.stream("Flow", "Work", "work")) == 30
