"""F1 to F5: workers that die, stop, or are busy."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from stepfleet import Client
from tests.chaos.proxy import Exchange, Order
from tests.chaos.scenarios.scenario import (
    PATIENCE,
    Figures,
    dice,
    executed_twice,
    proxied,
    scenario,
    share,
    taken_over,
)
from tests.support.fleet import TestFleet, WorkerProcess, pid_of
from tests.support.flows import NotedChain, Sleep, Spin
from tests.support.load import Load
from tests.support.wait import eventually

#: How a worker says that its commit was not applied.
DROPPED = "settled elsewhere"
#: Runs that a stopped worker owns.
STOPPED = 8
COMMITS = "stepfleet-worker-commit"


# -- F1 ----------------------------------------------------------------------------------------------


@scenario(
    "F1",
    fault="`kill -9` of a random worker every second or two, under load",
    seen="nothing; steps of the dead worker run again elsewhere",
    lost="nothing",
    recovery="death to the step running elsewhere",
)
async def workers_are_killed_at_random(directory: Path, *, seconds: float = 30.0) -> Figures:
    chance = dice()
    with TestFleet(directory) as fleet:
        fleet.start(4)
        async with Client(fleet.url) as client, asyncio.timeout(seconds + 2 * PATIENCE):
            load = Load(client, width=10, at_once=6)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                await asyncio.sleep(chance.uniform(0.5, 1.5))  # when a worker dies is chance
                await asyncio.to_thread(chance.choice(fleet.live).kill)
                await asyncio.to_thread(fleet.start)
            runs = await load.stop()
        fleet.wait_until_tidy(runs, timeout=30.0)
        record = fleet.record()
        deliveries = record.check_settled(fleet.ledger, runs)
        assert deliveries == len(runs) * load.deliveries_per_run
        assert len(runs) > seconds
        executions, deaths = fleet.ledger.executions(), fleet.deaths()
        gaps = taken_over(executions, deaths)
        assert len(gaps) > len(deaths) > seconds / 5
        return Figures(
            recovery=gaps,
            counted=f"{len(runs)} runs, {len(deaths)} kills; executed twice: "
            f"{share(*executed_twice(executions))} deliveries",
        )


# -- F2 ----------------------------------------------------------------------------------------------


class Trap:
    """Kills the first of some workers that comes to a point, and nobody else."""

    def __init__(self, reached: Callable[[Exchange], bool]) -> None:
        self._reached = reached
        self._mutex = threading.Lock()
        self.killed: WorkerProcess | None = None

    def for_worker(self, worker: WorkerProcess) -> Callable[[Exchange], Order]:
        """Returns what asks at each exchange of a worker."""

        def order(exchange: Exchange) -> Order:
            if not self._reached(exchange):
                return "forward"
            with self._mutex:
                if self.killed is not None:
                    return "forward"
                self.killed = worker
            worker.kill()
            return "close"

        return order


def _asks_for_work(exchange: Exchange) -> bool:
    return exchange.words[0] == b"XREADGROUP"


def _gets_work(exchange: Exchange) -> bool:
    return exchange.brings_work


def _commits(exchange: Exchange) -> bool:
    # the fence of a commit that settles a delivery; early effects have another one
    return exchange.connection == COMMITS and b"entry" in exchange.arguments


class Point(NamedTuple):
    """Where a worker is killed."""

    #: At which side of its proxy; '': when a step of the run has begun.
    side: Literal["command", "reply", ""]
    reached: Callable[[Exchange], bool] | str
    #: How often the first step begins in all.
    starts: int


FAIL_POINTS = {
    "before a read": Point("command", _asks_for_work, 1),
    "after a read": Point("reply", _gets_work, 1),
    "in the middle of a step": Point("", "one", 2),
    "before its commit": Point("command", _commits, 2),
    "after its commit, before the answer": Point("reply", _commits, 1),
    "after the answer": Point("", "two", 1),
}


@scenario(
    "F2",
    fault="`kill -9` of a worker exactly before and after a read, in the middle of a step, before its "
    "commit, after it and before the answer, after the answer",
    seen="nothing; the step runs again where it had not been committed",
    lost="nothing",
    recovery="death to the next step running elsewhere",
    is_quick=True,
)
async def workers_are_killed_at_fail_points(directory: Path) -> Figures:
    gaps: list[float] = []
    starts: list[str] = []
    for number, (name, point) in enumerate(FAIL_POINTS.items()):
        (directory / str(number)).mkdir()
        gap, count = await _killed_at(directory / str(number), point)
        assert count == point.starts, name
        gaps.append(gap)
        starts.append(f"{name} {count}")
    return Figures(
        recovery=gaps, counted=f"one commit each; times that the step began: {', '.join(starts)}"
    )


async def _killed_at(directory: Path, point: Point) -> tuple[float, int]:
    """Returns the seconds until the run went on, and how often its first step began."""
    with TestFleet(directory) as fleet, proxied(fleet, 2) as workers:
        trap = Trap(point.reached) if callable(point.reached) else None
        if trap is not None:
            for worker, proxy in workers:
                setattr(proxy, point.side, trap.for_worker(worker))
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            if trap is not None and point.reached is _asks_for_work:
                # else it would have read the run by the question before
                await eventually(lambda: trap.killed, PATIENCE)
            handler = await client.start(NotedChain, seconds=2.0 if point.reached == "one" else 0.0)
            if trap is None:
                killed = await _kill_when_begun(fleet, str(point.reached))
            else:
                killed = await eventually(lambda: trap.killed, PATIENCE)
            assert await handler == 2
        fleet.wait_until_tidy([handler.run_id])
        assert fleet.record().check_settled(fleet.ledger, [handler.run_id]) == 3
        executions = fleet.ledger.executions()
        after = next(one for one in executions if one.began > killed.killed_at)
        assert after.pid != killed.pid
        return after.began - killed.killed_at, sum(one.step == "one" for one in executions)


async def _kill_when_begun(fleet: TestFleet, step: str) -> WorkerProcess:
    """Kills the worker that ran the first step, when a step has begun."""

    def first_pid() -> int | None:
        begun = fleet.ledger.executions()
        return begun[0].pid if any(one.step == step for one in begun) else None

    pid = await eventually(first_pid, PATIENCE)
    (killed,) = [worker for worker in fleet.live if worker.pid == pid]
    await asyncio.to_thread(killed.kill)
    return killed


# -- F3 ----------------------------------------------------------------------------------------------


@scenario(
    "F3",
    fault="a worker is stopped (`SIGSTOP`) for three leases in the middle of its steps, then continued",
    seen="nothing; its steps run again elsewhere, the stopped executions end and change nothing",
    lost="nothing",
    recovery="stop to the step running elsewhere",
)
async def a_worker_is_stopped_beyond_its_lease(directory: Path) -> Figures:
    return await stopped_for_three_leases(directory, lease=3.0)


async def stopped_for_three_leases(directory: Path, *, lease: float) -> Figures:
    with TestFleet(directory, lease=f"{lease}s") as fleet:
        (stopped,) = fleet.start()
        runs: dict[str, int] = {}
        stops: dict[str, float] = {}
        async with Client(fleet.url) as client, asyncio.timeout(4 * PATIENCE):
            # Now and then it learns that it is buried before it commits anything: then once more.
            while DROPPED not in stopped.log() and len(runs) < 4 * STOPPED:
                began = time.monotonic()
                taken = await _stop_and_go_on(fleet, client, stopped, lease)
                runs |= taken
                stops |= dict.fromkeys(taken, began)
            assert DROPPED in stopped.log()
            again = await client.start(Sleep, seconds=0.0)
            assert await again == stopped.pid

        fleet.wait_until_tidy([*runs, again.run_id])
        record = fleet.record()
        assert record.check_settled(fleet.ledger, [*runs, again.run_id]) == len(runs) + 1
        settled = {entry.run_id: entry.settled_by for entry in record.of_runs(runs)}
        assert settled == runs
        assert len(record.reclaimed(runs)) == len(runs)
        late = [one for one in fleet.ledger.executions() if one.pid != stopped.pid]
        dropped = stopped.log().count(DROPPED)
        return Figures(
            recovery=[one.began - stops[one.run_id] for one in late],
            counted=f"{len(runs)} steps taken over, {dropped} commits of the former owner dropped",
        )


async def _stop_and_go_on(
    fleet: TestFleet, client: Client, stopped: WorkerProcess, lease: float
) -> dict[str, int]:
    """Stops and continues a worker that owns runs; returns the runs and who ended them."""
    # Their time is over when the worker goes on: it commits what is no longer its own.
    handlers = await client.start_many(Sleep, [{"seconds": 3 * lease}] * STOPPED)
    await eventually(lambda: _armed(fleet) == STOPPED, PATIENCE)
    stopped.pause()
    assert fleet.owned_by(stopped) == STOPPED
    (other,) = fleet.start()
    await asyncio.sleep(3 * lease)  # the stop is the length of time that this is about
    old_names = _names_of(fleet, stopped)
    stopped.go_on()
    await eventually(lambda: _names_of(fleet, stopped) - old_names, PATIENCE)
    assert "others took this worker's deliveries" in stopped.log()
    assert await asyncio.gather(*handlers) == [other.pid] * STOPPED
    assert await asyncio.to_thread(other.leave) == 0
    return {handler.run_id: other.pid for handler in handlers}


def _armed(fleet: TestFleet) -> int:
    """Returns how many runs have a deadline: their workers have nothing more to say before their end."""
    with fleet.redis() as redis:
        return sum(redis.zcount(key, "-inf", "(+inf") for key in redis.keys("*}:live"))


def _names_of(fleet: TestFleet, worker: WorkerProcess) -> set[str]:
    """Returns the names under which a worker has a lease: those of the dead have a negative end."""
    with fleet.redis() as redis:
        (key,) = redis.keys("*:leases")
        names = {name.decode(): end for name, end in redis.zrange(key, 0, -1, withscores=True)}
    return {name for name, end in names.items() if end > 0 and pid_of(name) == worker.pid}


# -- F4, F5 ------------------------------------------------------------------------------------------


@scenario(
    "F4",
    fault="none: a step that takes five leases",
    seen="nothing",
    lost="nothing, and nothing runs twice: the lease is renewed",
)
async def a_step_takes_five_leases(directory: Path, *, lease: float = 1.0) -> Figures:
    with TestFleet(directory, lease=f"{lease}s") as fleet:
        fleet.start(2)
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            handlers = [await client.start(Sleep, seconds=5 * lease) for _ in range(20)]
            await asyncio.gather(*handlers)
        runs = [handler.run_id for handler in handlers]
        _check_ran_once(fleet, runs, 5 * lease)
        return Figures(recovery=(), counted=f"{len(runs)} steps, 0 taken from a live worker")


@scenario(
    "F5",
    fault="a step that keeps the CPU, and with it the event loop of its worker, for four leases",
    seen="the worker takes nothing else meanwhile; after a lease a warning names step, run and cure",
    lost="nothing, and nothing runs twice: a thread renews the lease",
)
async def a_step_keeps_the_cpu(directory: Path) -> Figures:
    return await keeps_the_cpu(directory, lease=3.0)


async def keeps_the_cpu(directory: Path, *, lease: float) -> Figures:
    with TestFleet(directory, lease=f"{lease}s") as fleet:
        fleet.start(2)
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            handler = await client.start(Spin, seconds=4 * lease)
            pid = await handler
        (execution,) = fleet.ledger.executions("spin")
        assert execution.pid == pid
        (busy,) = [worker for worker in fleet.workers if worker.pid == pid]
        warning = (
            r"has not turned for (\d+) s, nothing else goes on in this process; a step that computes or "
            rf"blocks belongs into a plain `def`, which gets a thread: running=spin \(run {handler.run_id},"
        )
        (said_after,) = re.findall(warning, busy.log())
        assert lease <= int(said_after) <= 3 * lease
        _check_ran_once(fleet, [handler.run_id], 4 * lease)
        return Figures(
            recovery=(),
            counted=f"{4 * lease:.0f} s without a turn of the loop, 1 execution; said after {said_after} s",
        )


def _check_ran_once(fleet: TestFleet, runs: list[str], seconds: float) -> None:
    executions = fleet.ledger.executions()
    assert len(executions) == len(runs)
    assert all(one.ended is not None and one.ended - one.began >= seconds for one in executions)
    fleet.wait_until_tidy(runs)
    record = fleet.record()
    assert record.check_settled(fleet.ledger, runs) == len(runs)
    assert not record.reclaimed(runs)
