"""One place where runs live: `memory://`, or a server with two workers. Tests see the same face of each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from math import inf
from typing import Any, TypeVar

from stepfleet.client import PATIENCE, Client
from stepfleet.connect import bounds_of, fleet_of, limits_of
from stepfleet.embedded.memory import MemoryRuntime, memory_fleet
from stepfleet.planning import cluster_name, make_plan
from stepfleet.settings import Settings
from stepfleet.storage.fleet import Fleet
from stepfleet.storage.keys import Keys
from stepfleet.worker.worker import Worker, WorkerOptions
from stepfleet.workflow import Runtime, Workflow
from tests.support import least_privilege
from tests.support.wait import eventually

W = TypeVar("W", bound=Workflow)

#: Workers of a server: every run is spread over them.
WORKERS = 2
#: The period of a worker's audits and of its tidying: short, because every test waits for one.
SWEEP = timedelta(seconds=0.2)


class Place:
    """Serves workflows under one namespace and knows what is stored there."""

    def __init__(
        self, url: str, namespace: str, *, retention: timedelta | None = None, **settings: Any
    ) -> None:
        self.url = url
        self.namespace = namespace
        self.in_memory = url.startswith("memory:")
        #: By role; the same for all unless the suite runs as least-privilege users.
        self._urls: dict[str, str] = dict.fromkeys(("worker", "producer", "operator"), url)
        if least_privilege.is_asked_for() and not self.in_memory:
            self._urls = least_privilege.urls_of_roles(url, namespace)
        self._settings = Settings(namespace=namespace, **settings)
        self._retention = retention
        local = memory_fleet(namespace, limits=limits_of(self._settings))
        if settings:
            local = replace(local, bounds=bounds_of(self._settings))
        self._local = self._bounded(local) if self.in_memory else None
        self._workers: list[tuple[Worker, asyncio.Task[int]]] = []
        self._clients: list[Client] = []
        self.client = self.new_client()
        self._admin = (self._local or fleet_of(url, self._settings)).link("test")
        self._memory = MemoryRuntime(self._local) if self._local is not None else None

    # -- what a test uses --------------------------------------------------------------------------

    @property
    def runtime(self) -> Runtime:
        """Where `Workflow.run()` sends its runs."""
        return self._memory or self.client

    async def serve(self, workflow: Callable[..., W], **options: Any) -> W:
        """Starts workers for a workflow, each with an instance of its own, and returns the caller's."""
        if not self.in_memory:
            for _ in range(WORKERS):
                await self.add_worker(workflow(**options))
        return workflow(runtime=self.runtime, **options)

    async def add_worker(self, instance: Workflow, **options: Any) -> Worker:
        """Starts one more worker for an instance."""
        fleet = self.new_fleet()
        plan = make_plan(instance, cluster_name(instance), limits=fleet.limits, open_types=False)
        runtime = Client(fleet, patience=None)
        self._clients.append(runtime)
        worker = Worker(
            fleet,
            {plan.workflow: (plan, instance)},
            options=replace(WorkerOptions(sweep=SWEEP), **options),
            runtime=runtime,
        )
        ready = asyncio.Event()
        task = asyncio.create_task(worker.run(on_ready=ready.set))
        self._workers.append((worker, task))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        assert ready.is_set(), "the worker ended before it was ready"
        return worker

    def new_client(self, types: Iterable[type] = ()) -> Client:
        """Returns a client of its own, as another process has one."""
        client = Client(self.new_fleet("producer"), types=types, patience=PATIENCE)
        self._clients.append(client)
        return client

    def keep_history(self) -> None:
        """Lets the runs that are started from now on keep a history, as those in memory do."""
        if not self.in_memory:
            self._settings = Settings(namespace=self.namespace, history="on")
            self.client = self.new_client()

    def new_fleet(self, role: str = "worker") -> Fleet:
        """Returns connections of its own."""
        return self._local or self._bounded(fleet_of(self._urls[role], self._settings))

    # -- what is stored ----------------------------------------------------------------------------

    @property
    def keys(self) -> Keys:
        """The names of the keys."""
        return self.client.connection().fleet.keys

    async def call(self, *command: Any) -> Any:
        """Sends one command, with all rights."""
        return await self._admin.call(*command)

    @property
    def workers(self) -> list[tuple[Worker, asyncio.Task[int]]]:
        """The workers that were started, each with its task."""
        return self._workers

    async def run_keys(self) -> list[str]:
        """Returns every key of a run."""
        names = await self.call("KEYS", f"{self.keys.tag}:run:*")
        return sorted(name.decode() for name in names)

    async def has_ended(self, run_id: str) -> None:
        """Waits until a run is recorded as ended, without awaiting it."""

        async def ended() -> bool:
            return await self.call("HGET", self.keys.run(run_id), "status") != b"running"

        await eventually(ended, 20.0)

    async def deadline_ms(self, run_id: str) -> float:
        """Waits until a live run has a deadline, and returns it, in Redis' time."""

        async def armed() -> float | None:
            score = await self.call("ZSCORE", self.keys.live, run_id)
            return float(score) if score and float(score) < inf else None

        return await eventually(armed, 20.0)

    async def budget(self, run_id: str) -> float:
        """Waits until a live run has a deadline, and returns the seconds from its start to that."""
        deadline_ms = await self.deadline_ms(run_id)
        started = (await self.client.handler(run_id).status()).started
        return round(deadline_ms / 1000 - started.timestamp(), 3)

    async def now_ms(self) -> int:
        """Returns Redis' time."""
        seconds, microseconds = await self.call("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def has_left(self, worker: Worker) -> None:
        """Waits until a worker that was told to stop has left."""
        await asyncio.wait([task for other, task in self._workers if other is worker])

    # -- its end -----------------------------------------------------------------------------------

    async def assert_nothing_leaks(self) -> None:
        """Fails when a run still goes on, or when a key of an ended run would stay for ever."""
        keys = self.keys
        live = await self.call("ZRANGE", keys.live, 0, -1)
        assert not live, f"runs still go on: {live}"
        await eventually(partial(self._gone, keys.tidy), 20.0)
        # A timer of an ended run goes when it is due.
        timers = await self.call("ZRANGE", keys.timers, 0, -1)
        assert sorted(timers) == sorted(await self.call("HKEYS", keys.timer_data))
        lasting = [name for name in await self.run_keys() if await self.call("TTL", name) == -1]
        assert not lasting, f"keys of ended runs without a time to live: {lasting}"

    async def close(self) -> None:
        """Stops the workers and closes every connection."""
        for worker, _ in self._workers:
            worker.stop()
            worker.stop_now()
        for _, task in self._workers:
            await task
        if self._memory is not None:
            await self._memory.close()
        for client in self._clients:
            await client.close()
        await self._admin.close()

    async def _gone(self, key: str) -> bool:
        return not await self.call("EXISTS", key)

    def _bounded(self, fleet: Fleet) -> Fleet:
        if self._retention is None:
            return fleet
        return replace(fleet, bounds=replace(fleet.bounds, retention=self._retention))
