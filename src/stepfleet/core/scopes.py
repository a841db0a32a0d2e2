"""Where the events go that a step returned, and what that means for the scopes of lists. Layer: core, pure.

A returned list opens a scope, named after the delivery that returned it. Its members and what
follows from them carry the scope in their lineage and are counted in it. A step that collects is
not told of each event: they are gathered, and it gets one delivery when the scope has ended (or has
brought enough). That delivery belongs to the scope around, in which it was counted all along.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

from stepfleet.collect import Take
from stepfleet.core.commit import Consume, Emit, Gather, Open, Publish, Route, Tally, Within, Word
from stepfleet.core.delivery import Delivery, Record, delivery_id
from stepfleet.core.history import HISTORY
from stepfleet.core.outcome import Encoded, Returned
from stepfleet.core.plan import Plan, arrival
from stepfleet.events import CollectionReleaseEvent, Event, InputRequiredEvent
from stepfleet.graph import StepSpec
from stepfleet.wire import PublicEntry, decode_record, encode_public, encode_record

#: Field of a lineage: the scopes that an event is in, outermost first, each with the step that opened it.
SCOPES: Final = "scopes"


def scopes_of(lineage: dict[str, Any] | None) -> list[list[str]]:
    """Return the scopes of a lineage, outermost first: (scope, step that opened it) each."""
    return (lineage or {}).get(SCOPES, [])


def outside_scopes(lineage: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a lineage without its scopes: that of an event which a step sent."""
    if not lineage:
        return None
    return {name: value for name, value in lineage.items() if name != SCOPES} or None


def followed(delivery: Delivery, outcome: Returned, plan: Plan) -> list[Word]:
    """Return the words for what a step returned."""
    if outcome.members is not None:
        return _scope(delivery, outcome, outcome.members, plan)
    if outcome.event is not None and delivery.record.lineage is None:
        words = _plainly(delivery, outcome.event, plan)
        if words is not None:
            return words
    events = () if outcome.event is None else (outcome.event,)
    words = list(_passed_on(delivery, events, outcome, plan, delivery.record.lineage))
    return within(delivery, words, plan)


def _plainly(delivery: Delivery, event: Encoded, plan: Plan) -> list[Word] | None:
    """Return the words for one event that some steps take as it is, 2 us sooner; None for any other."""
    routes: Sequence[Route] = plan.accepted_by(event.event_type)
    if not routes or issubclass(event.event_type, InputRequiredEvent):
        return None
    record = _record(delivery, event, None)
    words: list[Word] = []
    for route in routes:
        if route.slots:
            return None
        name = delivery_id(delivery.id, route.step, "return", 0)
        words.append(Emit(route, ((name, record),), also=bool(words)))
    return words


def within(delivery: Delivery, words: Sequence[Word], plan: Plan, *, by: int = -1) -> list[Word]:
    """Return words as what follows from a delivery inside of the scope that it is in."""
    scopes = scopes_of(delivery.record.lineage)
    if not scopes:
        return list(words)
    scope, source = scopes[-1]
    return [Within(), *words, Tally(scope, by, plan.releases(source))]


def consumed(delivery: Delivery, plan: Plan) -> list[Word]:
    """Return what removes the events that a delivery took."""
    spec = plan.spec(delivery.route)
    if spec is None or not (spec.collects or spec.slots):
        return []
    if spec.collects:
        return [Consume(gathered_in(delivery.record, plan), delivery.route)]
    return [Consume(delivery.id)]


def gathered_in(record: Record, plan: Plan) -> str:
    """Return the scope whose list a collecting step takes. In a continuation it is not the record's parent.

    Raises:
        DecodeError: this code cannot read the record.
    """
    event = plan.codec.decode_event(record.type_id, record.payload)
    return event.stream_id if isinstance(event, CollectionReleaseEvent) else record.parent


def to_steps(
    delivery: Delivery,
    event_type: type[Event],
    records: Sequence[tuple[int, bytes]],
    lineage: dict[str, Any] | None,
    plan: Plan,
    *,
    kind: str,
    but: Collection[str] = (),
    awaitable: bool = True,
) -> Iterator[Word]:
    """Yield the words that bring events of one type to all steps that take it, `but` for some.

    Awaitable events that nobody takes go to the system stream, where a waiter may want them.
    """
    scopes = scopes_of(lineage)
    scope, source = scopes[-1] if scopes else ("", "")
    routes: Sequence[Route] = plan.accepted_by(event_type)
    collectors = plan.collected_by(event_type, source) if scopes else ()
    if but:
        routes = [route for route in routes if route.step not in but]
        collectors = [spec for spec in collectors if spec.name not in but]
    if not routes and not collectors and awaitable:
        routes = (plan.system,)

    def named(step: str) -> tuple[tuple[str, bytes], ...]:
        return tuple(
            [
                (delivery_id(delivery.id, step, kind, position), record)
                for position, record in records
            ]
        )

    for number, route in enumerate(routes):
        deliveries, also = named(route.step), number > 0
        if not route.slots:
            yield Emit(route, deliveries, awaitable=awaitable, also=also)
            continue
        for name, record in deliveries:
            yield arrival(route, name, record, scope=scope, awaitable=awaitable, also=also)
    for number, spec in enumerate(collectors):
        yield Gather(
            scope,
            plan.collector(spec),
            plan.name_of(event_type),
            named(spec.name),
            _quota(spec),
            awaitable,
            also=bool(routes) or number > 0,
        )


def input_event(delivery: Delivery, plan: Plan) -> Event:
    """Return the event that a delivery brought; for a list of events, one that has them all.

    Raises:
        DecodeError: this code cannot read it.
    """
    record = delivery.record
    event = plan.codec.decode_event(record.type_id, record.payload)
    if isinstance(event, CollectionReleaseEvent):
        members = [decode_record(data) for _, data in delivery.batch or ()]
        event.events = [plan.codec.decode_event(one.type_id, one.payload) for one in members]
    return event


# -- parts -----------------------------------------------------------------------------------------


def _scope(
    delivery: Delivery, outcome: Returned, members: Sequence[Encoded], plan: Plan
) -> list[Word]:
    source, record = delivery.route.step, delivery.record
    scopes = scopes_of(record.lineage)
    around: dict[str, Any] = record.lineage or {}
    inside = {**around, SCOPES: [*scopes, [delivery.id, source]]}
    routes = plan.releases(source)
    words: list[Word] = [
        Open(delivery.id, tuple(_release(delivery, route, plan) for route in routes)),
        Within(),
        *_passed_on(delivery, members, outcome, plan, inside),
        Tally(delivery.id, 0, routes),
    ]
    if scopes:
        scope, opener = scopes[-1]
        words.append(Tally(scope, len(routes) - 1, plan.releases(opener)))
    return words


def _release(delivery: Delivery, route: Route, plan: Plan) -> tuple[Route, str, bytes]:
    around: dict[str, Any] = delivery.record.lineage or {}
    event = CollectionReleaseEvent(
        stream_id=delivery.id, binding_id=f"{delivery.route.step}->{route.step}"
    )
    # Budgets of handlers belong to the lines of events that come together here.
    lineage = {name: around[name] for name in (SCOPES, HISTORY) if around.get(name)}
    record = Record(
        delivery.id,
        *plan.codec.encode_event(event),
        lineage=lineage or None,
        headers=delivery.trace or delivery.record.headers,
    )
    return route, delivery_id(delivery.id, route.step, "release", 0), encode_record(record)


def _passed_on(
    delivery: Delivery,
    events: Sequence[Encoded],
    outcome: Returned,
    plan: Plan,
    lineage: dict[str, Any] | None,
) -> Iterator[Word]:
    for event in events:
        if issubclass(event.event_type, InputRequiredEvent):
            yield Publish(_public(event, delivery, outcome.traces.execution))
    groups: list[tuple[type[Event], list[tuple[int, bytes]]]] = []
    for position, event in enumerate(events):
        if not groups or groups[-1][0] is not event.event_type:
            groups.append((event.event_type, []))
        groups[-1][1].append((position, _record(delivery, event, lineage)))
    for event_type, records in groups:
        if issubclass(event_type, InputRequiredEvent) and not plan.graph.acceptors(event_type):
            continue
        yield from to_steps(delivery, event_type, records, lineage, plan, kind="return")


def _quota(spec: StepSpec) -> int:
    cardinality = spec.collects.cardinality if spec.collects else None
    return cardinality.n if isinstance(cardinality, Take) else 0


def _record(delivery: Delivery, event: Encoded, lineage: dict[str, Any] | None) -> bytes:
    return encode_record(
        Record(
            delivery.id,
            event.type_id,
            event.payload,
            lineage=lineage,
            headers=delivery.trace or delivery.record.headers,
        )
    )


def _public(event: Encoded, delivery: Delivery, execution: str) -> bytes:
    about = (delivery.route.step, delivery.id, delivery.record.attempt, execution)
    return encode_public(PublicEntry("event", event.type_id, event.payload, *about))
