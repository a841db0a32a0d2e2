"""`stepfleet why RUN`: what a run waits for, in sentences that name the cause and the cure. Layer: cli."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Final

import click

from stepfleet.cli import limits
from stepfleet.cli.reach import (
    Reach,
    json_option,
    reaches_fleet,
    recorded,
    repeat,
    watch_option,
)
from stepfleet.cli.sentences import (
    TOLD,
    Sentence,
    is_well,
    listed,
    no_sign,
    number_of,
)
from stepfleet.cli.showing import ago, on_one_line, tell
from stepfleet.codec import Codec, TypeRegistry
from stepfleet.codec.shown import fields_of
from stepfleet.errors import DecodeError
from stepfleet.events import UnreconstructedException
from stepfleet.instrumentation import masked
from stepfleet.storage.inspector import DAMAGED, Inspector, WorkerRow
from stepfleet.storage.reader import RunRecord, damage
from stepfleet.wire import Promotion, Waiter, decode_record

#: Who has what a worker gave back when it left: nobody.
RETURNED: Final = "returned"
#: Characters of an error's message that are told.
MESSAGE: Final = 120
#: How a timer's second word in `open` reads.
_TIMERS: Final = {
    "back-off": "its next attempt",
    "unreadable": "code that can read its event",
    "newer": "newer code",
}


@click.command("why", short_help="Say what a run waits for.")
@click.argument("run_id", metavar="RUN")
@json_option
@watch_option
@reaches_fleet
async def why(reach: Reach, *, run_id: str, as_json: bool, watch: float | None) -> None:
    """Say in sentences what a run waits for: which step, which limit, which worker, until when."""
    async with reach.inspector() as inspector:

        async def render() -> None:
            async for sentence in reasons(inspector, run_id):
                tell(sentence._asdict(), sentence.text, as_json=as_json)

        await repeat(render, watch, clear=not as_json)


async def reasons(inspector: Inspector, run_id: str) -> AsyncGenerator[Sentence]:
    """Give what a run waits for, a sentence each.

    Raises:
        RunNotFound: no such run is recorded.
        ConnectionLost, StoreRefused: as `Link.call`.
    """
    record = await recorded(inspector, run_id)
    if record is DAMAGED:
        yield Sentence("damaged", "", f"The record of the run cannot be read: {damage(run_id)}.")
        return
    case = _Case(inspector, run_id, record)
    if record.ended_ms is not None:
        async for sentence in case.ended():
            yield sentence
        return
    told = False
    limit = case.turn if record.queued else case.held
    parts = (case.deliveries, limit, case.joins, case.lists, case.waits, case.timers)
    for part in (*parts, case.edit, case.children):
        async for sentence in part():
            told = True
            yield sentence
    async for sentence in case.dead():
        yield sentence
    if not told:
        yield await case.idle()
    async for sentence in case.deadline():
        yield sentence


@dataclass(slots=True)
class _Case:
    """One run under examination."""

    inspector: Inspector
    run_id: str
    record: RunRecord

    async def ended(self) -> AsyncGenerator[Sentence]:
        """Say how the run ended."""
        record = self.record
        step = f" in step {record.step}" if record.step else ""
        error = f" with {named_error(record.error)}" if record.error else ""
        yield Sentence(
            "ended",
            record.step or "",
            f"The run waits for nothing: it has {_past(record)}{step}{error}.",
        )
        async for sentence in self.dead():
            yield sentence
        if record.continued:
            goes_on = f"It goes on as {record.continued}: `stepfleet why {record.continued}`."
            yield Sentence("continued", "", goes_on)
        elif record.status == "cancelled":
            resume = f"`stepfleet runs resume {self.run_id}` goes on from what was pending."
            yield Sentence("continued", "", resume)

    async def deliveries(self) -> AsyncGenerator[Sentence]:
        """Say who has what is in streams."""
        workers = {row.consumer: row for row in await self.inspector.workers()}
        by_label: dict[str, list[str]] = {}
        for where in (await self.inspector.reader.pending(self.run_id)).values():
            kind, *rest = where.split(" ")
            if kind == "stream":
                by_label.setdefault(rest[1], []).append(rest[0])
        for label, entries in sorted(by_label.items()):
            for sentence in await self._of_stream(label, sorted(entries), workers):
                yield sentence

    async def _of_stream(
        self, label: str, entries: list[str], workers: dict[str, WorkerRow]
    ) -> list[Sentence]:
        event_type, _, step = label.partition(":")
        told: list[Sentence] = []
        backlog = 0
        unserved = self._unserved(
            event_type, step, [row for row in workers.values() if is_well(row)]
        )
        for entry in entries:
            taken = await self.inspector.taken(self.record.workflow, label, entry)
            if taken is None or taken.consumer == RETURNED:
                backlog += 1
            elif len(told) < TOLD:
                what, worker = step or "the workflow", workers.get(taken.consumer)
                told.append(_held_by(what, taken.consumer, taken.idle_ms, worker, unserved))
        left_out = len(entries) - backlog - len(told)
        if left_out:
            told.append(
                Sentence("running", step, f"{left_out} more of step {step} are with workers.")
            )
        if backlog:
            told.append(self._backlog(event_type, step, backlog, list(workers.values())))
        return told

    def _backlog(
        self, event_type: str, step: str, backlog: int, rows: Sequence[WorkerRow]
    ) -> Sentence:
        what = f"{number_of(backlog, event_type)} for step {step}" if step else ""
        what = f"{what or number_of(backlog, 'event')} {'waits' if backlog == 1 else 'wait'}"
        if unserved := self._unserved(event_type, step, rows):
            return Sentence("unserved", step, f"{what}: {unserved}")
        serving = [row for row in rows if row.serves(self.record.workflow, event_type, step)]
        busy = all(
            row.about.get("running", 0) >= row.about.get("concurrency", 1) for row in serving
        )
        how = (
            "every live worker that serves it is full: start more, or raise --concurrency"
            if busy
            else f"{number_of(len(serving), 'live worker')} will take {'it' if backlog == 1 else 'them'}"
        )
        return Sentence("backlog", step, f"{what} in the stream: {how}.")

    def _unserved(self, event_type: str, step: str, rows: Sequence[WorkerRow]) -> str:
        """Say that none of these workers takes such events, and the cure; '' when one does."""
        workflow = self.record.workflow
        if any(row.serves(workflow, event_type, step) for row in rows):
            return ""
        name = f"step {step} of workflow {workflow}" if step else f"workflow {workflow}"
        if any(row.has(workflow) for row in rows):
            return (
                f"no live worker serves {name} for this type, though some have the workflow. "
                "Start a workflow-worker with the code that the run began with, or without "
                "--steps and --exclude-steps."
            )
        return f"no live worker serves {name}. Start a workflow-worker with it."

    def turn(self) -> AsyncGenerator[Sentence]:
        """Say which runs are before this one."""
        return limits.turn(self.inspector, self.run_id, self.record)

    def held(self) -> AsyncGenerator[Sentence]:
        """Say what waits for a limit, and who has what it waits for."""
        return limits.held(self.inspector, self.run_id, self.record)

    async def idle(self) -> Sentence:
        """Say that nothing is pending, and which events would bring the run on."""
        accepted: dict[str, None] = {}
        for definition in (await self.inspector.reader.definitions(self.record.workflow)).values():
            for name, routes in definition.routes.items():
                if name != definition.start and routes:
                    accepted[f"{name} (step {', '.join(route.step for route in routes)})"] = None
        steps = f". Its steps accept {listed(list(accepted))}" if accepted else ""
        return Sentence(
            "idle",
            "",
            "Nothing of the run is pending: its last steps returned None or events that no step "
            f"accepts. It waits for an event from outside, or for its time-out{steps}.",
        )

    async def joins(self) -> AsyncGenerator[Sentence]:
        """Say what collects, and steps that join several events, lack."""
        collected = await self.inspector.reader.collected(self.run_id)
        quotas = await self.inspector.quotas(self.run_id, list(collected))
        for buffer, counts in sorted(collected.items()):
            step, _, name = buffer.partition(":")
            where = f"step {step}" + (f" (buffer {name})" if name not in {"", "default"} else "")
            yield await self._join(step, where, counts, quotas[buffer])
        paired = await self.inspector.paired(self.run_id)
        joined = await self._joined() if paired else {}
        for (step, _), counts in sorted(paired.items()):
            yield await self._join(step, f"step {step}", counts, joined.get(step, {}))

    async def _joined(self) -> dict[str, dict[str, int]]:
        """Return how many events of each type the steps take that join several, as the newest code has it."""
        definitions = await self.inspector.reader.definitions(self.record.workflow)
        return {
            route.step: dict(zip(route.types, route.slots, strict=False))
            for definition in definitions.values()
            for routes in definition.routes.values()
            for route in routes
            if route.slots
        }

    async def _join(
        self, step: str, where: str, counts: dict[str, int], quota: dict[str, int]
    ) -> Sentence:
        have = ", ".join(number_of(n, type_) for type_, n in sorted(counts.items()))
        lacks = ", ".join(
            number_of(need - counts.get(type_, 0), type_)
            for type_, need in sorted(quota.items())
            if need > counts.get(type_, 0)
        )
        text = f"{where} has collected {have}"
        if lacks:
            text += f" of {sum(quota.values())}, and lacks {lacks}"
            if not await self._can_come():
                text += (
                    ". Nothing that is pending can bring it: a branch that should have sent it "
                    "returned None, or was never started"
                )
        return Sentence("join", step, f"{text[0].upper()}{text[1:]}.")

    async def _can_come(self) -> bool:
        reader = self.inspector.reader
        return bool(await reader.pending(self.run_id)) or bool(await reader.held(self.run_id))

    async def lists(self) -> AsyncGenerator[Sentence]:
        """Say what steps that take a returned list have of it, and how much of it is not done."""
        rows = await self.inspector.gatherings(self.run_id)
        for row in rows[:TOLD]:
            opener = _opener(row.record)
            some = f"the list that step {opener} has returned" if opener else "a returned list"
            are = "is" if row.pending == 1 else "are"
            yield Sentence(
                "join",
                row.step,
                f"Step {row.step} waits until {some} is done: it has {number_of(row.events, 'event')}, "
                f"and {number_of(row.pending, 'event')} {are} not.",
            )
        if len(rows) > TOLD:
            yield Sentence("join", "", f"{len(rows) - TOLD} more steps wait for their lists.")

    async def waits(self) -> AsyncGenerator[Sentence]:
        """Say which events are waited for."""
        waits = await self.inspector.reader.waits(self.run_id)
        due = {row.member: row.due_in_ms for row in await self.inspector.timers(self.run_id)}
        for waiter in waits.open:
            left = due.get(waiter.timer)
            until = "without a time-out" if left is None else f"for {_left(left)} more at most"
            yield Sentence(
                "wait",
                waiter.route.step,
                f"Step {waiter.route.step} waits for an event of type {waiter.type_id}"
                f"{_named(waiter)}, {until}: send it with handler.send_event().",
            )

    async def timers(self) -> AsyncGenerator[Sentence]:
        """Say which timers are open, those of waits apart."""
        pending = await self.inspector.reader.pending(self.run_id)
        for row in await self.inspector.timers(self.run_id):
            timer = row.timer
            if not isinstance(timer, Promotion):
                continue
            step, where = timer.route.step, pending.get(timer.delivery, "").split(" ")
            what = _TIMERS.get(where[1] if len(where) > 1 else "", "its time")
            attempt = _attempt(timer.record) if what == _TIMERS["back-off"] else ""
            yield Sentence(
                "timer", step, f"Step {step} waits {_left(row.due_in_ms)} for {what}{attempt}."
            )

    async def edit(self) -> AsyncGenerator[Sentence]:
        """Say whether somebody edits the store."""
        left = await self.inspector.lock(self.run_id)
        if left is not None:
            yield Sentence(
                "lock",
                "",
                f"The store is being edited: other writers wait, for {_left(left)} at most if the "
                "editor has died.",
            )

    async def children(self) -> AsyncGenerator[Sentence]:
        """Say which runs that its steps started go on: a step may wait for one."""
        runs = sorted(run_id for run_id, _ in await self.inspector.reader.children([self.run_id]))
        if runs:
            one = "A run that its steps started goes on"
            some = f"{len(runs)} runs that its steps started go on"
            yield Sentence(
                "child",
                "",
                f"{one if len(runs) == 1 else some}: {listed(runs)} (`stepfleet why {runs[0]}`).",
            )

    async def dead(self) -> AsyncGenerator[Sentence]:
        """Say what of the run was given up."""
        async for letter in self.inspector.dead(self.run_id):
            step = letter.fields.get("label", "").partition(":")[2]
            yield Sentence(
                "dead",
                step,
                f"An event for step {step or '?'} is a dead letter ({letter.id}): "
                f"{letter.fields.get('reason', 'no reason is recorded')}. "
                f"`stepfleet dead show {letter.id}` shows it, `stepfleet dead requeue {letter.id}` goes on "
                "from it once its cause is mended.",
            )

    async def deadline(self) -> AsyncGenerator[Sentence]:
        """Say when the run times out."""
        deadline = self.record.deadline
        if not deadline or deadline.startswith("?"):
            return
        left = int(float(deadline)) - await self.inspector.now_ms()
        yield Sentence("deadline", "", f"The run times out in {_left(left)}.")


def _attempt(data: bytes) -> str:
    """Say which attempt a delivery waits for, and what the one before ended with."""
    try:
        record = decode_record(data)
    except DecodeError:
        return ""
    if not record.failure:
        return f" (attempt {record.attempt})"
    error = named_error(record.failure[1])
    return f" (attempt {record.attempt}); the last one failed with {error}"


def _opener(data: bytes) -> str:
    """Return the step whose list a release is of, '' where it cannot be read."""
    try:
        record = decode_record(data)
        event = Codec(TypeRegistry(), generic=True).decode_event(record.type_id, record.payload)
    except DecodeError:
        return ""
    return str(fields_of(event).get("binding_id", "")).partition("->")[0]


def named_error(data: bytes) -> str:
    """Return type and first line of an encoded error: what follows may show the content of an event."""
    try:
        error = Codec(TypeRegistry(), generic=True).decode_error(data)
    except DecodeError:
        return "an error that cannot be read"
    kind = type(error).__name__
    if isinstance(error, UnreconstructedException) and error.original_type:
        kind = error.original_type
    message = on_one_line(masked(str(error)).strip().partition("\n")[0])
    if len(message) > MESSAGE:
        message = f"{message[:MESSAGE]}[…]"
    return f"{kind}: {message}".removesuffix(": ").removesuffix(".")


def _held_by(
    step: str, consumer: str, idle_ms: int, worker: WorkerRow | None, unserved: str
) -> Sentence:
    """Say who has a delivery; `unserved`: why no live worker would take it over."""
    if is_well(worker):
        text = f"Step {step} has been running for {ago(idle_ms)} on {consumer}."
        return Sentence("running", step, text)
    text = f"Step {step} is held by {consumer}, which {no_sign(worker)}"
    if unserved:
        return Sentence("silent", step, f"{text}, and {unserved}")
    return Sentence(
        "silent",
        step,
        f"{text}: another worker that serves the step takes it over when the lease of that one "
        "has run out, and one sweep has passed.",
    )


def _past(record: RunRecord) -> str:
    return {"timed_out": "timed out", "cancelled": "been cancelled"}.get(
        record.status, record.status
    )


def _named(waiter: Waiter) -> str:
    return "" if waiter.waiter_id.startswith("waiter_") else f" (waiter {waiter.waiter_id})"


def _left(milliseconds: int) -> str:
    return ago(max(0, milliseconds)) or ""
