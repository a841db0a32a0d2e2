"""One execution of one delivery: what its step's `Context` does. No Redis; effects leave by injected functions.

Intents (the returned event, collects, a wait) are recorded and applied by the commit only. Effects
(sends, published events) are queued in call order and go out while the step runs, or with the
commit when it ends first.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, cast

from stepfleet.core.continuation import origin_of
from stepfleet.core.delivery import TRACEPARENT, Delivery, Record, content_digest, delivery_id
from stepfleet.core.outcome import (
    Collected,
    Effect,
    Encoded,
    Send,
    Shown,
    Suspended,
    Traces,
)
from stepfleet.core.plan import Plan, routes_of, type_name
from stepfleet.core.scopes import outside_scopes
from stepfleet.errors import DecodeError, StaleExecution, TooLargeError, WorkflowRuntimeError
from stepfleet.events import Event
from stepfleet.graph import StepSpec
from stepfleet.retry_policy import RetryInfo
from stepfleet.store import StateStore
from stepfleet.wire import (
    BufferedEvent,
    PublicEntry,
    decode_buffered,
    decode_record,
    decode_unclaimed,
    encode_buffered,
    encode_public,
    encode_record,
)

logger = logging.getLogger("stepfleet.worker.execution")

#: Logged for an event that a step takes only in lists.
IGNORED: Final = (
    "run_id=%s: Ignoring %s for collect step '%s': it was sent outside any collection stream "
    "(e.g. via ctx.send_event) so it cannot join a batch."
)

#: An event of a collect buffer, as its bytes and as what they say: read once per event of a join.
_Buffered = tuple[bytes, BufferedEvent]


class Suspend(BaseException):
    """Carries a wait out of the step; no `except Exception` in a step can swallow it."""

    def __init__(
        self,
        event_type: type[Event],
        waiter_id: str,
        requirements: dict[str, Any],
        timeout: float | None,
        request: Event | None,
    ) -> None:
        super().__init__(event_type.__name__)
        self.event_type = event_type
        self.waiter_id = waiter_id
        self.requirements = requirements
        self.timeout = timeout
        self.request = request


class BufferContent(NamedTuple):
    """A collect buffer as it was read."""

    version: int
    events: list[bytes]


class Known(NamedTuple):
    """What an execution learns from a conflict of the one before it."""

    #: Contents of collect buffers.
    buffers: dict[str, BufferContent]
    #: Events that nobody took and that came after the last entry this attempt published.
    inbox: tuple[bytes, ...] = ()
    #: Number of inbox events ever, when it was read.
    inbox_seen: str = ""


NOTHING_KNOWN = Known({})


class Execution:
    """The face of a step's context (`context.StepFace`)."""

    def __init__(
        self,
        delivery: Delivery,
        plan: Plan,
        spec: StepSpec,
        *,
        token: str,
        known: Known,
        rerun: bool,
        flush_soon: Callable[[Execution], None],
        now_ms: Callable[[], int],
        open_store: Callable[[Execution], StateStore[Any]],
    ) -> None:
        self.delivery = delivery
        self.plan = plan
        self.spec = spec
        self.run_id: str = delivery.run_id
        self.token = token
        self._open_store = open_store
        self._store: StateStore[Any] | None = None
        #: Runs that the step awaited to their end.
        self.ended_runs: dict[str, None] = {}
        self.known = known
        #: An execution of this attempt before this one may have had effects.
        self.repeated = (
            rerun or not delivery.fresh or delivery.deliveries > 1 or bool(delivery.record.journal)
        )
        self.collected: list[Collected] = []
        #: Spans that brought the events which it joined from a buffer, as W3C writes them.
        self.joined: list[str] = []
        #: Token of the edit lock while it is held.
        self.lock = ""
        #: Early commits so far, of effects and store writes: each has a number, so that one sent twice is
        #: applied once.
        self.calls = 0
        #: How many of them Redis has, once all are answered.
        self.counted = 0
        self._flush_soon = flush_soon
        self._now_ms = now_ms
        self._journal: list[Any] = []
        #: How far a replay has come in the journal of the delivery.
        self._position = 0
        self._inbox = list(known.inbox)
        self._claimed: list[bytes] = []
        self._effects: list[Effect] = []
        self._published: list[str] = []
        self._occurrences: dict[str, int] = {}
        self._sent = 0
        self._mutex = threading.Lock()
        self._ended: str | None = None

    @property
    def store(self) -> StateStore[Any]:
        """The run's store."""
        if self._store is None:
            self._store = self._open_store(self)
        return self._store

    @property
    def idempotency_key(self) -> str:
        """Stable over all executions and attempts of the delivery, also in a continuation of its run."""
        return f"{origin_of(self.run_id)}:{self.delivery.id}"

    def retry_info(self) -> RetryInfo:
        """Return what the record of this attempt tells of those before it."""
        record = self.delivery.record
        if record.attempt <= 1 or record.failure is None:
            return RetryInfo(
                retry_number=0, elapsed_seconds=0.0, last_exception=None, last_failed_at=None
            )
        failed_ms, encoded, *_ = record.failure
        error = self.plan.codec.decode_error(encoded)
        return RetryInfo(
            retry_number=record.attempt - 1,
            elapsed_seconds=max(0.0, (self._now_ms() - record.first_ms) / 1000),
            last_exception=error if isinstance(error, Exception) else None,
            last_failed_at=datetime.fromtimestamp(failed_ms / 1000, UTC),
        )

    # -- effects -----------------------------------------------------------------------------------

    def send(self, event: Event, step: str | None) -> None:
        """Queue an event for the steps that accept it."""
        self._refuse_if_ended("send_event")
        if step is not None and step in self.plan.would_collect(type(event)):
            raise cannot_join(event, step)
        routes = routes_of(self.plan, event, step)
        if step is None and routes != (self.plan.system,):
            for collector in self.plan.would_collect(type(event)):
                logger.warning(IGNORED, self.run_id, type(event).__name__, collector)
        type_id, payload = self.plan.codec.encode_event(event)
        parent = self.delivery.record
        record = encode_record(
            Record(
                self.delivery.id,
                type_id,
                payload,
                lineage=outside_scopes(parent.lineage),
                headers=self.delivery.trace or parent.headers,
                target=step,
            )
        )
        with self._mutex:
            self._sent += 1
            if self._sent > self.plan.codec.limits.fan_out:
                raise self._too_many(self._sent)
            occurrence = self._occurrence("send", type_id, payload)
            kind = f"send:{parent.attempt}"
            named = tuple(
                (route, delivery_id(self.delivery.id, route.step, kind, occurrence))
                for route in routes
            )
            self._queue(Send(named, record))

    def publish(self, event: Event) -> None:
        """Queue an event for the public stream."""
        self._refuse_if_ended("write_event_to_stream")
        type_id, payload = self.plan.codec.encode_event(event)
        entry = encode_public(
            PublicEntry(
                "event",
                type_id,
                payload,
                self.delivery.route.step,
                self.delivery.id,
                self.delivery.record.attempt,
                self.token,
            )
        )
        with self._mutex:
            field = (
                f"p{self.delivery.record.attempt}:{self._occurrence('publish', type_id, payload)}"
            )
            self._published.append(field)
            self._queue(Shown(entry, field))

    def take_effects(self) -> list[Effect]:
        """Return the effects that have not gone out, which now do."""
        with self._mutex:
            effects, self._effects = self._effects, []
            return effects

    def next_call(self) -> int:
        """Return the number of a further early commit."""
        self.calls += 1
        return self.calls

    def _too_many(self, events: int) -> TooLargeError:
        return TooLargeError(
            f"step {self.spec.name!r} sends and returns {events} events in one execution, over the "
            f"limit of {self.plan.codec.limits.fan_out}: split the work over several events, or "
            "raise the setting fan_out_limit"
        )

    def _queue(self, effect: Effect) -> None:
        self._effects.append(effect)
        if len(self._effects) == 1:
            self._flush_soon(self)

    def _occurrence(self, kind: str, type_id: str, payload: bytes) -> str:
        digest = content_digest(type_id, payload)
        name = f"{kind}{digest}"
        occurrence = self._occurrences[name] = self._occurrences.get(name, 0) + 1
        return f"{digest}:{occurrence}"

    # -- intents -----------------------------------------------------------------------------------

    def collect(
        self, event: Event, expected: Sequence[type[Event]], buffer_id: str | None
    ) -> list[Event] | None:
        """Record a contribution; answer from the content of the buffer where it is known."""
        self._refuse_if_ended("collect_events")
        if not expected:
            return []
        if len(expected) > self.plan.codec.limits.collected:
            raise TooLargeError(
                f"step {self.spec.name!r} collects {len(expected)} events, over the limit of "
                f"{self.plan.codec.limits.collected}: collect in parts, or raise the setting "
                "collect_limit"
            )
        replayed, answer = self._replayed("collect")
        if replayed:
            if answer is None:
                return None
            return [self._joined(decode_buffered(data)) for data in answer]
        quota = self._quota(expected)
        type_id, payload = self.plan.codec.encode_event(event)
        brought_by = self._brought_by() if self.delivery.trace is not None else ""
        buffered = BufferedEvent(type_id, payload, brought_by)
        own, data = type_name(type_id), encode_buffered(buffered)
        if quota == {own: 1}:
            return self._answer([(data, buffered)])
        name = f"{self.spec.name}:{type_name(buffer_id or 'default')}"
        released = self._release(name, own, (data, buffered), quota, expected)
        version = self.known.buffers[name].version if released is not None else None
        self.collected.append(Collected(name, own, data, tuple(quota.items()), version))
        return self._answer(released)

    def _release(
        self,
        name: str,
        own: str,
        event: _Buffered,
        quota: Counter[str],
        expected: Sequence[type[Event]],
    ) -> list[_Buffered] | None:
        content = self.known.buffers.get(name)
        if content is None:
            return None
        by_type: dict[str, list[_Buffered]] = {}
        earlier = [one.event for one in self.collected if one.buffer == name]
        for data in (*content.events, *earlier):
            buffered = decode_buffered(data)
            by_type.setdefault(type_name(buffered.type_id), []).append((data, buffered))
        if len(by_type.get(own, ())) >= quota[own]:
            return None
        by_type.setdefault(own, []).append(event)
        if any(len(by_type.get(type_, ())) < need for type_, need in quota.items()):
            return None
        queues = {name: iter(events) for name, events in by_type.items()}
        return [next(queues[self.plan.name_of(event_type)]) for event_type in expected]

    def _brought_by(self) -> str:
        """Return the span that brought the event, to which the execution that joins it links."""
        return (self.delivery.record.headers or {}).get(TRACEPARENT, "")

    def _quota(self, expected: Sequence[type[Event]]) -> Counter[str]:
        """Return how many of each type are wanted: counted in C, as this runs once per event of a join."""
        first = expected[0]
        if expected.count(first) == len(expected):
            return Counter({self.plan.name_of(first): len(expected)})
        return Counter({self.plan.name_of(cls): need for cls, need in Counter(expected).items()})

    def _answer(self, released: list[_Buffered] | None) -> list[Event] | None:
        if released is None:
            self._journal.append(["collect", None])
            return None
        self._journal.append(["collect", [data for data, _ in released]])
        return [self._joined(buffered) for _, buffered in released]

    async def wait(
        self,
        event_type: type[Event],
        *,
        request: Event | None,
        waiter_id: str | None,
        requirements: dict[str, Any],
        timeout: float | None,
    ) -> Event:
        """Answer from the journal or the inbox, or suspend the step."""
        self._refuse_if_ended("wait_for_event")
        type_id = self.plan.id_of(event_type)
        shown = json.dumps(requirements, sort_keys=True, default=repr)
        name = waiter_id or f"waiter_{type_id}_{shown}"
        for kind, *fields in [*(self.delivery.record.journal or ()), *self._journal]:
            if kind == "answer" and fields[0] == name:
                self._follow("answer", name)
                return self.plan.codec.decode_event(fields[1], fields[2])
            if kind == "time-out" and fields[0] == name:
                self._follow("time-out", name)
                raise TimeoutError(f"Timed out waiting for {event_type.__name__}")
        for raw in self._inbox:
            unclaimed = decode_unclaimed(raw)
            if unclaimed.type_id != type_id and not self.spec.accept_event_subclasses:
                continue
            event = self.plan.codec.decode_event(unclaimed.type_id, unclaimed.payload)
            if fits(event, event_type, requirements, subclasses=self.spec.accept_event_subclasses):
                self._journal.append(["answer", name, unclaimed.type_id, unclaimed.payload])
                # One event answers one wait: it leaves the inbox with the commit of this execution.
                self._inbox.remove(raw)
                self._claimed.append(raw)
                return event
        raise Suspend(event_type, name, requirements, timeout, request)

    def journal_so_far(self) -> list[Any]:
        """Return the answers given to this attempt until now: those replayed, then the new ones."""
        return [*(self.delivery.record.journal or ()), *self._journal]

    def _replayed(self, kind: str) -> tuple[bool, Any]:
        """Take the next journal answer if it is one of this kind: a replay asks in the same order."""
        journal = self.delivery.record.journal or []
        for position in range(self._position, len(journal)):
            if journal[position][0] == kind:
                self._position = position + 1
                return True, journal[position][1]
        return False, None

    def _follow(self, kind: str, name: str) -> None:
        journal = self.delivery.record.journal or []
        for position in range(self._position, len(journal)):
            if journal[position][:2] == [kind, name]:
                self._position = position + 1
                return

    def _joined(self, buffered: BufferedEvent) -> Event:
        if buffered.traceparent:
            self.joined.append(buffered.traceparent)
        return self.plan.codec.decode_event(buffered.type_id, buffered.payload)

    # -- what it takes -----------------------------------------------------------------------------

    def events(self) -> dict[str, Any]:
        """Return the arguments for the event parameters of the step.

        Raises:
            DecodeError: this code cannot read one of the events.
        """
        delivery, spec = self.delivery, self.spec
        if delivery.batch is None:
            record = delivery.record
            event = self.plan.codec.decode_event(record.type_id, record.payload)
            return {spec.event_param: event}
        taken = [(name, self._recorded(data)) for name, data in delivery.batch]
        if spec.collects:
            return {spec.event_param: [event for _, event in taken]}
        by_type: dict[str, list[Event]] = {}
        for name, event in taken:
            by_type.setdefault(name, []).append(event)
        queues = {name: iter(events) for name, events in by_type.items()}
        return {slot: next(queues[self.plan.name_of(cls)]) for slot, cls in spec.slots}

    def _recorded(self, data: bytes) -> Event:
        record = decode_record(data)
        return self.plan.codec.decode_event(record.type_id, record.payload)

    # -- the end -----------------------------------------------------------------------------------

    def end(self, why: str) -> None:
        """Refuse every later call of the step's context."""
        self._ended = why

    def returned(self, value: Any) -> tuple[Encoded | None, tuple[Encoded, ...] | None]:
        """Return an event or a list of events that the step returned, with their bytes.

        Raises:
            WorkflowRuntimeError: it is neither, or its signature does not say so.
            EncodeError: an event cannot travel.
        """
        spec = self.spec
        if spec.listed and isinstance(value, list):
            return None, self._members(cast("list[Any]", value))
        if value is None:
            return None, None
        if not isinstance(value, Event):
            raise WorkflowRuntimeError(
                f"Step function {spec.name} returned {type(value).__name__} instead of an Event "
                "instance."
            )
        if spec.listed and not isinstance(value, spec.bare):
            raise WorkflowRuntimeError(
                f"Step function {spec.name} returned a bare {type(value).__name__} but its return "
                "annotation only declares it inside a list. Return a one-element list to fan out, "
                "or declare the bare type as a union member (e.g. -> list[A] | B) for ordinary "
                "dispatch."
            )
        return self.encoded(value), None

    def _members(self, members: list[Any]) -> tuple[Encoded, ...]:
        if self._sent + len(members) > self.plan.codec.limits.fan_out:
            raise self._too_many(self._sent + len(members))
        for member in members:
            if not isinstance(member, Event):
                raise WorkflowRuntimeError(
                    f"Step function {self.spec.name} returned a list containing "
                    f"{type(member).__name__} instead of an Event instance."
                )
        return tuple(map(self.encoded, members))

    def encoded(self, event: Event) -> Encoded:
        """Return an event with its bytes."""
        return Encoded(type(event), *self.plan.codec.encode_event(event))

    def traces(self, *, age_ms: int) -> Traces:
        """Return what this execution leaves behind; its queued effects go with them."""
        with self._mutex:
            effects, self._effects = self._effects, []
        left = effects or self.calls or self.repeated
        if not (left or self.lock or self._claimed or self.ended_runs):
            return Traces(age_ms=age_ms, execution=self.token)  # like most, 0.4 us sooner
        return Traces(
            effects=effects,
            guarded=self.calls > 0 or self.repeated,
            published=tuple(self._published),
            repeated=self.repeated,
            lock=self.lock,
            age_ms=age_ms,
            execution=self.token,
            claimed=tuple(self._claimed),
            ended_runs=tuple(self.ended_runs),
        )

    def _refuse_if_ended(self, what: str) -> None:
        if self._ended is not None:
            raise StaleExecution(f"{what} has no effect any more: {self._ended}")


def cannot_join(event: Event, step: str) -> WorkflowRuntimeError:
    """Return the error of an event that was sent to a step which takes it only in lists."""
    return WorkflowRuntimeError(
        f"{type(event).__name__} was sent to collect step {step!r} via send_event(step=...), but a "
        "collect step cannot receive targeted events: it only collects events emitted inside a "
        "fan-out stream."
    )


def is_answer(raw: bytes, outcome: Suspended, plan: Plan) -> bool:
    """Tell whether an inbox element is what a suspended step waits for."""
    unclaimed = decode_unclaimed(raw)
    try:
        event = plan.codec.decode_event(unclaimed.type_id, unclaimed.payload)
    except DecodeError:
        return False
    requirements = plan.codec.decode_value(outcome.requirements)
    return fits(event, outcome.event_type, requirements, subclasses=outcome.subclasses)


def fits(
    event: Event, event_type: type[Event], requirements: dict[str, Any], *, subclasses: bool
) -> bool:
    """Tell whether an event is what a waiter waits for."""
    right_type = isinstance(event, event_type) if subclasses else type(event) is event_type
    return right_type and all(
        getattr(event, name, None) == value for name, value in requirements.items()
    )
