"""What a workflow's workers decide in Python about events from the system stream: who waits for them."""

from __future__ import annotations

import logging

from stepfleet.core.commit import (
    Commit,
    DropTimer,
    Emit,
    EntryFence,
    Expectation,
    Has,
    Is,
    Keep,
    Unwait,
    Word,
)
from stepfleet.core.delivery import Delivery, Record, delivery_id
from stepfleet.core.plan import Plan
from stepfleet.errors import DecodeError
from stepfleet.events import Event
from stepfleet.storage.committer import Committer
from stepfleet.storage.reader import RunReader, Waits
from stepfleet.wire import Unclaimed, Waiter, decode_record, encode_record, encode_unclaimed
from stepfleet.worker.execution import fits

logger = logging.getLogger("stepfleet.worker.system")


async def settle_system(
    delivery: Delivery, plan: Plan, committer: Committer, reader: RunReader, inbox_limit: int
) -> None:
    """Give an event to all waiters that it fits, else to the steps that accept it, else to the inbox."""
    record = delivery.record
    try:
        event: Event | None = plan.codec.decode_event(record.type_id, record.payload)
    except DecodeError:
        event = None
    while True:
        waits = await reader.waits(delivery.run_id)
        fitting = [] if event is None else [w for w in waits.open if _wants(w, event, plan)]
        commit = _routed(event, delivery, plan, fitting, waits, inbox_limit)
        answer = await committer.commit(commit)
        if answer.word != "conflict":
            return


def _wants(waiter: Waiter, event: Event, plan: Plan) -> bool:
    event_type = plan.class_of(waiter.type_id)
    if event_type is None:
        return False
    requirements = plan.codec.decode_value(waiter.requirements)
    return fits(event, event_type, requirements, subclasses=waiter.type == "*")


def _routed(
    event: Event | None,
    delivery: Delivery,
    plan: Plan,
    fitting: list[Waiter],
    waits: Waits,
    inbox_limit: int,
) -> Commit:
    expects: list[Expectation] = []
    words: list[Word] = []
    record = delivery.record
    for waiter in fitting:
        expects.append(Has(waiter.name))
        words += answered(waiter, ["answer", waiter.waiter_id, record.type_id, record.payload])
    woken = {waiter.route.step for waiter in fitting}
    routes = () if event is None else plan.accepted_by(type(event))
    if record.target is not None:
        routes = tuple(route for route in routes if route.step == record.target)
    # A step that was just woken by the event does not get it a second time as an input.
    targets = [route for route in routes if route.step not in woken]
    if targets:
        passed_on = encode_record(Record(*record))
        words += [
            Emit(
                route,
                ((delivery_id(delivery.id, route.step, "routed", 0), passed_on),),
                awaitable=False,
            )
            for route in targets
        ]
    elif not fitting:
        logger.warning(
            "run_id=%s type=%s: no step accepts this event and nobody waits for it",
            delivery.run_id,
            record.type_id,
        )
        unclaimed = Unclaimed(record.type_id, record.payload, waits.seq)
        words.append(Keep(encode_unclaimed(unclaimed), inbox_limit))
        # A wait that began meanwhile wants to see it.
        expects.append(Is("waits", waits.ever))
    return Commit(
        delivery.run_id, EntryFence(delivery.route, delivery.entry, delivery.id), words, expects
    )


def answered(waiter: Waiter, answer: list[object]) -> list[Word]:
    """Return the words that resume a suspended delivery with an answer for its journal."""
    suspended = decode_record(waiter.record)
    resumed = suspended._replace(journal=[*(suspended.journal or []), answer])
    words: list[Word] = [
        Unwait(waiter.name, waiter.type),
        Emit(waiter.route, ((waiter.delivery, encode_record(resumed)),), awaitable=False),
    ]
    if waiter.timer:
        words.append(DropTimer(waiter.timer))
    return words
