"""Delivery + outcome -> commit: the rules of a workflow, without I/O and without a clock. Layer: core, pure.

The rules:
- A returned StopEvent ends the run. Where any other event goes is decided in `core.scopes`.
- A failed step runs again after its policy's delay, as the next attempt. Without one, or when it
gives up,
  its `catch_error` step gets the failure; without one, or when its budget is used up, the run fails.
- A suspended step becomes a waiter and gives its slot back.
- A delivery whose workers died too often ends the run and goes to the dead letters.
- Whatever the outcome, effects that were not confirmed yet go first, in call order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, Final, assert_never

from stepfleet.core.checkpoints import checkpoint
from stepfleet.core.commit import (
    Append,
    Commit,
    DeadLetter,
    Deadline,
    Emit,
    End,
    EntryFence,
    Expectation,
    FewWaits,
    Forget,
    Is,
    Leave,
    Lend,
    Mark,
    Note,
    Publish,
    Quota,
    Route,
    Save,
    SetTimer,
    Take,
    Unkeep,
    Unlock,
    Version,
    Wait,
    Word,
)
from stepfleet.core.delivery import TRACEPARENT, Delivery, Record
from stepfleet.core.outcome import (
    Collected,
    Effect,
    Encoded,
    Failed,
    Lost,
    Outcome,
    Returned,
    Send,
    Shown,
    Suspended,
    Traces,
    Unreadable,
)
from stepfleet.core.plan import Plan, arrival
from stepfleet.core.recovery import encoded_failure, recovered
from stepfleet.core.scopes import consumed, followed
from stepfleet.errors import DeadLettered
from stepfleet.events import StopEvent, WorkflowFailedEvent
from stepfleet.retry_policy import next_delay
from stepfleet.wire import (
    Expiry,
    Promotion,
    PublicEntry,
    Waiter,
    encode_public,
    encode_record,
    encode_timer,
    encode_waiter,
)

#: An entry that this code cannot decode waits this long for other code, this often; then it is a
#: dead letter.
UNREADABLE_DELAY_MS: Final = 5_000
UNREADABLE_TRIES: Final = 12


def decide(delivery: Delivery, outcome: Outcome, plan: Plan, *, now_ms: int) -> Commit:
    """Return the commit that settles a delivery."""
    if not isinstance(outcome, Unreadable):
        delivery = readable(delivery)
    match outcome:
        case Returned():
            return _returned(delivery, outcome, plan)
        case Failed():
            return _failed(delivery, outcome, plan, now_ms)
        case Suspended():
            return _suspended(delivery, outcome, plan)
        case Lost():
            error = DeadLettered(
                f"step {delivery.route.step!r} was given up: its worker died {delivery.deliveries - 1} times "
                f"while it had this event of type {delivery.record.type_id}"
            )
            return _dead(delivery, plan, error)
        case Unreadable():
            return _unreadable(delivery, outcome, plan)
        case _:
            assert_never(outcome)


def readable(delivery: Delivery) -> Delivery:
    """Return a delivery without the count of the workers that could not read it."""
    if delivery.record.attempt > 0:
        return delivery
    return delivery._replace(record=delivery.record._replace(attempt=1))


def lent_words(delivery: Delivery, *, times: int, age_ms: int) -> Sequence[Word]:
    """Return the words that lend the slot of a step that waits; it counts as delivered `times`."""
    lend = Lend(delivery.route, delivery.entry, delivery.id, times)
    return [*_armed(delivery, age_ms), lend]


def effects_commit(delivery: Delivery, effects: Iterable[Effect], *, age_ms: int) -> Sequence[Word]:
    """Return the words that carry out effects while the step runs."""
    return [*_armed(delivery, age_ms), *_effects(effects, guard=delivery.id)]


# -- the outcomes
# ------------------------------------------------------------------------------------


def _returned(delivery: Delivery, outcome: Returned, plan: Plan) -> Commit:
    expects: list[Expectation] = []
    words = _traces(delivery, outcome.traces)
    words += consumed(delivery, plan)
    if outcome.collected:
        expects, collects = _collects(outcome.collected)
        words += collects
    stop = _stop(outcome)
    # A run that begins at the checkpoint of its last step needs what that step gave; after any other
    # one that is pending already.
    kept = checkpoint(delivery, outcome.event)
    if stop is not None:
        words += kept
        words.append(End("completed", _terminal(stop, delivery, outcome.traces)))
    else:
        words += followed(delivery, outcome, plan)
        words += kept
    return Commit(delivery.run_id, _fence(delivery), words, expects)


def _stop(outcome: Returned) -> Encoded | None:
    events = (outcome.event,) if outcome.members is None else outcome.members
    for event in events:
        if event is not None and issubclass(event.event_type, StopEvent):
            return event
    return None


def _failed(delivery: Delivery, outcome: Failed, plan: Plan, now_ms: int) -> Commit:
    record, spec = delivery.record, plan.spec(delivery.route)
    words = _traces(delivery, outcome.traces)
    first_ms = record.first_ms or now_ms - outcome.traces.age_ms
    policy = spec.retry_policy if spec else None
    error, delay = outcome.error, None
    if policy is not None and isinstance(error, Exception) and not outcome.final:
        try:
            delay = next_delay(
                policy,
                elapsed=(now_ms - first_ms) / 1000,
                attempts=record.attempt,
                error=error,
                seed=_seed(delivery),
            )
        except Exception as failure:  # noqa: BLE001 - a policy is user code: its error ends the run
            failure.__cause__ = error
            error = failure
    if delay is None:
        elapsed = (now_ms - first_ms) / 1000
        if isinstance(error, Exception) and not outcome.final:
            recovery = recovered(delivery, error, plan, elapsed=elapsed, now_ms=now_ms)
            if recovery is not None:
                words += [*consumed(delivery, plan), recovery]
                return Commit(delivery.run_id, _fence(delivery), words)
        event = WorkflowFailedEvent(
            step_name=delivery.route.step,
            exception=error,
            attempts=record.attempt,
            elapsed_seconds=elapsed,
        )
        words.append(_failure(delivery, plan, event, error))
        return Commit(delivery.run_id, _fence(delivery), words)
    again = record._replace(
        attempt=record.attempt + 1,
        first_ms=first_ms,
        journal=_kept_of(record.journal),
        failure=[now_ms, plan.codec.encode_error(error), *_span(delivery)],
    )
    words += _again(delivery, again, int(delay * 1000), "back-off")
    return Commit(delivery.run_id, _fence(delivery), words)


def _kept_of(journal: list[Any] | None) -> list[Any] | None:
    """Return what the next attempt has of the answers that were committed: all but time-outs.

    Whoever was asked is not asked again, and what was collected before a wait stays collected once.
    """
    return [entry for entry in journal or () if entry[0] != "time-out"] or None


def _suspended(delivery: Delivery, outcome: Suspended, plan: Plan) -> Commit:
    expects, collects = _collects(outcome.collected)
    words = [*_traces(delivery, outcome.traces, settles=False), *collects]
    record = delivery.record._replace(journal=outcome.journal)
    if outcome.request is not None:
        words.append(Publish(_public("event", outcome.request, delivery, outcome.traces)))
    wait = f"{delivery.id}:{record.attempt}:{len(outcome.journal)}"
    expires = outcome.timeout is not None and outcome.timeout != math.inf
    delay_ms = int(outcome.timeout * 1000) if outcome.timeout is not None and expires else 0
    # The name says how long it is: a continuation of the run sets it anew.
    timer = f"{delivery.run_id}/{wait}/wait/{delay_ms}" if expires else ""
    name = "*" if outcome.subclasses else plan.name_of(outcome.event_type)
    waiter = Waiter(
        name=wait,
        type=name,
        type_id=plan.id_of(outcome.event_type),
        waiter_id=outcome.waiter_id,
        requirements=outcome.requirements,
        route=delivery.route,
        delivery=delivery.id,
        record=encode_record(record),
        timer=timer,
    )
    words.append(Wait(wait, name, encode_waiter(waiter)))
    if expires:
        words.append(SetTimer(timer, delay_ms, encode_timer(Expiry(wait))))
    words.append(Note(delivery.id, f"waiting {name} {delivery.route.label}"))
    # An answer that came in meanwhile went to the inbox: then the step looks there before it
    # suspends.
    return Commit(
        delivery.run_id,
        _fence(delivery),
        words,
        [*expects, Is("inbox", outcome.inbox_seen), FewWaits()],
    )


def _unreadable(delivery: Delivery, outcome: Unreadable, plan: Plan) -> Commit:
    commit = put_back(delivery)
    if commit is None:
        error = DeadLettered(
            f"no worker could read a {delivery.record.type_id} for step {delivery.route.step!r}: "
            f"{outcome.error}"
        )
        return _dead(delivery, plan, error)
    return commit


def put_back(delivery: Delivery) -> Commit | None:
    """Return the commit that lets other code have a delivery a little later; None after many of them."""
    tries = max(-delivery.record.attempt, 0)
    if tries >= UNREADABLE_TRIES:
        return None
    record = delivery.record._replace(attempt=-tries - 1)
    words = _again(delivery, record, UNREADABLE_DELAY_MS, "unreadable")
    return Commit(delivery.run_id, _fence(delivery), words)


def _dead(delivery: Delivery, plan: Plan, error: DeadLettered) -> Commit:
    event = WorkflowFailedEvent(
        step_name=delivery.route.step,
        exception=error,
        attempts=max(delivery.record.attempt, 1),
        elapsed_seconds=None,
    )
    letter = DeadLetter(
        (
            *(
                "run",
                delivery.run_id,
                "workflow",
                delivery.route.workflow,
                "label",
                delivery.route.label,
            ),
            *("delivery", delivery.id, "lost", delivery.deliveries - 1, "reason", str(error)),
            *("record", encode_record(delivery.record)),
        )
    )
    end = _failure(delivery, plan, event, error, parks=True)
    # The letter tells of it, the run keeps it: what continues the run begins with it.
    kept = Save(delivery.id, delivery.route.label, encode_record(readable(delivery).record))
    return Commit(delivery.run_id, _fence(delivery), [letter, end, kept])


# -- their parts
# -------------------------------------------------------------------------------------


def _fence(delivery: Delivery) -> EntryFence:
    return EntryFence(delivery.route, delivery.entry, delivery.id)


def _armed(delivery: Delivery, age_ms: int) -> list[Word]:
    """The deadline runs from the first execution of the run: each of its first deliveries may arm it."""
    return [Deadline(age_ms)] if delivery.is_first else []


def _traces(delivery: Delivery, traces: Traces, *, settles: bool = True) -> list[Word]:
    words = _armed(delivery, traces.age_ms)
    if traces.effects:
        # A delivery that will be replayed has to know what it sent already.
        guard = delivery.id if traces.guarded or not settles else ""
        words += _effects(traces.effects, guard)
    if settles and traces.repeated:
        marker = encode_public(
            PublicEntry(
                "mark",
                step=delivery.route.step,
                delivery=delivery.id,
                attempt=delivery.record.attempt,
            )
        )
        words.append(Mark(marker, delivery.id, traces.published))
    if settles and traces.guarded:
        words.append(Forget(delivery.id))
    if traces.claimed:
        words += [Unkeep(element) for element in traces.claimed]
    if traces.ended_runs:
        words.append(Leave(traces.ended_runs))
    if traces.lock:
        words.append(Unlock(traces.lock))
    return words


def _effects(effects: Iterable[Effect], guard: str) -> list[Word]:
    words: list[Word] = []
    for single, group in groupby(effects, key=_only_route):
        if single is not None:
            # Runs of sends to one stream become one word: a fan-out of 1,000 is one slot count,
            # not 1,000.
            sends = tuple(
                (send.routes[0][1], send.record) for send in group if isinstance(send, Send)
            )
            words.append(Emit(single, sends, guard))
            continue
        for effect in group:
            if isinstance(effect, Shown):
                words.append(Publish(effect.entry, guard, effect.field))
            else:
                words += _to_all(effect.routes, effect.record, guard)
    return words


def _only_route(effect: Effect) -> Route | None:
    """Return the one stream of a send, if it goes to one, and as it is."""
    if not isinstance(effect, Send) or len(effect.routes) != 1:
        return None
    route = effect.routes[0][0]
    return None if route.slots else route


def _to_all(routes: Sequence[tuple[Route, str]], record: bytes, guard: str = "") -> list[Word]:
    return [
        arrival(route, name, record, guard=guard, also=position > 0)
        for position, (route, name) in enumerate(routes)
    ]


def _span(delivery: Delivery) -> Sequence[str]:
    """Return the span of this attempt, to which the next one links; nothing where there is none."""
    span = (delivery.trace or {}).get(TRACEPARENT)
    return () if span is None else (span,)


def _seed(delivery: Delivery) -> int:
    """The jitter of an attempt is the same wherever it is decided."""
    text = f"{delivery.run_id}:{delivery.route.step}:{delivery.record.attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _collects(collected: Sequence[Collected]) -> tuple[list[Expectation], list[Word]]:
    expects: list[Expectation] = []
    words: list[Word] = []
    for one in collected:
        if one.released is None:
            expects.append(Quota(one.buffer, one.type, one.quota))
            words.append(Append(one.buffer, one.type, one.event))
        else:
            expects.append(Version(one.buffer, one.released))
            words.append(Take(one.buffer, one.released))
    return expects, words


def _again(delivery: Delivery, record: Record, delay_ms: int, why: str) -> list[Word]:
    data = encode_record(record)
    if delay_ms <= 0:
        return [Emit(delivery.route, ((delivery.id, data),), awaitable=False)]
    # The attempt is part of the name: a late commit of the timer before cannot fire this one.
    member = f"{delivery.run_id}/{delivery.id}/{why}/{record.attempt}"
    return [
        SetTimer(member, delay_ms, encode_timer(Promotion(delivery.route, delivery.id, data))),
        Note(delivery.id, f"timer {why} {record.attempt} {delivery.route.label}"),
    ]


def _public(kind: str, event: Encoded, delivery: Delivery, traces: Traces) -> bytes:
    return encode_public(
        PublicEntry(
            kind,
            event.type_id,
            event.payload,
            delivery.route.step,
            delivery.id,
            delivery.record.attempt,
            traces.execution,
        )
    )


def _terminal(event: Encoded, delivery: Delivery, traces: Traces) -> bytes:
    return _public("end", event, delivery, traces)


def _failure(
    delivery: Delivery,
    plan: Plan,
    event: WorkflowFailedEvent,
    error: BaseException,
    *,
    parks: bool = False,
) -> End:
    entry = _terminal(encoded_failure(event, plan), delivery, Traces())
    return End(
        "failed",
        entry,
        ("error", plan.codec.encode_error(error), "step", delivery.route.step),
        parks=parks,
    )
