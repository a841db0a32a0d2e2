"""F6 to F9: a server that dies, with and without the end of what it had promised to keep."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import SystemRandom
from typing import NamedTuple

import pytest

from stepfleet import Client, WorkflowHandler
from stepfleet.cli.doctor import Finding, findings
from stepfleet.client import new_run_id
from stepfleet.connect import fleet_of
from stepfleet.errors import ConnectionLost, RunNotFound, StoreRefused
from stepfleet.settings import Settings
from stepfleet.storage.inspector import Inspector
from tests.chaos.scenarios.network import check
from tests.chaos.scenarios.scenario import PATIENCE, Figures, scenario, share, until_a_step_begins
from tests.support.fleet import Execution, TestFleet, recording_server
from tests.support.flows import NotedChain, Streaming, Token
from tests.support.load import Load
from tests.support.wait import eventually

#: Seconds between the death of a server and its start.
OUTAGE = 1.0
#: Starts that are tried while a disk fails, and what is said then.
REFUSED = 20
NO_SYNC = "MISCONF Errors writing to the AOF file: Input/output error"


# -- F6 ----------------------------------------------------------------------------------------------


@scenario(
    "F6",
    fault="`kill -9` of Redis under load, on a machine whose disk is fine; started again 1 s later",
    seen="starting and sending raise `ConnectionLost` after 5 s without Redis, awaiting and reading wait, "
    "workers wait",
    lost="nothing: what was acknowledged is with the operating system",
    recovery="Redis answers to the next step",
)
async def redis_is_killed(directory: Path) -> Figures:
    return await killed_and_started(directory, restarts=6)


async def killed_and_started(directory: Path, *, restarts: int) -> Figures:
    gaps: list[float] = []
    with TestFleet(directory) as fleet:
        fleet.start(3)
        pids = {worker.pid for worker in fleet.live}
        async with Client(fleet.url) as client, asyncio.timeout(4 * PATIENCE):
            load = Load(client)
            slow = [await client.start(NotedChain, seconds=2.0, number=n) for n in range(10)]
            stream = await client.start(Streaming, count=100, seconds=0.03)
            reading = asyncio.create_task(_texts(stream))
            for _ in range(restarts):
                before = load.started
                await eventually(lambda before=before: load.started >= before + 5, PATIENCE)
                await asyncio.to_thread(fleet.server.kill)
                await asyncio.sleep(OUTAGE)  # the length of time that this is about
                await asyncio.to_thread(fleet.server.start)
                gaps.append(await until_a_step_begins(fleet, time.monotonic()))
            before = load.started
            await eventually(lambda: load.started >= before + 5, PATIENCE)
            runs = await load.stop()
            assert await asyncio.gather(*slow) == [number + 2 for number in range(10)]
            assert await reading == [f"token {number}" for number in range(100)]
            assert await stream == 100
        assert {worker.pid for worker in fleet.live} == pids
        runs += [handler.run_id for handler in (*slow, stream)]
        fleet.wait_until_tidy(runs)
        deliveries = (len(runs) - 11) * load.deliveries_per_run + 3 * 10 + 1
        assert fleet.record().check_settled(fleet.ledger, runs) == deliveries
    return Figures(
        recovery=gaps,
        counted=f"{restarts} restarts, {len(runs)} runs with {deliveries} deliveries, 0 lost",
    )


async def _texts(handler: WorkflowHandler) -> list[str]:
    return [event.text async for event in handler.stream_events() if isinstance(event, Token)]


# -- F7 ----------------------------------------------------------------------------------------------


@scenario(
    "F7",
    fault="Redis dies and the last second of its append-only file is gone, in the middle of a command "
    "(a power failure with `everysec`)",
    seen="runs started in that second are `RunNotFound`: start them again with the same id; others go "
    "on from an earlier point, and their steps run again",
    lost="what was acknowledged in that second, never half a step",
    recovery="Redis answers to the next step",
)
async def the_tail_of_the_log_is_lost(directory: Path, *, cuts: int = 3) -> Figures:
    found: list[_Cut] = []
    for number in range(cuts):
        (directory / str(number)).mkdir()
        # A fleet for each: Redis 7 cuts a file twice badly, see tests/chaos/test_log.py.
        found.append(await _cut_off(directory / str(number)))
    size = sum(one.size for one in found) / cuts / 1024
    vanished = share(sum(one.vanished for one in found), sum(one.runs for one in found))
    return Figures(
        recovery=[one.recovery for one in found],
        counted=f"{cuts} cuts of {size:.0f} KB on average; runs that vanished, their result delivered or not: "
        f"{vanished}; steps that one worker executed twice: {sum(one.again for one in found)}",
    )


class _Cut(NamedTuple):
    size: int
    recovery: float
    runs: int
    vanished: int
    again: int


async def _cut_off(directory: Path) -> _Cut:
    with TestFleet(directory) as fleet:
        fleet.start(3)
        async with Client(fleet.url) as client, asyncio.timeout(2 * PATIENCE):
            load = Load(client, width=10, at_once=8, may_vanish=True)
            await eventually(lambda: load.started >= 16, PATIENCE)
            (log,) = (directory / "redis").rglob("*.incr.aof")
            size = log.stat().st_size
            await asyncio.sleep(1.0)  # the second that will be lost
            await asyncio.to_thread(fleet.server.kill)
            cut = log.stat().st_size - size
            with log.open("r+b") as file:
                file.truncate(size - 1)  # within a command
            await asyncio.to_thread(fleet.server.start)
            recovery = await until_a_step_begins(fleet, time.monotonic())
            before = load.started
            await eventually(lambda: load.started >= before + 8, PATIENCE)
            runs = await load.stop()
        # a run whose end was lost has its end again, without its caller
        fleet.wait_until_tidy(runs, timeout=PATIENCE)
        record = fleet.record()
        kept = {entry.run_id for entry in record.of_runs(runs)}
        assert record.check_settled(fleet.ledger, kept) == len(kept) * load.deliveries_per_run
        vanished = {*load.vanished, *runs} - (kept - {*load.vanished})
        assert vanished
        executions = fleet.ledger.executions()
        again = len(executions) - len({(one.delivery, one.pid) for one in executions})
    return _Cut(cut, recovery, len(runs), len(vanished), again)


# -- F8 ----------------------------------------------------------------------------------------------


def _slow_disk(milliseconds: int) -> tuple[str, ...]:
    """Returns what starts a server whose disk takes so long for each `fdatasync`."""
    inject = f"inject=fdatasync:delay_enter={milliseconds * 1000}"
    options = (
        "-D",
        "-f",
        "--seccomp-bpf",
        "-o",
        "/dev/null",
        "-e",
        "trace=fdatasync",
        "-e",
        inject,
    )
    return ("strace", *options)


@scenario(
    "F8",
    fault="`kill -9` of Redis while its disk is slow (each `fdatasync` delayed), with `appendfsync always` "
    "and with `everysec`; a disk that fails (each `fdatasync` ends with `EIO`), with either",
    seen="slow: `always`: starting and committing take as long as the disk, `everysec`: as F7; failing: "
    "`always`: Redis ends at once, as F6, `everysec`: starting and sending raise `StoreRefused` with the "
    "reason (`MISCONF`), commits are kept and sent again, `stepfleet doctor` names the cure: Redis 7 refuses "
    "writes until `appendonly` was off and on again, also when its disk is well",
    lost="slow: `always`: nothing that was acknowledged, `everysec`: up to 2 s; failing: nothing while Redis "
    "lives",
    recovery="Redis answers, or accepts writes again, to the next step; but for slow with `everysec`",
    needs=("strace",),
)
async def redis_has_a_bad_disk(directory: Path) -> Figures:
    counts: list[str] = []
    gaps: list[float] = []
    for policy, delay_ms in (("always", 30), ("everysec", 1500)):
        where = directory / f"slow-{policy}"
        where.mkdir()
        server = recording_server(
            where, "redis", "--appendfsync", policy, wrapper=_slow_disk(delay_ms)
        )
        with TestFleet(where, server) as fleet:
            fleet.start(2)
            lost, known, gap = await _killed_while_starting(fleet)
        counts.append(f"slow, `{policy}`: {share(lost, known)} acknowledged runs lost")
        if policy == "always":
            assert lost == 0
            gaps.append(gap)
        else:
            assert lost > 0, "the disk was not slow"
    for policy, fails in (("always", _ends_on_a_failing_disk), ("everysec", _waits_for_its_disk)):
        where = directory / f"failing-{policy}"
        where.mkdir()
        with TestFleet(where, options=("--appendfsync", policy)) as fleet:
            fleet.start(2)
            async with Client(fleet.url) as client, asyncio.timeout(3 * PATIENCE):
                load = Load(client, width=10)
                await eventually(lambda load=load: load.started >= 8, PATIENCE)
                refused = await fails(fleet, client)
                gaps.append(await until_a_step_begins(fleet, time.monotonic()))
                before = load.started
                await eventually(lambda before=before, load=load: load.started >= before + 8, 60.0)
                runs = await load.stop()
            if policy == "always":
                check(fleet, load, runs)
            else:  # the server's record began anew
                fleet.wait_until_tidy(runs, timeout=PATIENCE)
            assert len(fleet.live) == 2
        counts.append(f"failing, `{policy}`: {refused}, 0 of {len(runs)} runs lost")
    return Figures(recovery=gaps, counted="; ".join(counts))


@asynccontextmanager
async def _failing_disk(fleet: TestFleet) -> AsyncIterator[asyncio.subprocess.Process]:
    """Lets each `fdatasync` of the server fail, by a tracer that is attached to it."""
    tracer = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-o", "/dev/null", "-p", str(fleet.server.pid)),
        *("-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO"),
        stderr=subprocess.DEVNULL,
    )
    try:
        yield tracer
    finally:
        if tracer.returncode is None:
            tracer.terminate()
            await tracer.wait()


async def _ends_on_a_failing_disk(fleet: TestFleet, _: Client) -> str:
    """A server that promised to keep each write ends when it cannot, and says why."""
    async with _failing_disk(fleet) as tracer:
        async with asyncio.timeout(PATIENCE):
            await tracer.wait()  # it goes with the server
    assert "Input/output error. Exiting..." in fleet.server.log.read_text()
    await asyncio.sleep(OUTAGE)  # the length of time that this is about
    await asyncio.to_thread(fleet.server.restart)
    return "Redis ended"


async def _waits_for_its_disk(fleet: TestFleet, client: Client) -> str:
    """A server that syncs each second refuses writes when it could not, until its log is made anew."""
    async with _failing_disk(fleet):
        await eventually(lambda: _sync_status(fleet) == "err", PATIENCE)
        for _ in range(REFUSED):
            with pytest.raises(StoreRefused, match=NO_SYNC):
                await client.start(NotedChain, run_id=new_run_id(SystemRandom()))
            await asyncio.sleep(0.1)  # a refusal comes at once
    logs = "".join(worker.log() for worker in fleet.workers)
    assert f"redis refuses to write: commits=1 reason={NO_SYNC}" in logs
    (cure,) = [one.cure for one in await _told_by_doctor(fleet) if one.about == "disk"]
    assert cure.endswith("CONFIG SET appendonly no, then yes, writes the file anew")
    with fleet.redis() as redis:
        redis.config_set("appendonly", "no")
        redis.config_set("appendonly", "yes")
        await eventually(lambda: not redis.info("persistence")["aof_rewrite_in_progress"], 20.0)
    assert _sync_status(fleet) == "ok"
    return f"{REFUSED} starts refused"


def _sync_status(fleet: TestFleet) -> str:
    with fleet.redis() as redis:
        return redis.info("persistence")["aof_last_write_status"]


async def _told_by_doctor(fleet: TestFleet) -> list[Finding]:
    place = fleet_of(fleet.server.url, Settings())
    link = place.link("doctor")
    try:
        return [one async for one in findings(Inspector(link, place.keys), fleet.url)]
    finally:
        await link.close()


async def _killed_while_starting(fleet: TestFleet) -> tuple[int, int, float]:
    """Returns how many of the acknowledged runs are lost, how many there were, and the recovery."""
    known: list[str] = []
    async with Client(fleet.url) as client, asyncio.timeout(2 * PATIENCE):

        async def produce() -> None:
            with contextlib.suppress(ConnectionLost):
                while True:
                    run_id = new_run_id(SystemRandom())
                    await client.start(NotedChain, run_id=run_id, seconds=0.05)
                    known.append(run_id)

        producing = [asyncio.create_task(produce()) for _ in range(4)]
        await asyncio.sleep(4.0)  # long enough for a write that waits for an fsync
        await asyncio.to_thread(fleet.server.kill)
        acknowledged = list(known)
        for task in producing:
            task.cancel()
        await asyncio.gather(*producing, return_exceptions=True)
        await asyncio.to_thread(fleet.server.start)
        back = time.monotonic()
        assert await (await client.start(NotedChain)) == 2
        gap = await until_a_step_begins(fleet, back)
        lost = 0
        for run_id in acknowledged:
            try:
                assert await client.handler(run_id) == 2
            except RunNotFound:
                lost += 1
    return lost, len(acknowledged), gap


# -- F9 ----------------------------------------------------------------------------------------------


@scenario(
    "F9",
    fault="Redis loses everything (`FLUSHALL`, or a restart without an append-only file)",
    seen="`RunNotFound` for every run; workers announce their workflows again and serve new runs",
    lost="everything",
    recovery="loss to the first step of a new run",
)
async def everything_is_lost(directory: Path) -> Figures:
    gaps: list[float] = []
    with TestFleet(directory) as fleet:
        fleet.start(2)
        async with Client(fleet.url) as client, asyncio.timeout(2 * PATIENCE):
            assert await (await client.start(NotedChain, number=1)) == 3
            for lose in (_flush, _restart_empty):
                lost = await client.start(NotedChain, seconds=1.0)
                await eventually(
                    lambda lost=lost: fleet.ledger.executions(run_id=lost.run_id), PATIENCE
                )
                await asyncio.to_thread(lose, fleet)
                gaps.append(await _serves_new_runs(fleet, client, lost, time.monotonic()))
        assert len(fleet.live) == 2
    return Figures(recovery=gaps, counted="once each; no worker ended, both served again")


def _flush(fleet: TestFleet) -> None:
    with fleet.redis() as redis:
        redis.flushall()
        redis.script_flush()


def _restart_empty(fleet: TestFleet) -> None:
    fleet.server.kill()
    for log in fleet.directory.glob("**/appendonlydir"):
        shutil.rmtree(log)
    fleet.server.start()
    with fleet.redis() as redis:
        assert not redis.exists("{default:0}:live"), "the data is still there"


async def _serves_new_runs(
    fleet: TestFleet, client: Client, lost: WorkflowHandler, moment: float
) -> float:
    """Returns the seconds from a loss to the first step of a new run; what was lost is not found."""
    handlers = [await client.start(NotedChain, number=n) for n in range(10)]
    with pytest.raises(RunNotFound):
        await lost
    assert await asyncio.gather(*handlers) == [number + 2 for number in range(10)]
    while {one.pid for one in _since(fleet, moment)} != {worker.pid for worker in fleet.live}:
        handlers.append(await client.start(NotedChain))  # each worker serves again, sooner or later
        assert await handlers[-1] == 2
    runs = [handler.run_id for handler in handlers]
    fleet.wait_until_tidy(runs)
    fresh = [one for one in fleet.ledger.executions() if one.run_id in runs]
    return min(one.began for one in fresh) - moment


def _since(fleet: TestFleet, moment: float) -> list[Execution]:
    return [one for one in fleet.ledger.executions() if one.began > moment]
