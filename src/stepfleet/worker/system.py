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
    Keep,
    Unwait,
    Word,
)
from stepfleet.core.delivery import Delivery, Record, delivery_id
from stepfleet.core.plan import Plan
from stepfleet.errors import DecodeError
from stepfleet.events import Event
from stepfleet.storage.committer import Committer
from stepfleet.storage.reader import RunReader
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
        fitting = [] if event is None else await _fitting(event, delivery, plan, reader)
        commit = await _routed(event, delivery, plan, fitting, reader, inbox_limit)
        answer = await committer.commit(commit)
        if answer.word != "conflict":
            return


async def _fitting(event: Event, delivery: Delivery, plan: Plan, reader: RunReader) -> list[Waiter]:
    return [
        waiter for waiter in await reader.waiters(delivery.run_id) if _wants(waiter, event, plan)
    ]


def _wants(waiter: Waiter, event: Event, plan: Plan) -> bool:
    event_type = plan.class_of(waiter.type_id)
    if event_type is None:
        return False
    requirements = plan.codec.decode_value(waiter.requirements)
    return fits(event, event_type, requirements, subclasses=waiter.type == "*")


async def _routed(
    event: Event | None,
    delivery: Delivery,
    plan: Plan,
    fitting: list[Waiter],
    reader: RunReader,
    inbox_limit: int,
) -> Commit:
    expects: list[Expectation] = []
    words: list[Word] = []
    record = delivery.record
    for waiter in fitting:
        expects.append(Has(waiter.delivery))
        words += answered(waiter, ["answer", waiter.waiter_id, record.type_id, record.payload])
    woken = {waiter.route.step for waiter in fitting}
    routes = () if event is None else plan.accepted_by(type(event))
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
        seq = await reader.link.call("HGET", reader.keys.run(delivery.run_id), "seq")
        unclaimed = Unclaimed(record.type_id, record.payload, int(seq or 0))
        words.append(Keep(encode_unclaimed(unclaimed), inbox_limit))
    return Commit(
        delivery.run_id, EntryFence(delivery.route, delivery.entry, delivery.id), words, expects
    )


def answered(waiter: Waiter, answer: list[object]) -> list[Word]:
    """Return the words that resume a suspended delivery with an answer for its journal."""
    suspended = decode_record(waiter.record)
    resumed = suspended._replace(journal=[*(suspended.journal or []), answer])
    words: list[Word] = [
        Unwait(waiter.delivery, waiter.type),
        Emit(waiter.route, ((waiter.delivery, encode_record(resumed)),), awaitable=False),
    ]
    if waiter.timer:
        words.append(DropTimer(waiter.timer))
    return words
