"""`stepfleet why RUN`: what a run waits for, in sentences that name the cause and the cure. Layer: cli."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import click

from stepfleet.cli.reach import (
    Reach,
    json_option,
    reaches_fleet,
    recorded,
    repeat,
    watch_option,
)
from stepfleet.cli.showing import ago, on_one_line, tell
from stepfleet.codec import Codec, TypeRegistry
from stepfleet.errors import DecodeError
from stepfleet.events import UnreconstructedException
from stepfleet.instrumentation import masked
from stepfleet.storage.inspector import DAMAGED, Inspector, WorkerRow
from stepfleet.storage.reader import Definition, RunRecord, damage
from stepfleet.wire import Promotion, Waiter, decode_record

#: Who has what a worker gave back when it left: nobody.
RETURNED: Final = "returned"
#: How many deliveries of one step are told one by one.
TOLD: Final = 5
#: Characters of an error's message that are told.
MESSAGE: Final = 120
#: How a timer's second word in `open` reads.
_TIMERS: Final = {
    "back-off": "its next attempt",
    "unreadable": "code that can read its event",
    "newer": "newer code",
}


class Sentence(NamedTuple):
    """One thing that a run waits for."""

    #: damaged, ended, continued, running, backlog, unserved, silent, slots, ceiling, join, wait, timer, lock,
    #: dead, parked, idle, deadline
    kind: str
    step: str
    text: str


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
    for part in (case.deliveries, case.held, case.joins, case.waits, case.timers, case.edit):
        async for sentence in part():
            told = True
            yield sentence
    async for sentence in case.dead():
        yield sentence
    if not told:
        yield Sentence(
            "idle",
            "",
            "Nothing of the run is pending: its last steps returned None or events that no step "
            "accepts. It waits for an event from outside, or for its time-out.",
        )
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
        for entry in entries:
            taken = await self.inspector.taken(self.record.workflow, label, entry)
            if taken is None or taken.consumer == RETURNED:
                backlog += 1
            elif len(told) < TOLD:
                worker = workers.get(taken.consumer)
                told.append(_held_by(step or "the workflow", taken.consumer, taken.idle_ms, worker))
        left_out = len(entries) - backlog - len(told)
        if left_out:
            told.append(
                Sentence("running", step, f"{left_out} more of step {step} are with workers.")
            )
        if backlog:
            told.append(self._backlog(event_type, step, backlog, workers.values()))
        return told

    def _backlog(
        self, event_type: str, step: str, backlog: int, workers: Iterable[WorkerRow]
    ) -> Sentence:
        workflow = self.record.workflow
        what = f"{_n(backlog, event_type)} for step {step}" if step else _n(backlog, "event")
        rows = list(workers)
        serving = [row for row in rows if row.serves(workflow, event_type, step)]
        if not serving:
            name = f"step {step} of workflow {workflow}" if step else f"workflow {workflow}"
            why = f"no live worker serves {name}. Start a workflow-worker with it."
            if any(row.has(workflow) for row in rows):
                why = (
                    f"no live worker serves {name} for this type, though some have the workflow. "
                    "Start a workflow-worker with the code that the run began with, or without "
                    "--steps and --exclude-steps."
                )
            return Sentence("unserved", step, f"{what} wait: {why}")
        busy = all(
            row.about.get("running", 0) >= row.about.get("concurrency", 1) for row in serving
        )
        how = (
            "every live worker that serves it is full: start more, or raise --concurrency"
            if busy
            else f"{_n(len(serving), 'live worker')} will take them"
        )
        return Sentence("backlog", step, f"{what} wait in the stream: {how}.")

    async def held(self) -> AsyncGenerator[Sentence]:
        """Say what waits for a slot, and who has the slots."""
        held = await self.inspector.reader.held(self.run_id)
        if not held:
            return
        limits = await self._limits()
        counts = await self.inspector.slots(self.run_id)
        for step, waiting in sorted(held.items()):
            slots, ceiling = limits.get(step, (0, 0))
            used = max(0, counts.get(step, waiting) - waiting)
            place = await self.inspector.queued_for_place(self.record.workflow, step, self.run_id)
            if place is not None or (ceiling and used < slots):
                yield Sentence(
                    "ceiling",
                    step,
                    f"{_n(waiting, 'event')} wait: step {step} has max_concurrency={ceiling} over all "
                    f"runs, and this run has place {place or 1} in its queue.",
                )
            else:
                yield Sentence(
                    "slots",
                    step,
                    f"{_n(waiting, 'event')} wait for a slot: step {step} has "
                    f"num_workers={slots or '?'}, and {used} of its slots are taken "
                    "(by the deliveries above).",
                )

    async def _limits(self) -> dict[str, tuple[int, int]]:
        definitions = await self.inspector.reader.definitions(self.record.workflow)
        newest: Definition | None = list(definitions.values())[-1] if definitions else None
        routes = [route for rows in newest.routes.values() for route in rows] if newest else []
        return {route.step: (route.limit, route.ceiling) for route in routes}

    async def joins(self) -> AsyncGenerator[Sentence]:
        """Say what collects lack."""
        collected = await self.inspector.reader.collected(self.run_id)
        quotas = await self.inspector.quotas(self.run_id, list(collected))
        for buffer, counts in sorted(collected.items()):
            step, _, name = buffer.partition(":")
            quota = quotas[buffer]
            have = ", ".join(_n(n, type_) for type_, n in sorted(counts.items()))
            lacks = ", ".join(
                _n(need - counts.get(type_, 0), type_)
                for type_, need in sorted(quota.items())
                if need > counts.get(type_, 0)
            )
            where = f"step {step}" + (f" (buffer {name})" if name not in {"", "default"} else "")
            text = f"{where} has collected {have}"
            if lacks:
                text += f" of {sum(quota.values())}, and lacks {lacks}"
                if not await self._can_come():
                    text += (
                        ". Nothing that is pending can bring it: a branch that should have sent it "
                        "returned None, or was never started"
                    )
            yield Sentence("join", step, f"{text[0].upper()}{text[1:]}.")

    async def _can_come(self) -> bool:
        reader = self.inspector.reader
        return bool(await reader.pending(self.run_id)) or bool(await reader.held(self.run_id))

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


def _held_by(step: str, consumer: str, idle_ms: int, worker: WorkerRow | None) -> Sentence:
    if worker is not None and worker.state == "live" and not _is_late(worker):
        return Sentence(
            "running", step, f"Step {step} has been running for {ago(idle_ms)} on {consumer}."
        )
    silent = worker.silent_ms if worker is not None else None
    since = f" for {ago(silent)}" if silent is not None else ""
    return Sentence(
        "silent",
        step,
        f"Step {step} is held by {consumer}, which has given no sign of life{since}: another worker "
        "that serves the step takes it over once the lease of that one has run out.",
    )


def _is_late(worker: WorkerRow) -> bool:
    """Whether a worker, whose lease still runs, has missed two beats: three come per lease."""
    lease = int(worker.about.get("lease", 0))
    return bool(lease) and (worker.silent_ms or 0) > lease * 2 / 3


def _past(record: RunRecord) -> str:
    return {"timed_out": "timed out", "cancelled": "been cancelled"}.get(
        record.status, record.status
    )


def _named(waiter: Waiter) -> str:
    return "" if waiter.waiter_id.startswith("waiter_") else f" (waiter {waiter.waiter_id})"


def _left(milliseconds: int) -> str:
    return ago(max(0, milliseconds)) or ""


def _n(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if noun in ("event", "live worker") and count != 1 else "")
