"""F19 to F21: entries that kill, that cannot be read, and that come to several workers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from stepfleet import Client, Workflow
from stepfleet.errors import DeadLettered
from tests.chaos.scenarios.memory import ADDRESS_SPACE, CGROUP, EATING, Hungry, MemoryGroups
from tests.chaos.scenarios.network import check
from tests.chaos.scenarios.scenario import PATIENCE, Figures, executed_twice, scenario, share
from tests.support.fleet import TestFleet
from tests.support.flows import Poison
from tests.support.load import Load
from tests.support.wait import eventually

#: After so many deaths a delivery is given up: the default of `max_deliveries`.
MAX_DELIVERIES = 3
#: How often an entry is written again.
COPIES = 3
WORK = "{default:0}:s:FanOut:Item:work"
#: What somebody may have written into a stream.
GARBAGE = (
    {"r": "nobody", "i": "x", "d": b"\xff\x00\xff"},
    {"r": "nobody", "i": "x", "d": b""},
    {"something": "else"},
)


# -- F19 ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def replaced(
    fleet: TestFleet, count: int, environment: Mapping[str, str] | None = None
) -> AsyncIterator[None]:
    """Starts a worker for each that died, as whatever runs them does."""

    async def replace() -> None:
        while True:
            if len(fleet.live) < count:
                await asyncio.to_thread(fleet.start, environment=environment)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(replace())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@scenario(
    "F19",
    fault="a step that kills its process whenever it runs; one that eats memory until the kernel kills its "
    "worker (a cgroup of 256 MB), or until its process gets no more (`RLIMIT_AS`)",
    seen="that run fails with `DeadLettered`, what is pending of it is kept, or with `MemoryError` where its "
    "process lives; others go on",
    lost="nothing; what ran beside it in that process runs again",
    recovery="start of the poisonous run to its end",
)
async def steps_kill_their_workers(directory: Path) -> Figures:
    found: list[Figures] = []
    for name, one in (
        ("`kill -9`", a_step_kills_its_workers),
        ("cgroup", a_step_is_killed_for_its_memory),
        ("`RLIMIT_AS`", a_step_gets_no_more_memory),
    ):
        (directory / one.__name__).mkdir()
        figures = await one(directory / one.__name__)
        found.append(Figures(recovery=figures.recovery, counted=f"{name}: {figures.counted}"))
    return Figures(
        recovery=[seconds for figures in found for seconds in figures.recovery],
        counted="; ".join(figures.counted for figures in found),
    )


async def a_step_kills_its_workers(directory: Path) -> Figures:
    """A step sends its process a signal that nobody can catch."""
    with TestFleet(directory, max_deliveries=MAX_DELIVERIES) as fleet:
        return await _given_up(fleet, Poison)


async def a_step_is_killed_for_its_memory(directory: Path) -> Figures:
    """The kernel kills a worker whose step eats more memory than its cgroup may have."""
    with (
        MemoryGroups.made() as groups,
        TestFleet(directory, target=EATING, max_deliveries=MAX_DELIVERIES) as fleet,
    ):
        if groups is None:
            return Figures(recovery=(), counted="no memory cgroup can be made here, not tried")
        return await _given_up(fleet, Hungry, {CGROUP: str(groups)})


async def _given_up(
    fleet: TestFleet, poisonous: type[Workflow], environment: Mapping[str, str] | None = None
) -> Figures:
    """Runs a poisonous workflow beside others until it is given up, and checks who was harmed."""
    fleet.start(2, environment=environment)
    async with Client(fleet.url) as client, asyncio.timeout(2 * PATIENCE):
        load = Load(client)
        async with replaced(fleet, 2, environment):
            began = time.monotonic()
            poison = await client.start(poisonous)
            with pytest.raises(DeadLettered, match="its worker died 3 times"):
                await poison
            took = time.monotonic() - began
            before = load.started
            await eventually(lambda: load.started >= before + 4, PATIENCE)
            runs = await load.stop()
    assert len(fleet.ledger.lines("start")) > MAX_DELIVERIES
    assert len(fleet.ledger.executions("kill")) == MAX_DELIVERIES
    killed = [worker for worker in fleet.workers if worker.process.poll() == -signal.SIGKILL]
    assert len(killed) == MAX_DELIVERIES
    fleet.wait_until_tidy([poison.run_id])
    check(fleet, load, runs)
    with fleet.redis() as redis:
        (key,) = redis.keys("*}:dead")
        ((_, letter),) = redis.xrange(key)
        assert letter[b"run"].decode() == poison.run_id
    again = executed_twice(fleet.ledger.executions("work"))
    return Figures(
        recovery=[took],
        counted=f"{MAX_DELIVERIES} deaths, 1 dead letter, {len(runs)} runs beside it; of their steps "
        f"executed twice: {share(*again)}",
    )


async def a_step_gets_no_more_memory(directory: Path) -> Figures:
    """A step whose process may not have more memory fails; nothing beside it does."""
    with TestFleet(directory, target=EATING) as fleet:
        (worker,) = fleet.start(environment={ADDRESS_SPACE: "yes"})
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            load = Load(client)
            began = time.monotonic()
            hungry = await client.start(Hungry)
            with pytest.raises(MemoryError):
                await hungry
            took = time.monotonic() - began
            before = load.started
            await eventually(lambda: load.started >= before + 4, PATIENCE)
            runs = await load.stop()
        assert len(fleet.ledger.executions("kill")) == 1
        assert fleet.live == [worker]
        check(fleet, load, runs)
        again = executed_twice(fleet.ledger.executions("work"))
    assert again[0] == 0
    return Figures(
        recovery=[took],
        counted=f"0 deaths, {len(runs)} runs beside it; of their steps executed twice: {share(*again)}",
    )


# -- F20 ---------------------------------------------------------------------------------------------


@scenario(
    "F20",
    fault="entries that are none are written into a step's stream, under load",
    seen="dead letters, one for each; runs do not notice",
    lost="nothing",
    recovery="entry written to taken out",
)
async def entries_cannot_be_read(directory: Path, *, count: int = 30) -> Figures:
    with TestFleet(directory) as fleet:
        fleet.start(2)
        async with Client(fleet.url) as client, asyncio.timeout(2 * PATIENCE):
            load = Load(client, width=10)
            await eventually(lambda: load.started >= 8, PATIENCE)
            written = [GARBAGE[number % len(GARBAGE)] for number in range(count)]
            gaps = [await _taken_out(fleet, fields) for fields in written]
            before = load.started
            await eventually(lambda: load.started >= before + 4, PATIENCE)
            runs = await load.stop()
        with fleet.redis() as redis:
            (key,) = redis.keys("*}:dead")
            assert redis.xlen(key) == count
            redis.delete(key)
        check(fleet, load, runs)
        assert len(fleet.live) == 2
    begun = [line["t"] for line in fleet.ledger.lines("start")]
    silence = max(after - before for before, after in pairwise(begun))
    return Figures(
        recovery=gaps,
        counted=f"{count} entries, {count} dead letters; {len(runs)} runs, longest time without a step "
        f"{silence:.1f} s",
    )


async def _taken_out(fleet: TestFleet, fields: Mapping[str, str | bytes]) -> float:
    with fleet.redis() as redis:
        entry = redis.xadd(WORK, dict(fields))
        began = time.monotonic()
        await eventually(lambda: not redis.xrange(WORK, entry, entry), PATIENCE)
    return time.monotonic() - began


# -- F21 ---------------------------------------------------------------------------------------------


@scenario(
    "F21",
    fault="entries that are pending are claimed for other workers again and again while they run; others are "
    "written into their stream three times more",
    seen="nothing: steps run more than once, and are committed once; the other commits change nothing",
    lost="nothing",
)
async def entries_change_hands(directory: Path, *, seconds: float = 10.0) -> Figures:
    (directory / "claimed").mkdir()
    (directory / "doubled").mkdir()
    claimed = await _changing_hands(directory / "claimed", seconds)
    return Figures(
        recovery=(), counted=f"{claimed}; {await _doubled(directory / 'doubled', seconds)}"
    )


async def _changing_hands(directory: Path, seconds: float) -> str:
    with TestFleet(directory) as fleet:
        fleet.start(3)
        async with Client(fleet.url) as client, asyncio.timeout(seconds + 2 * PATIENCE):
            load = Load(client, width=10)
            claimed, until = 0, time.monotonic() + seconds
            while time.monotonic() < until:
                claimed += _claim_for_others(fleet)
                await asyncio.sleep(0.3)
            runs = await load.stop()
        check(fleet, load, runs)
        # also in one process: all of them change hands together, and come back
        began = Counter(one.delivery for one in fleet.ledger.executions("work"))
        dropped = sum(worker.log().count("settled elsewhere") for worker in fleet.workers)
    assert claimed > 2 * seconds
    again = sum(times > 1 for times in began.values())
    assert again > 0
    return (
        f"{claimed} claims under {len(runs)} runs; executed more than once: "
        f"{share(again, len(began))} of that step; {dropped} commits dropped"
    )


async def _doubled(directory: Path, seconds: float) -> str:
    """Writes entries of a step three times more, as somebody would who replays a stream."""
    copied: set[bytes] = set()
    with TestFleet(directory) as fleet:
        fleet.start(3)
        async with Client(fleet.url) as client, asyncio.timeout(seconds + 2 * PATIENCE):
            load = Load(client, width=10)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                copied |= _copy_some(fleet, copied)
                await asyncio.sleep(0.1)
            runs = await load.stop()
        fleet.wait_until_tidy(runs, timeout=PATIENCE)
        record = fleet.record()
        began = Counter(one.delivery for one in fleet.ledger.executions("work"))
        dropped = sum(worker.log().count("settled elsewhere") for worker in fleet.workers)
    assert len(copied) > 2 * seconds
    # Each was in the stream four times, and what came of it was added once: a join, and no second end.
    added = Counter(entry.delivery for entry in record.of_runs(runs) if entry.step == "work")
    assert {count for name, count in added.items() if name.encode() in copied} == {COPIES + 1}
    joined = [entry for entry in record.of_runs(runs) if entry.step == "join"]
    assert len(joined) == len(runs) * load.width
    assert {record.ends[run] for run in runs} == {1}
    assert not [key for (key, _), count in record.contributions.items() if count > 1]
    assert not [slot for slot, count in record.lowest_slots.items() if count < 0]
    again = sum(began[name.decode()] > 1 for name in copied)
    return (
        f"{len(copied)} entries written {COPIES} times more under {len(runs)} runs; executed more than once: "
        f"{share(again, len(copied))}; {dropped} commits dropped"
    )


def _copy_some(fleet: TestFleet, copied: set[bytes]) -> set[bytes]:
    """Writes up to two entries of a step into its stream again; returns their deliveries."""
    with fleet.redis() as redis:
        rows = [fields for _, fields in redis.xrange(WORK) if fields[b"i"] not in copied]
        for fields in rows[:2]:
            for _ in range(COPIES):
                redis.xadd(WORK, fields)
    return {fields[b"i"] for fields in rows[:2]}


def _claim_for_others(fleet: TestFleet) -> int:
    """Gives each pending delivery of a step to the worker after its own, as no worker would."""
    with fleet.redis() as redis:
        rows = redis.xpending_range(WORK, "workers", "-", "+", 100) if redis.exists(WORK) else []
        names = (
            sorted({row["name"] for row in redis.xinfo_consumers(WORK, "workers")}) if rows else []
        )
        for row in rows:
            name = row["consumer"]
            other = names[(names.index(name) + 1) % len(names)]
            redis.xclaim(WORK, "workers", other, 0, [row["message_id"]], justid=True)
        return len(rows[-2:]) if len(names) > 1 else 0
