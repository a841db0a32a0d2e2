"""Rows of a history, unfolded into the internal events of the programming model."""

from __future__ import annotations

from typing import Any

from stepfleet.codec import Codec, TypeRegistry
from stepfleet.core.commit import Commit, End, EntryFence, Publish, Route, Tell
from stepfleet.core.delivery import Delivery, Record
from stepfleet.core.history import Unfolding, keeps_history, settled
from stepfleet.core.outcome import Returned
from stepfleet.core.plan import Plan
from stepfleet.decorators import step
from stepfleet.events import (
    Event,
    StartEvent,
    StepState,
    StepStateChanged,
    StopEvent,
    UnhandledEvent,
    WorkflowIdleEvent,
)
from stepfleet.wire import HistoryRow, decode_history_row
from stepfleet.workflow import Workflow, graph_of


class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


def make_plan() -> Plan:
    graph = graph_of(Flow)
    registry = TypeRegistry()
    registry.reachable(graph.event_types)
    return Plan("Flow", graph, registry, Codec(registry))


PLAN = make_plan()
(BEGIN,) = PLAN.routes


def delivery(lineage: dict[str, Any] | None) -> Delivery:
    return Delivery("run", "D", BEGIN, "1-0", Record("run", "StartEvent", b"\x80", lineage=lineage))


def settling(*words: Any) -> Commit:
    return Commit("run", EntryFence(BEGIN, "1-0", "D"), list(words))


def row(words: Any) -> HistoryRow:
    (tell,) = [word for word in words if isinstance(word, Tell)]
    return decode_history_row(tell.row)


def test_a_run_that_keeps_no_history_has_the_commit_that_it_had() -> None:
    commit, one = settling(), delivery(None)
    assert not keeps_history(one.record)
    assert settled(commit, one, Returned(event=None), PLAN) is commit
    assert settled(commit, delivery({"recoveries": {}}), Returned(event=None), PLAN) is commit


def test_the_row_stands_before_the_end_and_counts_what_is_published_behind_it() -> None:
    commit = settling(Publish(b"early", "D", "p1"), Publish(b"late"), End("completed", b""))
    words = settled(commit, delivery({"history": 1}), Returned(event=None), PLAN).words
    assert [type(word) for word in words] == [Publish, Publish, Tell, End]
    found = row(words)
    assert (found.delivery, found.step, found.outcome, found.output) == (
        "D",
        "begin",
        "returned",
        "NoneType",
    )
    assert (found.input, found.ends, found.late) == ("stepfleet.events.StartEvent", True, 1)


def lines(unfolding: Unfolding, told: HistoryRow, **opened: str) -> list[str]:
    return [shown(event) for part in unfolding.told(told, opened) for event in part]


def shown(event: Event) -> str:
    match event:
        case StepStateChanged(step_state=StepState.PREPARING):
            return f"? {event.name} {event.worker_id}"
        case StepStateChanged(step_state=state):
            return f"{'+' if state is StepState.RUNNING else '-'} {event.name} {event.worker_id}"
        case UnhandledEvent():
            return f"unhandled {event.event_type} {event.idle}"
        case WorkflowIdleEvent():
            return "idle"
        case _:
            return str(event)


def test_executions_take_the_smallest_free_number_of_their_step() -> None:
    unfolding = Unfolding()
    start = HistoryRow(emitted=(("work", "m.Item", ("a", "b", "c")),))
    assert lines(unfolding, start, a="stream 1-0 Item:work", b="stream 2-0 Item:work") == [
        "+ work 0",
        "+ work 1",
        "? work <enqueued>",
    ]
    first = HistoryRow(delivery="a", step="work", input="m.Item", outcome="returned")
    assert lines(unfolding, first, c="stream 3-0 Item:work") == ["- work 0", "+ work 0"]


def test_what_was_let_go_without_a_row_begins_when_it_ends() -> None:
    unfolding = Unfolding()
    lines(unfolding, HistoryRow(emitted=(("work", "m.Item", ("a",)),)))
    done = HistoryRow(delivery="a", step="work", input="m.Item", outcome="returned")
    assert lines(unfolding, done) == ["+ work 0", "- work 0", "idle"]


def test_an_event_that_is_emitted_again_is_told_once() -> None:
    unfolding = Unfolding()
    sent = HistoryRow(delivery="p", emitted=(("work", "m.Item", ("a",)),))
    assert lines(unfolding, sent, a="stream 1-0 Item:work") == ["+ work 0"]
    assert lines(unfolding, sent) == []


def test_a_run_is_idle_once_and_not_while_something_backs_off_or_is_looked_at() -> None:
    unfolding = Unfolding()
    start = HistoryRow(emitted=(("work", "m.Item", ("a",)),))
    lines(unfolding, start, a="stream 1-0 Item:work")
    failed = HistoryRow(delivery="a", step="work", input="m.Item", outcome="failed")
    assert lines(unfolding, failed, a="timer back-off Item:work") == ["- work 0"]
    assert lines(unfolding, HistoryRow(), a="stream 2-0 Item:work") == ["+ work 0"]
    returned = HistoryRow(
        delivery="a", step="work", outcome="returned", emitted=(("", "m.Stray", ("s",)),)
    )
    assert lines(unfolding, returned, s="stream 3-0 __sys") == ["- work 0"]
    nobody = HistoryRow(delivery="s", unhandled=("m.Stray", ""))
    assert lines(unfolding, nobody) == ["unhandled Stray True", "idle"]
    assert lines(unfolding, HistoryRow(delivery="x")) == []


def test_the_end_of_a_run_is_no_idleness() -> None:
    unfolding = Unfolding()
    last = HistoryRow(delivery="a", step="work", outcome="returned", ends=True)
    assert lines(unfolding, last) == ["+ work 0", "- work 0"]


def test_the_system_stream_is_no_step() -> None:
    assert Route("Flow", "__sys", "").label == "__sys"
    assert lines(Unfolding(), HistoryRow(), s="stream 1-0 __sys") == []
