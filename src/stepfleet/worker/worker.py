"""One worker process: starts its loops, watches over them, drains them in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from typing import Any, Final

from stepfleet.core.commit import Route
from stepfleet.core.plan import Plan
from stepfleet.errors import ConnectionLost, SettingsError, StoreError, StoreRefused
from stepfleet.planning import definition_of
from stepfleet.storage.committer import Committer
from stepfleet.storage.consumer import Arrival, Consumer
from stepfleet.storage.fleet import Fleet
from stepfleet.storage.reader import ENDS, RunReader, encode_definition
from stepfleet.storage.run_store import RunStore
from stepfleet.worker.hand_back import RETURNED, HandBack
from stepfleet.worker.heartbeat import Heartbeat
from stepfleet.worker.held import named
from stepfleet.worker.janitor import Janitor
from stepfleet.worker.observer import Observer
from stepfleet.worker.outage import Outage
from stepfleet.worker.processor import Processor
from stepfleet.worker.sweep import Sweep
from stepfleet.worker.taking import Taking
from stepfleet.worker.timers import Timers
from stepfleet.workflow import Runtime, Workflow

logger = logging.getLogger("stepfleet.worker")

#: Seconds between looks at ended runs and long-running steps.
TICK: Final = 0.5
#: Seconds without a turn of the read loop after which it counts as stuck: a connection and a blocking
#: read, each with its time-out, take less.
STUCK: Final = 30.0
#: Seconds between two lines that say what a drain waits for.
DRAIN_LINE: Final = 5.0
#: What a worker tells of itself: the version of this package.
VERSION: Final = version("stepfleet")
#: Concurrency from which on a worker takes what follows from its commit. The read under way is for all
#: places, so of few one is soon missing: what was taken stood behind a long step that another had a place for.
ROOMY: Final = 10
#: Seconds after which a delivery that stands in line behind steps that take longer than expected goes back:
#: what was read ahead is begun within 20 ms, or some seconds where steps block the loop.
LATE: Final = 5.0
#: The same where none of the running steps is likely to end soon.
STRANDED: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How much one worker takes on. The names are those of the settings."""

    concurrency: int = 100
    threads: int = 16
    lease: timedelta = timedelta(seconds=15)
    sweep: timedelta = timedelta(seconds=5)
    max_deliveries: int = 3
    drain_timeout: timedelta = timedelta(seconds=30)
    #: Steps to run; None: all.
    steps: frozenset[str] | None = None
    exclude_steps: frozenset[str] = frozenset()


class Worker:
    """Runs the steps of workflows until it is told to stop."""

    def __init__(
        self,
        fleet: Fleet,
        workflows: Mapping[str, tuple[Plan, Workflow]],
        *,
        options: WorkerOptions | None = None,
        runtime: Runtime | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._fleet = fleet
        self._observer = observer
        self._options = options or WorkerOptions()
        self._workflows = dict(workflows)
        self._runtime = runtime
        self._executor = ThreadPoolExecutor(
            self._options.threads, thread_name_prefix="stepfleet-step"
        )
        self._calls = fleet.link("worker")
        self._reads = fleet.link("worker-read")
        self._commits = fleet.link("worker-commit")
        self._more_commits = fleet.link("worker-commit")
        self._reader = RunReader(self._calls, fleet.keys)
        self._started_ms = fleet.clock.wall_ms()
        self._draining = False
        self._stop = asyncio.Event()
        self._limit_passed = asyncio.Event()
        self._finished_reads = 0
        self._last_turn = fleet.clock.steady()
        self._crashed = False
        #: What waits for a Redis that is away.
        self._away: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._new_identity()

    def _new_identity(self) -> None:
        """Take a consumer name that nobody had before: after a burial the old one belongs to the dead."""
        consumer = f"{self._fleet.host}:{self._fleet.pid}:{self._fleet.random.randbytes(3).hex()}"
        lease = self._options.lease.total_seconds()
        self._heartbeat = Heartbeat(
            self._fleet,
            consumer,
            lease=lease,
            describe=self._describe,
            running=lambda: named(self._processor.running, self._fleet.clock.steady()),
        )
        self._consumer = Consumer(
            self._reads, self._calls, self._fleet.keys, self._routes(), consumer=consumer
        )
        self._committer = self._new_committer(consumer)
        self._timers = Timers(self._fleet, self._calls, self._committer, self._reader)
        self._processor = Processor(
            self._fleet,
            self._committer,
            self._reader,
            executor=self._executor,
            concurrency=self._options.concurrency,
            max_deliveries=self._options.max_deliveries,
            lease=lease,
            locks=self._heartbeat.locks,
            runtime=self._runtime,
            observer=self._observer,
            suspect_left=lambda: self._sweep.soon(),  # noqa: PLW0108 - made behind this
            timer_set=self._timers.expect,
        )
        for plan, instance in self._workflows.values():
            self._processor.serve(plan, instance)
        self._janitor = Janitor(
            self._fleet, self._calls, self._consumer, self._committer, self._reader, lease=lease
        )
        self._sweep = Sweep(
            self._fleet,
            self._consumer,
            self._processor,
            self._heartbeat,
            self._janitor,
            self._observer,
            every=self._options.sweep.total_seconds(),
            finished_reads=lambda: self._finished_reads,
            is_draining=lambda: self._draining,
        )
        self._hand_back = HandBack(
            self._calls, self._fleet.keys.ends, self._consumer, self._committer, self._processor
        )

    def _new_committer(self, consumer: str) -> Committer:
        taker = Taking(
            self._consumer,
            is_idle=self._is_idle,
            took=self._took,
            missed=lambda: self._sweep.answer_lost(),  # noqa: PLW0108 - made behind this
        )
        keys, bounds = self._fleet.keys, self._fleet.bounds
        store = RunStore(self._commits, keys, consumer=consumer, bounds=bounds, taker=taker)
        beside = RunStore(self._more_commits, keys, consumer=consumer, bounds=bounds)
        return Committer(store, beside=beside, random=self._fleet.random)

    @property
    def consumer(self) -> str:
        """This worker's name in Redis."""
        return self._heartbeat.consumer

    @property
    def processor(self) -> Processor:
        """What it owns and runs."""
        return self._processor

    @property
    def crashed(self) -> bool:
        """Whether one of its loops ended by a defect; its log line has the traceback."""
        return self._crashed

    @property
    def concurrency(self) -> int:
        """Steps that it runs at once."""
        return self._options.concurrency

    @property
    def draining(self) -> bool:
        """Whether it was told to stop: it takes no more."""
        return self._draining or self._stop.is_set()

    def streams(self) -> list[Route]:
        """Return the step streams of its workflows, also of steps that it leaves to others."""
        return [route for plan, _ in self._workflows.values() for route in plan.routes]

    def healthy(self) -> bool:
        """Tell whether it reads: a read ended lately, well or not, or there is no room for one.

        A Redis that is away does not count against a worker, as a new process would not bring it back.
        """
        if self._draining or self._processor.free == 0 or self._processor.places == 0:
            return True
        return self._fleet.clock.steady() - self._last_turn < STUCK

    def _routes(self) -> list[Route]:
        chosen: list[Route] = []
        for plan, _ in self._workflows.values():
            chosen += [route for route in plan.routes if self._serves(route.step)]
            chosen.append(plan.system)
        return chosen

    def _serves(self, step: str) -> bool:
        options = self._options
        return (
            options.steps is None or step in options.steps
        ) and step not in options.exclude_steps

    def _describe(self) -> dict[str, Any]:
        return {
            "host": self._fleet.host,
            "pid": self._fleet.pid,
            "started": self._started_ms,
            "workflows": {name: plan.graph.digest for name, (plan, _) in self._workflows.items()},
            "streams": {
                name: [route.label for route in plan.routes if self._serves(route.step)]
                for name, (plan, _) in self._workflows.items()
            },
            "version": VERSION,
            "lease": int(self._options.lease.total_seconds() * 1000),
            "concurrency": self._options.concurrency,
            "running": len(self._processor.held),
        }

    async def tidy(self) -> None:
        """Expire what the end of a run could not name.

        Raises:
            ConnectionLost, StoreRefused: Redis is away or refuses.
        """
        await self._janitor.tidy()

    def forget_workflows(self) -> None:
        """Keep no workflow instance any longer: no run of them is live."""
        for name in self._workflows:
            self._processor.stop_serving(name)
        self._workflows.clear()

    # -- life --------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Begin to drain: read no more, finish what runs, hand the rest back."""
        self._stop.set()

    def stop_now(self) -> None:
        """End the drain: hand back what still runs."""
        self._limit_passed.set()
        self._stop.set()

    async def run(self, *, burst: bool = False, on_ready: Callable[[], None] | None = None) -> int:
        """Work until `stop`, or with `burst` until nothing is left; return how many deliveries went back.

        Raises:
            ConnectionLost, StoreRefused: Redis cannot be used at the start. SettingsError: it has no workflow.
        """
        if not self._workflows:
            raise SettingsError("a worker has nothing to run: give it a workflow")
        try:
            await self._announce()
            await self._heartbeat.start()
            await self._consumer.create_groups()
        except BaseException:
            await self._close()
            raise
        # Before the first sweep: what is handed back behind that is announced behind the tick's first look.
        self._start("tick", self._tick_loop())
        self._start_loops()
        logger.info(
            "worker is ready: consumer=%s workflows=%s concurrency=%s",
            self.consumer,
            ",".join(self._workflows) or "-",
            self._options.concurrency,
        )
        if on_ready is not None:
            on_ready()
        try:
            if burst:
                await self._until_idle()
            else:
                await self._stop.wait()
            return await self._drain()
        finally:
            await self._close()

    async def _announce(self) -> None:
        commands = [
            (
                "HSET",
                self._fleet.keys.workflow(name),
                plan.graph.digest,
                encode_definition(definition_of(plan, flow)),
            )
            for name, (plan, flow) in self._workflows.items()
        ]
        for reply in await self._calls.calls(commands):
            if isinstance(reply, StoreRefused):
                raise reply

    def _start_loops(self) -> None:
        """Start what works under the name that was just taken."""
        self._start("commit", self._committer.run())
        self._start("read", self._read_loop())
        self._start("timers", self._timers.run(self._outage("looking at timers")))
        self._start("sweep", self._sweep.run(self._outage("sweeping")))
        self._start("orphans", self._janitor.run(self._outage("ending child runs")))

    def _start(self, name: str, loop: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(loop, name=f"stepfleet-{name}")
        task.add_done_callback(self._loop_ended)
        self._tasks.append(task)

    def _outage(self, doing: str) -> Outage:
        return Outage(doing, self._fleet.random, self._away)

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.critical(
                "a loop of the worker ended: loop=%s", task.get_name(), exc_info=task.exception()
            )
            self._crashed = True
            if task.get_name() == "stepfleet-commit":
                self.stop_now()  # what runs could never be committed
            else:
                self.stop()

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._heartbeat.stop()
        for link in (self._calls, self._reads, self._commits, self._more_commits):
            await link.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    # -- reading -----------------------------------------------------------------------------------

    async def _read_loop(self) -> None:
        outage = self._outage("reading")
        while not self._draining:
            self._last_turn = self._fleet.clock.steady()
            if self._heartbeat.buried:
                await asyncio.sleep(TICK)  # the tick takes a new name
                continue
            # The first places that get free are for what others left: a full worker could take nothing over.
            due = self._sweep.reclaim_is_due
            free = self._processor.places if due else self._processor.free
            if free == 0:
                self._processor.capacity.clear()
                await self._processor.capacity.wait()
                continue
            try:
                if due:
                    await self._sweep.reclaim(returned=True)
                    continue
                consumer = self._consumer
                is_full = self._processor.places == 0
                if is_full:
                    self._processor.capacity.clear()
                # A full worker takes what is there already: what comes now is for one that can start it.
                arrivals = await consumer.read(
                    free,
                    wait=not is_full,
                    ahead=self._options.concurrency,
                    is_brief=self._processor.is_brief,
                )
            except StoreRefused as error:
                # NOGROUP, or the stream was deleted under the read: Redis lost data, or somebody
                # removed it.
                await outage.pause(error)
                await self._recreate()
                continue
            except ConnectionLost as error:
                await outage.pause(error)
                continue
            outage.over()
            self._finished_reads += 1
            if consumer is not self._consumer:
                continue  # of a name that was buried meanwhile: reclaimed
            if self._draining:
                await self._hand_back.what_was_read(arrivals)
                continue
            await self._begin(arrivals, was_full=is_full)

    async def _begin(self, arrivals: Sequence[Arrival], *, was_full: bool) -> None:
        for arrival in arrivals:
            self._processor.accept(arrival)
        if len(arrivals) == 1:
            # A single step runs, and its commit is sent, before the next read is.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        elif was_full and not arrivals:
            await self._processor.capacity.wait()

    def _is_idle(self) -> bool:
        """Tell whether it has nothing to do but a commit that is about to go, and places enough."""
        if self._options.concurrency < ROOMY or self._draining or self._heartbeat.buried:
            return False
        return len(self._processor.held) <= 1

    def _took(self, consumer: Consumer, arrival: Arrival) -> None:
        # Of a name that was buried meanwhile it is reclaimed; too late, it goes back when this worker leaves:
        # it had next to nothing to do, so that is soon.
        if consumer is self._consumer and not self._draining:
            self._processor.accept(arrival)

    async def _recreate(self) -> None:
        try:
            await self._consumer.create_groups()
            await self._announce()
        except StoreError as error:
            logger.debug("groups are not there yet: error=%s", error)

    # -- periodic work -----------------------------------------------------------------------------

    async def _tick_loop(self) -> None:
        last_end, outage = "", self._outage("looking at ended runs")
        while True:
            self._processor.look_at_paces()
            if self._heartbeat.buried:
                await self._rise()
            try:
                if not last_end:
                    last_end = await self._reader.last_end()
                told = await self._reader.ends(last_end)
                if told:
                    last_end = told[-1].id
                    self._processor.runs_ended({one.run_id for one in told if one.run_id})
                if any(one.status == RETURNED for one in told):
                    self._sweep.soon()
                if any(one.is_parent for one in told):
                    self._janitor.children_left()
                await self._hand_back.what_stands_in_line(
                    LATE if self._processor.ends_soon else STRANDED
                )
                outage.over()
                if len(told) == ENDS:
                    continue  # there is more: behind many ends a hand-back would be heard too late
            except StoreError as error:
                await outage.pause(error)
            # Who works for longer hears soon of a run that was cancelled; what is short ends sooner.
            await asyncio.sleep(TICK / 5 if self._processor.works_since(TICK / 5) else TICK)

    async def _rise(self) -> None:
        """Go on under a new name: others have buried this one and took its work."""
        logger.error(
            "the lease ran out and others took this worker's deliveries: consumer=%s", self.consumer
        )
        if self._observer is not None:
            self._observer.lease_lost()
        self._processor.drop_all("gone")
        # What the old name still reads would wait for a reclaim, and count as lost.
        self._reads.interrupt()
        await self._heartbeat.stop()
        # Every loop but this one works with the old name's parts.
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._tasks = [task for task in self._tasks if task not in others]
        self._new_identity()
        outage = self._outage("taking a new name")
        while True:
            try:
                await self._heartbeat.start()
                break
            except StoreError as error:
                await outage.pause(error)
        self._start_loops()

    # -- the end -----------------------------------------------------------------------------------

    async def _until_idle(self) -> None:
        """Return when nothing ran and nothing was read for a while."""
        quiet = 0
        while quiet < 2 and not self._stop.is_set():
            reads = self._finished_reads
            await asyncio.sleep(TICK)
            try:
                busy = self._processor.held or not await self._nothing_to_read()
            except StoreError:
                busy = True  # the read loop says so and waits for Redis
            quiet = (
                0
                if busy or (reads == self._finished_reads and self._processor.free == 0)
                else quiet + 1
            )

    async def _nothing_to_read(self) -> bool:
        streams = [self._fleet.keys.stream(r.workflow, r.type, r.step) for r in self._routes()]
        lengths = await self._calls.calls([("XLEN", name) for name in streams])
        return not any(isinstance(length, int) and length for length in lengths)

    async def _drain(self) -> int:
        """Read no more; finish until the limit; hand the rest back."""
        self._draining = True
        self._reads.interrupt()
        self._processor.capacity.set()
        with suppress(StoreError, TimeoutError):  # then it goes back with the rest
            async with asyncio.timeout(1.0):
                await self._hand_back.what_stands_in_line(0.0)
        await self._until_empty()
        reading = next((task for task in self._tasks if task.get_name() == "stepfleet-read"), None)
        if reading is not None:
            await asyncio.wait([reading], timeout=3.0)
        return await self._hand_back.everything()

    async def _until_empty(self) -> None:
        """Return when nothing is held any more, the limit has passed, or `stop_now` was called."""
        clock = self._fleet.clock
        deadline = clock.steady() + self._options.drain_timeout.total_seconds()
        cut = asyncio.create_task(self._limit_passed.wait(), name="stepfleet-cut")
        while self._processor.held and not cut.done():
            left = deadline - clock.steady()
            if left <= 0:
                break
            logger.info(
                "draining: up to %.0f s for %s",
                left,
                named(self._processor.running, clock.steady()),
            )
            empty = asyncio.create_task(self._processor.empty.wait(), name="stepfleet-empty")
            await asyncio.wait(
                [empty, cut],
                timeout=min(left, DRAIN_LINE),
                return_when=asyncio.FIRST_COMPLETED,
            )
            empty.cancel()
        cut.cancel()
