"""One execution of a delivery: what a step does becomes effects and intents, without Redis."""

from __future__ import annotations

from typing import Any

import pytest

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.codec import Limits
from stepfleet.core.delivery import Delivery, Record
from stepfleet.core.outcome import Send, Shown
from stepfleet.errors import EncodeError, StaleExecution, WorkflowRuntimeError
from stepfleet.planning import make_plan
from stepfleet.store import LocalPort, StateStore
from stepfleet.wire import (
    BufferedEvent,
    Unclaimed,
    decode_record,
    encode_buffered,
    encode_unclaimed,
)
from stepfleet.worker.execution import NOTHING_KNOWN, BufferContent, Execution, Known, Suspend, fits


class A(Event):
    n: int = 0


class Special(A):
    pass


class B(Event):
    n: int = 0


class Flow(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> A | B | Special | None: ...

    @step
    async def join(self, ctx: Context, ev: A | B | Special) -> StopEvent | None: ...

    @step
    async def other(self, ev: A) -> StopEvent: ...


PLAN = make_plan(Flow, "Flow", limits=Limits(), open_types=False)
JOIN = PLAN.graph.steps["join"]


def execution(
    known: Known = NOTHING_KNOWN, *, journal: list[Any] | None = None, attempt: int = 1
) -> Execution:
    """An execution of `join`; `flushes` counts how often it asked for its effects to go out."""
    route = next(route for route in PLAN.routes if (route.step, route.type) == ("join", "A"))
    type_id, payload = PLAN.codec.encode_event(A(n=1))
    record = Record("parent", type_id, payload, attempt=attempt, journal=journal)
    made = Execution(
        Delivery("run", "d1", route, "1-0", record),
        PLAN,
        JOIN,
        token="t.1",
        known=known,
        rerun=False,
        flush_soon=lambda _: flushes.append(1),
        now_ms=lambda: 0,
        open_store=lambda _: StateStore(LocalPort()),
    )
    flushes: list[int] = []
    made.flushes = flushes  # type: ignore[attr-defined]
    return made


def buffered(*events: Event) -> list[bytes]:
    return [encode_buffered(BufferedEvent(*PLAN.codec.encode_event(event))) for event in events]


def sent(made: Execution) -> list[tuple[list[str], list[str], str]]:
    return [
        (
            [route.step for route, _ in effect.routes],
            [name for _, name in effect.routes],
            decode_record(effect.record).type_id,
        )
        for effect in made.take_effects()
        if isinstance(effect, Send)
    ]


# -- effects -------------------------------------------------------------------------------------------


def test_an_event_goes_to_every_step_that_accepts_it_or_to_one() -> None:
    made = execution()
    made.send(A(), None)
    made.send(A(), "other")
    made.send(StopEvent(), None)
    assert [(steps, type_id) for steps, _, type_id in sent(made)] == [
        (["join", "other"], "A"),
        (["other"], "A"),
        ([""], "StopEvent"),
    ]


@pytest.mark.parametrize(
    ("event", "target", "message"),
    [
        (A(), "nope", "^Step nope does not exist$"),
        (B(), "other", "^Step other does not accept event of type <class"),
    ],
)
def test_a_wrong_target_is_refused(event: Event, target: str, message: str) -> None:
    with pytest.raises(WorkflowRuntimeError, match=message):
        execution().send(event, target)


def test_an_event_that_cannot_travel_is_refused() -> None:
    made = execution()
    with pytest.raises(EncodeError, match="callback"):
        made.send(A(callback=print), None)  # type: ignore[call-arg]
    with pytest.raises(EncodeError, match="callback"):
        made.publish(A(callback=print))  # type: ignore[call-arg]
    assert made.take_effects() == []


def test_equal_sends_differ_by_their_occurrence_and_are_the_same_in_every_execution() -> None:
    names: list[list[str]] = []
    for made in (execution(), execution(), execution(attempt=2)):
        for event in (A(n=1), A(n=1), A(n=2)):
            made.send(event, "other")
        names.append([only for _, [only], _ in sent(made)])
    assert len(set(names[0])) == 3
    assert names[0] == names[1]
    assert not set(names[0]) & set(names[2]), "another attempt sends anew"


def test_effects_keep_their_order_and_ask_once_to_go_out() -> None:
    made = execution()
    made.publish(A(n=1))
    made.send(A(n=2), "other")
    made.publish(A(n=1))
    effects = made.take_effects()
    assert [type(effect) for effect in effects] == [Shown, Send, Shown]
    fields = [effect.field for effect in effects if isinstance(effect, Shown)]
    assert len(set(fields)) == 2
    assert made.flushes == [1]  # type: ignore[attr-defined]
    made.publish(A(n=3))
    assert made.flushes == [1, 1]  # type: ignore[attr-defined]


def test_what_did_not_go_out_leaves_with_the_outcome() -> None:
    made = execution()
    made.send(A(), "other")
    traces = made.traces(age_ms=5)
    assert (len(traces.effects), traces.guarded, traces.age_ms) == (1, False, 5)
    made = execution()
    made.publish(A())
    made.take_effects()
    made.next_call()
    traces = made.traces(age_ms=0)
    assert (traces.effects, traces.guarded, len(traces.published)) == ([], True, 1)


def test_after_its_end_nothing_has_an_effect() -> None:
    made = execution()
    made.end("the step has returned")
    for call in (
        lambda: made.send(A(), None),
        lambda: made.publish(A()),
        lambda: made.collect(A(), [A], None),
    ):
        with pytest.raises(StaleExecution, match="has no effect any more: the step has returned"):
            call()


# -- collects ------------------------------------------------------------------------------------------


def test_nothing_expected_or_only_this_event_is_answered_without_a_buffer() -> None:
    made = execution()
    assert made.collect(A(), [], None) == []
    assert made.collect(A(n=5), [A], None) == [A(n=5)]
    assert made.collected == []


def test_a_blind_collect_returns_none_and_leaves_its_contribution() -> None:
    made = execution()
    assert made.collect(A(n=5), [A, B, A], "mine") is None
    [one] = made.collected
    assert (one.buffer, one.type, dict(one.quota), one.released) == (
        "join:mine",
        "A",
        {"A": 2, "B": 1},
        None,
    )


def test_an_informed_collect_releases_what_is_complete_in_the_expected_order() -> None:
    content = BufferContent(4, buffered(A(n=1), B(n=2)))
    made = execution(Known({"join:default": content}))
    released = made.collect(A(n=3), [B, A, A], None)
    assert released == [B(n=2), A(n=1), A(n=3)]
    assert made.collected[0].released == 4


@pytest.mark.parametrize(
    "content",
    [
        pytest.param([A(n=1)], id="something lacks"),
        pytest.param([A(n=1), A(n=2)], id="there are enough of its type"),
    ],
)
def test_an_informed_collect_that_completes_nothing_returns_none(content: list[Event]) -> None:
    made = execution(Known({"join:default": BufferContent(4, buffered(*content))}))
    assert made.collect(A(n=3), [A, A, B], None) is None
    assert made.collected[0].released is None


# -- waits ---------------------------------------------------------------------------------------------


async def wait(made: Execution, event_type: type[Event] = A, **options: Any) -> Event:
    defaults = {"request": None, "waiter_id": None, "requirements": {}, "timeout": 9.0}
    return await made.wait(event_type, **{**defaults, **options})


async def test_a_wait_suspends_with_a_name_made_of_its_requirements() -> None:
    with pytest.raises(Suspend) as caught:
        await wait(execution(), requirements={"n": 3}, request=B(n=1))
    assert caught.value.waiter_id == 'waiter_A_{"n": 3}'
    assert (caught.value.timeout, caught.value.request) == (9.0, B(n=1))
    with pytest.raises(Suspend) as caught:
        await wait(execution(), waiter_id="mine")
    assert caught.value.waiter_id == "mine"
    assert not isinstance(caught.value, Exception)


async def test_a_replay_gets_its_answers_from_the_journal() -> None:
    type_id, payload = PLAN.codec.encode_event(A(n=7))
    journal = [
        ["collect", buffered(A(n=1), B(n=2))],
        ["answer", "one", type_id, payload],
        ["time-out", "two"],
    ]
    made = execution(journal=journal)
    assert made.collect(A(n=1), [A, B], None) == [A(n=1), B(n=2)]
    assert await wait(made, waiter_id="one") == A(n=7)
    with pytest.raises(TimeoutError, match="^Timed out waiting for A$"):
        await wait(made, waiter_id="two")
    assert made.collected == []
    with pytest.raises(Suspend):
        await wait(made, waiter_id="three")
    assert made.journal_so_far() == journal


async def test_an_answer_in_the_inbox_is_taken_and_remembered() -> None:
    type_id, payload = PLAN.codec.encode_event(A(n=7))
    element = encode_unclaimed(Unclaimed(type_id, payload, 3))
    made = execution(Known({}, inbox=(element,), inbox_seen="1"))
    with pytest.raises(Suspend):
        await wait(made, requirements={"n": 8})
    assert await wait(made, requirements={"n": 7}, waiter_id="w") == A(n=7)
    assert made.journal_so_far() == [["answer", "w", type_id, payload]]
    with pytest.raises(Suspend):
        await wait(made, requirements={"n": 7}, waiter_id="another")


@pytest.mark.parametrize(
    ("event", "requirements", "subclasses", "expected"),
    [
        (A(n=1), {}, False, True),
        (A(n=1), {"n": 1}, False, True),
        (A(n=1), {"n": 2}, False, False),
        (A(n=1), {"missing": None}, False, True),
        (A(n=1, more="x"), {"more": "x"}, False, True),  # type: ignore[call-arg]
        (Special(), {}, False, False),
        (Special(), {}, True, True),
        (B(), {}, True, False),
    ],
)
def test_an_event_fits_by_type_and_by_every_requirement(
    event: Event, requirements: dict[str, Any], subclasses: bool, expected: bool
) -> None:
    assert fits(event, A, requirements, subclasses=subclasses) is expected
