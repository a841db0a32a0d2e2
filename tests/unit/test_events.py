"""Events keep declared and dynamic fields apart, as the programming model says."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import PrivateAttr, ValidationError

from stepfleet.events import (
    CollectionReleaseEvent,
    Event,
    HumanResponseEvent,
    IdleReleasedEvent,
    InputRequiredEvent,
    InternalDispatchEvent,
    SerializableEventType,
    StartEvent,
    StepFailedEvent,
    StepState,
    StepStateChanged,
    StopEvent,
    UnhandledEvent,
    UnreconstructedException,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowIdleEvent,
    WorkflowTimedOutEvent,
)


class Order(Event):
    amount: int = 0
    _note: str = PrivateAttr(default="none")


def order_with(**fields: Any) -> Order:
    """Give an order with undeclared fields, of which type checkers know nothing."""
    return Order(**fields)


class Question(StartEvent):
    topic: str


def test_declared_fields_are_validated_at_construction() -> None:
    assert Order(amount="5").amount == 5  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValidationError):
        Order(amount="many")  # pyright: ignore[reportArgumentType]


def test_assignment_is_not_validated() -> None:
    order = Order()
    order.amount = "many"  # pyright: ignore[reportAttributeAccessIssue]
    assert order.amount == "many"


def test_undeclared_keywords_become_attributes() -> None:
    assert Event(topic="ships").topic == "ships"


def test_dynamic_fields_are_set_by_attribute_and_by_key() -> None:
    event = Event()
    event.topic = "ships"
    event["tone"] = "dry"
    assert event.to_dict() == {"topic": "ships", "tone": "dry"}


def test_a_missing_attribute_is_named_with_the_class() -> None:
    with pytest.raises(AttributeError, match=r"^'Order' object has no attribute 'nope'$"):
        _ = Order().nope


def test_dict_access_sees_dynamic_fields_only() -> None:
    order = order_with(amount=1, x=2)
    assert order.get("x") == 2
    assert order["x"] == 2
    assert "x" in order
    assert "amount" not in order
    assert list(order) == ["x"]
    assert list(order.keys()) == ["x"]
    assert list(order.values()) == [2]
    assert list(order.items()) == [("x", 2)]
    assert len(order) == 1


def test_get_never_finds_a_declared_field() -> None:
    assert Question(topic="ships").get("topic") is None
    assert Question(topic="ships").get("topic", "default") == "default"


def test_get_finds_the_dynamic_field_of_a_plain_start_event() -> None:
    assert StartEvent(topic="ships").get("topic") == "ships"


def test_a_missing_key_raises_key_error() -> None:
    with pytest.raises(KeyError):
        Order(amount=1)["amount"]


def test_an_event_without_dynamic_fields_is_true() -> None:
    assert len(Event()) == 0
    assert bool(Event()) is True


def test_to_dict_is_a_copy_of_the_dynamic_fields() -> None:
    event = Event(x=1)
    event.to_dict()["x"] = 2
    assert event.x == 1


def test_a_dump_keeps_dynamic_fields_apart_and_only_if_there_are_any() -> None:
    assert Order(amount=1).model_dump() == {"amount": 1}
    assert order_with(amount=1, x=2).model_dump() == {"amount": 1, "_data": {"x": 2}}


def test_a_dump_is_read_back_to_an_equal_event() -> None:
    order = order_with(amount=1, x=2)
    assert Order.model_validate(order.model_dump()) == order
    assert Order.model_validate_json(order.model_dump_json()) == order


def test_equality_includes_dynamic_fields() -> None:
    assert Event(x=1) == Event(x=1)
    assert Event(x=1) != Event(x=2)
    assert Event(x=1) != StartEvent(x=1)


def test_a_keyword_with_the_name_of_a_private_attribute_sets_it() -> None:
    order = order_with(_note="fragile", x=1)
    assert order._note == "fragile"
    assert order.to_dict() == {"x": 1}
    assert Order()._note == "none"


def test_fields_lie_where_pydantic_keeps_them() -> None:
    order = order_with(amount=1, x=2)
    assert order.__dict__ == {"amount": 1}
    assert order.__pydantic_extra__ == {"x": 2}
    assert StopEvent(result=3).__dict__ == {"result": 3}


def test_plain_events_have_no_constructor_of_their_own() -> None:
    assert "__init__" not in vars(Event)
    assert "__init__" not in vars(StartEvent)


def test_fields_may_hold_any_object() -> None:
    class Engine:
        pass

    class Ride(Event):
        engine: Engine

    engine = Engine()
    assert Ride(engine=engine).engine is engine


def test_events_are_copied_and_pickled() -> None:
    order = order_with(amount=1, x=[2])
    assert copy.deepcopy(order) == order
    assert pickle.loads(pickle.dumps(order)) == order


@pytest.mark.parametrize("kind", [InputRequiredEvent, HumanResponseEvent, StartEvent])
def test_the_special_events_carry_dynamic_fields(kind: type[Event]) -> None:
    assert kind(response="yes").response == "yes"


def test_a_stop_event_has_a_result() -> None:
    assert StopEvent(result=3).result == 3
    assert StopEvent("done").result == "done" == StopEvent("done")._result
    assert StopEvent().result is None
    assert str(StopEvent(result={"a": 1})) == "{'a': 1}"


def test_a_dumped_stop_event_omits_a_result_of_none() -> None:
    assert StopEvent().model_dump() == {}
    assert StopEvent(result=0).model_dump() == {"result": 0}
    assert StopEvent(result=1, x=2).model_dump() == {"result": 1, "_data": {"x": 2}}


def test_a_stop_event_with_fields_of_its_own_needs_no_result() -> None:
    class Joke(StopEvent):
        joke: str

    assert Joke(joke="knock").joke == "knock"
    assert Joke(joke="knock").result is None
    assert Joke(joke="knock").model_dump() == {"joke": "knock"}


def test_a_stop_event_may_declare_its_own_result() -> None:
    class Total(StopEvent):
        result: int  # pyright: ignore[reportGeneralTypeIssues]

    class Maybe(StopEvent):
        result: int | None = None

    assert Total(result="3").result == 3  # pyright: ignore[reportArgumentType]
    assert Total(result=3).model_dump() == {"result": 3}
    assert Maybe().model_dump() == {"result": None}
    with pytest.raises(ValidationError):
        Total()  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    "ending",
    [
        WorkflowTimedOutEvent(timeout=1.5, active_steps=["a"]),
        WorkflowCancelledEvent(),
        WorkflowFailedEvent(step_name="a", exception=ValueError("no")),
        IdleReleasedEvent(),
    ],
)
def test_every_abnormal_end_is_a_stop_event_without_a_result(ending: StopEvent) -> None:
    assert isinstance(ending, StopEvent)
    assert ending.result is None


def test_a_failure_without_counts_leaves_them_open() -> None:
    failed = WorkflowFailedEvent(step_name="a", exception=ValueError("no"))
    assert (failed.attempts, failed.elapsed_seconds) == (None, None)


def test_internal_events_share_one_root() -> None:
    changed = StepStateChanged(
        name="a", step_state=StepState.RUNNING, worker_id="0", input_event_name="A"
    )
    unhandled = UnhandledEvent(event_type="A", qualified_name="m.A")
    for event in (changed, unhandled, WorkflowIdleEvent()):
        assert isinstance(event, InternalDispatchEvent)
    assert changed.output_event_name is None
    assert [state.value for state in StepState] == ["preparing", "running", "not_running"]


def failure() -> StepFailedEvent:
    return StepFailedEvent(
        step_name="a",
        input_event=order_with(amount=1, x=2),
        exception=ValueError("no"),
        attempts=3,
        elapsed_seconds=1.5,
        failed_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def test_a_failure_keeps_the_live_error_and_event() -> None:
    assert isinstance(failure().exception, ValueError)
    assert isinstance(failure().input_event, Order)


def test_a_failure_is_dumped_to_json_with_all_fields_of_its_event() -> None:
    dumped = failure().model_dump(mode="json")
    assert dumped["input_event"] == {
        "__is_pydantic": True,
        "value": {"amount": 1, "_data": {"x": 2}},
        "qualified_name": f"{__name__}.Order",
    }
    assert dumped["exception"] == {
        "exception_type": "builtins.ValueError",
        "exception_message": "no",
    }


def test_a_failure_read_from_json_has_its_event_and_its_error() -> None:
    read = StepFailedEvent.model_validate_json(failure().model_dump_json())
    assert read.input_event == order_with(amount=1, x=2)
    assert isinstance(read.exception, ValueError)
    assert str(read.exception) == "no"


def test_an_event_of_an_unknown_class_is_refused() -> None:
    dumped = failure().model_dump(mode="json")
    dumped["input_event"]["qualified_name"] = "nowhere.Order"
    with pytest.raises(ValidationError, match="no class nowhere.Order is loaded"):
        StepFailedEvent.model_validate(dumped)


def test_an_error_of_a_local_class_is_read_as_a_stand_in_that_says_what_it_was() -> None:
    class OddError(Exception): ...

    failed = WorkflowFailedEvent(step_name="a", exception=OddError("no"))
    for _ in range(2):
        failed = WorkflowFailedEvent.model_validate_json(failed.model_dump_json())
    assert isinstance(failed.exception, UnreconstructedException)
    assert str(failed.exception) == "no"
    assert str(failed.exception.original_type).endswith("<locals>.OddError")


def test_a_stand_in_for_an_error_can_be_copied() -> None:
    error: Any = copy.deepcopy(UnreconstructedException("no", original_type="app.Odd"))
    assert (str(error), error.original_type) == ("no", "app.Odd")


def test_a_collected_list_is_dumped_with_the_fields_of_each_event() -> None:
    released = CollectionReleaseEvent(events=[Order(amount=1)], stream_id="s", binding_id="b")
    (dumped,) = released.model_dump()["events"]
    assert dumped["value"] == {"amount": 1}


def test_an_event_type_is_dumped_to_json_by_name() -> None:
    class Waiting(Event):
        awaited: SerializableEventType

    dumped = Waiting(awaited=Order).model_dump(mode="json")
    assert dumped == {"awaited": f"{__name__}.Order"}
    assert Waiting.model_validate(dumped).awaited is Order
