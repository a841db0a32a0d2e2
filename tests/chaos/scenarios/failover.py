"""F10, F11: a master that dies, and one that is cut off with some of its clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

import redis

from stepfleet import Client
from stepfleet.client import new_run_id
from stepfleet.errors import RunNotFound, StoreError
from tests.chaos.proxy import Proxy
from tests.chaos.scenarios.scenario import (
    PATIENCE,
    Figures,
    scenario,
    share,
    until_a_step_begins,
)
from tests.support.fleet import Record, TestFleet, recording_server
from tests.support.flows import NotedChain
from tests.support.load import Load
from tests.support.servers import RedisServer, SentinelServer
from tests.support.wait import eventually

MASTER = "chaos"
#: Seconds by which the replica is behind, so that a failover has something to lose.
BEHIND = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A master with a replica and a Sentinel, and what stands between them."""

    master: RedisServer
    replica: RedisServer
    sentinel: SentinelServer
    #: Between the master and everybody who was told of it by the Sentinel, the replica too.
    between: Proxy

    @property
    def url(self) -> str:
        """What clients of the pair are given."""
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/{MASTER}"


@contextmanager
def replicated(directory: Path, *options: str) -> Iterator[Pair]:
    """Starts a pair whose replica is in step."""
    master = recording_server(directory, "redis", *options)
    master.start()
    between = Proxy(master.port, knows_redis=False)
    follow = ("--replicaof", f"127.0.0.1 {between.port}", "--replica-serve-stale-data", "yes")
    replica = recording_server(directory / "survivor", "redis", *follow)
    sentinel = SentinelServer(directory / "sentinel", master=MASTER, port_of_master=between.port)
    try:
        replica.start()
        sentinel.start()
        yield Pair(master=master, replica=replica, sentinel=sentinel, between=between)
    finally:
        for server in (sentinel, replica, master):
            server.kill()
        between.close()


async def _in_step(pair: Pair, fleet: TestFleet) -> None:
    def has_replica() -> bool:
        with fleet.redis() as redis:
            about = redis.info("replication")
        return about["connected_slaves"] == 1 and about["slave0"]["state"] == "online"

    await eventually(has_replica, PATIENCE)
    await eventually(pair.sentinel.sees_replica, PATIENCE)


def _check(pair: Pair, fleet: TestFleet, load: Load, runs: list[str], directory: Path) -> set[str]:
    """Checks what the survivor recorded, and returns the runs that it knows nothing of."""
    fleet.server = pair.replica
    fleet.wait_until_tidy(runs, timeout=PATIENCE)
    record = Record(directory / "survivor" / "redis")
    kept = {entry.run_id for entry in record.of_runs(runs)}
    assert record.check_settled(fleet.ledger, kept) == len(kept) * load.deliveries_per_run
    return {*runs, *load.vanished} - (kept - {*load.vanished})


# -- F10 ---------------------------------------------------------------------------------------------


@scenario(
    "F10",
    fault="the master dies, a Sentinel makes a replica that is 0.3 s behind the master (a master that is "
    "silent for 1 s is down)",
    seen="as Redis that is away; runs started last may be `RunNotFound`, others go on from an earlier point",
    lost="what was acknowledged and not yet replicated, never half a step",
    recovery="death to the next step",
    is_quick=True,
)
async def a_master_dies(directory: Path) -> Figures:
    with replicated(directory) as pair, TestFleet(directory, pair.master) as fleet:
        await _in_step(pair, fleet)
        fleet.url = fleet.worker_url = pair.url
        fleet.start(3)
        async with Client(pair.url) as client, asyncio.timeout(3 * PATIENCE):
            load = Load(client, width=10, at_once=8, may_vanish=True)
            await eventually(lambda: load.started >= 16, PATIENCE)
            pair.between.replica_late = BEHIND
            before = load.started
            await eventually(lambda: load.started >= before + 8, PATIENCE)
            await asyncio.to_thread(pair.master.kill)
            recovery = await until_a_step_begins(fleet, time.monotonic())
            before = load.started
            await eventually(lambda: load.started >= before + 16, PATIENCE)
            runs = await load.stop()
        assert len(fleet.live) == 3
        vanished = _check(pair, fleet, load, runs, directory)
    return Figures(
        recovery=[recovery], counted=f"runs that vanished: {share(len(vanished), len(runs))}"
    )


# -- F11 ---------------------------------------------------------------------------------------------


@scenario(
    "F11",
    fault="the master is cut off with some of its clients, and a replica is made master; the cut is healed "
    "(`min-replicas-to-write 1`, `min-replicas-max-lag 1`)",
    seen="clients on the side of the old master get `StoreRefused` (`NOREPLICAS`), others as in F10",
    lost="what the old master accepted before it noticed",
    recovery="cut to the next step on the new master",
)
async def a_master_is_cut_off(directory: Path) -> Figures:
    options = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "1")
    with replicated(directory, *options) as pair, TestFleet(directory, pair.master) as fleet:
        await _in_step(pair, fleet)
        fleet.url = fleet.worker_url = pair.url
        fleet.start(3)
        async with (
            Client(pair.url) as client,
            Client(pair.master.url) as cut_off,
            asyncio.timeout(3 * PATIENCE),
        ):
            load = Load(client, width=10, at_once=4, may_vanish=True)
            await eventually(lambda: load.started >= 8, PATIENCE)
            assert await (await cut_off.start(NotedChain)) == 2
            pair.between.cut()
            moment = time.monotonic()
            accepted = await _accepted_by(cut_off)
            took = time.monotonic() - moment
            recovery = await until_a_step_begins(fleet, moment + 1.0) + 1.0
            before = load.started
            await eventually(lambda: load.started >= before + 8, PATIENCE)
            pair.between.heal()
            await eventually(lambda: _is_replica(pair.master), PATIENCE)
            runs = await load.stop()
            lost = [run_id for run_id in accepted if not await _is_known(client, run_id)]
        vanished = _check(pair, fleet, load, runs, directory)
    return Figures(
        recovery=[recovery],
        counted=f"the old master accepted starts for {took:.1f} s: {share(len(lost), len(accepted))} of them "
        f"lost; of the runs of the others {share(len(vanished), len(runs))} vanished",
    )


async def _accepted_by(client: Client) -> list[str]:
    """Starts runs until the server takes none, and returns those that it took."""
    accepted: list[str] = []
    while True:
        run_id = new_run_id(SystemRandom())
        try:
            await client.start(NotedChain, run_id=run_id)
        except StoreError:
            return accepted
        accepted.append(run_id)
        await asyncio.sleep(0.02)


async def _is_known(client: Client, run_id: str) -> bool:
    try:
        await client.handler(run_id).status()
    except RunNotFound:
        return False
    return True


def _is_replica(server: RedisServer) -> bool:
    try:
        return server.role() == "slave"
    except redis.ConnectionError:
        return False  # it is on its way
