"""What every decision has in common, whatever the delivery and its outcome."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stepfleet.codec import Limits
from stepfleet.core.commit import (
    Append,
    Commit,
    DeadLetter,
    Emit,
    End,
    EntryFence,
    Forget,
    Note,
    Publish,
    Save,
    SetTimer,
    Take,
    Wait,
)
from stepfleet.core.decide import decide
from stepfleet.core.delivery import Delivery, Record
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
from stepfleet.core.plan import Plan
from stepfleet.decorators import step
from stepfleet.errors import DecodeError
from stepfleet.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent
from stepfleet.planning import make_plan
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from stepfleet.workflow import Workflow


class Work(Event):
    pass


class Lonely(Event):
    pass


class Example(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Work | Lonely | InputRequiredEvent | None:
        return None

    @step(retry_policy=retry_policy(wait=wait_fixed(1), stop=stop_after_attempt(3)))
    async def work(self, ev: Work) -> StopEvent | None:
        return None

    @step
    async def more(self, ev: Work | HumanResponseEvent) -> StopEvent | None:
        return None


PLAN: Plan = make_plan(Example, "Example", limits=Limits(), open_types=True)
EVENTS: tuple[Event, ...] = (Work(), Lonely(), StopEvent(), InputRequiredEvent())

#: Of what is sent, and of the sender: no two are equal, as ids never are.
NAMES = st.text("abc-_09", min_size=22, max_size=22)
OWN_NAMES = st.text("XYZ", min_size=22, max_size=22)
BYTES = st.binary(max_size=6)
ROUTES = st.sampled_from(PLAN.routes)
SENDS = st.builds(
    Send, st.lists(st.tuples(ROUTES, NAMES), min_size=1, max_size=2).map(tuple), BYTES
)
EFFECTS = st.lists(SENDS | st.builds(Shown, BYTES, st.text("pf:1", max_size=4)), max_size=6)
TRACES = st.builds(
    Traces,
    effects=EFFECTS,
    guarded=st.booleans(),
    published=st.lists(st.text("pf:1", max_size=4), max_size=3).map(tuple),
    repeated=st.booleans(),
    lock=st.sampled_from(["", "token"]),
    age_ms=st.integers(0, 10_000),
    execution=st.just("x.1"),
)
COLLECTED = st.lists(
    st.builds(
        Collected,
        buffer=st.sampled_from(["work:a", "work:b"]),
        type=st.just("Work"),
        event=BYTES,
        quota=st.just((("Work", 3),)),
        released=st.none() | st.integers(0, 5),
    ),
    max_size=2,
).map(tuple)
ENCODED = st.sampled_from(EVENTS).map(lambda e: Encoded(type(e), *PLAN.codec.encode_event(e)))
OUTCOMES: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(Returned, event=st.none() | ENCODED, collected=COLLECTED, traces=TRACES),
    st.builds(
        Failed,
        error=st.sampled_from([ValueError("v"), KeyError("k"), KeyboardInterrupt()]),
        traces=TRACES,
    ),
    st.builds(
        Suspended,
        event_type=st.just(HumanResponseEvent),
        waiter_id=st.text(max_size=4),
        requirements=BYTES,
        timeout=st.none() | st.floats(0, 100),
        request=st.none() | ENCODED,
        journal=st.lists(st.just(["collect", None]), max_size=2),
        collected=COLLECTED,
        inbox_seen=st.sampled_from(["", "3"]),
        subclasses=st.booleans(),
        traces=TRACES,
    ),
    st.just(Lost()),
    st.builds(Unreadable, error=st.just(DecodeError("unknown", b""))),
)
DELIVERIES = st.builds(
    Delivery,
    run_id=st.just("run"),
    id=OWN_NAMES,
    route=ROUTES,
    entry=st.just("5-0"),
    record=st.builds(
        Record,
        parent=st.sampled_from(["run", "P" * 22]),
        type_id=st.just("Work"),
        payload=st.just(b"\x80"),
        attempt=st.integers(-12, 4).filter(bool),
        first_ms=st.sampled_from([0, 1_000]),
        journal=st.sampled_from([None, [["collect", None]]]),
        failure=st.none(),
        lineage=st.none(),
        headers=st.sampled_from([None, {"traceparent": "x"}]),
        code=st.none(),
    ),
    deliveries=st.integers(1, 5),
    fresh=st.booleans(),
)
NOW = st.integers(10_000, 20_000)


def decided(delivery: Delivery, outcome: Outcome, now_ms: int) -> Commit:
    return decide(delivery, outcome, PLAN, now_ms=now_ms)


@given(DELIVERIES, OUTCOMES, NOW)
def test_a_decision_settles_its_own_delivery_and_nothing_else(
    delivery: Delivery, outcome: Outcome, now_ms: int
) -> None:
    commit = decided(delivery, outcome, now_ms)
    assert commit.run_id == "run"
    assert commit.fence == EntryFence(delivery.route, delivery.entry, delivery.id)


@given(DELIVERIES, OUTCOMES, NOW)
def test_the_same_outcome_is_decided_the_same_way_anywhere(
    delivery: Delivery, outcome: Outcome, now_ms: int
) -> None:
    assert decided(delivery, outcome, now_ms) == decided(delivery, outcome, now_ms)


@given(DELIVERIES, OUTCOMES, NOW)
def test_a_delivery_is_in_one_place_afterwards(
    delivery: Delivery, outcome: Outcome, now_ms: int
) -> None:
    words = decided(delivery, outcome, now_ms).words
    goes_on = sum(
        isinstance(word, Wait)
        or (isinstance(word, SetTimer) and bool(re.search("/(back-off|unreadable)/", word.member)))
        or (isinstance(word, Emit) and word.deliveries[0][0] == delivery.id)
        for word in words
    )
    ends = sum(isinstance(word, End) for word in words)
    assert goes_on + ends <= 1
    assert goes_on + ends == 1 or isinstance(outcome, Returned)
    noted = [word for word in words if isinstance(word, Note)]
    assert all(note.delivery == delivery.id for note in noted)
    assert bool(noted) == any(isinstance(word, Wait | SetTimer) for word in words)


@given(DELIVERIES, OUTCOMES, NOW)
def test_an_end_is_the_last_word(delivery: Delivery, outcome: Outcome, now_ms: int) -> None:
    words = decided(delivery, outcome, now_ms).words
    behind = (
        words[[isinstance(word, End) for word in words].index(True) + 1 :]
        if any(isinstance(word, End) for word in words)
        else []
    )
    # What is given up is kept with the run that it ends, as long as that run is kept.
    assert all(isinstance(word, Save) for word in behind)
    assert bool(behind) == any(isinstance(word, End) and word.parks for word in words)
    assert sum(isinstance(word, DeadLetter) for word in words) == any(
        isinstance(word, End) and word.parks for word in words
    )


@given(DELIVERIES, OUTCOMES, NOW)
def test_every_unconfirmed_effect_goes_out_once_and_in_call_order(
    delivery: Delivery, outcome: Outcome, now_ms: int
) -> None:
    traces: Traces = getattr(outcome, "traces", Traces())
    expected = [part for effect in traces.effects for part in _written(effect)]
    words = list(decided(delivery, outcome, now_ms).words)
    found: list[Any] = []
    for word in words:
        if isinstance(word, Emit):
            found += [(word.route, name, record) for name, record in word.deliveries]
        elif (isinstance(word, Publish) and word.field) or isinstance(word, Publish):
            found.append(word.entry)
    assert found[: len(expected)] == expected


def _written(effect: Effect) -> list[Any]:
    if isinstance(effect, Shown):
        return [effect.entry]
    return [(route, name, effect.record) for route, name in effect.routes]


@given(DELIVERIES, OUTCOMES, NOW)
def test_guards_are_the_deliverys_own_and_forgotten_when_it_is_settled_for_good(
    delivery: Delivery, outcome: Outcome, now_ms: int
) -> None:
    words = decided(delivery, outcome, now_ms).words
    guards = {word.guard for word in words if isinstance(word, Emit | Publish)} - {""}
    assert guards <= {delivery.id}
    if guards and not isinstance(outcome, Suspended):
        assert Forget(delivery.id) in words


@given(DELIVERIES, OUTCOMES, NOW)
def test_contributions_have_what_they_rely_on(
    delivery: Delivery, outcome: Outcome, now_ms: int
) -> None:
    commit = decided(delivery, outcome, now_ms)
    applied = [word.buffer for word in commit.words if isinstance(word, Append | Take)]
    relied_on = [e.buffer for e in commit.expects if hasattr(e, "buffer")]  # type: ignore[union-attr]
    assert applied == relied_on
    collected: tuple[Collected, ...] = getattr(outcome, "collected", ())
    assert applied == [one.buffer for one in collected]
