"""What a workflow's workers decide in Python about events from the system stream: who waits for them."""

from __future__ import annotations

import logging

from stepfleet.core import endings, history
from stepfleet.core.commit import (
    Answer,
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
from stepfleet.core.decide import put_back, readable
from stepfleet.core.delivery import Delivery
from stepfleet.core.plan import Plan
from stepfleet.core.scopes import to_steps, within
from stepfleet.errors import DecodeError
from stepfleet.events import Event
from stepfleet.storage.committer import Committer
from stepfleet.storage.reader import RunReader, Waits
from stepfleet.wire import Unclaimed, Waiter, decode_record, encode_record, encode_unclaimed
from stepfleet.worker.execution import IGNORED, cannot_join, fits

logger = logging.getLogger("stepfleet.worker.system")


async def settle_system(
    delivery: Delivery, plan: Plan, committer: Committer, reader: RunReader, inbox_limit: int
) -> Answer:
    """Give an event to all waiters that it fits, else to the steps that accept it, else to the inbox."""
    record = delivery.record
    while True:
        event: Event | None = None
        waits: Waits | None = None
        fitting: list[Waiter] = []
        commit: Commit | None = None
        try:
            waits = await reader.waits(delivery.run_id)
            event = plan.codec.decode_event(record.type_id, record.payload)
            fitting = [waiter for waiter in waits.open if _wants(waiter, event, plan)]
        except DecodeError as error:
            # Code that knows the type, or the waiter, may run elsewhere.
            logger.warning("run_id=%s type=%s: %s", delivery.run_id, record.type_id, error)
            commit = put_back(delivery)
        if commit is None:
            commit = _routed(event, delivery, plan, fitting, waits, inbox_limit)
        answer = await committer.commit(commit)
        if answer.word != "conflict":
            return answer


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
    waits: Waits | None,
    inbox_limit: int,
) -> Commit:
    expects: list[Expectation] = []
    words: list[Word] = []
    record = delivery.record
    for waiter in fitting:
        expects.append(Has(waiter.name))
        words += answered(waiter, ["answer", waiter.waiter_id, record.type_id, record.payload])
    woken = {waiter.route.step for waiter in fitting}
    collectors = () if event is None else plan.would_collect(type(event))
    if event is not None and record.target is not None and record.target in collectors:
        return _refused(delivery, plan, event, record.target)
    others = set[str]()
    if record.target is not None:
        others = {step for step in plan.graph.steps if step != record.target}
    targets: list[Word] = []
    if event is not None:
        # A step that was just woken by the event does not get it a second time as an input.
        but = woken | others
        passed_on = [(0, encode_record(readable(delivery).record))]
        lineage, kind = record.lineage, "routed"
        targets += to_steps(
            *(delivery, type(event), passed_on, lineage, plan), kind=kind, but=but, awaitable=False
        )
    words += within(delivery, targets, plan)
    if not targets and not fitting:
        if collectors:
            for collector in collectors:
                logger.warning(IGNORED, delivery.run_id, record.type_id, collector)
        else:
            logger.warning(
                "run_id=%s type=%s: no step accepts this event and nobody waits for it",
                delivery.run_id,
                record.type_id,
            )
        unclaimed = Unclaimed(record.type_id, record.payload, waits.seq if waits else 0)
        words.append(Keep(encode_unclaimed(unclaimed), inbox_limit))
        if waits:
            # A wait that began meanwhile wants to see it.
            expects.append(Is("waits", waits.ever))
    fence = EntryFence(delivery.route, delivery.entry, delivery.id)
    unhandled = not targets and not fitting
    commit = Commit(delivery.run_id, fence, words, expects)
    return history.passed_on(commit, delivery, plan, unhandled=unhandled)


def _refused(delivery: Delivery, plan: Plan, event: Event, step: str) -> Commit:
    """Return the commit that ends a run because a caller sent a step what it cannot take."""
    fence = EntryFence(delivery.route, delivery.entry, delivery.id)
    error = cannot_join(event, step)
    return endings.failed(delivery.run_id, plan.workflow, step, error, plan.codec, fence=fence)


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
