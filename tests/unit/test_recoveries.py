"""Which `catch_error` step handles whose failures, and every complaint about one that does not fit."""

from __future__ import annotations

import re
from typing import Any

import pytest

from stepfleet.codec import Codec, TypeRegistry
from stepfleet.core.commit import Emit, End, SetTimer
from stepfleet.core.decide import decide
from stepfleet.core.delivery import Delivery, Record
from stepfleet.core.outcome import Failed
from stepfleet.core.plan import Plan
from stepfleet.decorators import CatchErrorHandler, catch_error, make_step_function, step
from stepfleet.errors import WorkflowValidationError
from stepfleet.events import Event, StartEvent, StepFailedEvent, StopEvent
from stepfleet.recoveries import handlers_by_step
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from stepfleet.wire import decode_record
from stepfleet.workflow import Workflow, graph_of

NOW_MS = 1_700_000_100_000


def handler(name: str, for_steps: list[str] | None = None) -> CatchErrorHandler:
    return CatchErrorHandler(name, for_steps, 1)


def test_a_named_step_goes_to_its_handler_and_the_others_to_the_one_for_all() -> None:
    one, rest = handler("one", ["a"]), handler("rest")
    assert handlers_by_step(["a", "b", "one", "rest"], [rest, one]) == {"a": one, "b": rest}


def test_without_one_for_all_the_other_steps_have_none() -> None:
    one = handler("one", ["a"])
    assert handlers_by_step(["a", "b", "one"], [one]) == {"a": one}


@pytest.mark.parametrize(
    ("handlers", "complaint"),
    [
        (
            [handler("y"), handler("x")],
            "Only one wildcard @catch_error handler is allowed per workflow, found 2: x, y",
        ),
        (
            [handler("x", ["nope"])],
            "@catch_error handler 'x' lists unknown step 'nope' in for_steps.",
        ),
        (
            [handler("x", ["y"]), handler("y", ["a"])],
            "@catch_error handler 'x' cannot cover another handler step 'y'.",
        ),
        ([handler("x", ["x"])], "@catch_error handler 'x' cannot cover another handler step 'x'."),
        (
            [handler("y", ["a"]), handler("x", ["a"])],
            "Step 'a' is claimed by two @catch_error handlers: 'x' and 'y'.",
        ),
    ],
)
def test_handlers_that_do_not_fit_are_named(
    handlers: list[CatchErrorHandler], complaint: str
) -> None:
    with pytest.raises(WorkflowValidationError, match=f"^{re.escape(complaint)}$"):
        handlers_by_step(["a", "x", "y"], handlers)


def test_all_complaints_come_at_once() -> None:
    with pytest.raises(WorkflowValidationError, match="unknown step 'n'.*\n.*unknown step 'm'"):
        handlers_by_step(["a", "x"], [handler("x", ["n", "m"])])


def test_a_handler_accepts_exactly_the_failure() -> None:
    with pytest.raises(
        WorkflowValidationError,
        match="handler 'rescue' must accept StepFailedEvent as its event parameter",
    ):

        @catch_error
        async def rescue(ev: StartEvent) -> StopEvent:
            return StopEvent()


@pytest.mark.parametrize("wrong", [0, -1, "2", 1.5, True])
def test_a_budget_is_an_integer_from_one_on(wrong: Any) -> None:
    with pytest.raises(WorkflowValidationError, match="max_recoveries must be an integer >= 1"):
        catch_error(max_recoveries=wrong)


@pytest.mark.parametrize("wrong", ["work", [1]])
def test_the_scope_is_a_list_of_names(wrong: Any) -> None:
    with pytest.raises(WorkflowValidationError, match="for_steps must be None or a list"):
        catch_error(for_steps=wrong)


def test_a_function_can_be_made_a_step_and_added_later() -> None:
    class Flow(Workflow):
        pass

    async def begin(ev: StartEvent) -> StopEvent:
        return StopEvent()

    @catch_error
    async def rescue(ev: StepFailedEvent) -> StopEvent:
        return StopEvent()

    assert make_step_function(begin, num_workers=2) is begin
    Flow.add_step(begin)
    Flow.add_step(rescue)
    graph = graph_of(Flow)
    assert graph.steps["begin"].num_workers == 2
    assert graph.handlers == {"begin": CatchErrorHandler("rescue", None, 1)}
    assert Flow().validate() is False


# -- the decision ----------------------------------------------------------------------------------


class Item(Event):
    n: int = 0


class Rescued(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item()

    @step(retry_policy=retry_policy(wait=wait_fixed(5), stop=stop_after_attempt(2)))
    async def work(self, ev: Item) -> StopEvent:
        return StopEvent()

    @catch_error(max_recoveries=2)
    async def rescue(self, ev: StepFailedEvent) -> StopEvent:
        return StopEvent()


def make_plan() -> Plan:
    graph = graph_of(Rescued)
    registry = TypeRegistry()
    registry.reachable(graph.event_types)
    return Plan("Rescued", graph, registry, Codec(registry))


PLAN = make_plan()
WORK = next(route for route in PLAN.routes if route.step == "work")
RESCUE = next(route for route in PLAN.routes if route.step == "rescue")


def failed(attempt: int, lineage: dict[str, Any] | None = None) -> list[Any]:
    record = Record(
        "P" * 22,
        *PLAN.codec.encode_event(Item(n=3)),
        attempt=attempt,
        first_ms=NOW_MS - 1500,
        lineage=lineage,
        headers={"trace": "t"},
    )
    delivery = Delivery("run", "D" * 22, WORK, "5-0", record)
    commit = decide(delivery, Failed(error=ValueError("no")), PLAN, now_ms=NOW_MS)
    return list(commit.words)


def test_a_retry_comes_before_the_handler() -> None:
    assert [type(word) for word in failed(1)][:1] == [SetTimer]


def test_the_last_failure_goes_to_the_handler_with_a_budget_that_is_one_smaller() -> None:
    (word,) = failed(2)
    assert isinstance(word, Emit)
    assert (word.route, word.awaitable) == (RESCUE, False)
    ((name, data),) = word.deliveries
    record = decode_record(data)
    assert (record.parent, record.headers, record.attempt) == ("D" * 22, {"trace": "t"}, 1)
    assert record.lineage == {"recoveries": {"rescue": 1}}
    event = PLAN.codec.decode_event(record.type_id, record.payload)
    assert isinstance(event, StepFailedEvent)
    assert (event.step_name, event.attempts, event.elapsed_seconds) == ("work", 2, 1.5)
    assert event.input_event == Item(n=3)
    assert event.failed_at.timestamp() * 1000 == NOW_MS
    # The same failure makes the same delivery.
    assert failed(2)[0].deliveries[0][0] == name


def test_what_else_a_line_of_events_inherits_stays() -> None:
    (word,) = failed(2, {"other": [1], "recoveries": {"rescue": 1, "x": 5}})
    lineage = decode_record(word.deliveries[0][1]).lineage
    assert lineage == {"other": [1], "recoveries": {"rescue": 2, "x": 5}}


def test_a_used_up_budget_ends_the_run() -> None:
    (word,) = failed(2, {"recoveries": {"rescue": 2}})
    assert isinstance(word, End)
    assert word.status == "failed"
