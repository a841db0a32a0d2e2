"""`wait_for_event`: a step that waits holds no worker, and its answer always finds it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

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
from stepfleet.errors import WorkflowTimeoutError
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_none
from tests.conformance.place import Place
from tests.support.wait import eventually


class Answer(HumanResponseEvent):
    text: str
    topic: str = ""


class Item(Event):
    n: int


class Progress(Event):
    text: str


async def waiting(place: Place, handler: Any, count: int = 1) -> None:
    """Returns when so many executions of the run wait."""

    async def they_wait() -> bool:
        waits = await place.client.connection().reader.waits(handler.run_id)
        return len(waits.open) == count

    await eventually(they_wait, 20.0)


async def test_the_step_runs_again_from_its_top_with_the_answer(place: Place) -> None:
    bodies: list[int] = []

    class Flow(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            bodies.append(1)
            answer = await ctx.wait_for_event(
                Answer, waiter_event=InputRequiredEvent(prefix="well?")
            )
            return StopEvent(result=[answer.text, ev.get("extra")])

    flow = await place.serve(Flow)
    handler = flow.run(extra=3)
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            assert event.prefix == "well?"
            handler.ctx.send_event(Answer(text="yes"))
    assert await handler == ["yes", 3]
    assert len(bodies) == 2


async def test_the_question_is_published_once_over_all_replays(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Progress(text="begun"))
            one = await ctx.wait_for_event(Answer, waiter_event=Progress(text="one?"))
            two = await ctx.wait_for_event(
                Answer, waiter_event=Progress(text="two?"), waiter_id="second"
            )
            return StopEvent(result=[one.text, two.text])

    flow = await place.serve(Flow)
    handler = flow.run()
    shown: list[str] = []
    async for event in handler.stream_events():
        if isinstance(event, Progress):
            shown.append(event.text)
            if event.text.endswith("?"):
                await handler.send_event(Answer(text=event.text[:-1]))
    assert shown == ["begun", "one?", "two?"]
    assert await handler == ["one", "two"]


async def test_only_an_event_that_meets_the_requirements_wakes_the_step(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            answer = await ctx.wait_for_event(Answer, requirements={"topic": "right"})
            return StopEvent(result=answer.text)

    flow = await place.serve(Flow)
    handler = flow.run()
    await waiting(place, handler)
    await handler.send_event(Answer(text="no", topic="wrong"))
    await handler.send_event(Answer(text="yes", topic="right"))
    assert await handler == "yes"


async def test_a_wait_that_takes_too_long_is_a_time_out_in_the_step(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            try:
                await ctx.wait_for_event(Answer, timeout=0.05)
            except TimeoutError as error:
                return StopEvent(result=str(error))
            return StopEvent(result="answered")

    flow = await place.serve(Flow)
    assert await flow.run() == "Timed out waiting for Answer"


async def test_a_time_out_that_is_not_caught_fails_the_run(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(Answer, timeout=0.05)
            return StopEvent()

    flow = await place.serve(Flow)
    with pytest.raises(TimeoutError, match="Timed out waiting for Answer"):
        await flow.run()


async def test_two_waits_with_different_requirements_each_get_their_answer(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            answers: list[str] = []
            for topic in ("first", "second"):
                answer = await ctx.wait_for_event(
                    Answer,
                    waiter_event=Progress(text=topic),
                    requirements={"topic": topic},
                )
                answers.append(answer.text)
            return StopEvent(result=answers)

    flow = await place.serve(Flow)
    handler = flow.run()
    async for event in handler.stream_events():
        if isinstance(event, Progress):
            await handler.send_event(Answer(text=event.text.upper(), topic=event.text))
    assert await handler == ["FIRST", "SECOND"]


async def test_identical_waits_of_one_execution_share_their_answer(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            first = await ctx.wait_for_event(Answer)
            second = await ctx.wait_for_event(Answer)
            return StopEvent(result=[first.text, second.text])

    flow = await place.serve(Flow)
    handler = flow.run()
    await waiting(place, handler)
    await handler.send_event(Answer(text="same"))
    assert await handler == ["same", "same"]


class Parallel(Workflow):
    """Six executions wait for their own answers."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
        for n in range(6):
            ctx.send_event(Item(n=n))

    @step(num_workers=2)
    async def ask(self, ctx: Context, ev: Item) -> Progress:
        answer = await ctx.wait_for_event(Answer, requirements={"topic": str(ev.n)})
        return Progress(text=f"{ev.n}{answer.text}")

    @step
    async def join(self, ctx: Context, ev: Progress) -> StopEvent | None:
        all_ = ctx.collect_events(ev, [Progress] * 6)
        return StopEvent(result=sorted(e.text for e in all_)) if all_ else None


async def test_waiting_executions_hold_no_slot_and_each_gets_its_answer(place: Place) -> None:
    flow = await place.serve(Parallel)
    handler = flow.run()
    await waiting(place, handler, 6)
    for n in reversed(range(6)):
        await handler.send_event(Answer(text="abcdef"[n], topic=str(n)))
    assert await handler == ["0a", "1b", "2c", "3d", "4e", "5f"]


async def test_one_event_wakes_every_step_that_waits_for_it(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(3):
                ctx.send_event(Item(n=n))

        @step
        async def ask(self, ctx: Context, ev: Item) -> Progress:
            answer = await ctx.wait_for_event(Answer)
            return Progress(text=f"{ev.n}{answer.text}")

        @step
        async def join(self, ctx: Context, ev: Progress) -> StopEvent | None:
            all_ = ctx.collect_events(ev, [Progress] * 3)
            return StopEvent(result=sorted(e.text for e in all_)) if all_ else None

    flow = await place.serve(Flow)
    handler = flow.run()
    await waiting(place, handler, 3)
    await handler.send_event(Answer(text="!"))
    assert await handler == ["0!", "1!", "2!"]


async def test_no_except_in_a_step_swallows_the_wait(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            try:
                answer = await ctx.wait_for_event(Answer)
            except Exception:
                return StopEvent(result="swallowed")
            return StopEvent(result=answer.text)

    flow = await place.serve(Flow)
    handler = flow.run()
    await waiting(place, handler)
    await handler.send_event(Answer(text="kept"))
    assert await handler == "kept"


async def test_an_answer_to_what_the_step_published_is_found_though_it_came_first(
    place: Place,
) -> None:
    answered = asyncio.Event()

    class Flow(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(InputRequiredEvent(prefix="well?"))
            async with asyncio.timeout(20):
                await answered.wait()
            answer = await ctx.wait_for_event(Answer)
            return StopEvent(result=answer.text)

    flow = await place.serve(Flow)
    handler = flow.run()
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            await handler.send_event(Answer(text="early"))
            await eventually(
                lambda: place.call("HGET", place.keys.run(handler.run_id), "inbox"), 20
            )
            answered.set()
    assert await handler == "early"


async def test_an_event_from_before_the_question_is_no_answer(place: Place) -> None:
    go_on = asyncio.Event()

    class Flow(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            async with asyncio.timeout(20):
                await go_on.wait()
            answer = await ctx.wait_for_event(Answer)
            return StopEvent(result=answer.text)

    flow = await place.serve(Flow)
    handler = flow.run()
    await handler.send_event(Answer(text="too early"))
    await eventually(lambda: place.call("HGET", place.keys.run(handler.run_id), "inbox"), 20)
    go_on.set()
    await waiting(place, handler)
    await handler.send_event(Answer(text="in time"))
    assert await handler == "in time"


async def test_a_replay_answers_what_was_collected_before_the_wait(place: Place) -> None:
    collected: list[Any] = []

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(2):
                ctx.send_event(Item(n=n))

        @step(num_workers=1)
        async def join(self, ctx: Context, ev: Item) -> StopEvent | None:
            both = ctx.collect_events(ev, [Item] * 2)
            if both is None:
                return None
            collected.append([e.n for e in both])
            answer = await ctx.wait_for_event(Answer)
            return StopEvent(result=[[e.n for e in both], answer.text])

    flow = await place.serve(Flow)
    handler = flow.run()
    await waiting(place, handler)
    await handler.send_event(Answer(text="ok"))
    assert await handler == [[0, 1], "ok"]
    assert collected[-1] == [0, 1]


async def test_an_awaited_event_also_reaches_other_steps_that_accept_it(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> Progress:
            answer = await ctx.wait_for_event(Answer)
            return Progress(text=f"waited {answer.text}")

        @step
        async def accept(self, ev: Answer) -> Progress:
            return Progress(text=f"accepted {ev.text}")

        @step
        async def join(self, ctx: Context, ev: Progress) -> StopEvent | None:
            both = ctx.collect_events(ev, [Progress] * 2)
            return StopEvent(result=sorted(e.text for e in both)) if both else None

    flow = await place.serve(Flow)
    handler = flow.run()
    await waiting(place, handler)
    await handler.send_event(Answer(text="x"))
    assert await handler == ["accepted x", "waited x"]


async def test_a_step_may_answer_another_one(place: Place) -> None:
    class Ask(Event):
        pass

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Ask | StopEvent:
            ctx.write_event_to_stream(Progress(text="asking"))
            ctx.send_event(Ask())
            answer = await ctx.wait_for_event(Item, requirements={"n": 4})
            return StopEvent(result=answer.n)

        @step
        async def reply(self, ctx: Context, ev: Ask) -> Item:
            return Item(n=4)

    flow = await place.serve(Flow, disable_validation=True)
    assert await flow.run() == 4


async def test_a_run_that_times_out_names_what_it_waited_for(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(Answer)
            return StopEvent()

    flow = await place.serve(Flow, timeout=2.5)
    with pytest.raises(
        WorkflowTimeoutError,
        match=r"^Operation timed out after 2\.5 seconds\. No steps active\. "
        "step ask waits for an event of type Answer$",
    ):
        await flow.run()


async def test_an_answer_after_the_time_out_of_the_wait_starts_nothing(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> Progress:
            try:
                await ctx.wait_for_event(Answer, timeout=0.05)
            except TimeoutError:
                ctx.write_event_to_stream(Progress(text="late"))
            answer = await ctx.wait_for_event(Answer, waiter_id="again")
            return Progress(text=answer.text)

        @step
        async def end(self, ev: Progress) -> StopEvent:
            return StopEvent(result=ev.text)

    flow = await place.serve(Flow)
    handler = flow.run()
    async for event in handler.stream_events():
        if isinstance(event, Progress):
            await handler.send_event(Answer(text="second wait"))
    assert await handler == "second wait"


async def test_who_has_answered_is_not_asked_again_when_the_step_is_retried(place: Place) -> None:
    class Flow(Workflow):
        @step(retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(3)))
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            collected = ctx.collect_events(ev, [StartEvent, StartEvent])
            answer = await ctx.wait_for_event(Answer, waiter_event=InputRequiredEvent())
            if ctx.retry_info().retry_number < 2:
                raise ValueError("behind the answer")
            return StopEvent(result=(answer.text, collected))

    flow = await place.serve(Flow, timeout=60)
    handler, questions = flow.run(), 0
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            questions += 1
            await handler.send_event(Answer(text="yes"))
    # What was collected before the wait is not collected again either: it would release itself.
    assert (await handler, questions) == (("yes", None), 1)


async def test_a_retry_asks_again_when_nobody_had_answered_in_time(place: Place) -> None:
    class Flow(Workflow):
        @step(retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(2)))
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            timeout = 0.05 if ctx.retry_info().retry_number == 0 else 60
            answer = await ctx.wait_for_event(
                Answer, waiter_event=InputRequiredEvent(), timeout=timeout
            )
            return StopEvent(result=answer.text)

    flow = await place.serve(Flow, timeout=60)
    handler, questions = flow.run(), 0
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            questions += 1
            if questions == 2:
                await handler.send_event(Answer(text="late"))
    assert (await handler, questions) == ("late", 2)


@pytest.mark.parametrize("timeout", [float("nan"), float("-inf"), "soon"])
async def test_a_time_out_that_is_no_time_is_an_error_of_the_step(
    place: Place, timeout: Any
) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(HumanResponseEvent, timeout=timeout)
            return StopEvent()

    flow = await place.serve(Flow)
    with pytest.raises(ValueError, match="wait_for_event: timeout must be a number of seconds"):
        await flow.run()
