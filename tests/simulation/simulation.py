"""One simulation: a fleet, its clients, what they do and what goes wrong, all drawn from one seed."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from random import Random
from typing import Any
from unittest.mock import patch

from stepfleet import Workflow
from stepfleet.client import Client
from stepfleet.codec import Limits
from stepfleet.embedded.memory_time import redis_time
from stepfleet.errors import (
    ConnectionLost,
    DeadLettered,
    RunNotFound,
    StoreError,
    WorkflowCancelledByUser,
    WorkflowError,
)
from stepfleet.handler import WorkflowHandler
from stepfleet.planning import make_plan
from stepfleet.storage import committer
from stepfleet.storage.bounds import Bounds
from stepfleet.storage.keys import Keys
from stepfleet.wire import decode_public
from stepfleet.worker import heartbeat
from stepfleet.worker.worker import Worker, WorkerOptions
from tests.simulation.emphasis import LOSSES, POISON, emphasis_of
from tests.simulation.invariants import Invariants
from tests.simulation.loop import OWNER, Process, SimLoop
from tests.simulation.network import FAIR, Network, Weather, fleet, in_a_thread
from tests.simulation.server import EPOCH, Server, arguments_of, script_name
from tests.simulation.workload import (
    LEASE,
    LEDGER,
    Answer,
    Ask,
    Extra,
    Ledger,
    Note,
    RunPlan,
    innocent_run,
    mill,
    random_run,
    width_of,
)

#: Seconds for which ended runs are kept.
RETENTION = 600.0
#: Seconds by which Redis' clock is wrong at most.
FURTHEST = 20.0
#: How many workers a job may kill.
MAX_DELIVERIES = 3
#: Leases for which a step may block its loop: fewer than in life, as a simulation is shorter.
STALL = 3
#: Weight from which on a second call goes while one is under way: as fewer are ready at a time than in life.
MUCH = 1
#: Callbacks after which a simulation counts as one that never comes to an end.
MOST_TURNS = 3_000_000


class Violated(Exception):
    """An invariant does not hold."""


@dataclass(slots=True)
class Report:
    """What one seed came to."""

    seed: int
    digest: str
    violations: list[tuple[str, str]]
    statuses: dict[str, int]
    commits: int
    answers: dict[str, int]
    faults: dict[str, int]
    executions: int
    #: Executions beyond the first of a delivery's attempt.
    repeated: int
    virtual_seconds: float
    trace: list[str] = field(default_factory=list)

    @property
    def invariants(self) -> list[str]:
        """Returns the names of the invariants that do not hold."""
        return sorted({name for name, _ in self.violations})


def simulate(seed: int, *, faults: bool = True, keep_trace: bool = False) -> Report:
    """Runs one simulation to its end; the same seed gives the same report."""
    return Simulation(seed, faults=faults, keep_trace=keep_trace).run()


class Simulation:
    """The parts of one simulation."""

    def __init__(self, seed: int, *, faults: bool = True, keep_trace: bool = False) -> None:
        self.seed = seed
        self._random = Random(f"stepfleet {seed}")
        self._faulty = faults
        self._keep_trace = keep_trace
        self._trace: list[str] = []
        self._digest = hashlib.blake2b(digest_size=12)
        self.ledger = Ledger()
        self.faults: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.loop = SimLoop(self._part("loop"))
        self.server = Server()
        self.network = Network(self.loop, self.server, self._part("network"), self.trace)
        self.keys = Keys("sim")
        self.bounds = Bounds(retention=timedelta(seconds=RETENTION))
        chosen = self._random
        limits = [chosen.choice(few) for few in ((1, 2, 4), (1, 2, 4), (0, 0, 1, 2))]
        self.workflow: type[Workflow] = mill(*limits)
        self.plan = make_plan(
            self.workflow, self.workflow.__name__, limits=Limits(), open_types=False
        )
        self.invariants = Invariants(
            self.server,
            self.keys,
            self.plan,
            self._violated,
            may_idle=self._may_idle,
            freed=self.ledger.freed,
            lost_data=lambda: self.ledger.lost_data,
            steady=self.loop.time,
        )
        self.server.before = self.invariants.before
        self.server.after = self.invariants.after
        self.emphasis = emphasis_of(seed)
        self.until = chosen.uniform(*self.emphasis.lasts)
        self.runs = [
            random_run(chosen, number, self.until * 0.7)
            for number in range(chosen.choice((1, 2, 3, 4)))
        ]
        self.is_lossy = self._faulty and self.emphasis is LOSSES
        self.is_poisoned = self._faulty and self.emphasis is POISON
        if self.is_lossy:
            self.runs = [plan.lossy(has_ceiling=limits[2] > 0) for plan in self.runs]
        if self.is_poisoned:
            self._poison(self._part("poison"))
        if self._faulty and self.emphasis.words:
            chance = self._part("words")
            self.runs = [plan.busier(chance, self.emphasis.words) for plan in self.runs]
        self.workers: list[tuple[Process, Worker | None]] = []
        self.processes = 0
        #: What the clients saw: (process, run) -> the result or its error, and the public events.
        self.results: dict[tuple[str, str], Any] = {}
        self.seen: dict[tuple[str, str], list[str]] = {}
        self._live_workers: dict[str, tuple[Process, list[Worker]]] = {}
        #: Names of workers whose lease is renewed by a thread.
        self._renewed: set[str] = set()
        self._stopping: set[str] = set()
        self._clients: list[Process] = []

    def _poison(self, chosen: Random) -> None:
        """Makes a job of a run one that kills its workers; another run has innocent ones beside it."""
        number = chosen.randrange(len(self.runs))
        # Some wait before for a run, but not to its end.
        leaves = [["leave", 0.3]] if self._part("leave").random() < 0.3 else []
        poisoned = self.runs[number] = self.runs[number].poisoned(chosen, *leaves)
        self.runs.append(innocent_run(chosen, len(self.runs), poisoned.starts))
        self.ledger.crash = self._crash

    def _part(self, name: str) -> Random:
        """Returns chance of its own for a part, so that one part's draws do not move another's."""
        return Random(f"stepfleet {self.seed} {name}")

    # -- notes -------------------------------------------------------------------------------------

    def trace(self, who: str, connection: int, command: list[bytes], reply: Any) -> None:
        """Notes a command that the server carried out."""
        line = repr((round(self.loop.time(), 6), who, connection, command, reply)).encode()
        self._digest.update(line)
        if self._keep_trace:
            self._trace.append(
                f"{self.loop.time():10.4f} {who:<9} #{connection:<3} {_shown(command)} -> {_brief(reply)}"
            )

    def note(self, text: str) -> None:
        """Notes a fault."""
        self._digest.update(text.encode())
        if self._keep_trace:
            self._trace.append(f"{self.loop.time():10.4f} ** {text}")

    def _violated(self, name: str, text: str) -> None:
        self.ledger.violated(name, text)
        self.note(f"VIOLATED {name} {text}")
        self.loop.failure = Violated(f"{name}: {text}")

    def _may_idle(self, run_id: str) -> bool:
        """Whether a run may wait for what a client still has to send."""
        if "~" in run_id:
            return False
        wanted = next(plan.begin.extras for plan in self.runs if plan.run_id == run_id)
        return self.ledger.extras_sent[run_id] < wanted

    # -- life --------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Runs to the end and reports."""
        enabled = gc.isenabled()
        gc.disable()  # a collection would close forgotten generators at a moment of its own
        self.loop.context.run(LEDGER.set, self.ledger)
        try:
            with (
                redis_time(self._redis_now),
                patch.object(heartbeat, "STALL", STALL),
                patch.object(committer, "MUCH", MUCH),
                patch.object(
                    heartbeat.Heartbeat,
                    "_beats",
                    in_a_thread(heartbeat.Heartbeat._beats, self._renewed),
                ),
                _quiet(),
            ):
                self._run()
        finally:
            if enabled:
                gc.enable()
        return self._report()

    def _redis_now(self) -> float:
        return EPOCH + self.loop.time() + self.server.ahead

    def _run(self) -> None:
        asyncio.set_event_loop(None)
        try:
            self.loop.run_until_complete(self._story())
        except Violated:
            pass  # it stands in the ledger
        except Exception as error:
            self.ledger.violated("defect", f"{type(error).__name__}: {error}")
        finally:
            self._dismantle()

    def _dismantle(self) -> None:
        """Ends every task, also those of the dead, so that nothing is left to the collector."""
        self.server.before = lambda command: None
        self.server.after = lambda command, reply: None
        self.network.trace = lambda *args: None
        for process in self.loop.all_processes():
            process.dead = process.paused = process.blocked = False
        for _ in range(5):
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self._turn(50)
        for task in asyncio.all_tasks(self.loop):
            task._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue]
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def _turn(self, count: int) -> None:
        """Runs on for a little while; a stop that was asked for before comes to nothing."""
        turns = self.loop.create_task(_turns(count))
        while not turns.done():
            with suppress(RuntimeError):
                self.loop.run_until_complete(turns)

    async def _story(self) -> None:
        chosen = self._random
        for _ in range(chosen.choice(self.emphasis.workers) if self._faulty else 2):
            self.start_worker()
            # Not all at once: they would renew their leases in the same moments for ever.
            await asyncio.sleep(chosen.uniform(0, LEASE / 3))
        clients = chosen.choice(self.emphasis.clients) if self._faulty else 1
        for number in range(clients):
            self._start_client(number)
        if self._faulty:
            await self._storm()
        patience = self.emphasis.patience
        await self._until(self._all_ended, patience, "D8", "runs go on")
        await self._until(self._all_seen, patience, "D8", "clients wait")
        self._check_runs()
        await self._rest()

    async def _rest(self) -> None:
        """Lets the workers settle what is left and stops them; then the retention passes."""
        # Behind a jump back of Redis' clock the leases of the dead last longer by as much.
        longer = FURTHEST if self.ledger.clock_jumped else 0
        await asyncio.sleep(LEASE + 3 * self.emphasis.sweep + 6 + longer)
        self.invariants.check_rest()
        for process, made in self._working():
            self._stop(process, made)
        await asyncio.sleep(LEASE + 3)
        for process, _ in self._working():
            self._violated("D8", f"{process.name} does not end")
        await asyncio.sleep(LEASE)
        if renewed := self.invariants.renewed():
            self._violated("D8", f"nobody works, and leases are renewed: {renewed}")
        await asyncio.sleep(RETENTION + FURTHEST)
        self.invariants.check_gone()

    # -- workers -----------------------------------------------------------------------------------

    def start_worker(self) -> None:
        """Starts a worker process."""
        self.processes += 1
        process = self.loop.process(f"worker{self.processes}")
        chance = self._part(process.name)
        concurrency = chance.choice(self.emphasis.places)
        made: list[Worker] = []
        self._live_workers[process.name] = process, made
        self.loop.spawn(process, self._work(process, chance, concurrency, made), "worker")

    async def _work(
        self, process: Process, chance: Random, concurrency: int, made: list[Worker]
    ) -> None:
        options = WorkerOptions(
            concurrency=concurrency,
            lease=timedelta(seconds=LEASE),
            sweep=timedelta(seconds=self.emphasis.sweep),
            max_deliveries=MAX_DELIVERIES if self.is_poisoned else 1_000_000,
            drain_timeout=timedelta(seconds=1.5),
        )
        thread = self.loop.thread(process)
        async with Client(
            fleet(self.network, process, chance, self.bounds), patience=None
        ) as runtime:
            await self._work_with(process, chance, options, made, runtime, thread)

    async def _work_with(
        self,
        process: Process,
        chance: Random,
        options: WorkerOptions,
        made: list[Worker],
        runtime: Client,
        thread: Process,
    ) -> None:
        instance = self.workflow(timeout=None)
        while True:
            worker = Worker(
                fleet(self.network, process, chance, self.bounds, thread=thread),
                {self.plan.workflow: (self.plan, instance)},
                options=options,
                runtime=runtime,
            )
            made.append(worker)
            try:
                await worker.run()
            except StoreError:
                await asyncio.sleep(0.5)  # as a supervisor does
                if process.name in self._stopping:
                    return
                continue
            if worker.crashed:
                self._violated("defect", f"a loop of {process.name} ended")
            return

    def _stop(self, process: Process, made: list[Worker]) -> None:
        """Sends the signal to drain."""
        self._stopping.add(process.name)

        async def stop() -> None:
            for worker in made[-1:]:
                worker.stop()

        self.loop.spawn(process, stop(), "signal")

    # -- clients -----------------------------------------------------------------------------------

    def _start_client(self, number: int) -> None:
        process = self.loop.process(f"client{number + 1}")
        self._clients.append(process)
        chance = self._part(process.name)
        self.loop.spawn(process, self._use(process, chance, is_boss=number == 0), "client")

    async def _use(self, process: Process, chance: Random, *, is_boss: bool) -> None:
        async with (
            Client(fleet(self.network, process, chance, self.bounds), patience=None) as client,
            asyncio.TaskGroup() as group,
        ):
            for plan in self.runs:
                group.create_task(self._drive(process, chance, client, plan, is_boss=is_boss))

    async def _drive(
        self, process: Process, chance: Random, client: Client, plan: RunPlan, *, is_boss: bool
    ) -> None:
        await asyncio.sleep(plan.starts + (0 if is_boss else chance.uniform(-0.5, 2)))
        handler = await self._started(client, plan)
        tasks = [asyncio.create_task(self._follow(process, chance, handler, plan))]
        if is_boss:
            tasks += [
                asyncio.create_task(self._send_extra(handler, plan, number, chance))
                for number in range(plan.begin.extras)
            ]
            if plan.cancelled is not None:
                tasks.append(asyncio.create_task(self._cancel(handler, plan.cancelled)))
        result = await self._outcome(handler)
        while self.is_lossy and isinstance(result, RunNotFound):
            self.faults["run vanished"] += 1
            handler = await self._started(client, plan)
            tasks.append(asyncio.create_task(self._follow(process, chance, handler, plan)))
            result = await self._outcome(handler)
        self.results[process.name, plan.run_id] = result
        await asyncio.gather(*tasks)
        if is_boss and isinstance(result, DeadLettered) and plan.is_poisoned:
            self.ledger.crash = None
            letters = self._letters()
            if list(letters.values()) != [plan.run_id]:
                self._violated("dead letters", f"given up were {letters}, should be {plan.run_id}")
                return
            requeue = partial(client.requeue, next(iter(letters)), workflow=self.workflow)
            await self._go_on(process, chance, requeue, plan)
        if is_boss and isinstance(result, WorkflowCancelledByUser) and plan.is_resumable:
            await self._go_on(process, chance, handler.resume, plan)

    async def _go_on(
        self,
        process: Process,
        chance: Random,
        resume: Callable[[], Awaitable[WorkflowHandler]],
        plan: RunPlan,
    ) -> None:
        """Goes on with a run that was cancelled or given up, to what its program says."""
        while True:
            try:
                again = await resume()
                break
            except ConnectionLost:
                await asyncio.sleep(0.3)
        going_on = replace(plan, run_id=again.run_id, cancelled=None, is_poisoned=False)
        following = asyncio.create_task(self._follow(process, chance, again, going_on))
        result = await self._outcome(again)
        await following
        self.faults["resume"] += 1
        if self.ledger.lost_locks[plan.run_id] or self.ledger.lost_locks[again.run_id]:
            return
        for (run_id, key), values in list(self.ledger.sent.items()):
            if run_id == plan.run_id:
                self.ledger.sent[again.run_id, key] |= values
        if isinstance(result, BaseException) != plan.fails:
            self._violated("D1", f"{again.run_id} ended as {result!r}")
        if not plan.fails and not going_on.result_fits(result, self.ledger.sent):
            self._violated("D5", f"{again.run_id}: the result is {result}")

    async def _started(self, client: Client, plan: RunPlan) -> WorkflowHandler:
        while True:
            try:
                return await client.start(
                    self.workflow(timeout=plan.timeout),
                    run_id=plan.run_id,
                    start_event=plan.begin,
                )
            except ConnectionLost:
                await asyncio.sleep(0.3)

    async def _outcome(self, handler: WorkflowHandler) -> Any:
        while True:
            try:
                return await handler
            except ConnectionLost:
                await asyncio.sleep(0.3)
            except Exception as error:
                return error

    async def _send_extra(
        self, handler: WorkflowHandler, plan: RunPlan, number: int, chance: Random
    ) -> None:
        await asyncio.sleep(chance.uniform(0, 3))
        await self._patiently(
            handler.send_event, Extra(number=number, width=width_of(plan.begin, 1))
        )
        self.ledger.extras_sent[handler.run_id] += 1

    async def _cancel(self, handler: WorkflowHandler, when: float) -> None:
        await asyncio.sleep(max(0.0, when - self.loop.time()))
        await self._patiently(handler.cancel_run)

    async def _answer(self, handler: WorkflowHandler, key: str, value: str, delay: float) -> None:
        await asyncio.sleep(delay)
        self.ledger.sent[handler.run_id, key].add(value)
        await self._patiently(handler.send_event, Answer(key=key, value=value))

    async def _patiently(self, call: Any, *arguments: Any) -> None:
        """Calls once: with no end to its patience a client repeats until it is answered."""
        try:
            await call(*arguments)
        except ConnectionLost as error:
            # Only what is read first may fail: then nothing was sent.
            self.note(f"a call failed: {error}")
            await asyncio.sleep(0.3)
            await self._patiently(call, *arguments)
        except WorkflowError:
            return  # the run has ended

    async def _follow(
        self, process: Process, chance: Random, handler: WorkflowHandler, plan: RunPlan
    ) -> None:
        seen = self.seen.setdefault((process.name, plan.run_id), [])
        answers: list[asyncio.Task[None]] = []
        after = 0
        while True:
            try:
                async for event in handler.stream_events(after=after):
                    seen.append(f"{handler.last_sequence}:{type(event).__name__}")
                    if isinstance(event, Ask) and plan.is_answered:
                        value = f"{process.name}/{event.key}"
                        delay = chance.choice((0.0, 0.05, 2.0)) * chance.random()
                        answers.append(
                            asyncio.create_task(self._answer(handler, event.key, value, delay))
                        )
                break
            except ConnectionLost:
                after = handler.last_sequence
                await asyncio.sleep(0.3)
            except RunNotFound:
                if not self.is_lossy:
                    raise
                break
        await asyncio.gather(*answers)

    # -- what goes wrong ---------------------------------------------------------------------------

    async def _storm(self) -> None:
        """Lets things go wrong for a while, then heals everything."""
        chosen, emphasis = self._part("storm"), self.emphasis
        kinds: dict[str, Callable[[Random], Coroutine[Any, Any, None]]] = {
            "pauses": self._pauses,
            "kills": self._kills,
            "partitions": self._partitions,
            "outages": self._outages,
            "drains": self._drains,
            "blocks": self._blocks,
            "jumps": self._jumps,
            "losses": self._losses,
        }
        names = [*emphasis.does, *(name for name in emphasis.may if chosen.random() < 0.5)]
        tasks = [asyncio.create_task(kinds[name](self._part(f"_{name}"))) for name in names]
        if emphasis.weather is not None:
            tasks.append(asyncio.create_task(self._weather(chosen, emphasis.weather)))
        await asyncio.sleep(self.until)
        for task in tasks:
            task.cancel()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(end, Exception):
                raise end  # a defect of the simulation
        self.note("all is well again")
        self.network.weather = FAIR
        self.network.come_up()
        for process in self.loop.all_processes():
            process.paused = process.blocked = False
            self.network.heal(process)
        if not self._working():
            self.start_worker()

    def _working(self) -> list[tuple[Process, list[Worker]]]:
        return [
            (process, made)
            for process, made in self._live_workers.values()
            if not process.dead and not all(task.done() for task in process.tasks)
        ]

    def _fault(self, kind: str, text: str) -> None:
        self.faults[kind] += 1
        self.note(f"{kind}: {text}")

    async def _weather(self, chosen: Random, some: Callable[[Random], Weather]) -> None:
        while True:
            await asyncio.sleep(chosen.expovariate(0.3))
            weather = some(chosen)
            self.network.weather = FAIR if weather == FAIR else weather
            self._fault("weather", str(self.network.weather))

    async def _pauses(self, chosen: Random) -> None:
        while True:
            await asyncio.sleep(chosen.expovariate(0.25))
            candidates = [process for process, _ in self._working()] + self._clients
            candidates = [process for process in candidates if not process.stopped]
            if not candidates:
                continue
            process = chosen.choice(candidates)
            seconds = chosen.choice((0.05, 1.0, LEASE + 1, 3 * LEASE)) * chosen.uniform(0.5, 1.5)
            self._fault("pause", f"{process.name} for {seconds:.2f} s")
            process.paused = True
            self.loop.in_world(seconds, self._resume, process)

    def _resume(self, process: Process) -> None:
        if process.paused:
            self.note(f"{process.name} goes on")
            process.paused = False

    async def _blocks(self, chosen: Random) -> None:
        """Steps keep the CPU: the loop of their process does not turn, and its thread renews the lease."""
        while True:
            await asyncio.sleep(chosen.expovariate(0.25))
            victims = [
                (process, made)
                for process, made in self._working()
                # No step runs before a worker has begun.
                if not process.stopped and made and made[-1].consumer in self._renewed
            ]
            if not victims:
                continue
            process, made = chosen.choice(victims)
            leases = chosen.choice((0.3, 1.5, 2.5, STALL + 2.0))
            self._fault("block", f"the loop of {process.name} for {leases} leases")
            process.blocked = True
            worker = made[-1].consumer if self.network.is_sound else ""
            if self.loop.time() - self.invariants.beats.get(worker, 0.0) > LEASE / 2:
                worker = ""  # a beat was lost already
            self.loop.in_world(
                leases * LEASE, self._unblock, process, worker, leases, self._disturbances()
            )

    def _disturbances(self) -> int:
        """Returns how much went wrong so far, but for what happens to one process only and shows there."""
        return self.faults.total() - sum(self.faults[kind] for kind in ("kill", "block", "poison"))

    def _unblock(self, process: Process, worker: str, leases: float, faults: int) -> None:
        if not process.blocked or process.dead:
            return
        self.note(f"the loop of {process.name} turns")
        process.blocked = False
        seen = self.invariants.beats.get(worker)
        if seen is None or faults != self._disturbances() or not self.network.is_sound:
            return  # what else went wrong meanwhile may be why
        silent = (self.loop.time() - seen) / LEASE
        if leases < STALL and silent > 1:
            self._violated("D8", f"{worker}: its loop was blocked, nobody renewed its lease")
        if leases > STALL + 1 and silent < leases - STALL - 1:
            self._violated("D8", f"{worker}: it renewed its lease without a turn of its loop")

    async def _jumps(self, chosen: Random) -> None:
        """Clocks jump, Redis' own and those of hosts."""
        while True:
            await asyncio.sleep(chosen.expovariate(0.25 * self.emphasis.often))
            if chosen.random() < 0.5:
                host = chosen.choice(sorted(self.network.skews_ms))
                self.network.skews_ms[host] = chosen.randint(-3_600_000, 3_600_000)
                self._fault("jump", f"the clock of {host} is {self.network.skews_ms[host]} ms off")
                continue
            self.ledger.clock_jumped = True
            self.server.ahead = chosen.choice((0.0, 0.3, LEASE + 1, FURTHEST / 2))
            self.server.ahead *= chosen.choice((-1, 1))
            self._fault("jump", f"Redis' clock is {self.server.ahead} s off")
            # Whoever renews its lease sees each jump: of two in between it sees the sum.
            await asyncio.sleep(LEASE / heartbeat.BEATS + 0.1)

    async def _losses(self, chosen: Random) -> None:
        """Redis dies and comes back with the data that it had up to two seconds before."""
        commits = 0
        while True:
            await asyncio.sleep(chosen.uniform(0.0, 0.05))
            before, commits = commits, self.invariants.commits
            if before == commits or chosen.random() > 0.3:
                continue  # where nothing happens nothing is lost
            saved, forget = self.server.saved(), self.invariants.memory()
            seconds = chosen.choice((0.01, 0.5, 1.0, 2.0)) * chosen.random()
            await asyncio.sleep(seconds)
            self._fault("loss", f"of {seconds:.3f} s")
            self.ledger.lost_data = True
            self.network.go_down(forget_scripts=True)
            self.server.load(saved)
            forget()
            await asyncio.sleep(chosen.choice((0.05, 0.05, 1.0, LEASE + 1)))
            self.network.come_up()
            self.note("redis is up")
            await asyncio.sleep(chosen.choice((0.0, 1.0, 2.0)))

    async def _kills(self, chosen: Random) -> None:
        while True:
            await asyncio.sleep(chosen.expovariate(0.3))
            victims = self._working()
            if not victims:
                continue
            process, _ = chosen.choice(victims)
            silently = chosen.random() < 0.3
            self._fault("kill", f"{process.name}{', silently' if silently else ''}")
            process.dead = True
            self.network.vanish(process, silently=silently)
            self.loop.in_world(chosen.uniform(0.05, 3), self._replace)

    def _crash(self) -> None:
        process = OWNER.get()
        self._fault("poison", process.name)
        process.dead = True
        self.network.vanish(process, silently=False)
        self.loop.in_world(0.5, self._replace)

    def _replace(self) -> None:
        self.start_worker()

    async def _partitions(self, chosen: Random) -> None:
        while True:
            await asyncio.sleep(chosen.expovariate(0.25))
            process = chosen.choice([process for process, _ in self._working()] + self._clients)
            seconds = chosen.choice((0.2, 2.0, LEASE + 2, 3 * LEASE)) * chosen.uniform(0.5, 1.5)
            self._fault("partition", f"{process.name} for {seconds:.2f} s")
            self.network.partition(process)
            self.loop.in_world(seconds, self.network.heal, process)

    async def _outages(self, chosen: Random) -> None:
        while True:
            await asyncio.sleep(chosen.expovariate(0.15))
            seconds = chosen.choice((0.1, 1.0, LEASE + 1, 8.0)) * chosen.uniform(0.5, 1.5)
            self._fault("outage", f"for {seconds:.2f} s")
            self.network.go_down(forget_scripts=chosen.random() < 0.5)
            await asyncio.sleep(seconds)
            self.network.come_up()
            self.note("redis is up")

    async def _drains(self, chosen: Random) -> None:
        while True:
            await asyncio.sleep(chosen.expovariate(0.3))
            victims = [(process, made) for process, made in self._working() if not process.stopped]
            if not victims:
                continue
            process, made = chosen.choice(victims)
            self._fault("drain", process.name)
            self._stop(process, made)
            self.loop.in_world(chosen.uniform(0.05, 2), self._replace)

    # -- the end -----------------------------------------------------------------------------------

    async def _until(self, done: Any, limit: float, name: str, text: str) -> None:
        deadline = self.loop.time() + limit
        while not done():
            if self.loop.time() > deadline:
                self._violated(name, f"{text} after {limit:g} s: {self._unfinished()}")
            if self.loop.turns > MOST_TURNS:
                self._violated("D8", f"{text}, and it goes round in circles: {self._unfinished()}")
            self._finish_clients()
            await asyncio.sleep(0.25)

    def _finish_clients(self) -> None:
        for process in (*self._clients, *(process for process, _ in self._live_workers.values())):
            for task in process.tasks:
                if task.done() and not task.cancelled() and task.exception() is not None:
                    error = task.exception()
                    if isinstance(error, BaseExceptionGroup):
                        error = error.exceptions[0]
                    self._violated("defect", f"{process.name}: {type(error).__name__}: {error}")

    def _status(self, run_id: str) -> str:
        record = self.server.value(self.keys.run(run_id))
        return record._values[b"status"].decode() if record is not None else ""

    def _all_ended(self) -> bool:
        return all(
            self._status(run.run_id) not in ("", "running") or self._is_forgotten(run)
            for run in self.runs
        )

    def _is_forgotten(self, plan: RunPlan) -> bool:
        """Whether Redis lost a run whose result every client had: nobody starts it again."""
        asked = [(process.name, plan.run_id) for process in self._clients]
        return (
            self.is_lossy
            and not self._status(plan.run_id)
            and all(one in self.results for one in asked)
        )

    def _all_seen(self) -> bool:
        return all(task.done() for process in self._clients for task in process.tasks)

    def _unfinished(self) -> str:
        waiting = [run.run_id for run in self.runs if self._status(run.run_id) in ("", "running")]
        return ", ".join(
            f"{run_id} {self.server.ask('HGETALL', self.keys.open(run_id))}" for run_id in waiting
        ) or ", ".join(
            process.name
            for process in self._clients
            if not all(task.done() for task in process.tasks)
        )

    def _check_runs(self) -> None:
        """Compares what happened with what the programs say."""
        for plan in self.runs:
            status = self._status(plan.run_id)
            if self._is_forgotten(plan):
                continue
            endings = plan.endings | ({"failed"} if self.ledger.lost_locks[plan.run_id] else set())
            if status not in endings:
                reason = self.server.value(self.keys.run(plan.run_id))._values
                self._violated("D1", f"{plan.run_id} ended as {status}: {reason}")
            self.statuses[status] += 1
            self._check_clients(plan, status)
            if status == "completed":
                self._check_completed(plan)
        self._check_letters()

    def _check_letters(self) -> None:
        """Only what killed its workers is given up, however many others were lost with it."""
        if letters := self._letters():
            self._violated("dead letters", f"left are {letters}")
        if self.is_poisoned and self.faults["poison"] != MAX_DELIVERIES:
            self._violated("dead letters", f"it killed {self.faults['poison']} workers")

    def _letters(self) -> dict[str, str]:
        rows = self.server.ask("XRANGE", self.keys.dead, "-", "+")
        return {entry.decode(): fields[fields.index(b"run") + 1].decode() for entry, fields in rows}

    def _check_clients(self, plan: RunPlan, status: str) -> None:
        views: set[tuple[str, ...]] = set()
        for process in self._clients:
            result = self.results.get((process.name, plan.run_id))
            if (status == "completed") == isinstance(result, BaseException):
                self._violated("D3", f"{plan.run_id}: {process.name} got {result!r}, it {status}")
            fits = self.ledger.lost_locks[plan.run_id] or (
                status != "completed" or plan.result_fits(result, self.ledger.sent)
            )
            if not fits:
                self._violated("D5", f"{plan.run_id}: the result is {result}")
            if self.is_lossy:
                continue  # it may have seen what Redis lost
            seen = self.seen.get((process.name, plan.run_id), [])
            views.add(tuple(seen))
            seqs = [int(one.partition(":")[0]) for one in seen]
            if seqs != list(range(1, len(seqs) + 1)):
                self._violated("D7", f"{plan.run_id}: {process.name} saw {seen}")
        if len(views) > 1:
            self._violated("D7", f"{plan.run_id}: readers saw different things: {views}")

    def _check_completed(self, plan: RunPlan) -> None:
        record = self.server.value(self.keys.store(plan.run_id))
        stored = {
            name.decode(): self.plan.codec.decode_value(value.partition(b":")[2])
            for name, value in record._values.items()
        }
        written = {name: value for name, value in stored.items() if name.startswith("job")}
        if written != plan.stored():
            self._violated("D2", f"{plan.run_id}: stored {written}, should be {plan.stored()}")
        count = stored.get("count", 0)
        self._check_versions(plan.run_id, record._values)
        done, begun = self.ledger.edits_done[plan.run_id], self.ledger.edits_begun[plan.run_id]
        if not done <= count <= begun:
            self._violated("D2", f"{plan.run_id}: {count} edits, {done} of {begun} returned")
        notes: Counter[str] = Counter()
        retracted: set[int] = set()
        stream = self.server.value(self.keys.events(plan.run_id))
        entries = stream._values_dict if stream is not None else {}
        for fields in entries.values():
            entry = decode_public(fields[1])
            if entry.type_id == "Note":
                event = self.plan.codec.decode_event(entry.type_id, entry.payload)
                assert isinstance(event, Note)
                notes[event.key] += 1
            if len(fields) > 2:
                retracted |= {int(seq) for seq in fields[3].split(b",")}
        expected = plan.notes()
        # A step whose child Redis has lost fails, and its next attempt publishes again.
        fits = notes == expected or (
            self.is_lossy and notes >= expected and len(notes) == len(expected)
        )
        if not fits and not self.ledger.lost_locks[plan.run_id]:
            self._violated("D2", f"{plan.run_id}: published {notes}, should be {expected}")
        if retracted:
            self._violated("D2", f"{plan.run_id}: retracted {retracted}, all was repeated")

    def _check_versions(self, run_id: str, stored: dict[bytes, bytes]) -> None:
        """Versions count what was written to a store: no write was applied twice."""
        last = max((int(value.partition(b":")[0]) for value in stored.values()), default=0)
        begun = self.ledger.writes_begun[run_id]
        if last > begun:
            self._violated("D2", f"{run_id}: {last} writes to its store, {begun} began")

    def _report(self) -> Report:
        executed = Counter((run, key, n) for _, _, run, _, key, n in self.ledger.executions)
        return Report(
            seed=self.seed,
            digest=self._digest.hexdigest(),
            violations=self.ledger.violations,
            statuses=dict(sorted(self.statuses.items())),
            commits=self.invariants.commits,
            answers=dict(sorted(self.invariants.answers.items())),
            faults=dict(sorted(self.faults.items())),
            executions=len(self.ledger.executions),
            repeated=len(self.ledger.executions) - len(executed),
            virtual_seconds=self.loop.time(),
            trace=self._trace,
        )


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what workers log about faults to itself: the trace tells it better."""
    logger = logging.getLogger("stepfleet")
    level, logger.disabled = logger.level, logger.disabled
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
        logger.setLevel(level)


def _shown(command: list[bytes]) -> str:
    """Returns a command in short, commits without their keys."""
    if command[0] != b"EVALSHA":
        return _brief(command)
    name = script_name(command[1])
    return f"{name} {_brief(arguments_of(command))}"


def _brief(value: Any, limit: int = 700) -> str:
    if isinstance(value, list):
        text = " ".join(_brief(part, 60) for part in value)
        return text if len(text) <= limit else text[:limit] + "..."
    if isinstance(value, bytes):
        text = value.decode("utf-8", "backslashreplace")
        text = "".join(char if char.isprintable() else "." for char in text)
        return text if len(text) <= limit else text[:limit] + "..."
    return str(value)
