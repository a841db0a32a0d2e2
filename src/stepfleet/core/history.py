"""What a run did, one row per commit, for runs that are told to keep it. Layer: core, pure.

A row holds what only the commit knows: which execution it settled and how, what it emitted, and
(added by the script) what it let into streams. `Unfolding` turns the rows of a run into the internal
events of the programming model; every reader gets the same ones, since the rows have one order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from stepfleet.core.commit import Commit, Emit, End, Publish, Tell
from stepfleet.core.delivery import Delivery, Record
from stepfleet.core.outcome import Failed, Outcome, Returned, Suspended
from stepfleet.core.plan import Plan
from stepfleet.events import (
    InternalDispatchEvent,
    StepState,
    StepStateChanged,
    UnhandledEvent,
    WorkflowIdleEvent,
)
from stepfleet.wire import HistoryRow, decode_record, encode_history_row

#: Field of a lineage: the run keeps a history, with or without the content of its events.
HISTORY: Final = "history"
TYPES: Final = 1
CONTENT: Final = 2

#: How a step that returned nothing is told of.
NOTHING: Final = type(None).__qualname__

_RETURNED, _FAILED, _SUSPENDED = "returned", "failed", "suspended"


def keeps_history(record: Record) -> bool:
    """Tell whether the run of a delivery keeps a history."""
    return bool(record.lineage) and HISTORY in record.lineage


def settled(commit: Commit, delivery: Delivery, outcome: Outcome, plan: Plan) -> Commit:
    """Return a commit that settles a delivery, with its row if the run keeps a history."""
    if not keeps_history(delivery.record):
        return commit
    how, output = _FAILED, ""
    match outcome:
        case Returned(members=members) if members is not None:
            how, output = _RETURNED, list.__qualname__
        case Returned(event=event):
            how = _RETURNED
            output = NOTHING if event is None else _name(event.event_type)
        case Suspended():
            how = _SUSPENDED
        case Failed() | _:
            pass
    row = HistoryRow(
        delivery=delivery.id,
        step=delivery.route.step,
        input=type_in(plan, delivery.record.type_id),
        outcome=how,
        output=output,
    )
    return _told(commit, row, delivery.record, plan)


def emitted(commit: Commit, record: Record, plan: Plan | None, *, by: str = "") -> Commit:
    """Return a commit that settles no execution, with its row if the run keeps a history."""
    if not keeps_history(record):
        return commit
    return _told(commit, HistoryRow(delivery=by), record, plan)


def passed_on(commit: Commit, delivery: Delivery, plan: Plan, *, unhandled: bool) -> Commit:
    """Return a commit that takes an event out of the system stream, with its row."""
    record = delivery.record
    if not keeps_history(record):
        return commit
    missed = (type_in(plan, record.type_id), record.target or "") if unhandled else ("", "")
    row = HistoryRow(delivery=delivery.id, unhandled=missed)
    return _told(commit, row, record, plan)


def _told(commit: Commit, row: HistoryRow, record: Record, plan: Plan | None) -> Commit:
    words = list(commit.words)
    ends = bool(words) and isinstance(words[-1], End)
    late = sum(isinstance(word, Publish) and not word.field for word in words)
    found: dict[tuple[str, str], list[str]] = {}
    events: list[tuple[str, bytes]] = []
    for word in words:
        if not isinstance(word, Emit):
            continue
        for name, data in word.deliveries:
            sent = decode_record(data)
            event = type_in(plan, sent.type_id)
            found.setdefault((word.route.step, event), []).append(name)
            # An event that goes to several steps is one event; a retry and an answer are none.
            if not word.also and sent.attempt == 1 and not sent.journal:
                events.append((sent.type_id, sent.payload))
    row = row._replace(
        emitted=tuple((step, event, tuple(names)) for (step, event), names in found.items()),
        ends=ends,
        late=late,
        events=tuple(events) if record.lineage[HISTORY] == CONTENT else (),
    )
    # Before the end of a run, which nothing of it follows.
    words.insert(len(words) - ends, Tell(encode_history_row(row)))
    return commit._replace(words=words)


def type_in(plan: Plan | None, type_id: str) -> str:
    """Return module and name of an event type, or its id where the class is not known."""
    cls = plan.class_of(type_id) if plan is not None else None
    return type_id if cls is None else _name(cls)


def _name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


class Told(NamedTuple):
    """The internal events of one row."""

    #: Those before what the step returned was published.
    before: list[InternalDispatchEvent]
    after: list[InternalDispatchEvent]


class Unfolding:
    """Turns the rows of one run, in their order and from the first one on, into internal events."""

    def __init__(self) -> None:
        #: Delivery -> step, event and number among the executions of the step.
        self._running: dict[str, tuple[str, str, int]] = {}
        self._queued: dict[str, tuple[str, str]] = {}
        #: Deliveries that nobody executes, but that will be: in the system stream, backing off.
        self._pending: set[str] = set()
        #: Deliveries told of. Emitting one a second time has no effect.
        self._known: set[str] = set()
        self._idle = False

    def told(self, row: HistoryRow, opened: Mapping[str, str]) -> Told:
        """Return the events of the next row; `opened` is where deliveries of its commit are now."""
        before: list[InternalDispatchEvent] = []
        after: list[InternalDispatchEvent] = []
        self._pending.discard(row.delivery)
        if row.step:
            before += self._stopped(row)
        names = {name: (step, event) for step, event, ids in row.emitted for name in ids}
        for delivery, where in opened.items():
            kind, _, rest = where.partition(" ")
            if kind == "stream":
                _, _, label = rest.partition(" ")
                event, _, step = label.partition(":")
                step, event = names.get(delivery) or self._queued.get(delivery) or (step, event)
                if step and ":" in label:
                    after.append(self._started(delivery, step, event))
                else:
                    self._pending.add(delivery)
                self._known.add(delivery)
            elif kind == "timer":
                self._pending.add(delivery)
        for delivery, (step, event) in names.items():
            if step and delivery not in opened and delivery not in self._known:
                self._known.add(delivery)
                self._queued[delivery] = (step, event)
                after.append(_changed(step, StepState.PREPARING, "<enqueued>", _short(event)))
        quiet = not (self._running or self._queued or self._pending)
        if row.unhandled[0]:
            after.append(_unhandled(*row.unhandled, idle=quiet))
        if quiet and not row.ends and not self._idle:
            after.append(WorkflowIdleEvent())
        self._idle = quiet
        return Told(before, after)

    def _started(self, delivery: str, step: str, event: str) -> StepStateChanged:
        self._queued.pop(delivery, None)
        self._pending.discard(delivery)
        taken = {number for name, _, number in self._running.values() if name == step}
        number = next(n for n in range(len(taken) + 1) if n not in taken)
        self._running[delivery] = (step, event, number)
        return _changed(step, StepState.RUNNING, str(number), _short(event))

    def _stopped(self, row: HistoryRow) -> Sequence[StepStateChanged]:
        events: list[StepStateChanged] = []
        if row.delivery not in self._running:
            # It was let go by a commit that keeps no row, such as one of another run.
            events.append(self._started(row.delivery, row.step, row.input))
        _, _, number = self._running.pop(row.delivery)
        if row.outcome != _RETURNED:
            self._known.discard(row.delivery)  # it may come again
        output = _shown(row.output) if row.output else None
        told = _changed(
            row.step, StepState.NOT_RUNNING, str(number), _shown(row.input), output=output
        )
        return [*events, told]


def _changed(
    step: str, state: StepState, worker: str, event: str, *, output: str | None = None
) -> StepStateChanged:
    return StepStateChanged(
        name=step,
        step_state=state,
        worker_id=worker,
        input_event_name=event,
        output_event_name=output,
    )


def _unhandled(event: str, step: str, *, idle: bool) -> UnhandledEvent:
    return UnhandledEvent(
        event_type=_short(event), qualified_name=event, step_name=step or None, idle=idle
    )


def _short(event: str) -> str:
    return event.rpartition(".")[2].rpartition(":")[2]


def _shown(event: str) -> str:
    """Return a type as `str` shows it, which is how the programming model names it here."""
    return f"<class '{event}'>"
