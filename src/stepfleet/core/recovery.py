"""What follows when a step failed for good: its `catch_error` step runs, or the run ends. Layer: core, pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from stepfleet.core.commit import Emit
from stepfleet.core.delivery import Delivery, Record, delivery_id
from stepfleet.core.outcome import Encoded
from stepfleet.core.plan import Plan
from stepfleet.core.scopes import input_event
from stepfleet.decorators import CatchErrorHandler
from stepfleet.errors import EncodeError
from stepfleet.events import StepFailedEvent, UnreconstructedException, WorkflowFailedEvent
from stepfleet.wire import encode_record

#: Characters of a message that stand for an error which is too large to travel.
SHOWN: Final = 2_000

#: Field of a lineage: handler -> how often this line of events came to it.
RECOVERIES: Final = "recoveries"


def recovered(
    delivery: Delivery, error: Exception, plan: Plan, *, elapsed: float, now_ms: int
) -> Emit | None:
    """Return what brings a failure to its handler; None without one, or when its budget is used up."""
    handler = plan.graph.handlers.get(delivery.route.step)
    if handler is None:
        return None
    record = delivery.record
    lineage = with_recovery(record.lineage, handler)
    if lineage is None:
        return None
    event = StepFailedEvent(
        step_name=delivery.route.step,
        input_event=input_event(delivery, plan),
        exception=error,
        attempts=record.attempt,
        elapsed_seconds=elapsed,
        failed_at=datetime.fromtimestamp(now_ms / 1000, UTC),
    )
    try:
        encoded = encoded_failure(event, plan)
    except EncodeError:
        return None  # the input and what is said of its failure are too large for one event
    route = next(r for r in plan.accepted_by(StepFailedEvent) if r.step == handler.step_name)
    recovery = Record(
        delivery.id,
        encoded.type_id,
        encoded.payload,
        lineage=lineage,
        headers=delivery.trace or record.headers,
    )
    name = delivery_id(delivery.id, route.step, "recovery", 0)
    return Emit(route, ((name, encode_record(recovery)),), awaitable=False)


def with_recovery(
    lineage: dict[str, Any] | None, handler: CatchErrorHandler
) -> dict[str, Any] | None:
    """Return a lineage that came to a handler once more, None when it may not."""
    counts = (lineage or {}).get(RECOVERIES, {})
    count = counts.get(handler.step_name, 0) + 1
    if count > handler.max_recoveries:
        return None
    return {**(lineage or {}), RECOVERIES: {**counts, handler.step_name: count}}


def encoded_failure(event: StepFailedEvent | WorkflowFailedEvent, plan: Plan) -> Encoded:
    """Return an event with the error that it tells of, or the error's name where all of it cannot travel.

    Raises:
        EncodeError: even then it is too large.
    """
    try:
        return Encoded(type(event), *plan.codec.encode_event(event))
    except EncodeError:
        # What the error carries is too much for the stream; its name and message are not.
        error = event.exception
        name = f"{type(error).__module__}.{type(error).__qualname__}"
        event.exception = UnreconstructedException(str(error)[:SHOWN], original_type=name)
        return Encoded(type(event), *plan.codec.encode_event(event))
