"""The sentence: a delivery is read, its step runs, the core decides, the commit is applied.

Holds what this process owns. A delivery leaves by the answer to its commit, by being handed back,
or because the process finds that it belongs to another one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from stepfleet.core.commit import (
    Answer,
    Commit,
    EntryFence,
    Expectation,
    Is,
    Park,
    Route,
    Word,
)
from stepfleet.core.decide import decide, readable
from stepfleet.core.delivery import Delivery
from stepfleet.core.history import settled
from stepfleet.core.outcome import Failed, Lost, Outcome, Returned, Shown, Suspended, Traces
from stepfleet.core.outcome import Unreadable as UnreadableOutcome
from stepfleet.core.plan import Plan
from stepfleet.core.scopes import gathered_in
from stepfleet.errors import (
    DecodeError,
    StoreError,
    TooLargeError,
    WorkflowRuntimeError,
)
from stepfleet.graph import StepSpec
from stepfleet.instrumentation import enter_step_log
from stepfleet.parents import enter_parent
from stepfleet.storage.committer import Committer
from stepfleet.storage.consumer import Alarm, Arrival
from stepfleet.storage.fleet import Fleet
from stepfleet.storage.reader import RunReader
from stepfleet.storage.state import RedisPort
from stepfleet.store import StateStore
from stepfleet.wire import decode_unclaimed
from stepfleet.worker.effects import Effects, still_known
from stepfleet.worker.execution import (
    NOTHING_KNOWN,
    BufferContent,
    Execution,
    Known,
    is_answer,
)
from stepfleet.worker.held import Held, log_fields
from stepfleet.worker.line import Line
from stepfleet.worker.observer import Observer
from stepfleet.worker.pace import SOON, Paces
from stepfleet.worker.parent import StepParent
from stepfleet.worker.runner import run_step
from stepfleet.worker.settled import log_settled
from stepfleet.worker.strays import Strays
from stepfleet.worker.suspects import Suspects
from stepfleet.worker.system import settle_system
from stepfleet.workflow import Runtime, Workflow, current_runtime, options_of

logger = logging.getLogger("stepfleet.worker.processor")

#: Ended runs that are remembered, so that what was read of them meanwhile does not start.
ENDED: Final = 10_000
#: What is read ahead of free places comes in reads of at least this part of the concurrency.
AHEAD: Final = 0.75
#: Deliveries whose commits wait for their answers, by the concurrency: those of two calls, beside which there
#: is something to run. With 1, 0.9 of the steps per second.
ON_THEIR_WAY: Final = 2


@dataclass(slots=True)
class Served:
    """A workflow of this process."""

    plan: Plan
    instance: Workflow
    #: Seconds that its runs may take; None: for ever.
    timeout: float | None
    turns: dict[str, asyncio.Lock] = field(default_factory=dict[str, asyncio.Lock])


class Processor:
    """Runs deliveries, at most `concurrency` at once."""

    def __init__(
        self,
        fleet: Fleet,
        committer: Committer,
        reader: RunReader,
        *,
        executor: Executor,
        concurrency: int,
        max_deliveries: int,
        lease: float,
        locks: dict[str, str],
        runtime: Runtime | None,
        observer: Observer | None = None,
        suspect_left: Callable[[], None],
        timer_set: Callable[[float], None],
    ) -> None:
        self._fleet = fleet
        self._clock = fleet.clock
        self._committer = committer
        self._reader = reader
        self._executor = executor
        self._concurrency = concurrency
        self._max_deliveries = max_deliveries
        self._lease_ms = int(lease * 1000)
        self._locks = locks
        self._runtime = runtime
        self._observer = observer
        self.suspects = Suspects(suspect_left)
        self._tracing = fleet.tracer()
        self._served: dict[str, Served] = {}
        self._strays = Strays(committer, self._plan_of, observer)
        self._held: dict[tuple[Route, str], Held] = {}
        self._effects = Effects(
            committer,
            fleet.clock,
            self._held,
            timeout_of=self._timeout_of,
            abandon=self._abandon,
            timer_set=timer_set,
        )
        self._in_line: deque[Held] = deque()
        self._line = Line(self._process_one)
        self._running = 0
        self._paces = Paces()
        #: Owned deliveries that wait, or have waited, for another run.
        self._lent = 0
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._process = fleet.random.randbytes(3).hex()
        self._executions = 0
        self.capacity = asyncio.Event()
        self.capacity.set()
        self.empty = asyncio.Event()
        self.empty.set()

    def serve(self, plan: Plan, instance: Workflow) -> None:
        """Run deliveries of this workflow."""
        self._served[plan.workflow] = Served(plan, instance, options_of(instance).timeout)

    def stop_serving(self, workflow: str) -> None:
        """Forget a workflow."""
        self._served.pop(workflow, None)

    def _plan_of(self, workflow: str) -> Plan | None:
        served = self._served.get(workflow)
        return served and served.plan

    def _timeout_of(self, workflow: str) -> float | None:
        served = self._served.get(workflow)
        return served and served.timeout

    @property
    def places(self) -> int:
        """Deliveries that could start now.

        A place is free as soon as its step has returned: the next one runs while the commit of the one
        before is under way. Steps that wait for another run do not count.
        """
        return max(0, self._concurrency - self._running - len(self._in_line))

    @property
    def free(self) -> int:
        """Deliveries to read: as many as could start now, and as many as will find a place soon.

        So a few free places are not filled one by one while many get free: 0.050 calls per step
        instead of 0.061. While `ON_THEIR_WAY` times as many are on their way to Redis as may run,
        nothing is read: it is slow or away.
        """
        taken = self._running + len(self._in_line)
        if len(self._held) - self._lent - taken > self._concurrency * ON_THEIR_WAY:
            return 0
        places = self._concurrency - taken
        free = places + min(self._paces.soon(), self._concurrency)
        if places > 0:
            return free
        # Each has to wait in any case: a few more go in one read.
        return free if free >= self._concurrency * AHEAD else 0

    def is_brief(self, route: Route) -> bool:
        """Tell whether as many of a step as may run at once end soon, even one after the other."""
        return self._paces.of(route).seconds * self._concurrency <= SOON

    @property
    def ends_soon(self) -> bool:
        """Whether any of the running executions is likely to end soon, so that what stands in line begins."""
        return self._paces.soon() > 0

    @property
    def held(self) -> Collection[tuple[Route, str]]:
        """Streams and entries of what this process owns."""
        return self._held.keys()

    @property
    def running(self) -> list[Held]:
        """What this process owns, oldest first."""
        return list(self._held.values())

    def works_since(self, seconds: float) -> bool:
        """Tell whether it has owned a delivery for so long."""
        oldest = next(iter(self._held.values()), None)
        return oldest is not None and self._clock.steady() - oldest.started >= seconds

    def look_at_paces(self) -> None:
        """Read less ahead of steps that used to be short and now run longer."""
        now = self._clock.steady()
        for held in self._held.values():
            if held.pace is not None and held.executed:
                held.pace.lasts(now - held.executed)

    def let_go(self, seconds: float) -> list[tuple[Route, str]]:
        """Give up what has stood in line for so long and was not begun; return its streams and entries."""
        since = self._clock.steady() - seconds
        late = [held for held in self._in_line if held.in_line is None and held.started <= since]
        rows = [(held.delivery.route, held.delivery.entry) for held in late if not held.cancelled]
        for held in late:
            self._abandon(held, "late")
        self._in_line = deque(held for held in self._in_line if not held.cancelled)
        return rows

    # -- arrivals ----------------------------------------------------------------------------------

    def accept(self, arrival: Arrival) -> None:
        """Take a delivery that was read, reclaimed or found by the audit."""
        if isinstance(arrival, Delivery):
            self._accept(arrival)
        elif isinstance(arrival, Alarm):
            self._strays.wake(arrival)
        else:
            self._strays.bury(arrival)

    def _accept(self, delivery: Delivery) -> None:
        key = (delivery.route, delivery.entry)
        before = self._held.get(key)
        if before is not None:
            # It came again, so the old execution's delivery is another one's or a doubled reply's.
            self._abandon(before, "gone")
        if delivery.run_id in self._ended:
            self._committer.put(*self._acknowledge(delivery))
            return
        held = Held(delivery, self._clock.steady())
        self._held[key] = held
        if delivery.deliveries > 1:
            self.suspects.add(held)
        self.empty.clear()
        if delivery.is_first:
            self._effects.arm_later()
        if self._in_line or self._running >= self._concurrency:
            self._in_line.append(held)
        else:
            self._begin(held)

    def _fill_places(self) -> None:
        while self._in_line and self._running < self._concurrency:
            held = self._in_line.popleft()
            gave_up = held.in_line is not None and held.in_line.done()
            if not held.cancelled and not gave_up:
                self._begin(held)
        self._tell_of_capacity()

    def _tell_of_capacity(self) -> None:
        if not self.capacity.is_set() and self.free:
            self.capacity.set()

    def _begin(self, held: Held) -> None:
        self._running += 1
        held.pace = self._paces.of(held.delivery.route)
        held.pace.running += 1
        if held.in_line is None:
            self._line.add(held)
        else:
            held.in_line.set_result(None)

    async def _take_place(self, held: Held) -> None:
        """Wait for a place for a further execution."""
        held.in_line = asyncio.get_running_loop().create_future()
        self._in_line.append(held)
        self._fill_places()
        await held.in_line

    def _give_place(self, held: Held) -> None:
        if held.pace is not None:
            took = self._clock.steady() - held.executed if held.executed else None
            held.pace.ended(took)
            held.pace = None
            self._running -= 1
            if self._in_line:
                self._fill_places()
            elif not self.capacity.is_set():
                self._tell_of_capacity()

    def _release(self, held: Held) -> None:
        key = (held.delivery.route, held.delivery.entry)
        if self._held.get(key) is held:
            del self._held[key]
        self._lent -= held.lent
        if held.delivery.deliveries > 1:
            self.suspects.remove(held)
        if held.pace is not None:
            self._give_place(held)
        if not self.capacity.is_set():
            self._tell_of_capacity()
        if not self._held:
            self.empty.set()

    # -- one delivery ------------------------------------------------------------------------------

    async def _process_one(self, held: Held) -> None:
        """Run a delivery until its commit is on its way; the answer settles it."""
        delivery = held.delivery
        try:
            if delivery.deliveries > 1:
                if not self.suspects.may_run(held):
                    self._give_place(held)  # what it waits for may need one
                await self.suspects.turn(held)
            await self._settle(held)
        except asyncio.CancelledError:
            if held.execution is not None:
                held.execution.end(f"the delivery was given up ({held.cancelled})")
            if held.cancelled == "over":
                self._committer.put(*self._acknowledge(delivery))
            self._done(held)
            if not held.cancelled:
                raise
        except Exception as error:  # noqa: BLE001 - a defect of ours must not end this task
            self._give_up(held, error)

    async def _settle(self, held: Held) -> None:
        delivery = held.delivery
        served = self._served.get(delivery.route.workflow)
        if served is None:
            self._done(held)
            return
        plan = served.plan
        if not delivery.route.step:
            answer = await settle_system(
                delivery, plan, self._committer, self._reader, self._fleet.inbox_limit
            )
            self._finish(held, answer)
            return
        enter_step_log(*log_fields(delivery))
        if held.refuted is not None:
            outcome = await self._reconsidered(held, held.refuted, plan)
            if outcome is not None:
                self._commit(held, outcome, plan)
                return
            held.armed, held.rerun = False, True
        spec = plan.spec(delivery.route)
        if spec is not None and (spec.collects or spec.slots):
            delivery = held.delivery = await self._with_batch(delivery, spec, plan)
        if held.pace is None:
            await self._take_place(held)
        held.executed = self._clock.steady()
        if not held.rerun:
            held.started = held.executed
        outcome = await self._outcome(held, served, spec, held.known, held.rerun)
        self._give_place(held)
        if held.cancelled:
            # The step swallowed its cancellation: what it returned is nobody's any more.
            raise asyncio.CancelledError
        self._commit(held, outcome, plan)

    async def _reconsidered(
        self, held: Held, refuted: tuple[Outcome, Answer], plan: Plan
    ) -> Outcome | None:
        """Read what moved; return the outcome to commit on it, None if the step has to run again."""
        (outcome, answer), held.refuted = refuted, None
        if answer.word == "rewound":
            logger.warning("redis has lost what this step did before, it runs again")
            held.known = NOTHING_KNOWN
            return None
        known = held.known = await self._learned(held.delivery, outcome, held.known, answer)
        if not isinstance(outcome, Suspended) or answer.buffer:
            return None
        if any(is_answer(raw, outcome, plan) for raw in known.inbox):
            return None
        # Nothing of what came meanwhile is for this wait: it begins all the same.
        return outcome._replace(inbox_seen=known.inbox_seen)

    def _commit(self, held: Held, outcome: Outcome, plan: Plan) -> None:
        """Send what an outcome means. Nothing of the step is left but what the answer needs."""
        # This commit arms the deadline too: an effect behind it would find the delivery gone.
        held.armed = True
        held.task = None
        commit = self._decided(held.delivery, outcome, plan)
        if kept := still_known(held):
            commit = commit._replace(expects=(*kept, *commit.expects))
        self._committer.put(commit, partial(self._answered, held, plan, outcome, commit.words))

    def _answered(
        self,
        held: Held,
        plan: Plan,
        outcome: Outcome,
        words: Sequence[Word],
        answer: Answer | StoreError,
    ) -> None:
        if held.cancelled:
            return  # given up meanwhile
        try:
            if not isinstance(answer, Answer):
                self._give_up(held, answer)
            elif answer.word in ("conflict", "rewound"):
                held.refuted = outcome, answer
                self._line.add(held)
            elif answer.word == "full" and answer.detail == "deliveries":
                self._commit(held, self._exhausted(held.delivery, outcome), plan)
            elif answer.word == "full" and isinstance(outcome, Suspended):
                error = self._too_many_waits(held.delivery)
                self._commit(held, Failed(error=error, traces=outcome.traces), plan)
            else:
                if held.delivery.is_first or not isinstance(outcome, Returned):
                    self._effects.tell_of_timers(held.delivery, words)
                log_settled(held.delivery, outcome, words, answer)
                if self._observer is not None:
                    self._observer.settled(held.delivery, outcome, words, answer.word)
                self._finish(held, answer)
        except Exception as error:  # noqa: BLE001 - it would end the committer
            self._give_up(held, error)

    def _finish(self, held: Held, answer: Answer) -> None:
        """Let a delivery go whose commit was answered, or what is left of it."""
        held.task = None
        last = self._last_commit(held.delivery, answer)
        if last is None:
            self._done(held)
        else:
            self._committer.put(last, lambda _: None if held.cancelled else self._done(held))

    def _done(self, held: Held) -> None:
        held.task = None
        # It knows this delivery: as a cycle each step would leave 17 objects to the garbage collector,
        # which took 6 of the 50 us of a worker per step.
        held.execution = None
        self._release(held)

    def _give_up(self, held: Held, error: Exception) -> None:
        """Leave a delivery pending that cannot be settled: the audit returns it, it is not lost silently."""
        run_id, step = _where(held.delivery)
        text = "a delivery could not be settled run_id=%s step=%s"
        logger.error(text, run_id, step, exc_info=error)
        self._done(held)

    async def _with_batch(self, delivery: Delivery, spec: StepSpec, plan: Plan) -> Delivery:
        """Read the events of a delivery that stands for several."""
        keys, run_id = self._fleet.keys, delivery.run_id
        name = keys.batch(run_id, delivery.id)
        if spec.collects:
            try:
                scope = gathered_in(delivery.record, plan)
            except DecodeError:
                return delivery._replace(batch=())  # its execution says what cannot be read
            name = keys.gathered(run_id, scope, spec.name)
        batch = await self._patiently(self._reader.batch, run_id, delivery.id, name)
        return delivery._replace(batch=batch)

    def _too_many_waits(self, delivery: Delivery) -> TooLargeError:
        return TooLargeError(
            f"step {delivery.route.step!r} cannot wait: {self._fleet.bounds.waiters_limit} steps "
            f"of run {delivery.run_id} wait already. Wait in fewer of them, or raise the setting "
            "waiters_limit"
        )

    def _exhausted(self, delivery: Delivery, outcome: Outcome) -> Failed:
        """The run has had too many deliveries: it ends, whatever its steps would do about it."""
        error = TooLargeError(
            f"step {delivery.route.step!r} cannot go on: run {delivery.run_id} has had as many "
            "deliveries as deliveries_limit allows. Look for a loop that does not end, split the "
            "work over several runs, or raise the setting"
        )
        traces = getattr(outcome, "traces", Traces())
        shown = tuple(effect for effect in traces.effects if isinstance(effect, Shown))
        return Failed(error=error, traces=traces._replace(effects=shown), final=True)

    def _decided(self, delivery: Delivery, outcome: Outcome, plan: Plan) -> Commit:
        now_ms = self._clock.redis_ms()
        try:
            return settled(decide(delivery, outcome, plan, now_ms=now_ms), delivery, outcome, plan)
        except Exception as error:
            logger.exception("run_id=%s step=%s: an outcome makes no commit", *_where(delivery))
            # It would make none in the next execution either, so the step fails with the reason.
            traces = getattr(outcome, "traces", Traces())
            failed = Failed(error=error, traces=traces)
            return settled(decide(delivery, failed, plan, now_ms=now_ms), delivery, failed, plan)

    async def _outcome(
        self, held: Held, served: Served, spec: StepSpec | None, known: Known, rerun: bool
    ) -> Outcome:
        delivery = held.delivery
        if delivery.deliveries > self._max_deliveries:
            return Lost()
        if spec is None:
            return UnreadableOutcome(
                error=DecodeError(f"this code has no step {delivery.route.step!r}")
            )
        if delivery.batch is None and (spec.collects or spec.slots):
            # Settled meanwhile, so the answer is `gone`; in a live run the list was lost.
            error = WorkflowRuntimeError(
                f"the events for step {spec.name!r} are not there any more"
            )
            return Failed(error=error)
        span = None if self._tracing is None else self._tracing.execution(delivery, rerun=rerun)
        if span is not None:
            delivery = held.delivery = delivery._replace(trace=span.headers)
        execution = held.execution = self._execution(held, served, spec, known, rerun)
        current_runtime.set(self._runtime)
        parent = StepParent(self, held, execution, self._runtime)
        enter_parent(parent)
        began = 0.0 if self._observer is None else self._clock.steady()
        running = run_step(execution, served.instance, executor=self._executor, clock=self._clock)
        if span is None:
            outcome = await running
        else:
            with span:
                outcome = await running
                span.ended(outcome, execution.joined)
        execution.end("the step has returned")
        if self._observer is not None:
            ran_s = self._clock.steady() - began
            added_ms = int(delivery.entry.partition("-")[0])
            waited_s = (self._clock.redis_ms() - added_ms) / 1000 - ran_s
            self._observer.ran(delivery, outcome, waited_s=waited_s, ran_s=ran_s)
        return outcome

    def _execution(
        self, held: Held, served: Served, spec: StepSpec, known: Known, rerun: bool
    ) -> Execution:
        self._executions += 1
        return Execution(
            readable(held.delivery),
            served.plan,
            spec,
            token=f"{self._process}.{self._executions}",
            known=known,
            rerun=rerun,
            flush_soon=self._effects.soon,
            now_ms=self._clock.redis_ms,
            open_store=partial(self._open_store, held, served),
        )

    def _open_store(self, held: Held, served: Served, execution: Execution) -> StateStore[Any]:
        """Return the store of an execution: most steps never ask for it."""
        delivery, plan = execution.delivery, served.plan

        async def apply(words: Sequence[Word], expects: Sequence[Expectation]) -> Answer:
            return await self._effects.write(held, execution, words, expects)

        def on_lock(lock: str) -> None:
            execution.lock = lock
            key = self._fleet.keys.lock(delivery.run_id)
            if lock:
                self._locks[key] = lock
            else:
                self._locks.pop(key, None)

        port = RedisPort(
            self._reader.together,
            self._fleet.keys,
            delivery.run_id,
            plan.codec,
            apply,
            token=lambda: f"{delivery.id}:{execution.token}:{execution.calls}",
            lock_ms=self._lease_ms,
            turn=served.turns.setdefault(delivery.run_id, asyncio.Lock()),
            on_lock=on_lock,
            random=self._fleet.random,
            patient=True,
        )
        return StateStore(port, plan.graph.state_type)

    async def _learned(
        self, delivery: Delivery, outcome: Outcome, known: Known, answer: Answer
    ) -> Known:
        """Read what moved, so that the next execution is informed."""
        if answer.buffer:
            events = await self._patiently(
                self._reader.buffer, delivery.run_id, answer.buffer, answer.length
            )
            content = BufferContent(answer.version, events)
            return known._replace(buffers={**known.buffers, answer.buffer: content})
        if isinstance(outcome, Suspended):
            count, kept, last = await self._patiently(
                self._reader.inbox, delivery.run_id, delivery.id
            )
            # Only what came after this attempt last published can be an answer to it.
            unclaimed = tuple(raw for raw in kept if last and decode_unclaimed(raw).seq >= last)
            return known._replace(inbox=unclaimed, inbox_seen=count)
        return known

    async def _patiently(self, read: Callable[..., Any], *args: Any) -> Any:
        while True:
            try:
                return await read(*args)
            except StoreError:
                await asyncio.sleep(0.2)

    def _last_commit(self, delivery: Delivery, answer: Answer) -> Commit | None:
        """Return what an answer asks for before the delivery is settled."""
        if answer.word == "parking":
            fence = EntryFence(delivery.route, delivery.entry, delivery.id)
            return Commit(delivery.run_id, fence, [Park(delivery.route, delivery.entry)])
        return self._strays.damaged(delivery) if answer.word == "broken" else None

    # -- steps that wait for other runs -----------------------------------------------------------

    def instances(self) -> dict[str, Workflow]:
        """Return the workflows of this process by name."""
        return {name: served.instance for name, served in self._served.items()}

    def lend(self, held: Held) -> None:
        """Give the slot and the place of a step that waits for a run to others, for good."""
        first = not held.lent
        if first:
            held.lent = True
            self._lent += 1
        held.waits = True
        self._give_place(held)
        if self.free:
            self.capacity.set()
        if first or held.delivery.deliveries > 1:
            self._effects.lend(held, self._lent_answered)

    def _lent_answered(self, held: Held, answer: Answer | StoreError) -> None:
        if held.waits:
            # From now on nothing counts against it, so others that were lost may run.
            self.suspects.remove(held)
        self._effects.answered(held, answer)

    async def go_on(self, held: Held) -> None:
        """Let what counted against a step before it waited count again, as soon as it may run beside others."""
        held.waits = False
        if held.delivery.deliveries == 1 or held.cancelled:
            return
        # A task of its own: when a step stops waiting, it goes on all the same; when the loop ends, this does.
        counting = asyncio.create_task(self._count_again(held), name="stepfleet-count-again")
        stopped: asyncio.CancelledError | None = None
        while not counting.done():
            try:
                await asyncio.wait([counting])
            except asyncio.CancelledError as error:
                stopped = error
                if held.cancelled:
                    counting.cancel()
        counting.result()
        if stopped is not None:
            raise stopped

    async def _count_again(self, held: Held) -> None:
        async with self.suspects.on_their_way:
            if self._held.get((held.delivery.route, held.delivery.entry)) is not held:
                return  # settled meanwhile: what its step has left behind runs on its own account
            self.suspects.add(held)
        if held.execution is None or not held.execution.lock:
            await self.suspects.turn(held)
        # Else what runs now may wait for the state that it edits.
        await self._effects.recount(held)

    # -- ends, losses, drain -----------------------------------------------------------------------

    def runs_ended(self, run_ids: Collection[str]) -> None:
        """Cancel what still runs of ended runs."""
        self._ended.update(dict.fromkeys(run_ids))
        while len(self._ended) > ENDED:
            self._ended.popitem(last=False)
        for held in list(self._held.values()):
            if held.delivery.run_id in run_ids:
                self._abandon(held, "over")
        for served in self._served.values():
            for run_id in run_ids:
                served.turns.pop(run_id, None)

    def drop_all(self, why: str) -> None:
        """Cancel everything without settling it: it belongs to others, or is handed back."""
        for held in list(self._held.values()):
            if why == "drain" and held.lent and held.delivery.deliveries > 1:
                self._effects.recount_soon(held)
            self._abandon(held, why)

    def _abandon(self, held: Held, why: str) -> None:
        if held.cancelled or self._held.get((held.delivery.route, held.delivery.entry)) is not held:
            return
        held.cancelled = why
        if held.execution is not None:
            held.execution.end(f"the delivery was given up ({why})")
        if held.task is not None:
            held.task.cancel()
            return
        # It was not begun, or only the answer to its commit is missing.
        if why == "over":
            self._committer.put(*self._acknowledge(held.delivery))
        self._done(held)

    def _acknowledge(
        self, delivery: Delivery
    ) -> tuple[Commit, Callable[[Answer | StoreError], None]]:
        fence = EntryFence(delivery.route, delivery.entry, delivery.id)

        def answered(answer: Answer | StoreError) -> None:
            if not isinstance(answer, Answer):
                return
            if answer.word == "parking":
                park = Commit(delivery.run_id, fence, [Park(delivery.route, delivery.entry)])
                self._committer.put(park)
            elif answer.word == "conflict":
                # The run is live: its id was used again, or Redis lost its end.
                self._ended.pop(delivery.run_id, None)
                self._accept(delivery._replace(fresh=False))

        # A live run has a status, so this never settles work of one.
        return Commit(delivery.run_id, fence, (), [Is("status", "")]), answered


def _where(delivery: Delivery) -> tuple[str, str]:
    return delivery.run_id, delivery.route.step
