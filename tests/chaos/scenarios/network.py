"""F12 to F16: replies that are lost, connections that are half open, cut, slow or closed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from itertools import pairwise
from pathlib import Path

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
    through_a_proxy,
    until_a_step_begins,
)
from tests.support.fleet import TestFleet
from tests.support.flows import Chain, Sleep
from tests.support.load import Load
from tests.support.wait import eventually

#: Share of the answers to commits that are lost.
LOST = 0.05
#: What a slow network takes: at most so many seconds, and so many bytes a second.
SLOWEST, BYTES_PER_SECOND = 0.5, 10_000


def check(fleet: TestFleet, load: Load, runs: list[str]) -> int:
    """Checks that a load was committed once, and returns how many deliveries it had."""
    fleet.wait_until_tidy(runs, timeout=PATIENCE)
    settled = fleet.record().check_settled(fleet.ledger, runs)
    assert settled == len(runs) * load.deliveries_per_run
    return settled


# -- F12 ---------------------------------------------------------------------------------------------


class LostAnswers:
    """Loses answers to commits at random, and sees when they are asked for again."""

    def __init__(self) -> None:
        self._dice = dice()
        self._lost_at: dict[bytes, float] = {}
        self.lost = 0
        self.gaps: list[float] = []

    def command(self, exchange: Exchange) -> Order:
        if _is_commit(exchange) and (lost := self._lost_at.pop(_last(exchange), None)):
            self.gaps.append(time.monotonic() - lost)
        return "forward"

    def reply(self, exchange: Exchange) -> Order:
        if not _is_commit(exchange) or self._dice.random() > LOST:
            return "forward"
        self.lost += 1
        self._lost_at[_last(exchange)] = time.monotonic()
        return "close"


def _is_commit(exchange: Exchange) -> bool:
    # that of a worker's commits, and of a client's calls
    names = ("stepfleet-worker-commit", "stepfleet-client")
    return exchange.words[0] == b"EVALSHA" and exchange.connection in names


def _last(exchange: Exchange) -> bytes:
    """Returns what tells commits apart: all that they say."""
    return b"\0".join(exchange.words)


@scenario(
    "F12",
    fault="the answers to 5 % of all commits are lost with their connection, to workers and to the client",
    seen="nothing: the same commit is sent again, and recognised",
    lost="nothing",
    recovery="answer lost to the same commit sent again",
)
async def answers_to_commits_are_lost(directory: Path, *, seconds: float = 15.0) -> Figures:
    answers = LostAnswers()
    with TestFleet(directory) as fleet, through_a_proxy(fleet) as proxy:
        proxy.command, proxy.reply = answers.command, answers.reply
        fleet.start(3, url=proxy.url)
        async with Client(proxy.url) as client, asyncio.timeout(seconds + 2 * PATIENCE):
            load = Load(client, width=10, at_once=6)
            await asyncio.sleep(seconds)
            runs = await load.stop()
        deliveries = check(fleet, load, runs)
        assert answers.lost > seconds
        assert len(answers.gaps) >= answers.lost - 1  # a worker may leave before it asks again
        again = executed_twice(fleet.ledger.executions())
    return Figures(
        recovery=answers.gaps,
        counted=f"{answers.lost} answers lost under {deliveries} deliveries; executed twice: {share(*again)}",
    )


# -- F13 ---------------------------------------------------------------------------------------------


@scenario(
    "F13",
    fault="all connections of a worker become half open: no byte comes, nobody closes them",
    seen="its steps wait; other workers go on",
    lost="nothing",
    recovery="silence to that worker's next step; the lease is 15 s here, so nobody takes over",
)
async def connections_are_half_open(directory: Path, *, rounds: int = 3) -> Figures:
    gaps: list[float] = []
    with TestFleet(directory, lease="15s") as fleet, through_a_proxy(fleet) as proxy:
        fleet.start(1, url=proxy.url)
        async with Client(fleet.url) as client, asyncio.timeout(4 * PATIENCE):
            load = Load(client, width=10, at_once=2)
            for _ in range(rounds):
                before = load.started
                await eventually(lambda before=before: load.started >= before + 4, PATIENCE)
                proxy.forget()
                moment = time.monotonic()
                gaps.append(await _longest_silence(fleet, load, moment))
            runs = await load.stop()
        check(fleet, load, runs)
        assert not fleet.record().reclaimed(runs)
    assert max(gaps) < 15.0
    return Figures(recovery=gaps, counted=f"{rounds} times, {len(runs)} runs, no lease was lost")


async def _longest_silence(fleet: TestFleet, load: Load, moment: float) -> float:
    """Returns the longest time without a beginning of a step, when runs have ended again."""
    before = load.started
    await eventually(lambda: load.started >= before + 4, PATIENCE)
    begun = [moment, *(line["t"] for line in fleet.ledger.lines("start") if line["t"] > moment)]
    return max(after - before for before, after in pairwise(begun))


# -- F14 ---------------------------------------------------------------------------------------------


@scenario(
    "F14",
    fault="a worker is cut off from Redis for three leases in the middle of its steps; what it sent "
    "arrives after that",
    seen="nothing: its steps run again elsewhere, its late commits change nothing",
    lost="nothing",
    recovery="cut to the step running elsewhere",
)
async def a_worker_is_cut_off(directory: Path, *, lease: float = 2.0, count: int = 8) -> Figures:
    with TestFleet(directory, lease=f"{lease}s") as fleet, proxied(fleet, 1) as workers:
        ((cut_off, proxy),) = workers
        async with Client(fleet.url) as client, asyncio.timeout(2 * PATIENCE):
            # they end while the worker is cut off, so that their commits are on their way
            handlers = [await client.start(Sleep, seconds=2.0) for _ in range(count)]
            await eventually(lambda: fleet.owned_by(cut_off) == count, PATIENCE)
            await eventually(lambda: len(fleet.ledger.lines("start")) == count, PATIENCE)
            proxy.cut()
            moment = time.monotonic()
            (other,) = fleet.start()
            await asyncio.sleep(3 * lease)  # the length of time that this is about
            proxy.heal()
            assert await asyncio.gather(*handlers) == [other.pid] * count
            await eventually(lambda: "others took this worker's deliveries" in cut_off.log(), 30.0)
            assert await asyncio.to_thread(other.leave) == 0
            again = await client.start(Sleep, seconds=0.0)
            assert await again == cut_off.pid
        runs = [handler.run_id for handler in handlers]
        fleet.wait_until_tidy([*runs, again.run_id])
        record = fleet.record()
        assert record.check_settled(fleet.ledger, [*runs, again.run_id]) == count + 1
        assert {entry.settled_by for entry in record.of_runs(runs)} == {other.pid}
        late = [one.began - moment for one in fleet.ledger.executions() if one.pid == other.pid]
    return Figures(recovery=late, counted=f"{count} steps taken over, the worker serves again")


# -- F15 ---------------------------------------------------------------------------------------------


@scenario(
    "F15",
    fault="a network that takes 0 to 0.5 s for each message in each direction, and 10 KB/s",
    seen="every step takes that much longer",
    lost="nothing, and no lease: it is 3 s here",
)
async def the_network_is_slow(directory: Path, *, runs: int = 20) -> Figures:
    chance = dice()
    with TestFleet(directory, lease="3s") as fleet, through_a_proxy(fleet) as proxy:
        fleet.start(2, url=proxy.url)
        proxy.latency = lambda size: chance.uniform(0.0, SLOWEST) + size / BYTES_PER_SECOND
        async with Client(fleet.url) as client, asyncio.timeout(4 * PATIENCE):
            took: list[float] = []

            async def run() -> str:
                began = time.monotonic()
                handler = await client.start(Chain)
                assert await handler == 2
                took.append(time.monotonic() - began)
                return handler.run_id

            done = await asyncio.gather(*(run() for _ in range(runs)))
        fleet.wait_until_tidy(done, timeout=PATIENCE)
        record = fleet.record()
        assert record.check_settled(fleet.ledger, done) == 3 * runs
        assert not record.reclaimed(done)
    took.sort()
    return Figures(
        recovery=(),
        counted=f"{runs} runs of three steps at once: median {took[runs // 2]:.1f} s, worst {took[-1]:.1f} s; "
        "0 deliveries reclaimed",
    )


# -- F16 ---------------------------------------------------------------------------------------------


@scenario(
    "F16",
    fault="Redis lets writes wait for 5 s (`CLIENT PAUSE`), closes every connection every 200 ms, "
    "is stopped for 4 s",
    seen="starting and sending may raise `ConnectionLost`; the rest waits",
    lost="nothing, and no worker is taken for dead because Redis was away",
    recovery="end of the fault to the next step",
)
async def redis_hiccups(directory: Path) -> Figures:
    gaps: list[float] = []
    repeated: list[str] = []
    with TestFleet(directory) as fleet:
        fleet.start(3)
        async with Client(fleet.url) as client, asyncio.timeout(4 * PATIENCE):
            load = Load(client, width=10, at_once=4)
            for fault in (_paused, _connections_closed, _stopped):
                before, errors = load.started, load.repeated
                await eventually(lambda before=before: load.started >= before + 4, PATIENCE)
                await fault(fleet)
                gaps.append(await until_a_step_begins(fleet, time.monotonic()))
                repeated.append(f"{fault.__name__[1:].replace('_', ' ')} {load.repeated - errors}")
            runs = await load.stop()
        check(fleet, load, runs)
        assert len(fleet.live) == 3
        taken = len(fleet.record().reclaimed(runs))
    assert taken == 0
    return Figures(
        recovery=gaps, counted=f"{len(runs)} runs; starts repeated: {', '.join(repeated)}"
    )


async def _paused(fleet: TestFleet) -> None:
    with fleet.redis() as redis:
        redis.client_pause(5000, all=False)
    await asyncio.sleep(5.0)  # the length of time that this is about


async def _connections_closed(fleet: TestFleet) -> None:
    with fleet.redis() as redis:
        for _ in range(20):
            redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.2)


async def _stopped(fleet: TestFleet) -> None:
    os.kill(fleet.server.pid, signal.SIGSTOP)
    await asyncio.sleep(4.0)
    os.kill(fleet.server.pid, signal.SIGCONT)
