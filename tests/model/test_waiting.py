"""Section 1.6: `wait_for_event` and people in the loop."""

from __future__ import annotations

from typing import Any

import pytest

from stepfleet import Context, Workflow, step
from stepfleet.errors import WorkflowTimeoutError
from stepfleet.events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
)


class Reply(Event):
    text: str = ""
    who: str = ""


class Req(Event):
    text: str = ""


class Waits(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(
            HumanResponseEvent, waiter_event=InputRequiredEvent(prefix="name?")
        )
        return StopEvent(result=answer.response)


@pytest.mark.feature("1.6: waiting")
async def test_a_step_waits_for_an_event_from_outside() -> None:
    handler = Waits().run()
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            assert event.prefix == "name?"
            handler.ctx.send_event(HumanResponseEvent(response="Ada"))
    assert await handler == "Ada"


class Question(Event):
    text: str


class Picks(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(
            Reply, waiter_event=Req(text="?"), requirements={"who": "ada"}
        )
        return StopEvent(result=answer.text)


@pytest.mark.feature("1.6: requirements")
async def test_only_an_event_with_the_required_values_counts() -> None:
    handler = Picks().run()
    async for event in handler.stream_events():
        if isinstance(event, Req):
            handler.ctx.send_event(Reply(text="wrong", who="bob"))
            handler.ctx.send_event(Reply(text="nobody"))
            handler.ctx.send_event(Reply(text="right", who="ada"))
    assert await handler == "right"


class Dynamic(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(
            HumanResponseEvent,
            waiter_event=InputRequiredEvent(),
            requirements={"user": "ada", "n": 1},
        )
        return StopEvent(result=answer.response)


@pytest.mark.feature("1.6: requirements")
async def test_dynamic_fields_may_be_required() -> None:
    handler = Dynamic().run()
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            handler.ctx.send_event(HumanResponseEvent(response="a", user="ada", n=2))
            handler.ctx.send_event(HumanResponseEvent(response="b", user="ada", n=1))
    assert await handler == "b"


class Impatient(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        try:
            await ctx.wait_for_event(Reply, timeout=0.1)
        except TimeoutError as error:
            return StopEvent(result=str(error))
        return StopEvent(result="answered")


@pytest.mark.feature("1.6: time-outs")
async def test_a_wait_ends_after_its_time() -> None:
    assert "Timed out waiting for Reply" in await Impatient().run()


class Uncaught(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.wait_for_event(Reply, timeout=0.1)
        return StopEvent()


@pytest.mark.feature("1.6: time-outs")
async def test_a_wait_that_ends_after_its_time_fails_the_run() -> None:
    with pytest.raises(TimeoutError, match="Reply"):
        await Uncaught().run()


class Patient(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.wait_for_event(Reply, timeout=None)
        return StopEvent()


@pytest.mark.feature("1.6: time-outs")
async def test_the_time_out_of_the_run_ends_a_wait() -> None:
    with pytest.raises(WorkflowTimeoutError, match="Operation timed out after 0.3 seconds"):
        await Patient(timeout=0.3).run()


class TwoWaits(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        first = await ctx.wait_for_event(
            Reply, waiter_event=Req(text="1"), waiter_id="a", requirements={"who": ev.who}
        )
        second = await ctx.wait_for_event(Reply, waiter_event=Req(text="2"), waiter_id="b")
        return StopEvent(result=[first.text, second.text])


async def answered_twice(who: str) -> list[str]:
    handler = TwoWaits().run(who=who)
    asked = []
    async for event in handler.stream_events():
        if isinstance(event, Req):
            asked.append(event.text)
            handler.ctx.send_event(Reply(text=f"answer {event.text}", who=event.text))
    assert asked == ["1", "2"]
    return await handler


@pytest.mark.feature("1.6: waiting")
async def test_a_step_may_wait_twice() -> None:
    assert await answered_twice("1") == ["answer 1", "answer 2"]


class EqualWaits(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        first = await ctx.wait_for_event(Reply, waiter_event=Req(text="1"), waiter_id="a")
        second = await ctx.wait_for_event(Reply, waiter_event=Req(text="2"), waiter_id="b")
        return StopEvent(result=[first.text, second.text])


@pytest.mark.feature("1.6: waiting")
@pytest.mark.differs("there a later event replaces the answer of a wait that was over")
async def test_a_wait_that_is_over_keeps_its_answer() -> None:
    handler = EqualWaits().run()
    async for event in handler.stream_events():
        if isinstance(event, Req):
            handler.ctx.send_event(Reply(text=f"answer {event.text}"))
    assert await handler == ["answer 1", "answer 2"]


class SameWait(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        first = await ctx.wait_for_event(Reply, waiter_event=Req(text="?"))
        second = await ctx.wait_for_event(Reply, waiter_event=Req(text="?"))
        return StopEvent(result=[first.text, second.text])


@pytest.mark.feature("1.6: waiter ids")
async def test_two_equal_waits_of_one_execution_are_one_wait() -> None:
    handler = SameWait().run()
    asked = 0
    async for event in handler.stream_events():
        if isinstance(event, Req):
            asked += 1
            handler.ctx.send_event(Reply(text="once"))
    assert await handler == ["once", "once"]
    assert asked == 1


class Branch(Event):
    name: str


class Done(Event):
    name: str
    text: str


class Branches(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Branch | None:
        for name in ("a", "b", "c"):
            ctx.send_event(Branch(name=name))

    @step
    async def work(self, ctx: Context, ev: Branch) -> Done:
        answer = await ctx.wait_for_event(
            Reply, waiter_event=Question(text=ev.name), requirements={"who": ev.name}
        )
        return Done(name=ev.name, text=answer.text)

    @step
    async def end(self, ctx: Context, ev: Done) -> StopEvent | None:
        found = ctx.collect_events(ev, [Done] * 3)
        return None if found is None else StopEvent(result=sorted((e.name, e.text) for e in found))


@pytest.mark.feature("1.6: waiter ids")
async def test_branches_wait_at_the_same_time() -> None:
    handler = Branches().run()
    async for event in handler.stream_events():
        if isinstance(event, Question):
            handler.ctx.send_event(Reply(who=event.text, text=event.text.upper()))
    assert [list(pair) for pair in await handler] == [["a", "A"], ["b", "B"], ["c", "C"]]


class SharedAnswer(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Branch | None:
        for name in ("a", "b", "c"):
            ctx.send_event(Branch(name=name))

    @step
    async def work(self, ctx: Context, ev: Branch) -> Done:
        answer = await ctx.wait_for_event(Reply, waiter_event=Question(text=ev.name))
        return Done(name=ev.name, text=answer.text)

    @step
    async def end(self, ctx: Context, ev: Done) -> StopEvent | None:
        found = ctx.collect_events(ev, [Done] * 3)
        return None if found is None else StopEvent(result=sorted(e.name + e.text for e in found))


@pytest.mark.feature("1.6: waiting")
async def test_one_event_answers_every_wait_that_it_matches() -> None:
    handler = SharedAnswer().run()
    asked = []
    async for event in handler.stream_events():
        if isinstance(event, Question):
            asked.append(event.text)
            if len(asked) == 3:
                handler.ctx.send_event(Reply(text="!"))
    assert await handler == ["a!", "b!", "c!"]


class ManyWaiters(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Branch | None:
        for n in range(6):
            ctx.send_event(Branch(name=str(n)))

    @step(num_workers=2)
    async def work(self, ctx: Context, ev: Branch) -> Done:
        answer = await ctx.wait_for_event(Reply, waiter_event=Question(text=ev.name))
        return Done(name=ev.name, text=answer.text)

    @step
    async def end(self, ctx: Context, ev: Done) -> StopEvent | None:
        found = ctx.collect_events(ev, [Done] * 6)
        return None if found is None else StopEvent(result=len(found))


@pytest.mark.feature("1.6: slots")
async def test_a_step_that_waits_holds_no_slot() -> None:
    handler = ManyWaiters().run()
    asked = 0
    async for event in handler.stream_events():
        if isinstance(event, Question):
            asked += 1
            if asked == 6:
                handler.ctx.send_event(Reply(text="go"))
    assert await handler == 6


class Replays(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        runs = await ctx.store.get("runs", default=0) + 1
        await ctx.store.set("runs", runs)
        await ctx.wait_for_event(Reply, waiter_event=Req())
        return StopEvent(result=runs)


@pytest.mark.feature("1.6: replay")
async def test_the_body_runs_again_from_its_top_when_the_event_comes() -> None:
    handler = Replays().run()
    async for event in handler.stream_events():
        if isinstance(event, Req):
            handler.ctx.send_event(Reply())
    assert await handler == 2


class Careless(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        try:
            answer = await ctx.wait_for_event(Reply, waiter_event=Req())
        except Exception as error:
            return StopEvent(result=f"swallowed {type(error).__name__}")
        return StopEvent(result=answer.text)


@pytest.mark.feature("1.6: replay")
@pytest.mark.differs("there `except Exception` around a wait swallows it")
async def test_an_except_around_a_wait_does_not_swallow_it() -> None:
    handler = Careless().run()
    async for event in handler.stream_events():
        if isinstance(event, Req):
            handler.ctx.send_event(Reply(text="heard"))
    assert await handler == "heard"


class TellsBefore(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Question(text="before"))
        await ctx.wait_for_event(Reply, waiter_event=Req())
        return StopEvent()


@pytest.mark.feature("1.6: replay")
@pytest.mark.differs("there the replay publishes once more what was published before the wait")
async def test_a_replay_publishes_nothing_twice() -> None:
    handler = TellsBefore().run()
    told = 0
    async for event in handler.stream_events():
        told += isinstance(event, Question)
        if isinstance(event, Req):
            handler.ctx.send_event(Reply())
    assert told == 1


class AlsoAStep(Workflow):
    @step
    async def waits(self, ctx: Context, ev: StartEvent) -> Done:
        answer = await ctx.wait_for_event(Reply, waiter_event=Req())
        return Done(name="waits", text=answer.text)

    @step
    async def hears(self, ev: Reply) -> Done:
        return Done(name="hears", text=ev.text)

    @step
    async def end(self, ctx: Context, ev: Done) -> StopEvent | None:
        found = ctx.collect_events(ev, [Done] * 2)
        return None if found is None else StopEvent(result=sorted(e.name for e in found))

    def __init__(self, **options: Any) -> None:
        super().__init__(disable_validation=True, **options)


@pytest.mark.feature("1.6: waiting")
async def test_an_event_that_is_waited_for_goes_to_its_steps_too() -> None:
    handler = AlsoAStep().run()
    async for event in handler.stream_events():
        if isinstance(event, Req):
            handler.ctx.send_event(Reply(text="x"))
    assert await handler == ["hears", "waits"]


class FromInside(Workflow):
    @step
    async def waits(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(
            Req()
        )  # from here on an answer that comes before the wait is kept
        ctx.send_event(Branch(name="go"))
        answer = await ctx.wait_for_event(Reply)
        return StopEvent(result=answer.text)

    @step
    async def answers(self, ctx: Context, ev: Branch) -> Reply:
        await asyncio_sleep()
        return Reply(text="inside")

    def __init__(self, **options: Any) -> None:
        super().__init__(disable_validation=True, **options)


async def asyncio_sleep() -> None:
    import asyncio

    await asyncio.sleep(0.1)


@pytest.mark.feature("1.6: waiting")
async def test_a_step_may_answer_a_wait() -> None:
    assert await FromInside(timeout=60).run() == "inside"


class BreaksOff(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(Reply, waiter_event=Req())
        return StopEvent(result=answer.text)


@pytest.mark.feature("1.6: reading on")
async def test_a_reader_may_stop_answer_and_read_on() -> None:
    handler = BreaksOff().run()
    async for event in handler.stream_events():
        if isinstance(event, Req):
            break
    handler.ctx.send_event(Reply(text="later"))
    rest = [event async for event in handler.stream_events()]
    assert rest == [StopEvent(result="later")]
    assert await handler == "later"
