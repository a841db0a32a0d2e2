"""`memory://`: producer and worker in the caller's event loop, over fakeredis with the same scripts.

Each workflow instance has its own streams and its own worker, which lives while the instance has
live runs (and a moment longer) and takes its streams with it. fakeredis answers a blocking
XREADGROUP at once with nothing, so a blocking read here waits for the next write in this process
instead.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import weakref
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final

from fakeredis import FakeRedis, FakeServer
from fakeredis.aioredis import FakeAsyncRedisConnection
from redis.asyncio.connection import AbstractConnection

from stepfleet.client import Client, check_run_id
from stepfleet.clock import Clock
from stepfleet.codec import Limits
from stepfleet.context import Context
from stepfleet.events import StartEvent
from stepfleet.handler import WorkflowHandler
from stepfleet.parents import outside_of_steps, parent_for
from stepfleet.planning import cluster_name
from stepfleet.storage.bounds import Bounds
from stepfleet.storage.fleet import BeatCall, Fleet
from stepfleet.storage.keys import Keys
from stepfleet.storage.link import BLOCK, Arg, Link
from stepfleet.storage.scripts import PARTS, Script, script
from stepfleet.worker.worker import Worker, WorkerOptions
from stepfleet.workflow import Workflow

logger = logging.getLogger("stepfleet.memory")

#: How long ended runs of memory:// are kept.
RETENTION: Final = timedelta(hours=1)
#: Of the workers of memory://, which die with the process that would miss them.
LEASE: Final = WorkerOptions().lease
#: Seconds within which a worker takes the deliveries of an ended run out of their streams.
PUT_ASIDE: Final = 2.0


class Bell:
    """Rings when keys are written, for readers that wait for one of them.

    With a bell for all writes a third of what a short run takes were reads that found nothing.
    """

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], frozenset[Arg]] = {}

    def ring(self, keys: Sequence[Arg]) -> None:
        """Wake the readers of these keys."""
        for future, wanted in self._waiting.items():
            if not wanted.isdisjoint(keys):
                _set(future)

    def begin(self, keys: Sequence[Arg]) -> asyncio.Future[None]:
        """Return what is done when one of these keys is written, until `end`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = frozenset(keys)
        return future

    def end(self, future: asyncio.Future[None]) -> None:
        """Forget a reader."""
        self._waiting.pop(future, None)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class MemoryLink(Link):
    """A connection to a server in this process."""

    #: fakeredis has no cmsgpack.
    unpacks = False

    def __init__(self, server: FakeServer, bell: Bell, name: str) -> None:
        super().__init__(lambda: _connection(server), name="")
        self._writes_bell = bell
        self._rung: asyncio.Future[None] | None = None
        self._interrupted = False

    async def call(self, *command: Arg, timeout: float = 5.0) -> Any:
        """Send one command; a write wakes the readers."""
        reply = await super().call(*command, timeout=timeout)
        if command[0] == "EVALSHA":
            self._writes_bell.ring(command[3 : 3 + int(command[2])])
        elif command[0] == "XADD":
            self._writes_bell.ring(command[1:2])
        return reply

    async def read(
        self, before: Sequence[Arg], after: Sequence[Arg], *, block: float = BLOCK
    ) -> Any:
        """Read without blocking; when nothing is there, wait for a write and read again."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + block
        self._interrupted = False
        while True:
            rung = self._rung = self._writes_bell.begin(after[1 : (len(after) + 1) // 2])
            alarm = None
            try:
                reply = await self.call(*before, *after)
                left = deadline - loop.time()
                if reply or left <= 0 or self._interrupted:
                    return reply
                alarm = loop.call_later(left, _set, rung)
                await rung
            finally:
                self._writes_bell.end(rung)
                if alarm is not None:
                    alarm.cancel()

    def interrupt(self) -> None:
        """Make a waiting read return."""
        self._interrupted = True
        if self._rung is not None:
            _set(self._rung)


def _connection(server: FakeServer) -> AbstractConnection:
    # With a socket time-out redis-py sends through asyncio.wait_for, which may swallow a
    # cancellation on Python 3.11.
    return FakeAsyncRedisConnection(
        server=server, protocol=2, decode_responses=False, socket_timeout=None
    )


def _call_now(server: FakeServer) -> BeatCall:
    client: Any = FakeRedis(server=server)

    def call(script: Script, keys: list[str], args: list[Any]) -> Any:
        return client.execute_command("EVAL", script.source, len(keys), *keys, *args)

    return call


def memory_fleet(
    namespace: str = "memory",
    *,
    server: FakeServer | None = None,
    limits: Limits | None = None,
    clock: Clock | None = None,
) -> Fleet:
    """Return a fleet that lives in this process and event loop."""
    server = server or FakeServer(version=(7,))
    _compile_scripts(server)
    bell = Bell()
    return Fleet(
        keys=Keys(namespace),
        link=lambda name: MemoryLink(server, bell, name),
        beat_call=None,
        call_now=lambda: _call_now(server),
        bounds=Bounds(retention=RETENTION),
        limits=limits or Limits(),
        clock=clock or Clock(),
        open_types=True,
        keeps_history=True,
    )


def _compile_scripts(server: FakeServer) -> None:
    """Have scripts compiled once: fakeredis compiles at every call, a third of the time of a short run."""
    client = FakeRedis(server=server)
    for name in PARTS:
        one = script(name)
        client.eval(f"redis['{one.sha}'] = (loadstring or load)([==[{one.source}]==])", 0)
        server.script_cache[one.sha.encode()] = f"return redis['{one.sha}']()".encode()


class _Serving:
    """The worker of one workflow instance."""

    def __init__(self, name: str, number: int, worker: Worker, task: asyncio.Task[int]) -> None:
        self.name = name
        self.number = number
        self.worker = worker
        self.task = task
        self.runs = 0


class MemoryRuntime:
    """Runs workflows of this event loop in this event loop."""

    #: Steps run where `run()` is called, so they can be stopped from there.
    in_process = True

    def __init__(self, fleet: Fleet | None = None, *, lease: timedelta = LEASE) -> None:
        self._fleet = fleet or memory_fleet()
        self._lease = lease
        self.client = Client(self._fleet, patience=None)
        self._serving: dict[int, _Serving] = {}
        #: Numbers that make the names of instances different, free again when an instance has gone: names, and
        #: what is kept by name, do not grow with the number of instances.
        self._numbers: set[int] = set()
        self._live: set[str] = set()

    def submit(
        self,
        workflow: Workflow,
        start_event: StartEvent | None,
        *,
        run_id: str | None,
        ctx: Context[Any] | None,
    ) -> WorkflowHandler:
        """Start a run; the instance's worker starts with its first one.

        Raises:
            RuntimeError: a run with this id is live.
        """
        parent = parent_for(self)
        if run_id is not None and check_run_id(run_id) in self._live and parent is None:
            raise RuntimeError(f"Workflow run with run_id '{run_id}' already exists.")
        if ctx is not None:
            ctx.refuse_if_running()
        serving = self._served(workflow)
        handler = self.client.submit_as(
            workflow,
            start_event,
            run_id=run_id,
            ctx=ctx,
            name=serving.name,
            parent=parent,
            resume=partial(self._resume, workflow),
        )
        serving.runs += 1
        self._follow(handler, workflow, serving)
        return handler

    async def _resume(self, workflow: Workflow, run_id: str) -> WorkflowHandler:
        serving = self._served(workflow)
        serving.runs += 1
        try:
            handler = await self.client.resume_under(
                run_id, workflow, serving.name, partial(self._resume, workflow)
            )
        except BaseException:
            self.client.connection().spawn(self._left(id(workflow), serving))
            raise
        self._follow(handler, workflow, serving)
        return handler

    def _follow(self, handler: WorkflowHandler, workflow: Workflow, serving: _Serving) -> None:
        self._live.add(handler.run_id)
        self.client.connection().spawn(self._watch(handler, id(workflow), serving))

    def _served(self, workflow: Workflow) -> _Serving:
        serving = self._serving.get(id(workflow))
        if serving is None:
            number = next(n for n in itertools.count(1) if n not in self._numbers)
            self._numbers.add(number)
            name = f"{cluster_name(workflow)}.{number}"
            # One plan for both: an event class that one side meets is known to the other.
            plan = self.client.connection().plan(workflow, name)
            worker = Worker(
                self._fleet,
                {name: (plan, workflow)},
                options=WorkerOptions(
                    concurrency=1000, lease=self._lease, drain_timeout=timedelta(0)
                ),
                runtime=self,
            )
            task = asyncio.get_running_loop().create_task(
                worker.run(), name=f"stepfleet-memory-{name}", context=outside_of_steps()
            )
            serving = self._serving[id(workflow)] = _Serving(name, number, worker, task)
        return serving

    async def _watch(self, handler: WorkflowHandler, instance: int, serving: _Serving) -> None:
        run_id, ended_well = handler.run_id, True
        try:
            await handler.stop_event_result()
        except Exception:  # noqa: BLE001 - whoever awaits the handler gets it
            logger.debug("a run did not end well: run_id=%s", run_id)
            ended_well = False
        del handler  # it keeps the instance
        serving.worker.processor.runs_ended({run_id})
        if not ended_well:
            await self._put_aside(run_id)
        self._live.discard(run_id)
        await self._left(instance, serving)

    async def _put_aside(self, run_id: str) -> None:
        """Wait until the worker has taken what an ended run may go on from out of its streams."""
        reader = self.client.connection().reader
        if await reader.link.call("HGET", reader.keys.run(run_id), "parks") != b"1":
            return
        deadline = asyncio.get_running_loop().time() + PUT_ASIDE
        while asyncio.get_running_loop().time() < deadline:
            places = (await reader.pending(run_id)).values()
            if not any(place.startswith("stream ") for place in places):
                return
            await asyncio.sleep(0.005)

    async def _left(self, instance: int, serving: _Serving) -> None:
        """Stop the worker of an instance when no run needs it any more, and forget the instance at once."""
        serving.runs -= 1
        if serving.runs == 0 and self._serving.get(instance) is serving:
            del self._serving[instance]
            serving.worker.forget_workflows()
            await serving.worker.tidy()
            serving.worker.stop()
            await asyncio.wait([serving.task])
            await self._remove(serving)
            self._numbers.discard(serving.number)

    async def close(self) -> None:
        """Stop every worker; runs that go on are lost."""
        serving, self._serving = list(self._serving.values()), {}
        for one in serving:
            one.worker.stop()
        for one in serving:
            await one.task
        await self.client.close()

    async def _remove(self, serving: _Serving) -> None:
        """Take the streams of an instance away: nobody can send to it any more."""
        connected = self.client.connection()
        keys = self._fleet.keys
        names = await connected.reader.link.call("KEYS", f"{keys.tag}:s:{serving.name}:*")
        await connected.reader.link.call("DEL", keys.workflow(serving.name), *names)


_runtimes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, MemoryRuntime] = (
    weakref.WeakKeyDictionary()
)


def memory_runtime() -> MemoryRuntime:
    """Return the memory runtime of the running event loop; it is made once per loop."""
    loop = asyncio.get_running_loop()
    runtime = _runtimes.get(loop)
    if runtime is None:
        runtime = _runtimes[loop] = MemoryRuntime()
    return runtime


def use_memory_runtime(runtime: MemoryRuntime) -> None:
    """Make a runtime that of the running event loop."""
    _runtimes[asyncio.get_running_loop()] = runtime
