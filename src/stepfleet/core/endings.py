"""How a run is started and ended from outside of its steps. Layer: core, pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from stepfleet.codec import Codec
from stepfleet.core import history
from stepfleet.core.commit import (
    Commit,
    ControlFence,
    DamagedFence,
    End,
    Expectation,
    Fence,
    Join,
    Live,
    NewRunFence,
    OverdueFence,
    Place,
    Room,
    Route,
    Word,
    Write,
)
from stepfleet.core.delivery import Record, delivery_id
from stepfleet.core.plan import Plan, arrival
from stepfleet.errors import WorkflowRuntimeError
from stepfleet.events import (
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)
from stepfleet.wire import PublicEntry, encode_public, encode_record

_ROOM: Final = Room()


def start(
    run_id: str,
    routes: Sequence[Route],
    *,
    type_id: str,
    payload: bytes,
    digest: str,
    timeout_ms: int | None,
    values: Mapping[str, bytes],
    headers: dict[str, str] | None = None,
    parent: str = "",
    limit: int | None = None,
    keeps: int = 0,
    plan: Plan | None = None,
) -> Commit:
    """Return the commit that makes a run: its record, its first deliveries, its first store values.

    Args:
        run_id: its id.
        routes: where its start event goes.
        type_id: of the start event.
        payload: of the start event.
        digest: what makes a start the same as another one.
        timeout_ms: its budget; None: no end.
        values: first values of its store.
        headers: trace headers.
        parent: the run whose step starts it; it must be live, and its end is the end of this one.
        limit: how many limited runs of the workflow go on at once; beyond that it is queued.
        keeps: what its history keeps; 0: it has none.
        plan: the workflow, where its class is known.
    """
    lineage = {history.HISTORY: keeps} if keeps else None
    first = Record(run_id, type_id, payload, lineage=lineage, headers=headers)
    record = encode_record(first)
    fields: list[str] = ["status", "running", "workflow", routes[0].workflow]
    if timeout_ms is not None:
        # The budget; the first execution of the run turns it into a deadline.
        fields += ["deadline", f"?{timeout_ms}", "timeout", str(timeout_ms)]
    if keeps:
        fields += ["history", str(keeps)]
    emits = [
        arrival(route, delivery_id(run_id, route.step, "start", 0), record, awaitable=False)
        for route in routes
    ]
    words: list[Word] = [] if limit is None else [Place(routes[0].workflow, limit)]
    words += [Write(name, value) for name, value in values.items()]
    expects: list[Expectation] = []
    if parent:
        fields += ["parent", parent]
        words.append(Join(parent))
        expects.append(Live(parent))
    else:
        # A child is part of what goes on already: refusing it would not relieve the fleet.
        expects.append(_ROOM)
    commit = Commit(run_id, NewRunFence(digest, fields), [*words, *emits], expects)
    return history.emitted(commit, first, plan)


def cancelled(run_id: str, workflow: str, codec: Codec) -> Commit:
    """Return the commit that cancels a live run of a workflow and keeps its pending work."""
    event = WorkflowCancelledEvent()
    return _ended(run_id, workflow, ControlFence(), "cancelled", event, codec, parks=True)


def timed_out(
    run_id: str,
    workflow: str,
    timeout: float,
    active_steps: Sequence[str],
    waiting: str,
    codec: Codec,
) -> Commit:
    """Return the commit that ends a run whose deadline passed; `waiting` says what it was waiting for."""
    event = WorkflowTimedOutEvent(timeout=timeout, active_steps=list(active_steps))
    fields = ("reason", waiting)
    return _ended(run_id, workflow, OverdueFence(), "timed_out", event, codec, fields=fields)


def failed(
    run_id: str,
    workflow: str,
    step: str,
    error: Exception,
    codec: Codec,
    *,
    fence: Fence | None = None,
) -> Commit:
    """Return the commit that ends a live run in an error that no step raised."""
    event = WorkflowFailedEvent(step_name=step, exception=error)
    fields = ("error", codec.encode_error(error), "step", step)
    fence = fence or ControlFence()
    return _ended(run_id, workflow, fence, "failed", event, codec, parks=True, fields=fields)


def damaged(run_id: str, workflow: str, step: str, cure: str, codec: Codec) -> Commit:
    """Return the commit that ends a live run whose work cannot go on; nothing of it is kept to go on with."""
    error = WorkflowRuntimeError(f"run {run_id} cannot go on, a key of it is damaged: {cure}")
    event = WorkflowFailedEvent(step_name=step, exception=error)
    fields = ("error", codec.encode_error(error), "step", step)
    if workflow:
        # Where the record is what is damaged, it is written anew.
        fields += ("workflow", workflow)
    return _ended(run_id, workflow, DamagedFence(), "failed", event, codec, fields=fields)


def _ended(
    run_id: str,
    workflow: str,
    fence: Fence,
    status: str,
    event: StopEvent,
    codec: Codec,
    *,
    parks: bool = False,
    fields: tuple[str | bytes, ...] = (),
) -> Commit:
    entry = encode_public(PublicEntry("end", *codec.encode_event(event)))
    return Commit(run_id, fence, [End(status, entry, fields, parks, workflow)])


def what_it_waits_for(
    pending: Mapping[str, str],
    held: Mapping[str, int],
    collected: Mapping[str, Mapping[str, int]],
) -> tuple[list[str], str]:
    """Return the steps in streams and a sentence on everything that the run waits for.

    Args:
        pending: where its open deliveries are.
        held: how many wait for a slot, by step.
        collected: how many events of each type a buffer has, by buffer (`step:name`).
    """
    active: list[str] = []
    reasons: list[str] = []
    for where in pending.values():
        kind, *rest = where.removesuffix(" lent").split(" ")
        is_lent = where.endswith(" lent")
        label = rest[-1] if rest else ""
        step = label.partition(":")[2] or label
        if kind == "stream" and step:
            active.append(step)
            if is_lent:
                reasons.append(f"step {step} waits for another run")
        elif kind == "waiting":
            reasons.append(f"step {step} waits for an event of type {rest[0]}")
        elif kind == "timer":
            reasons.append(f"step {step} waits for its {rest[0]}")
    reasons += [
        f"{count} events wait for a slot of step {step}" for step, count in sorted(held.items())
    ]
    for buffer, counts in sorted(collected.items()):
        step = buffer.partition(":")[0]
        events = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        reasons.append(f"step {step} has collected {events} and waits for more")
    return sorted(set(active)), "; ".join(sorted(reasons))
