"""The forms in which steps and events may be written all run, everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from stepfleet import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from stepfleet.errors import EncodeError, WorkflowRuntimeError
from tests.conformance.place import Place


class Text(Event):
    text: str


class Number(Event):
    value: int


async def test_a_step_may_be_decorated_with_or_without_parentheses(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def first(self, ev: StartEvent) -> Text:
            return Text(text=ev.word)

        @step()
        async def second(self, ev: Text) -> StopEvent:
            return StopEvent(result=ev.text.upper())

    flow = await place.serve(Flow)
    assert await flow.run(word="plain") == "PLAIN"


async def test_plain_functions_are_steps_too(place: Place) -> None:
    class Flow(Workflow):
        @step
        def first(self, ev: StartEvent) -> Number:
            return Number(value=ev.value + 1)

        @step
        async def second(self, ev: Number) -> StopEvent:
            return StopEvent(result=ev.value)

    flow = await place.serve(Flow)
    assert await flow.run(value=41) == 42


async def test_a_free_function_becomes_a_step_of_its_workflow(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def first(self, ev: StartEvent) -> Number:
            return Number(value=20)

    @step(workflow=Flow)
    async def double(ev: Number) -> StopEvent:
        return StopEvent(result=ev.value * 2)

    flow = await place.serve(Flow)
    assert await flow.run() == 40


async def test_steps_read_instance_and_class_attributes(place: Place) -> None:
    class Flow(Workflow):
        greeting = "hello"

        def __init__(self, name: str, **options: Any) -> None:
            super().__init__(**options)
            self.name = name

        @step
        async def greet(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=f"{self.greeting} {self.name}")

    flow = await place.serve(Flow, name="ada")
    assert await flow.run() == "hello ada"


async def test_a_step_may_return_one_of_several_types_or_nothing(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def branch(self, ctx: Context, ev: StartEvent) -> Text | Number | None:
            if ev.kind == "none":
                ctx.send_event(Text(text="sent"))
                return None
            return Text(text="t") if ev.kind == "text" else Number(value=1)

        @step
        async def end(self, ev: Text | Number) -> StopEvent:
            return StopEvent(result=ev.text if isinstance(ev, Text) else ev.value)

    flow = await place.serve(Flow)
    assert await flow.run(kind="text") == "t"
    assert await flow.run(kind="number") == 1
    assert await flow.run(kind="none") == "sent"


async def test_a_loop_runs_until_its_step_leaves_it(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def count(self, ev: StartEvent | Number) -> Number | StopEvent:
            value = ev.value if isinstance(ev, Number) else 0
            return StopEvent(result=value) if value == 20 else Number(value=value + 1)

    flow = await place.serve(Flow)
    assert await flow.run() == 20


async def test_an_event_goes_to_every_step_that_accepts_it(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Number:
            return Number(value=3)

        @step
        async def double(self, ev: Number) -> Text:
            return Text(text=f"double {ev.value * 2}")

        @step
        async def square(self, ev: Number) -> Text:
            return Text(text=f"square {ev.value**2}")

        @step
        async def join(self, ctx: Context, ev: Text) -> StopEvent | None:
            both = ctx.collect_events(ev, [Text, Text])
            return StopEvent(result=sorted(e.text for e in both)) if both else None

    flow = await place.serve(Flow)
    assert await flow.run() == ["double 6", "square 9"]


async def test_steps_do_not_share_the_event_they_were_given(place: Place) -> None:
    class Shared(Event):
        numbers: list[int]

    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Shared:
            return Shared(numbers=[1])

        @step
        async def spoil(self, ev: Shared) -> Number:
            ev.numbers.append(99)
            return Number(value=len(ev.numbers))

        @step
        async def keep(self, ctx: Context, ev: Shared | Number) -> StopEvent | None:
            both = ctx.collect_events(ev, [Shared, Number])
            return StopEvent(result=both[0].numbers) if both else None

    flow = await place.serve(Flow)
    assert await flow.run() == [1]


async def test_a_stop_event_subclass_is_the_result_itself(place: Place) -> None:
    class Answer(StopEvent):
        text: str

    class Flow(Workflow):
        @step
        async def answer(self, ev: StartEvent) -> Answer:
            return Answer(text="42")

    flow = await place.serve(Flow)
    result = await flow.run()
    assert type(result) is Answer
    assert result.text == "42"


async def test_a_start_event_subclass_is_built_from_the_arguments_or_given(place: Place) -> None:
    class Question(StartEvent):
        topic: str
        length: int = 1

    class Flow(Workflow):
        @step
        async def answer(self, ev: Question) -> StopEvent:
            return StopEvent(result=[ev.topic, ev.length])

    flow = await place.serve(Flow)
    assert await flow.run(topic="t", length="3") == ["t", 3]
    assert await flow.run(start_event=Question(topic="u")) == ["u", 1]
    with pytest.raises(
        WorkflowRuntimeError, match="Failed creating a start event of type 'Question'"
    ):
        flow.run(length=3)
    with pytest.raises(WorkflowRuntimeError, match="no step of workflow 'Flow' accepts"):
        flow.run(start_event=StartEvent())


async def test_undeclared_fields_travel_with_the_event(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Event:
            return Event(count=ev.get("count"), missing=ev.get("missing", "default"))

        @step
        async def end(self, ev: Event) -> StopEvent:
            return StopEvent(result=[ev.count, ev["missing"], "count" in ev])

    flow = await place.serve(Flow)
    assert await flow.run(count=5) == [5, "default", True]


async def test_a_question_is_published_and_its_answer_goes_to_the_step_that_accepts_it(
    place: Place,
) -> None:
    class Flow(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> InputRequiredEvent:
            return InputRequiredEvent(prefix="your name?")

        @step
        async def greet(self, ev: HumanResponseEvent) -> StopEvent:
            return StopEvent(result=f"hello {ev.response}")

    flow = await place.serve(Flow)
    handler = flow.run()
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            assert event.prefix == "your name?"
            handler.ctx.send_event(HumanResponseEvent(response="ada"))
    assert await handler == "hello ada"


async def test_a_question_may_be_accepted_by_a_step_as_well(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> InputRequiredEvent:
            return InputRequiredEvent(prefix="robot?")

        @step
        async def answer(self, ev: InputRequiredEvent) -> StopEvent:
            return StopEvent(result=f"answered {ev.prefix}")

    flow = await place.serve(Flow)
    handler = flow.run()
    shown = [type(event) async for event in handler.stream_events()]
    assert shown == [InputRequiredEvent, StopEvent]
    assert await handler == "answered robot?"


async def test_a_subclass_of_an_accepted_type_reaches_only_a_step_that_opted_in(
    place: Place,
) -> None:
    class Special(Number):
        pass

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Special | Number | None:
            return Special(value=7)

        @step
        async def exact(self, ev: Number) -> StopEvent:
            return StopEvent(result="exact")

        @step(accept_event_subclasses=True)
        async def open_to_more(self, ev: Number) -> StopEvent:
            return StopEvent(result=f"{type(ev).__name__} {ev.value}")

    flow = await place.serve(Flow, disable_validation=True)
    assert await flow.run() == "Special 7"


async def test_a_step_overridden_by_a_subclass_replaces_the_inherited_one(place: Place) -> None:
    class Parent(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Number:
            return Number(value=1)

        @step
        async def end(self, ev: Number) -> StopEvent:
            return StopEvent(result=ev.value)

    class Child(Parent):
        @step
        async def begin(self, ev: StartEvent) -> Number:
            return Number(value=2)

    flow = await place.serve(Child)
    assert await flow.run() == 2


async def test_a_step_that_returns_no_event_fails_like_any_step(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def wrong(self, ev: StartEvent) -> StopEvent:
            return "text"  # type: ignore[return-value]

    flow = await place.serve(Flow)
    with pytest.raises(
        WorkflowRuntimeError,
        match="Step function wrong returned str instead of an Event instance",
    ):
        await flow.run()


async def test_models_dataclasses_and_nested_events_keep_their_types(place: Place) -> None:
    class Item(BaseModel):
        name: str
        tags: set[str]

    @dataclass
    class Point:
        x: int
        y: int

    class Parcel(Event):
        contents: list[Item]
        where: Point
        inner: Number
        pair: tuple[int, str]

    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Parcel:
            return Parcel(
                contents=[Item(name="a", tags={"x"})],
                where=Point(1, 2),
                inner=Number(value=3),
                pair=(1, "one"),
            )

        @step
        async def end(self, ev: Parcel) -> StopEvent:
            assert isinstance(ev.contents[0], Item)
            assert ev.contents[0].tags == {"x"}
            assert ev.where == Point(1, 2)
            assert type(ev.inner) is Number
            assert ev.pair == (1, "one")
            return StopEvent(result=ev.inner.value)

    flow = await place.serve(Flow)
    assert await flow.run() == 3


async def test_a_value_that_cannot_travel_fails_the_step_that_emits_it(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Text | StopEvent:
            return StopEvent(result=object())

        @step
        async def never(self, ev: Text) -> StopEvent:
            return StopEvent()

    flow = await place.serve(Flow, disable_validation=True)
    with pytest.raises(EncodeError, match="StopEvent"):
        await flow.run()


async def test_the_context_is_found_without_a_parameter(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=Context.get_step_context() is ctx)

    flow = await place.serve(Flow)
    assert await flow.run() is True
    with pytest.raises(WorkflowRuntimeError, match="only be called from within a step"):
        Context.get_step_context()


async def test_a_workflow_may_run_another_one_in_its_step(place: Place) -> None:
    class Inner(Workflow):
        @step
        async def answer(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=ev.value + 1)

    class Outer(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await Inner().run(value=ev.value))

    await place.serve(Inner)
    flow = await place.serve(Outer)
    assert await flow.run(value=1) == 2
