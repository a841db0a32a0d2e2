"""Section 1.3: events as values, and the events that a run makes by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel, PrivateAttr, ValidationError

from stepfleet import Context, Workflow, step
from stepfleet.errors import WorkflowCancelledByUser, WorkflowTimeoutError
from stepfleet.events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)
from stepfleet.testing import WorkflowTestRunner


class Point(Event):
    x: int
    y: int = 0


class Secretive(Event):
    label: str
    _secret: str = PrivateAttr(default="none")


# -- values ------------------------------------------------------------------------------------------


@pytest.mark.feature("1.3: declared fields")
def test_declared_fields_are_validated_when_an_event_is_made() -> None:
    assert Point(x="5").x == 5
    with pytest.raises(ValidationError):
        Point(x="five")


@pytest.mark.feature("1.3: declared fields")
def test_an_assignment_to_a_field_is_not_validated() -> None:
    point = Point(x=1)
    point.x = "not a number"
    assert point.x == "not a number"


@pytest.mark.feature("1.3: dynamic fields")
def test_undeclared_arguments_are_fields_too() -> None:
    event = Event(msg="hello", n=1)
    assert (event.msg, event.n) == ("hello", 1)


@pytest.mark.feature("1.3: dynamic fields")
def test_the_faces_of_a_dict_show_only_dynamic_fields() -> None:
    point = Point(x=1, colour="red")
    assert point.get("colour") == "red"
    assert point.get("x") is None
    assert point.get("x", 7) == 7
    assert point["colour"] == "red"
    assert "colour" in point
    assert "x" not in point
    assert list(point.keys()) == ["colour"]
    assert list(point.values()) == ["red"]
    assert list(point.items()) == [("colour", "red")]
    assert len(point) == 1
    assert list(point) == ["colour"]
    assert point.to_dict() == {"colour": "red"}


@pytest.mark.feature("1.3: dynamic fields")
def test_a_dynamic_field_can_be_set_like_an_item_and_like_an_attribute() -> None:
    event = Event()
    event["a"] = 1
    event.b = 2
    assert (event.a, event["b"]) == (1, 2)
    assert event.to_dict() == {"a": 1, "b": 2}


@pytest.mark.feature("1.3: dynamic fields")
def test_a_missing_field_is_named() -> None:
    with pytest.raises(AttributeError, match="'Point' object has no attribute 'z'"):
        _ = Point(x=1).z
    with pytest.raises(KeyError):
        _ = Point(x=1)["z"]


@pytest.mark.feature("1.3: dynamic fields")
def test_an_event_without_dynamic_fields_is_true() -> None:
    assert bool(Event())
    assert len(Event()) == 0


@pytest.mark.feature("1.3: private attributes")
def test_a_private_attribute_can_be_given_to_the_constructor() -> None:
    event = Secretive(label="a", _secret="b", more=1)
    assert event._secret == "b"
    assert event.to_dict() == {"more": 1}


@pytest.mark.feature("1.3: dump and equality")
def test_a_dump_keeps_dynamic_fields_apart() -> None:
    assert Point(x=1).model_dump() == {"x": 1, "y": 0}
    assert Point(x=1, colour="red").model_dump() == {"x": 1, "y": 0, "_data": {"colour": "red"}}


@pytest.mark.feature("1.3: dump and equality")
def test_equality_looks_at_dynamic_fields_and_at_the_type() -> None:
    assert Event(a=1) == Event(a=1)
    assert Event(a=1) != Event(a=2)
    assert Point(x=1, colour="red") != Point(x=1)
    assert InputRequiredEvent(prefix="a") != HumanResponseEvent(prefix="a")


@pytest.mark.feature("1.3: dump and equality")
def test_a_dump_makes_the_same_event_again() -> None:
    point = Point(x=1, colour="red")
    assert Point(**point.model_dump()) == point
    assert Point.model_validate_json(point.model_dump_json()) == point


@pytest.mark.feature("1.3: StopEvent")
def test_a_stop_event_has_a_result() -> None:
    assert StopEvent(result=3).result == 3
    assert StopEvent("positional").result == "positional"
    assert StopEvent().result is None
    assert str(StopEvent(result=[1, 2])) == "[1, 2]"
    assert StopEvent(result="x") == StopEvent(result="x")


@pytest.mark.feature("1.3: StopEvent")
def test_a_dump_of_a_stop_event_names_a_result_that_is_not_none() -> None:
    assert StopEvent(result=3).model_dump() == {"result": 3}
    assert StopEvent().model_dump() == {}


class Receipt(StopEvent):
    total: int


@pytest.mark.feature("1.3: StopEvent")
def test_a_stop_event_may_have_fields() -> None:
    receipt = Receipt(total=3)
    assert receipt.total == 3
    assert receipt.result is None
    assert receipt.model_dump() == {"total": 3}


# -- on their way --------------------------------------------------------------------------------------


class Address(BaseModel):
    city: str


class Person(Event):
    name: str
    address: Address
    tags: list[str] = []


class Travels(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Person:
        return Person(name="Ada", address=Address(city="London"), tags=["a"], age=36)

    @step
    async def end(self, ev: Person) -> StopEvent:
        kind = type(ev.address).__name__
        return StopEvent(result=[ev.name, kind, ev.address.city, ev.tags, ev.age, ev.get("age")])


@pytest.mark.feature("1.3: events between steps")
async def test_fields_nested_models_and_dynamic_fields_arrive() -> None:
    assert await Travels().run() == ["Ada", "Address", "London", ["a"], 36, 36]


class Shared(Event):
    n: int = 0


class Seen(Event):
    n: int


class TwoReaders(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Shared:
        return Shared(n=1)

    @step
    async def one(self, ev: Shared) -> None:
        ev.n += 10

    @step
    async def other(self, ev: Shared) -> Seen:
        await asyncio.sleep(0.02)
        return Seen(n=ev.n + 1)

    @step
    async def seen(self, ev: Seen) -> StopEvent:
        return StopEvent(result=ev.n)


@pytest.mark.feature("1.3: events between steps")
@pytest.mark.differs(
    "in the model both steps get the same object, so one sees what the other changes"
)
async def test_each_step_gets_an_event_of_its_own() -> None:
    assert await TwoReaders().run() == 2


class Start(StartEvent):
    query: str
    limit: int = 3


class FromFields(Workflow):
    @step
    async def only(self, ev: Start) -> StopEvent:
        return StopEvent(
            result=[type(ev).__name__, ev.query, ev.limit, ev.get("query"), ev.get("x")]
        )


@pytest.mark.feature("1.3: StartEvent")
async def test_arguments_of_run_become_fields_of_the_start_event() -> None:
    assert await FromFields().run(query="q", limit="4", x=1) == ["Start", "q", 4, None, 1]
    assert await FromFields().run(start_event=Start(query="q")) == ["Start", "q", 3, None, None]


class Both(Workflow):
    @step
    async def left(self, ev: StartEvent) -> Shared:
        return Shared(n=1)

    @step
    async def right(self, ev: StartEvent) -> Shared:
        return Shared(n=2)

    @step
    async def join(self, ctx: Context, ev: Shared) -> StopEvent | None:
        found = ctx.collect_events(ev, [Shared, Shared])
        return None if found is None else StopEvent(result=sorted(e.n for e in found))


@pytest.mark.feature("1.3: StartEvent")
async def test_every_step_that_accepts_the_start_event_runs() -> None:
    assert await Both().run() == [1, 2]


class OwnStop(Workflow):
    @step
    async def only(self, ev: StartEvent) -> Receipt:
        return Receipt(total=ev.n, note="thanks")


@pytest.mark.feature("1.3: StopEvent")
async def test_the_result_of_a_run_with_an_own_stop_event_is_the_event() -> None:
    receipt = await OwnStop().run(n=4)
    assert isinstance(receipt, Receipt)
    assert (receipt.total, receipt.note) == (4, "thanks")


class Plain(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.get("value"))


@pytest.mark.feature("1.3: StopEvent")
@pytest.mark.parametrize("value", [None, 0, "text", 1.5, True, [1, "a", None], {"a": {"b": [1]}}])
async def test_the_result_of_a_run_is_what_the_stop_event_holds(value: Any) -> None:
    handler = Plain().run(value=value)
    assert await handler == value
    stop = await handler.stop_event_result()
    assert type(stop) is StopEvent
    assert stop.result == value


@pytest.mark.feature("1.3: StopEvent")
@pytest.mark.differs(
    "the model's snapshot form has lists and text keys, in one process they do not matter"
)
@pytest.mark.parametrize("value", [(1, 2), {1: "a"}, {3, 4}, b"bytes"])
async def test_python_values_keep_their_type_on_the_wire(value: Any) -> None:
    result = await Plain().run(value=value)
    assert result == value
    assert type(result) is type(value)


# -- asking a human ------------------------------------------------------------------------------------


class Ask(InputRequiredEvent):
    question: str


class Answer(HumanResponseEvent):
    text: str


class Asks(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> Ask:
        return Ask(question="name?")

    @step
    async def answer(self, ev: Answer) -> StopEvent:
        return StopEvent(result=f"hello {ev.text}")


@pytest.mark.feature("1.3: InputRequiredEvent and HumanResponseEvent")
async def test_a_returned_question_is_published_and_an_answer_goes_on() -> None:
    handler = Asks().run()
    async for event in handler.stream_events():
        if isinstance(event, Ask):
            assert event.question == "name?"
            handler.ctx.send_event(Answer(text="Ada"))
    assert await handler == "hello Ada"


class RoutedQuestion(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> Ask:
        return Ask(question="q")

    @step
    async def hear(self, ev: Ask) -> StopEvent:
        return StopEvent(result=ev.question)


@pytest.mark.feature("1.3: InputRequiredEvent and HumanResponseEvent")
async def test_a_returned_question_goes_to_a_step_that_accepts_it_too() -> None:
    result = await WorkflowTestRunner(RoutedQuestion()).run(expose_internal=False)
    assert [type(e) for e in result.collected] == [Ask, StopEvent]
    assert result.result == "q"


class SentQuestion(Workflow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> Ask | StopEvent:
        ctx.send_event(Ask(question="q"))
        await asyncio.sleep(0.05)
        return StopEvent(result="end")


@pytest.mark.feature("1.3: InputRequiredEvent and HumanResponseEvent")
async def test_a_question_that_is_sent_is_not_published() -> None:
    result = await WorkflowTestRunner(SentQuestion()).run(expose_internal=False)
    assert [type(e) for e in result.collected] == [StopEvent]


# -- abnormal ends -------------------------------------------------------------------------------------


class Ends(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        if ev.how == "fail":
            raise ValueError("broken")
        await asyncio.sleep(30)
        return StopEvent()


@pytest.mark.feature("1.3: WorkflowTimedOutEvent")
async def test_a_run_that_times_out_says_so_on_its_stream() -> None:
    handler = Ends(timeout=0.3).run(how="wait")
    events = [event async for event in handler.stream_events()]
    assert [type(e) for e in events] == [WorkflowTimedOutEvent]
    assert events[0].timeout == 0.3
    assert events[0].active_steps == ["only"]
    with pytest.raises(WorkflowTimeoutError):
        await handler


@pytest.mark.feature("1.3: WorkflowFailedEvent")
async def test_a_run_that_fails_says_so_on_its_stream() -> None:
    handler = Ends().run(how="fail")
    events = [event async for event in handler.stream_events()]
    assert [type(e) for e in events] == [WorkflowFailedEvent]
    assert events[0].step_name == "only"
    assert events[0].attempts == 1
    assert isinstance(events[0].exception, ValueError)
    assert str(events[0].exception) == "broken"
    assert events[0].elapsed_seconds >= 0
    with pytest.raises(ValueError, match="broken"):
        await handler


@pytest.mark.feature("1.3: WorkflowCancelledEvent")
async def test_a_run_that_is_cancelled_says_so_on_its_stream() -> None:
    handler = Ends().run(how="wait")
    await handler.cancel_run()
    events = [event async for event in handler.stream_events()]
    assert [type(e) for e in events] == [WorkflowCancelledEvent]
    with pytest.raises(WorkflowCancelledByUser):
        await handler
