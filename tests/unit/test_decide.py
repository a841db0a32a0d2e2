"""Each outcome of a delivery as the commit that it becomes."""

from __future__ import annotations

from typing import Any

import pytest

from stepfleet.codec import Codec, TypeRegistry
from stepfleet.core.commit import (
    Append,
    Commit,
    DeadLetter,
    Deadline,
    Emit,
    End,
    EntryFence,
    FewWaits,
    Forget,
    Is,
    Mark,
    Note,
    Publish,
    Quota,
    Route,
    Save,
    SetTimer,
    Take,
    Unlock,
    Version,
    Wait,
)
from stepfleet.core.decide import UNREADABLE_DELAY_MS, UNREADABLE_TRIES, decide, effects_commit
from stepfleet.core.delivery import Delivery, Record, delivery_id
from stepfleet.core.outcome import (
    Collected,
    Encoded,
    Failed,
    Lost,
    Returned,
    Send,
    Shown,
    Suspended,
    Traces,
    Unreadable,
)
from stepfleet.core.plan import Plan
from stepfleet.decorators import step
from stepfleet.errors import DeadLettered, DecodeError
from stepfleet.events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    WorkflowFailedEvent,
)
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from stepfleet.wire import (
    Expiry,
    Promotion,
    decode_public,
    decode_record,
    decode_timer,
    decode_waiter,
    encode_record,
)
from stepfleet.workflow import Workflow, graph_of

NOW_MS = 1_700_000_100_000


class Work(Event):
    number: int = 0


class Both(Event):
    pass


class Lonely(Event):
    pass


class Ask(InputRequiredEvent):
    pass


class Example(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Work | Both | Ask | Lonely | None:
        return None

    @step(num_workers=2, retry_policy=retry_policy(wait=wait_fixed(5), stop=stop_after_attempt(3)))
    async def work(self, ev: Work | Both) -> StopEvent | None:
        return None

    @step(retry_policy=retry_policy(wait=wait_fixed(0), stop=stop_after_attempt(3)))
    async def other(self, ev: Both | HumanResponseEvent) -> StopEvent | None:
        return None


def make_plan() -> Plan:
    graph = graph_of(Example, name="Example")
    registry = TypeRegistry()
    registry.reachable([*graph.event_types, Lonely])
    return Plan("Example", graph, registry, Codec(registry))


PLAN = make_plan()
BEGIN, WORK_WORK, WORK_BOTH, OTHER_BOTH = (
    next(route for route in PLAN.routes if (route.step, route.type) == pair)
    for pair in (("begin", "StartEvent"), ("work", "Work"), ("work", "Both"), ("other", "Both"))
)
FENCE = EntryFence(WORK_WORK, "5-0", "D" * 22)


def delivery(route: Route = WORK_WORK, deliveries: int = 1, **fields: Any) -> Delivery:
    record = Record(**({"parent": "P" * 22, "type_id": "Work", "payload": b"\x80"} | fields))
    return Delivery("run", "D" * 22, route, "5-0", record, deliveries)


def encoded(event: Event) -> Encoded:
    return Encoded(type(event), *PLAN.codec.encode_event(event))


def decided(outcome: Any, at: Delivery | None = None) -> Commit:
    commit = decide(at or delivery(), outcome, PLAN, now_ms=NOW_MS)
    assert commit.run_id == "run"
    return commit


def only(commit: Commit, kind: type) -> Any:
    (word,) = [word for word in commit.words if isinstance(word, kind)]
    return word


# -- returned ----------------------------------------------------------------------------------------


def test_a_step_that_returns_nothing_only_settles_its_delivery() -> None:
    assert decided(Returned(event=None)) == Commit("run", FENCE, [], [])


def test_a_returned_event_goes_to_the_step_that_accepts_it() -> None:
    event = encoded(Work(number=7))
    emit = only(decided(Returned(event=event)), Emit)
    ((name, record),) = emit.deliveries
    assert emit.route == WORK_WORK
    assert (emit.guard, emit.awaitable, emit.also) == ("", True, False)
    assert name == delivery_id("D" * 22, "work", "return", 0)
    assert decode_record(record) == Record("D" * 22, event.type_id, event.payload)


def test_an_event_that_two_steps_accept_goes_to_both_under_two_ids() -> None:
    first, second = decided(Returned(event=encoded(Both()))).words
    assert isinstance(first, Emit)
    assert isinstance(second, Emit)
    assert [first.route, second.route] == [WORK_BOTH, OTHER_BOTH]
    assert [first.also, second.also] == [False, True]
    assert first.deliveries[0][0] != second.deliveries[0][0]
    assert first.deliveries[0][1] == second.deliveries[0][1]


def test_an_event_that_nobody_accepts_goes_to_the_waiters() -> None:
    assert only(decided(Returned(event=encoded(Lonely()))), Emit).route == PLAN.system


def test_a_question_to_a_human_is_published_and_goes_nowhere() -> None:
    (word,) = decided(Returned(event=encoded(Ask()))).words
    assert isinstance(word, Publish)
    assert decode_public(word.entry).type_id == "Ask"


def test_a_stop_event_ends_the_run_and_is_its_last_word() -> None:
    *_, word = decided(Returned(event=encoded(StopEvent(result=1)))).words
    assert isinstance(word, End)
    entry = decode_public(word.entry)
    assert (word.status, word.parks) == ("completed", False)
    assert (entry.kind, entry.step, entry.delivery) == ("end", "work", "D" * 22)
    event = PLAN.codec.decode_event(entry.type_id, entry.payload)
    assert isinstance(event, StopEvent)
    assert event.result == 1


def test_trace_headers_and_lineage_travel_on() -> None:
    at = delivery(headers={"traceparent": "x"}, lineage={"budget": 1})
    emit = only(decided(Returned(event=encoded(Work())), at), Emit)
    record = decode_record(emit.deliveries[0][1])
    assert (record.headers, record.lineage) == ({"traceparent": "x"}, {"budget": 1})
    assert (record.attempt, record.first_ms, record.journal) == (1, 0, None)


def test_a_first_delivery_arms_the_deadline_with_its_age() -> None:
    first = delivery(BEGIN, parent="run")
    outcome = Returned(event=None, traces=Traces(age_ms=250))
    assert decided(outcome, first).words == [Deadline(250)]
    assert decided(outcome).words == []


# -- what it left behind -----------------------------------------------------------------------------


def send(name: str, *routes: Route) -> Send:
    return Send(tuple((route, f"{name}:{route.step}") for route in routes), name.encode())


def test_effects_go_first_in_call_order() -> None:
    effects = [
        send("a", WORK_WORK),
        send("b", WORK_WORK),
        Shown(b"shown", "p1:x:1"),
        send("c", WORK_BOTH, OTHER_BOTH),
        send("d", WORK_WORK),
    ]
    commit = decided(Returned(event=encoded(StopEvent()), traces=Traces(effects=effects)))
    assert commit.words[:-1] == [
        Emit(WORK_WORK, (("a:work", b"a"), ("b:work", b"b"))),
        Publish(b"shown", "", "p1:x:1"),
        Emit(WORK_BOTH, (("c:work", b"c"),)),
        Emit(OTHER_BOTH, (("c:other", b"c"),), also=True),
        Emit(WORK_WORK, (("d:work", b"d"),)),
    ]


def test_effects_of_a_delivery_that_sent_some_early_are_guarded_and_forgotten() -> None:
    traces = Traces(effects=[send("a", WORK_WORK), Shown(b"s", "f")], guarded=True)
    guard = "D" * 22
    assert decided(Returned(event=None, traces=traces)).words == [
        Emit(WORK_WORK, (("a:work", b"a"),), guard),
        Publish(b"s", guard, "f"),
        Forget(guard),
    ]


def test_early_effects_are_guarded_and_may_arm_the_deadline() -> None:
    first = delivery(BEGIN, parent="run")
    assert effects_commit(first, [Shown(b"s", "f")], age_ms=3) == [
        Deadline(3),
        Publish(b"s", "D" * 22, "f"),
    ]


def test_a_repeated_execution_marks_what_it_did_not_repeat() -> None:
    traces = Traces(guarded=True, repeated=True, published=("f", "g"))
    mark = only(decided(Returned(event=None, traces=traces)), Mark)
    assert (mark.guard, mark.repeated) == ("D" * 22, ("f", "g"))
    assert decode_public(mark.entry).kind == "mark"


@pytest.mark.parametrize("outcome", ["returned", "failed", "suspended"])
def test_every_outcome_frees_the_edit_lock(outcome: str) -> None:
    traces = Traces(lock="token")
    made: Any = {
        "returned": Returned(event=None, traces=traces),
        "failed": Failed(error=ValueError(), traces=traces),
        "suspended": suspended(traces=traces),
    }[outcome]
    assert only(decided(made), Unlock) == Unlock("token")


# -- joins -------------------------------------------------------------------------------------------


def test_a_contribution_expects_that_it_does_not_complete_its_buffer() -> None:
    quota = (("Work", 2),)
    collected = Collected("work:default", "Work", b"e", quota, None)
    commit = decided(Returned(event=None, collected=(collected,)))
    assert commit.expects == [Quota("work:default", "Work", quota)]
    assert commit.words == [Append("work:default", "Work", b"e")]


def test_a_release_expects_the_content_that_was_read() -> None:
    collected = Collected("work:default", "Work", b"e", (("Work", 2),), 4)
    commit = decided(Returned(event=encoded(Work()), collected=(collected,)))
    assert commit.expects == [Version("work:default", 4)]
    assert commit.words[0] == Take("work:default", 4)
    assert isinstance(commit.words[1], Emit)


# -- failed ------------------------------------------------------------------------------------------


def test_a_failed_step_runs_again_after_its_delay_as_the_next_attempt() -> None:
    commit = decided(Failed(error=ValueError("no"), traces=Traces(age_ms=100)))
    timer = only(commit, SetTimer)
    promotion = decode_timer(timer.data)
    assert isinstance(promotion, Promotion)
    record = decode_record(promotion.record)
    assert (promotion.route, promotion.delivery) == (WORK_WORK, "D" * 22)
    assert timer.delay_ms == 5_000
    assert timer.member.startswith("run/")
    assert (record.attempt, record.first_ms) == (2, NOW_MS - 100)
    assert record.failure is not None
    assert record.failure[0] == NOW_MS
    assert isinstance(PLAN.codec.decode_error(record.failure[1]), ValueError)
    assert only(commit, Note) == Note("D" * 22, "timer back-off 2 Work:work")


def test_a_retry_without_a_delay_goes_straight_to_its_stream() -> None:
    at = delivery(OTHER_BOTH, type_id="Both")
    commit = decided(Failed(error=ValueError("no")), at)
    emit = only(commit, Emit)
    assert emit.deliveries[0][0] == "D" * 22
    assert not emit.awaitable
    assert decode_record(emit.deliveries[0][1]).attempt == 2


def test_a_retry_keeps_answers_and_forgets_time_outs_and_effects_of_the_attempt_before() -> None:
    journal = [["answer", "w"], ["time-out", "x"]]
    at = delivery(OTHER_BOTH, type_id="Both", journal=journal, first_ms=NOW_MS - 9_000)
    commit = decided(Failed(error=ValueError("no"), traces=Traces(guarded=True)), at)
    record = decode_record(only(commit, Emit).deliveries[0][1])
    assert record.journal == [["answer", "w"]]
    assert record.first_ms == NOW_MS - 9_000
    assert only(commit, Forget) == Forget("D" * 22)


@pytest.mark.parametrize(
    ("at", "attempts"),
    [(delivery(attempt=3), 3), (delivery(BEGIN, type_id="StartEvent"), 1)],
    ids=["after its attempts", "without a policy"],
)
def test_a_step_that_gives_up_fails_the_run(at: Delivery, attempts: int) -> None:
    commit = decided(Failed(error=ValueError("no"), traces=Traces(age_ms=2_000)), at)
    word = only(commit, End)
    fields = dict(zip(word.fields[::2], word.fields[1::2], strict=True))
    assert (word.status, word.parks, fields["step"]) == ("failed", False, at.route.step)
    error = PLAN.codec.decode_error(fields["error"])
    assert isinstance(error, ValueError)
    entry = decode_public(word.entry)
    event = PLAN.codec.decode_event(entry.type_id, entry.payload)
    assert isinstance(event, WorkflowFailedEvent)
    assert (event.step_name, event.attempts) == (at.route.step, attempts)
    assert event.elapsed_seconds == 2.0


def test_a_failed_attempt_leaves_its_effects_and_none_of_its_contributions() -> None:
    traces = Traces(effects=[send("a", WORK_WORK)])
    commit = decided(Failed(error=ValueError("no"), traces=traces))
    assert commit.words[0] == Emit(WORK_WORK, (("a:work", b"a"),))
    assert not any(isinstance(word, Append | Take) for word in commit.words)
    assert list(commit.expects) == []


def test_what_is_no_exception_is_not_retried() -> None:
    assert only(decided(Failed(error=KeyboardInterrupt())), End).status == "failed"


# -- suspended ---------------------------------------------------------------------------------------


def suspended(**more: Any) -> Suspended:
    fields: dict[str, Any] = {
        "event_type": HumanResponseEvent,
        "waiter_id": "w",
        "requirements": b"\x80",
        "timeout": None,
        "request": None,
        "journal": [],
    }
    return Suspended(**(fields | more))


def test_a_suspended_step_becomes_a_waiter_with_all_it_needs_to_go_on() -> None:
    journal = [["answer", "v", "HumanResponseEvent", b"\x80"]]
    commit = decided(suspended(journal=journal), delivery(attempt=2))
    wait = only(commit, Wait)
    waiter = decode_waiter(wait.data)
    assert wait.type == waiter.type == "HumanResponseEvent"
    assert (waiter.waiter_id, waiter.route, waiter.delivery) == ("w", WORK_WORK, "D" * 22)
    assert decode_record(waiter.record) == delivery(attempt=2, journal=journal).record
    assert waiter.timer == ""
    assert only(commit, Note).where == "waiting HumanResponseEvent Work:work"
    assert not any(isinstance(word, SetTimer) for word in commit.words)


def test_a_wait_looks_at_the_inbox_once_more() -> None:
    assert decided(suspended(inbox_seen="3")).expects == [Is("inbox", "3"), FewWaits()]


def test_a_wait_with_a_time_out_sets_a_timer_that_names_it() -> None:
    commit = decided(suspended(timeout=1.5))
    timer, wait = only(commit, SetTimer), only(commit, Wait)
    assert timer.delay_ms == 1_500
    assert decode_timer(timer.data) == Expiry(wait.waiter)
    assert decode_waiter(wait.data).timer == timer.member


def test_a_wait_publishes_its_question_and_applies_its_contributions_once() -> None:
    collected = Collected("b", "Work", b"e", (("Work", 2),), None)
    commit = decided(suspended(request=encoded(Ask()), collected=(collected,)))
    assert decode_public(only(commit, Publish).entry).type_id == "Ask"
    assert only(commit, Append).buffer == "b"
    assert commit.expects == [Quota("b", "Work", (("Work", 2),)), Is("inbox", ""), FewWaits()]


def test_what_a_waiting_step_sent_is_remembered_for_its_replay() -> None:
    commit = decided(suspended(traces=Traces(effects=[send("a", WORK_WORK)], guarded=True)))
    assert only(commit, Emit).guard == "D" * 22
    assert not any(isinstance(word, Forget | Mark) for word in commit.words)


def test_a_wait_that_takes_subclasses_is_counted_for_every_type() -> None:
    assert only(decided(suspended(subclasses=True)), Wait).type == "*"


# -- lost and unreadable -----------------------------------------------------------------------------


def test_a_delivery_whose_workers_died_ends_the_run_and_keeps_what_is_pending() -> None:
    at = delivery(deliveries=4)
    commit = decided(Lost(), at)
    letter, end, kept = commit.words
    assert kept == Save("D" * 22, "Work:work", encode_record(at.record))
    assert isinstance(letter, DeadLetter)
    assert isinstance(end, End)
    fields = dict(zip(letter.fields[::2], letter.fields[1::2], strict=True))
    assert (fields["run"], fields["delivery"], fields["lost"]) == ("run", "D" * 22, 3)
    assert fields["record"] == encode_record(at.record)
    assert "died 3 times" in str(fields["reason"])
    assert (end.status, end.parks) == ("failed", True)


def test_what_this_code_cannot_read_waits_for_other_code() -> None:
    commit = decided(Unreadable(error=DecodeError("unknown", b"")))
    timer = only(commit, SetTimer)
    promotion = decode_timer(timer.data)
    assert isinstance(promotion, Promotion)
    assert timer.delay_ms == UNREADABLE_DELAY_MS
    assert decode_record(promotion.record).attempt == -1


def test_what_nobody_could_read_is_a_dead_letter_in_the_end() -> None:
    at, tries = delivery(), 0
    while True:
        commit = decided(Unreadable(error=DecodeError("unknown", b"")), at)
        timers = [word for word in commit.words if isinstance(word, SetTimer)]
        if not timers:
            break
        tries += 1
        promotion = decode_timer(timers[0].data)
        assert isinstance(promotion, Promotion)
        at = at._replace(record=decode_record(promotion.record))
    assert tries == UNREADABLE_TRIES
    end = only(commit, End)
    fields = dict(zip(end.fields[::2], end.fields[1::2], strict=True))
    assert isinstance(PLAN.codec.decode_error(fields["error"]), DeadLettered)
