"""What simulated fleets run: random programs for one workflow that has all that steps can do."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random
from typing import Any, Final, cast

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.errors import WorkflowRuntimeError
from stepfleet.events import HumanResponseEvent, InputRequiredEvent
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed

#: Seconds of a worker's lease, and of a lock that a step holds.
LEASE = 3.0
#: Attempts of a job.
ATTEMPTS = 4
#: Seconds after which a run that can end is over, whatever happened before: nobody waits so long.
LONG = 10_000.0


class Begin(StartEvent):
    #: One program per job: lists of (word, argument).
    jobs: list[list[list[Any]]]
    rounds: int = 1
    #: Events that a client sends.
    extras: int = 0
    #: Seconds that `split` takes when it has sent its jobs.
    lingers: float = 0.0


class Job(Event):
    round: int
    #: How many Done and Side events the round has.
    width: list[int]
    number: int
    ops: list[list[Any]]


class Extra(Event):
    number: int
    width: list[int]


class Done(Event):
    round: int
    width: list[int]
    number: int
    answers: list[str] = []


class Side(Event):
    round: int
    width: list[int]
    key: str


class Part(Event):
    """One of many, which are joined two by two."""

    round: int
    width: list[int]
    key: str


class Spread(Event):
    """Becomes a list, whose members are joined in their scope."""

    round: int
    width: list[int]
    parts: list[str]


class Bit(Event):
    round: int
    width: list[int]
    key: str


class Crumb(Event):
    round: int
    width: list[int]
    key: str


class Again(Event):
    round: int


class Note(Event):
    key: str


class Ask(InputRequiredEvent):
    key: str


class Answer(HumanResponseEvent):
    key: str
    value: str


#: Seconds between two things that a step does where Redis may lose one of them.
DWELL: Final = 0.3
#: What every job does first there.
DWELLING: Final = (["set", 90], ["sleep", DWELL], ["publish", 91], ["sleep", DWELL], ["set", 92])

#: How the key begins that stands for several.
PAIR = "pair "


class JobError(Exception):
    """A job fails because its program says so."""


@dataclass(slots=True)
class Ledger:
    """What the steps of a simulation did, written beside Redis."""

    #: (virtual seconds, process, run, step, delivery, attempt) of every execution.
    executions: list[tuple[float, str, str, str, str, int]] = field(default_factory=list)
    #: Executions under way: (run, step, delivery) -> how many.
    running: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    #: Edits of a run that began, and those that returned.
    edits_begun: Counter[str] = field(default_factory=Counter)
    edits_done: Counter[str] = field(default_factory=Counter)
    #: Writes of a run's store that began, those of edits too.
    writes_begun: Counter[str] = field(default_factory=Counter)
    #: Edits of a run that lost their lock, because their process stood still for longer than its lease.
    lost_locks: Counter[str] = field(default_factory=Counter)
    #: Redis lost data: a step whose delivery is gone with it may still run, on what was there before.
    lost_data: bool = False
    #: Redis' clock jumped: locks end when it says so.
    clock_jumped: bool = False
    #: Tokens of edits that returned: they lock nothing any more.
    freed: set[str] = field(default_factory=set)
    #: Extra events of a run that were surely accepted.
    extras_sent: Counter[str] = field(default_factory=Counter)
    #: Values that somebody sent as an answer: (run, key) -> values.
    sent: defaultdict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    #: Ends the process at hand as a crash does; None: what was poison is mended.
    crash: Callable[[], None] | None = None
    violations: list[tuple[str, str]] = field(default_factory=list)

    def violated(self, what: str, text: str) -> None:
        """Notes that an invariant does not hold."""
        self.violations.append((what, text))


LEDGER: ContextVar[Ledger] = ContextVar("ledger")


def _begun(ctx: Context[Any], name: str) -> int:
    """Notes an execution and returns its attempt."""
    execution: Any = ctx._step
    delivery = execution.delivery
    ledger = LEDGER.get()
    now = asyncio.get_running_loop().time()
    attempt = max(delivery.record.attempt, 1)
    ledger.executions.append((now, execution.token, delivery.run_id, name, delivery.id, attempt))
    return attempt


async def _carry_out(ctx: Context[Any], ev: Job, attempt: int, flow: Workflow) -> list[str]:
    answers: list[str] = []
    for word, argument in ev.ops:
        match word:
            case "sleep":
                await asyncio.sleep(argument)
            case "fail":
                if attempt <= argument:
                    raise JobError(f"attempt {attempt} of {argument}")
            case "edit":
                await _edit(ctx)
            case "set":
                await _set(ctx, f"job{ev.number}-{argument}", ev.round)
            case "ask" | "late":
                answers.append(await _wait(ctx, ev, word, argument))
            case "poison":
                await _crash(argument)
            case "child":
                await _call(ctx, flow, argument)
            case "leave":
                await _call_and_leave(flow, argument)
            case _:
                _tell(ctx, ev, word, argument)
    return answers


async def _crash(seconds: float) -> None:
    """Kills whatever runs it after a while, until it is mended."""
    ledger = LEDGER.get()
    if ledger.crash is not None:
        await asyncio.sleep(seconds)
    if ledger.crash is not None:
        ledger.crash()
        await asyncio.get_running_loop().create_future()


async def _call(ctx: Context[Any], flow: Workflow, seconds: float) -> None:
    """Awaits a run of the same workflow."""
    found = await flow.run(start_event=Begin(jobs=[[["sleep", seconds]]]))
    if found != [[[[0]], []]]:
        LEDGER.get().violated("D2", f"{ctx.run_id}: its child came to {found}")


async def _call_and_leave(flow: Workflow, seconds: float) -> None:
    """Awaits a run of the same workflow, but not to its end."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await flow.run(start_event=Begin(jobs=[[["sleep", 10 * seconds]]]))


def _tell(ctx: Context[Any], ev: Job, word: str, argument: Any) -> None:
    match word:
        case "publish":
            ctx.write_event_to_stream(Note(key=f"{ev.round}.{ev.number}.{argument}"))
        case "side":
            (key,) = keys_of(ev.number, word, argument)
            ctx.send_event(Side(round=ev.round, width=ev.width, key=key))
        case "parts":
            for key in keys_of(ev.number, word, argument):
                ctx.send_event(Part(round=ev.round, width=ev.width, key=key))
        case "list":
            keys = keys_of(ev.number, word, argument)
            ctx.send_event(Spread(round=ev.round, width=ev.width, parts=keys))
        case _:
            raise AssertionError(word)


def keys_of(job: int, word: str, argument: Any) -> list[str]:
    """Returns what the join learns of a word of a job's program."""
    parts = {"side": 1, "parts": 2, "list": 3}.get(word, 0)
    return [f"{job}.{argument}.{part}" for part in range(parts)]


async def _set(ctx: Context[Any], name: str, value: Any) -> None:
    LEDGER.get().writes_begun[ctx.run_id] += 1
    await ctx.store.set(name, value)


async def _edit(ctx: Context[Any]) -> None:
    ledger, execution = LEDGER.get(), cast(Any, ctx._step)
    ledger.edits_begun[ctx.run_id] += 1
    ledger.writes_begun[ctx.run_id] += 1
    now = asyncio.get_running_loop().time
    began = now()
    try:
        async with ctx.store.edit_state() as state:
            state["count"] = state.get("count", 0) + 1
            lock = execution.lock
    except WorkflowRuntimeError as error:
        if "lost its lock" in str(error):
            ledger.lost_locks[ctx.run_id] += 1
            if now() - began < LEASE and not ledger.clock_jumped:
                ledger.violated("D2", f"{ctx.run_id}: an edit lost its lock: {error}")
        raise
    ledger.edits_done[ctx.run_id] += 1
    ledger.freed.add(lock)


async def _wait(ctx: Context[Any], ev: Job, word: str, argument: Any) -> str:
    if word == "late":
        with suppress(TimeoutError):
            await ctx.wait_for_event(Answer, requirements={"key": "nobody"}, timeout=argument)
        return word
    key = f"{ev.round}.{ev.number}.{argument}"
    answer = await ctx.wait_for_event(
        Answer, waiter_event=Ask(key=key), waiter_id=key, requirements={"key": key}
    )
    return answer.value


@cache
def mill(slots: int, join_slots: int, ceiling: int) -> type[Workflow]:  # noqa: C901 - one small step behind the other
    """Returns the workflow with these limits."""

    class Mill(Workflow, types=[Note, Ask, Answer]):
        """Fans out jobs, joins what they return, some rounds long."""

        @step
        async def split(self, ctx: Context, ev: Begin) -> Job | Side | None:
            _begun(ctx, "split")
            await _set(ctx, "begin", ev)
            for number, ops in enumerate(ev.jobs):
                ctx.send_event(Job(round=1, width=width_of(ev, 1), number=number, ops=ops))
            if ev.lingers:
                await asyncio.sleep(ev.lingers)

        @step
        async def again(self, ctx: Context, ev: Again) -> Job | None:
            _begun(ctx, "again")
            begin = await ctx.store.get("begin")
            for number, ops in enumerate(begin.jobs):
                width = width_of(begin, ev.round)
                ctx.send_event(Job(round=ev.round, width=width, number=number, ops=ops))

        @step(
            num_workers=slots,
            max_concurrency=ceiling or None,
            retry_policy=retry_policy(wait=wait_fixed(0.3), stop=stop_after_attempt(ATTEMPTS)),
        )
        async def work(self, ctx: Context, ev: Job) -> Done | Extra | Part | Spread:
            attempt = _begun(ctx, "work")
            answers = await _carry_out(ctx, ev, attempt, self)
            return Done(round=ev.round, width=ev.width, number=ev.number, answers=answers)

        @step(num_workers=1)
        async def extra(self, ctx: Context, ev: Extra) -> Done:
            _begun(ctx, "extra")
            return Done(round=1, width=ev.width, number=1000 + ev.number)

        @step
        async def spread(self, ctx: Context, ev: Spread) -> list[Bit]:
            _begun(ctx, "spread")
            return [Bit(round=ev.round, width=ev.width, key=key) for key in ev.parts]

        @step(num_workers=slots)
        async def crumble(self, ctx: Context, ev: Bit) -> Crumb:
            _begun(ctx, "crumble")
            if ev.key.endswith("1"):
                await asyncio.sleep(0.02)
            return Crumb(round=ev.round, width=ev.width, key=ev.key)

        @step
        async def gather(self, ctx: Context, evs: list[Crumb]) -> Side:
            _begun(ctx, "gather")
            keys = "+".join(crumb.key for crumb in evs)
            return Side(round=evs[0].round, width=evs[0].width, key=f"{PAIR}{keys}")

        @step(num_workers=join_slots)
        async def pair(self, ctx: Context, ev: Part) -> Side | None:
            _begun(ctx, "pair")
            found = ctx.collect_events(ev, [Part] * 2)
            if found is None:
                return None
            keys = "+".join(part.key for part in found)
            return Side(round=ev.round, width=ev.width, key=f"{PAIR}{keys}")

        @step(num_workers=join_slots)
        async def join(self, ctx: Context, ev: Done | Side) -> Again | StopEvent | None:
            _begun(ctx, "join")
            done, sides = ev.width
            found = ctx.collect_events(ev, [Done] * done + [Side] * sides)
            if found is None:
                return None
            return await _joined(ctx, ev.round, await ctx.store.get("begin"), found)

    return Mill


def width_of(begin: Begin, round_: int) -> list[int]:
    """Returns how many events of each type a round's join waits for."""
    sides = sum(word in ("side", "parts", "list") for ops in begin.jobs for word, _ in ops)
    return [len(begin.jobs) + (begin.extras if round_ == 1 else 0), sides]


async def _joined(
    ctx: Context[Any], round_: int, begin: Begin, found: list[Any]
) -> Again | StopEvent:
    wrong = [event for event in found if event.round != round_]
    # Behind a lost lock an attempt fails, and the next one sends all that it sent once more.
    ledger = LEDGER.get()
    if wrong and not ledger.lost_locks[ctx.run_id] and not ledger.lost_data:
        ledger.violated("D5", f"{ctx.run_id}: a join of round {round_} released {wrong}")
    done = sorted((event.number, *event.answers) for event in found if isinstance(event, Done))
    sides = sorted(
        key
        for event in found
        if isinstance(event, Side)
        for key in (event.key.removeprefix(PAIR).split("+"))
    )
    if round_ < begin.rounds:
        await _set(ctx, f"result{round_}", [done, sides])
        return Again(round=round_ + 1)
    earlier = [await ctx.store.get(f"result{number}") for number in range(1, round_)]
    rounds = [[[list(one) for one in part[0]], part[1]] for part in [*earlier, [done, sides]]]
    return StopEvent(result=rounds)


# -- programs --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One run of a simulation: what is asked, and how it may end."""

    run_id: str
    begin: Begin
    #: Virtual second at which it is started.
    starts: float
    #: Seconds, None for no deadline.
    timeout: float | None
    #: Virtual second at which a client cancels it.
    cancelled: float | None
    #: Whether somebody answers its questions.
    is_answered: bool
    #: Whether one of its jobs kills whatever runs it.
    is_poisoned: bool = False

    @property
    def fails(self) -> bool:
        """Whether one of its jobs fails for good."""
        return any(word == "fail" and n >= ATTEMPTS for ops in self.begin.jobs for word, n in ops)

    @property
    def is_resumable(self) -> bool:
        """Whether a continuation comes to an end by what a client that resumes it does."""
        # A question that stood in the old run's public stream is not asked again in that of the new one.
        asks = any(word == "ask" for ops in self.begin.jobs for word, _ in ops)
        return not asks and self.timeout is None and not self.begin.extras

    @property
    def endings(self) -> set[str]:
        """How it may end."""
        if self.is_poisoned:
            return {"failed"}
        endings = {"failed"} if self.fails else {"completed"}
        asks = any(word == "ask" for ops in self.begin.jobs for word, _ in ops)
        if asks and not self.is_answered:
            endings.discard("completed")
        if self.cancelled is not None:
            endings.add("cancelled")
        if self.timeout is not None:
            endings.add("timed_out")
        return endings

    def poisoned(self, random: Random, *before: list[Any]) -> RunPlan:
        """Returns this run with a job that does this, kills whatever runs it, and no other end."""
        plain = self._without({"ask"})
        jobs = [list(ops) for ops in plain.begin.jobs]
        ops = random.choice((jobs[0], random.choice(jobs)))
        # What is sent before it is sent again by the continuation, so nothing is.
        first = [at for at, (word, _) in enumerate(ops) if word in ("side", "parts", "list")]
        at = random.choice((0, random.randint(0, min(first, default=len(ops)))))
        ops[at:at] = [*before, ["poison", random.choice((0.0, 0.3, 0.5, 1.0))]]
        # Innocent ones, which are under way when it kills.
        jobs += [[["sleep", 1.0]] for _ in range(3)]
        begin = plain.begin.model_copy(update={"jobs": jobs})
        return replace(plain, begin=begin, is_poisoned=True)

    def busier(self, random: Random, words: tuple[str, ...]) -> RunPlan:
        """Returns this run with these words, one behind the other, in each of its jobs."""
        jobs = [list(ops) for ops in self.begin.jobs]
        for ops in jobs:
            at = random.randint(0, len(ops))
            ops[at:at] = [_op(random, word, number) for number, word in enumerate(words, 50)]
        return replace(self, begin=self.begin.model_copy(update={"jobs": jobs}))

    def _without(self, words: set[str]) -> RunPlan:
        """Returns this run without some words, failures for good, a deadline and what clients send."""
        jobs = [
            [op for op in ops if op[0] not in words and op != ["fail", ATTEMPTS]]
            for ops in self.begin.jobs
        ]
        begin = self.begin.model_copy(update={"jobs": jobs, "extras": 0})
        return replace(self, begin=begin, timeout=None, cancelled=None)

    def lossy(self, *, has_ceiling: bool) -> RunPlan:
        """Returns this run without what nobody repeats when Redis has lost it.

        Those are events and cancels of clients, edits, whose attempt fails when their lock is lost, and the
        place under a ceiling that a step lent to the run which it awaits. A step that does several things
        dwells between them, so that Redis loses some of them and not the others. A child that is lost fails
        its attempt: what is sent before is sent again by the next one, so nothing is.
        """
        plain = self._without({"ask", "edit"} | ({"child"} if has_ceiling else set()))
        dwell = ["sleep", DWELL]
        jobs = [
            [
                *DWELLING,
                *(part for op in ops for part in ((op,) if op[0] == "sleep" else (op, dwell))),
            ]
            for ops in (sorted(ops, key=lambda op: op[0] != "child") for ops in plain.begin.jobs)
        ]
        return replace(plain, begin=plain.begin.model_copy(update={"jobs": jobs}))

    def result_fits(self, result: Any, sent: defaultdict[tuple[str, str], set[str]]) -> bool:
        """Tells whether the result of a run that completed is what its program says."""
        if len(result) != self.begin.rounds:
            return False
        for round_, (done, sides) in enumerate(result, 1):
            numbers = [*range(len(self.begin.jobs))]
            if round_ == 1:
                numbers += [1000 + number for number in range(self.begin.extras)]
            if [one[0] for one in done] != numbers or sides != self._sides():
                return False
            for number, *answers in done:
                if number < 1000 and not self._answers_fit(round_, number, answers, sent):
                    return False
        return True

    def _sides(self) -> list[str]:
        return sorted(
            key
            for number, ops in enumerate(self.begin.jobs)
            for word, argument in ops
            for key in keys_of(number, word, argument)
        )

    def _answers_fit(
        self,
        round_: int,
        number: int,
        answers: list[str],
        sent: defaultdict[tuple[str, str], set[str]],
    ) -> bool:
        asked = [op for op in self.begin.jobs[number] if op[0] in ("ask", "late")]
        if len(asked) != len(answers):
            return False
        for (word, argument), answer in zip(asked, answers, strict=True):
            key = f"{round_}.{number}.{argument}"
            if answer not in ({"late"} if word == "late" else sent[self.run_id, key]):
                return False
        return True

    def stored(self) -> dict[str, int]:
        """Returns what a run that completed leaves in the store: the last round of each write of a job."""
        return {
            f"job{number}-{argument}": self.begin.rounds
            for number, ops in enumerate(self.begin.jobs)
            for word, argument in ops
            if word == "set"
        }

    def notes(self) -> Counter[str]:
        """Returns what a run that completed published: once per attempt that came so far."""
        notes: Counter[str] = Counter()
        for round_ in range(1, self.begin.rounds + 1):
            for number, ops in enumerate(self.begin.jobs):
                fails = max((n for word, n in ops if word == "fail"), default=0)
                is_before = True
                for word, argument in ops:
                    if word == "fail":
                        is_before = False
                    elif word == "publish":
                        notes[f"{round_}.{number}.{argument}"] += 1 + (fails if is_before else 0)
        return notes


def random_run(random: Random, number: int, until: float) -> RunPlan:
    """Returns a run to start before a virtual second."""
    jobs = [_program(random) for _ in range(random.choice((1, 1, 2, 2, 3, 3, 4, 6)))]
    if random.random() < 0.3:  # many at once, which meet in the joins
        jobs = [[["parts", 0]] * random.randint(0, 1) for _ in range(random.randint(3, 7))]
    has_deadline = random.random() < 0.15
    is_answered = not has_deadline or random.random() < 0.5
    if random.random() < 0.08:
        random.choice(jobs).insert(0, ["fail", ATTEMPTS])
    return RunPlan(
        run_id=f"run{number}",
        begin=Begin(
            jobs=jobs,
            rounds=random.choice((1, 1, 1, 2, 3)),
            extras=random.choice((0, 0, 1, 3)),
            lingers=random.choice((0.0, 0.0, 0.01, 1.0)),
        ),
        starts=random.uniform(0, until),
        timeout=random.uniform(1, 20) if has_deadline else None,
        cancelled=random.uniform(0, until + 10) if random.random() < 0.25 else None,
        is_answered=is_answered,
    )


def innocent_run(random: Random, number: int, starts: float) -> RunPlan:
    """Returns a run whose jobs are under way for a while, from about a virtual second on."""
    jobs = [[["sleep", round(random.uniform(0.5, 3), 3)]] for _ in range(4)]
    return RunPlan(
        run_id=f"run{number}",
        begin=Begin(jobs=jobs),
        starts=starts + random.uniform(0, 0.2),
        timeout=None,
        cancelled=None,
        is_answered=True,
    )


#: What a job does, each as likely as it is often here.
WORDS: Final = (
    *("sleep", "sleep", "publish", "edit", "edit"),
    *("set", "ask", "late", "child"),
)


def _op(random: Random, word: str, number: int) -> list[Any]:
    match word:
        case "sleep":
            return [word, round(random.uniform(1, 4), 3)]
        case "nap":
            return ["sleep", round(random.uniform(0.001, 0.03), 4)]
        case _:
            return [word, number]


def _program(random: Random) -> list[list[Any]]:
    ops: list[list[Any]] = []
    for position in range(random.choice((0, 1, 1, 2, 3))):
        word = random.choice(WORDS)
        argument: Any = position
        if word in ("sleep", "child"):
            argument = round(random.choice((0.01, 0.1, 1.0, 4.0)) * random.random(), 3)
        elif word == "late":
            argument = round(random.uniform(0.1, 3.0), 3)
        ops.append([word, argument])
    if random.random() < 0.25:
        ops.insert(random.randint(0, len(ops)), ["fail", random.randint(1, ATTEMPTS - 1)])
    # What is sent before a failure is sent again by the next attempt, so nothing is.
    first = max((at + 1 for at, op in enumerate(ops) if op[0] == "fail"), default=0)
    for position in range(random.choice((0, 0, 0, 1, 2))):
        word = random.choice(("side", "parts", "list"))
        ops.insert(random.randint(first, len(ops)), [word, position])
    return ops
