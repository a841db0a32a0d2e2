"""A delivery that this process owns, and how far it has come."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from stepfleet.core.commit import Answer
from stepfleet.core.delivery import Delivery
from stepfleet.core.outcome import Outcome
from stepfleet.worker.execution import NOTHING_KNOWN, Execution, Known
from stepfleet.worker.pace import Pace


@dataclass(slots=True, eq=False)
class Held:
    """A delivery that this process owns."""

    delivery: Delivery
    started: float
    #: Runs it now. None before its first execution, and while an answer to its commit is awaited.
    task: asyncio.Task[None] | None = None
    #: Of its step, while it takes a place: its step runs, or is about to.
    pace: Pace | None = None
    #: When its last execution here began.
    executed: float = 0.0
    #: Its next execution waits for a place.
    in_line: asyncio.Future[None] | None = None
    execution: Execution | None = None
    armed: bool = False
    #: What its executions have learned so far.
    known: Known = NOTHING_KNOWN
    #: An outcome that was decided on what had moved meanwhile, and the conflict that says so.
    refuted: tuple[Outcome, Answer] | None = None
    #: An earlier execution here ended in a conflict.
    rerun: bool = False
    #: Waits or has waited for another run: others may have its slot.
    lent: bool = False
    #: Waits for another run.
    waits: bool = False
    #: An early effect of it could not be carried out: they are not counted when it is settled.
    uncounted: bool = False
    #: Why it was cancelled: 'over', 'gone', 'late' or 'drain'.
    cancelled: str = ""


def log_fields(delivery: Delivery) -> tuple[str, str, str, str, int]:
    """Return what `instrumentation.enter_step_log` takes."""
    route, attempt = delivery.route, max(delivery.record.attempt, 1)
    return route.workflow, delivery.run_id, route.step, delivery.id, attempt


def named(running: Sequence[Held], now: float) -> str:
    """Name the longest running: `fetch (run a1, 12 s), parse (run b2, 3 s) and 4 more`."""
    shown = [
        f"{held.delivery.route.step or 'a waiting event'} "
        f"(run {held.delivery.run_id}, {now - held.started:.0f} s)"
        for held in running[:5]
    ]
    more = f" and {len(running) - 5} more" if len(running) > 5 else ""
    return ", ".join(shown) + more
