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
from math import inf
from typing import Any, Final, cast

from stepfleet.codec import Codec, TypeRegistry
from stepfleet.core import endings
from stepfleet.core.commit import Route
from stepfleet.core.delivery import Delivery
from stepfleet.core.plan import Plan
from stepfleet.errors import ConnectionLost, StoreError, StoreRefused
from stepfleet.planning import definition_of
from stepfleet.storage.committer import Committer
from stepfleet.storage.consumer import Arrival, Consumer
from stepfleet.storage.fleet import Fleet
from stepfleet.storage.link import BLOCK, Arg
from stepfleet.storage.reader import RunReader, encode_definition
from stepfleet.storage.run_store import RunStore
from stepfleet.worker.heartbeat import Heartbeat
from stepfleet.worker.observer import Observer
from stepfleet.worker.outage import Outage
from stepfleet.worker.processor import Held, Processor
from stepfleet.worker.taking import Taking
from stepfleet.worker.timers import Timers
from stepfleet.workflow import Runtime, Workflow

logger = logging.getLogger("stepfleet.worker")

#: Seconds between looks at ended runs, long-running steps and due timers.
TICK: Final = 0.5
#: Seconds within which the children of an ended run are ended.
TIDY_WITHIN: Final = 0.3
#: Seconds between two rounds of the janitor.
JANITOR: Final = 60.0
#: Ended runs whose keys are expired at once.
TIDIED: Final = 500
#: Age after which what a dead worker left is removed.
TOMBSTONE_MS: Final = 3_600_000
#: Seconds without a turn of the read loop after which it counts as stuck: a connection and a blocking
#: read, each with its time-out, take less.
STUCK: Final = 30.0
#: Seconds between two lines that say what a drain waits for.
DRAIN_LINE: Final = 5.0
#: What a worker tells of itself: the version of this package.
VERSION: Final = version("stepfleet")
#: Seconds after which a delivery that stands in line behind steps that take longer than expected goes back:
#: what was read ahead is begun within 20 ms, or some seconds where steps block the loop.
LATE: Final = 5.0
#: The same where none of the running steps is likely to end soon.
STRANDED: Final = 0.5
#: Status under which a draining worker announces that it handed deliveries back.
RETURNED: Final = "returned"


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
        self._sweep_now = asyncio.Event()
        self._children_left = asyncio.Event()
        self._codec = Codec(TypeRegistry())
        self._timer_is_near = asyncio.Event()
        self._next_look = 0.0
        self._finished_reads = 0
        self._reclaim_is_due = False
        self._last_turn = fleet.clock.steady()
        self._crashed = False
        self._suspicious: dict[tuple[int, str], int] = {}
        self._audit_soon = False
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
            running=lambda: _names(self._processor.running, self._fleet.clock.steady()),
        )
        self._consumer = Consumer(
            self._reads, self._calls, self._fleet.keys, self._routes(), consumer=consumer
        )
        store = RunStore(
            self._commits,
            self._fleet.keys,
            consumer=consumer,
            bounds=self._fleet.bounds,
            taker=Taking(
                self._consumer, is_idle=self._is_idle, took=self._took, missed=self._missed
            ),
        )
        beside = RunStore(
            self._more_commits, self._fleet.keys, consumer=consumer, bounds=self._fleet.bounds
        )
        self._committer = Committer(store, beside=beside, random=self._fleet.random)
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
            suspect_left=self._sweep_now.set,
            timer_set=self._timer_set,
        )
        for plan, instance in self._workflows.values():
            self._processor.serve(plan, instance)
        self._timers = Timers(self._fleet, self._calls, self._committer, self._reader)

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
            ConnectionLost, StoreRefused: Redis cannot be used at the start.
        """
        try:
            await self._announce()
            await self._heartbeat.start()
            await self._consumer.create_groups()
        except BaseException:
            await self._close()
            raise
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
        self._start(
            commit=self._committer.run(),
            read=self._read_loop(),
            tick=self._tick_loop(),
            timers=self._timer_loop(),
            sweep=self._sweep_loop(),
            orphans=self._orphan_loop(),
        )

    def _start(self, **loops: Coroutine[Any, Any, None]) -> None:
        for name, loop in loops.items():
            task = asyncio.create_task(loop, name=f"stepfleet-{name}")
            task.add_done_callback(self._loop_ended)
            self._tasks.append(task)

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
        outage = Outage("reading", self._fleet.random, self._away)
        while not self._draining:
            self._last_turn = self._fleet.clock.steady()
            if self._heartbeat.buried:
                await asyncio.sleep(TICK)  # the tick takes a new name
                continue
            # The first places that get free are for what others left: a full worker could take nothing over.
            due = self._reclaim_is_due
            free = self._processor.places if due else self._processor.free
            if free == 0:
                self._processor.capacity.clear()
                await self._processor.capacity.wait()
                continue
            try:
                if due:
                    await self._reclaim(True)
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
                await self._give_back(arrivals)
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
        """Tell whether it has nothing to do but a commit that is about to go."""
        return len(self._processor.held) <= 1 and not (self._draining or self._heartbeat.buried)

    def _took(self, consumer: Consumer, arrival: Arrival) -> None:
        # Of a name that was buried meanwhile it is reclaimed; too late, it goes back when this worker leaves:
        # it had next to nothing to do, so that is soon.
        if consumer is self._consumer and not self._draining:
            self._processor.accept(arrival)

    def _missed(self) -> None:
        self._audit_soon = True
        self._sweep_now.set()

    async def _give_back(self, arrivals: Sequence[Arrival]) -> None:
        """Let others have at once what was read and will not begin here."""
        if not arrivals:
            return
        try:
            rows = [(arrival.route, arrival.entry) for arrival in arrivals]
            await self._tell_returned(await self._consumer.give_back(rows))
        except StoreError as error:
            logger.debug("it goes back when this worker leaves: error=%s", error)

    async def _tell_returned(self, count: int) -> None:
        if count:
            await self._calls.call("XADD", self._fleet.keys.ends, "*", "r", "", "s", RETURNED)
            logger.warning("handed back: count=%d", count)

    async def _recreate(self) -> None:
        try:
            await self._consumer.create_groups()
            await self._announce()
        except StoreError as error:
            logger.debug("groups are not there yet: error=%s", error)

    # -- periodic work -----------------------------------------------------------------------------

    async def _tick_loop(self) -> None:
        last_end, outage = "", Outage("looking at ended runs", self._fleet.random, self._away)
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
                    self._sweep_now.set()
                if any(one.is_parent for one in told):
                    self._children_left.set()
                await self._hand_back_line(LATE if self._processor.ends_soon else STRANDED)
                outage.over()
            except StoreError as error:
                await outage.pause(error)
            # Who works for longer hears soon of a run that was cancelled; what is short ends sooner.
            await asyncio.sleep(TICK / 5 if self._processor.works_since(TICK / 5) else TICK)

    async def _timer_loop(self) -> None:
        outage = Outage("looking at timers", self._fleet.random, self._away)
        while True:
            self._timer_is_near.clear()
            self._next_look = inf
            try:
                until = await self._timers.fire()
                outage.over()
            except StoreError as error:
                await outage.pause(error)
                continue
            pause = TICK if until is None else min(TICK, until)
            self._next_look = self._fleet.clock.steady() + pause
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._timer_is_near.wait()

    def _timer_set(self, seconds: float) -> None:
        if self._fleet.clock.steady() + seconds < self._next_look:
            self._timer_is_near.set()

    async def _orphan_loop(self) -> None:
        """End the children of ended runs soon; the next sweep would find them as well."""
        outage = Outage("ending child runs", self._fleet.random, self._away)
        while True:
            await self._children_left.wait()
            self._children_left.clear()
            # Every worker was told: those behind the first find nothing to do.
            await asyncio.sleep(self._fleet.random.uniform(0, TIDY_WITHIN))
            try:
                await self.tidy()
                outage.over()
            except StoreError as error:
                await outage.pause(error)

    async def _sweep_loop(self) -> None:
        sweep, last_clean, outage = (
            self._options.sweep.total_seconds(),
            0.0,
            Outage("sweeping", self._fleet.random, self._away),
        )
        self._sweep_now.set()
        while True:
            pause = sweep * self._fleet.random.uniform(0.75, 1.25)
            if self._audit_soon and self._suspicious:
                # What a lost answer had is known by the second look, behind the next read.
                self._audit_soon, pause = False, min(pause, BLOCK + TICK)
            try:
                async with asyncio.timeout(pause):
                    await self._sweep_now.wait()
                handed_back = True
            except TimeoutError:
                handed_back = False
            self._sweep_now.clear()
            if self._draining:
                return
            try:
                await self._reclaim(handed_back or self._heartbeat.work_was_returned)
                await self._audit()
                await self.tidy()
                if self._fleet.clock.steady() - last_clean > JANITOR:
                    last_clean = self._fleet.clock.steady()
                    retention_ms = int(self._fleet.bounds.retention.total_seconds() * 1000)
                    await self._consumer.clean(
                        tombstone_ms=TOMBSTONE_MS,
                        retention_ms=retention_ms,
                        lease_ms=int(self._heartbeat.lease * 1000),
                    )
                outage.over()
            except StoreError as error:
                await outage.pause(error)

    async def _reclaim(self, returned: bool) -> None:
        buries_until_ms = self._heartbeat.buries_until_ms
        if not returned and not (buries_until_ms and self._heartbeat.work_was_left):
            self._reclaim_is_due = False
            return
        free = self._processor.places
        self._reclaim_is_due = free == 0
        if free == 0:
            return
        suspects = self._processor.suspects
        async with suspects.on_their_way:
            arrivals = await self._consumer.reclaim(
                self._fleet.keys.leases,
                most=free,
                suspects=0 if suspects else 1,
                buries_until_ms=buries_until_ms,
                lease_ms=int(self._heartbeat.lease * 1000),
            )
            for arrival in arrivals:
                if self._observer and isinstance(arrival, Delivery) and arrival.route.step:
                    self._observer.reclaimed(arrival)
                self._processor.accept(arrival)
        if arrivals:
            logger.warning("took over deliveries of other workers: count=%d", len(arrivals))
            self._sweep_now.set()

    async def _audit(self) -> None:
        """Take what is pending here in two audits, with a finished read between them, and not held."""
        held = self._consumer.held_rows(self._processor.held)
        pending = await self._consumer.pending()
        held |= self._consumer.held_rows(self._processor.held)
        strays = [row for row in pending if row not in held]
        unseen = [
            row
            for row in strays
            if self._suspicious.get(row, self._finished_reads) < self._finished_reads
        ]
        self._suspicious = {row: self._suspicious.get(row, self._finished_reads) for row in strays}
        for arrival in await self._consumer.audit(unseen):
            logger.warning(
                "a delivery was never seen here, it starts now: run_id=%s", arrival.run_id
            )
            self._processor.accept(arrival)

    async def tidy(self) -> None:
        """Expire what the end of a run could not name."""
        keys = self._fleet.keys
        while ended := await self._calls.call("LRANGE", keys.tidy, 0, TIDIED - 1):
            runs = [raw.decode("utf-8", "replace") for raw in ended]
            asked: list[tuple[Arg, ...]] = []
            for run_id in runs:
                asked += [("SMEMBERS", keys.further(run_id)), ("PTTL", keys.run(run_id))]
            replies = await self._calls.calls(asked)
            told: list[tuple[Arg, ...]] = []
            await self._end_children(
                [
                    run_id
                    for run_id, further in zip(runs, replies[::2], strict=True)
                    if isinstance(further, list) and keys.children(run_id).encode() in further
                ]
            )
            for raw, run_id, further, left in zip(
                ended, runs, replies[::2], replies[1::2], strict=True
            ):
                # A run without an expiry is live: its id was used again after the retention.
                if isinstance(further, list) and isinstance(left, int) and left != -1:
                    names = [*cast("list[bytes]", further), keys.further(run_id)]
                    told += [("PEXPIRE", name, max(left, 1)) for name in names]
                # Last: what is cut off on its way is done again, by whoever looks next.
                told.append(("LREM", keys.tidy, 1, raw))
            await self._calls.calls(told)

    async def _end_children(self, run_ids: Sequence[str]) -> None:
        """Cancel what belongs to ended runs; each of these is tidied in its turn, with its own children."""
        live = await self._reader.children(run_ids)
        cancels = [endings.cancelled(name, workflow, self._codec) for name, workflow in live]
        for answer in await asyncio.gather(*map(self._committer.commit, cancels)):
            if answer.word == "broken":
                logger.error("a child run cannot be ended, a key of it has a wrong type")

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
        outage = Outage("taking a new name", self._fleet.random, self._away)
        while True:
            try:
                await self._heartbeat.start()
                break
            except StoreError as error:
                await outage.pause(error)
        self._start(
            commit=self._committer.run(),
            read=self._read_loop(),
            timers=self._timer_loop(),
            sweep=self._sweep_loop(),
            orphans=self._orphan_loop(),
        )

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
                await self._hand_back_line(0.0)
        await self._until_empty()
        reading = next((task for task in self._tasks if task.get_name() == "stepfleet-read"), None)
        if reading is not None:
            await asyncio.wait([reading], timeout=3.0)
        return await self._hand_back()

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
                _names(self._processor.running, clock.steady()),
            )
            empty = asyncio.create_task(self._processor.empty.wait(), name="stepfleet-empty")
            await asyncio.wait(
                [empty, cut],
                timeout=min(left, DRAIN_LINE),
                return_when=asyncio.FIRST_COMPLETED,
            )
            empty.cancel()
        cut.cancel()

    async def _hand_back_line(self, seconds: float) -> None:
        """Let others begin what has stood in line here for so long."""
        if rows := self._processor.let_go(seconds):
            await self._tell_returned(await self._consumer.give_back(rows))

    async def _hand_back(self) -> int:
        rest = list(self._processor.held)
        self._processor.drop_all("drain")
        try:
            async with asyncio.timeout(5.0):
                await self._committer.drained()
            pending = await self._consumer.pending()
            unseen = set(pending) - self._consumer.held_rows(rest)
            await self._tell_returned(
                await self._consumer.hand_back([*rest, *self._consumer.rows_named(unseen)])
            )
            return len(rest)
        except (StoreError, TimeoutError) as error:
            logger.warning(
                "could not hand back, the lease has to run out: count=%d error=%s", len(rest), error
            )
            return len(rest)


def _names(running: Sequence[Held], now: float) -> str:
    """Name the longest running steps: `fetch (run a1, 12 s), parse (run b2, 3 s) and 4 more`."""
    shown = [
        f"{held.delivery.route.step or 'a waiting event'} "
        f"(run {held.delivery.run_id}, {now - held.started:.0f} s)"
        for held in running[:5]
    ]
    more = f" and {len(running) - 5} more" if len(running) > 5 else ""
    return ", ".join(shown) + more
