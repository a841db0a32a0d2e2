"""Runs that steps start: the same ones again, without the parent's slot, and no longer than their parent."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from functools import partial

import pytest

from stepfleet import (
    Context,
    Event,
    HumanResponseEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    step,
)
from stepfleet.errors import (
    DefinitionError,
    WorkflowCancelledByUser,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from tests.conformance.place import Place
from tests.support.wait import eventually


class Number(StartEvent):
    n: int = 0


class Doubled(StopEvent):
    n: int


class Progress(Event):
    text: str


class Answer(HumanResponseEvent):
    text: str


class Double(Workflow):
    @step
    async def work(self, ctx: Context, ev: Number) -> Doubled:
        ctx.write_event_to_stream(Progress(text=f"doubling {ev.n}"))
        return Doubled(n=2 * ev.n)


async def test_a_step_awaits_a_run_of_another_workflow(place: Place) -> None:
    class Parent(Workflow):
        @step
        async def call(self, ctx: Context, ev: Number) -> StopEvent:
            handler = Double().run(n=ev.n)
            ended = await handler
            status = await handler.status()
            return StopEvent(result=[ended.n, handler.run_id, status.parent])

    await place.serve(Double)
    parent = await place.serve(Parent)
    handler = parent.run(n=4)
    result, child, owner = await handler
    assert result == 8
    assert owner == handler.run_id
    root, _, rest = child.partition("~")
    delivery, _, number = rest.partition(".")
    assert (root, len(delivery), number) == (handler.run_id, 22, "1")


async def test_a_child_in_an_attribute_of_the_workflow(place: Place) -> None:
    class Parent(Workflow):
        def __init__(self, **options: object) -> None:
            super().__init__(**options)  # pyright: ignore[reportArgumentType]
            self.child = Double()

        @step
        async def call(self, ctx: Context, ev: Number) -> StopEvent:
            ended = await self.child.run(n=ev.n)
            return StopEvent(result=ended.n)

    await place.serve(Double)
    assert await (await place.serve(Parent)).run(n=4) == 8


class Deeper(Workflow):
    """Calls itself, with one slot a run and one place over all of them."""

    @step(num_workers=1, max_concurrency=1)
    async def call(self, ev: Number) -> StopEvent:
        if ev.n == 0:
            return StopEvent(result=0)
        below = await Deeper(timeout=None).run(n=ev.n - 1)
        return StopEvent(result=below + 1)


@pytest.mark.parametrize("depth", [6])
async def test_a_recursion_deeper_than_every_limit_ends(fleet: Place, depth: int) -> None:
    await fleet.add_worker(Deeper(), concurrency=1)
    handler = await fleet.client.start(Deeper, n=depth)
    assert await handler == depth


async def test_a_recursion_in_one_place_ends(place: Place) -> None:
    flow = await place.serve(Deeper)
    assert await flow.run(n=4) == 4


async def test_a_parent_that_waits_gives_its_slot_to_its_siblings(place: Place) -> None:
    """The first waits for a child that ends only when the second has run, in the only slot."""
    turn = asyncio.Event()

    class Child(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            await turn.wait()
            return StopEvent(result="done")

    class Item(Event):
        n: int

    class Done(Event):
        n: int

    class Parent(Workflow):
        @step
        async def split(self, ctx: Context, ev: StartEvent) -> Item | None:
            ctx.send_event(Item(n=1))
            ctx.send_event(Item(n=2))

        @step(num_workers=1)
        async def call(self, ev: Item) -> Done:
            if ev.n == 1:
                await Child().run()
            else:
                turn.set()
            return Done(n=ev.n)

        @step
        async def join(self, ctx: Context, ev: Done) -> StopEvent | None:
            done = ctx.collect_events(ev, [Done] * 2)
            return None if done is None else StopEvent(result=[one.n for one in done])

    await place.serve(Child)
    handler = (await place.serve(Parent, timeout=20)).run()
    assert await handler == [2, 1]
    record = await place.call("HMGET", place.keys.run(handler.run_id), "s:call", "lent")
    assert record == [b"0", b"0"]


async def test_a_hundred_children_of_one_step(place: Place) -> None:
    class Parent(Workflow):
        @step
        async def call(self, ev: StartEvent) -> StopEvent:
            ended = await asyncio.gather(*(Double().run(n=n) for n in range(100)))
            return StopEvent(result=[one.n for one in ended])

    await place.serve(Double)
    assert await (await place.serve(Parent)).run() == [2 * n for n in range(100)]


async def test_a_child_ends_with_the_parent_that_did_not_await_it(place: Place) -> None:
    class Child(Workflow):
        @step
        async def call(self, ev: Number) -> StopEvent:
            if ev.n:
                await Child(timeout=None).run(n=ev.n - 1)
            await asyncio.sleep(600)
            return StopEvent()

    class Parent(Workflow):
        @step
        async def call(self, ctx: Context, ev: StartEvent) -> StopEvent:
            handler = Child(timeout=None).run(n=2)
            await handler.status()
            await ctx.store.set("child", handler.run_id)
            await eventually(partial(_live, place, 4), 20.0)
            return StopEvent(result=handler.run_id)

    await place.serve(Child)
    child = await (await place.serve(Parent, timeout=None)).run()
    with pytest.raises(WorkflowCancelledByUser):
        await place.client.handler(child)
    await eventually(partial(_live, place, 0), 20.0)


async def _live(place: Place, count: int) -> bool:
    return await place.call("ZCARD", place.keys.live) == count


@pytest.mark.parametrize("how", ["cancel", "failure", "time-out"])
async def test_the_end_of_a_parent_is_the_end_of_its_descendants(place: Place, how: str) -> None:
    class Child(Workflow):
        @step
        async def call(self, ev: Number) -> StopEvent:
            if ev.n:
                await Child(timeout=None).run(n=ev.n - 1)
            await asyncio.sleep(600)
            return StopEvent()

    class Fail(Event):
        pass

    class Parent(Workflow):
        @step
        async def call(self, ctx: Context, ev: StartEvent) -> StopEvent | Fail:
            ctx.send_event(Fail())
            return await Child(timeout=None).run(n=1)

        @step
        async def fail(self, ctx: Context, ev: Fail) -> StopEvent | None:
            await eventually(partial(_live, place, 3), 20.0)
            if how == "failure":
                raise ValueError("the parent fails")

    await place.serve(Child)
    parent = await place.serve(Parent, timeout=3.0 if how == "time-out" else None)
    handler = parent.run()
    if how == "cancel":
        await eventually(partial(_live, place, 3), 20.0)
        await handler.cancel_run()
    errors = {
        "cancel": WorkflowCancelledByUser,
        "failure": ValueError,
        "time-out": WorkflowTimeoutError,
    }
    with pytest.raises(errors[how]) as raised:
        await handler
    if how == "time-out":
        assert "step call waits for another run" in str(raised.value)
    await eventually(partial(_live, place, 0), 20.0)


async def test_the_time_out_of_a_child_is_its_own(place: Place) -> None:
    class Child(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            await asyncio.sleep(600)
            return StopEvent()

    class Parent(Workflow):
        @step
        async def call(self, ev: StartEvent) -> StopEvent:
            try:
                await Child(timeout=0.2).run()
            except WorkflowTimeoutError as error:
                return StopEvent(result=str(error))
            return StopEvent()

    await place.serve(Child)
    text = await (await place.serve(Parent, timeout=None)).run()
    assert "timed out after 0.2 seconds" in text


async def test_what_a_child_raises_is_raised_in_its_parent(place: Place) -> None:
    class Child(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            raise KeyError("lost")

    class Parent(Workflow):
        @step
        async def call(self, ev: StartEvent) -> StopEvent:
            await Child().run()
            return StopEvent()

    await place.serve(Child)
    with pytest.raises(KeyError, match="lost"):
        await (await place.serve(Parent)).run()


async def test_a_replay_attaches_to_the_same_children(place: Place) -> None:
    runs: Counter[int] = Counter()

    class Child(Workflow):
        @step
        async def work(self, ev: Number) -> Doubled:
            runs[ev.n] += 1
            return Doubled(n=2 * ev.n)

    class Parent(Workflow):
        @step
        async def call(self, ctx: Context, ev: StartEvent) -> StopEvent:
            first = await asyncio.gather(Child().run(n=1), Child().run(n=1), Child().run(n=2))
            answer = await ctx.wait_for_event(Answer)
            last = await Child().run(n=1)
            return StopEvent(result=[*(one.n for one in first), last.n, answer.text])

    await place.serve(Child)
    handler = (await place.serve(Parent, timeout=20)).run()
    await eventually(partial(_waits, place, handler), 20.0)
    await handler.send_event(Answer(text="yes"))
    assert await handler == [2, 2, 4, 2, "yes"]
    assert runs == {1: 3, 2: 1}


async def _waits(place: Place, handler: WorkflowHandler) -> bool:
    return bool(await place.call("EXISTS", place.keys.wait(handler.run_id)))


async def test_a_retry_starts_children_of_its_own(place: Place) -> None:
    runs: list[str] = []

    class Child(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            runs.append(ctx.run_id)
            if len(runs) == 1:
                raise ConnectionError("away")
            return StopEvent(result="back")

    class Parent(Workflow):
        @step(retry_policy=retry_policy(wait=wait_fixed(0.01), stop=stop_after_attempt(2)))
        async def call(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await Child().run())

    await place.serve(Child)
    assert await (await place.serve(Parent)).run() == "back"
    assert len(set(runs)) == 2


async def test_a_step_forwards_what_its_child_publishes(place: Place) -> None:
    class Parent(Workflow):
        @step
        async def call(self, ctx: Context, ev: Number) -> StopEvent:
            handler = Double().run(n=ev.n)
            async for event in handler.stream_events():
                if not isinstance(event, StopEvent):
                    ctx.write_event_to_stream(event)
            return StopEvent(result=(await handler).n)

    await place.serve(Double)
    handler = (await place.serve(Parent)).run(n=2)
    events = [event async for event in handler.stream_events()]
    assert events[0] == Progress(text="doubling 2")
    assert [type(event) for event in events] == [Progress, StopEvent]
    assert await handler == 4


async def test_a_stop_event_of_a_child_ends_the_reader_that_gets_it_and_not_the_parent(
    place: Place,
) -> None:
    class Parent(Workflow):
        @step
        async def call(self, ctx: Context, ev: Number) -> StopEvent:
            async for event in Double().run(n=ev.n).stream_events():
                ctx.write_event_to_stream(event)
            ctx.write_event_to_stream(Progress(text="behind"))
            return StopEvent(result="the parent's")

    await place.serve(Double)
    handler = (await place.serve(Parent)).run(n=2)
    events = [event async for event in handler.stream_events()]
    assert [type(event) for event in events] == [Progress, Doubled]
    assert await handler == "the parent's"
    later = [event async for event in handler.stream_events(after=handler.last_sequence)]
    assert later[0] == Progress(text="behind")


async def test_a_child_that_no_worker_serves_is_warned_about(
    fleet: Place, caplog: pytest.LogCaptureFixture
) -> None:
    class Parent(Workflow):
        @step
        async def call(self, ev: Number) -> StopEvent:
            try:
                async with asyncio.timeout(0.5):
                    await Double().run(n=ev.n)
            except TimeoutError:
                return StopEvent(result="nobody came")
            return StopEvent()

    handler = (await fleet.serve(Parent)).run()
    assert await handler == "nobody came"
    assert "no live worker serves this workflow" in caplog.text
    assert "workflow=Double" in caplog.text
    await eventually(partial(_live, fleet, 0), 20.0)


async def test_a_child_constructed_in_another_way_than_on_its_workers_is_refused(
    fleet: Place,
) -> None:
    class Child(Workflow):
        def __init__(self, factor: int, **options: object) -> None:
            super().__init__(**options)  # pyright: ignore[reportArgumentType]
            self.factor = factor

        @step
        async def work(self, ev: Number) -> StopEvent:
            return StopEvent(result=self.factor * ev.n)

    class Parent(Workflow):
        @step
        async def call(self, ev: Number) -> StopEvent:
            return StopEvent(result=await Child(factor=ev.n, timeout=5).run(n=10))

    await fleet.serve(partial(Child, 3))
    parent = await fleet.serve(Parent)
    assert await parent.run(n=3) == 30
    with pytest.raises(DefinitionError, match="Child was constructed here with other arguments"):
        await parent.run(n=4)


async def test_a_run_id_of_its_own_makes_a_child_too(place: Place) -> None:
    class Parent(Workflow):
        @step
        async def call(self, ctx: Context, ev: StartEvent) -> StopEvent:
            child = Double().run(n=1, run_id=f"{ctx.run_id}-own")
            ended = await child
            await ctx.wait_for_event(Answer)
            return StopEvent(result=[ended.n, child.run_id, (await child.status()).parent])

    await place.serve(Double)
    handler = (await place.serve(Parent, timeout=20)).run()
    await eventually(partial(_waits, place, handler), 20.0)
    await handler.send_event(Answer(text="yes"))
    assert await handler == [2, f"{handler.run_id}-own", handler.run_id]


async def test_the_step_of_an_ended_run_starts_no_run(place: Place) -> None:
    errors: list[str] = []

    class Other(Event):
        pass

    class Parent(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent | Other:
            ctx.send_event(Other())
            return await ctx.wait_for_event(Answer, timeout=30)  # pyright: ignore[reportReturnType]

        @step
        async def late(self, ctx: Context, ev: Other) -> StopEvent | None:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                try:
                    await Double().run()
                except WorkflowRuntimeError as error:
                    errors.append(str(error))
                raise

    await place.serve(Double)
    handler = (await place.serve(Parent, timeout=timedelta(seconds=20))).run()
    await eventually(partial(_waits, place, handler), 20.0)
    await handler.cancel_run()
    await eventually(lambda: errors, 20.0)
    assert errors == [f"run {handler.run_id} has ended: its steps start no runs any more"]


async def test_children_are_ended_long_before_the_next_sweep(fleet: Place) -> None:
    class Child(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            await asyncio.sleep(600)
            return StopEvent()

    class Parent(Workflow):
        @step
        async def call(self, ev: StartEvent) -> StopEvent:
            await Child(timeout=None).run()
            return StopEvent()

    sweep = timedelta(seconds=600)
    await fleet.add_worker(Child(), sweep=sweep)
    await fleet.add_worker(Parent(), sweep=sweep)
    handler = await fleet.client.start(Parent)
    await eventually(partial(_live, fleet, 2), 20.0)
    await handler.cancel_run()
    await eventually(partial(_live, fleet, 0), 20.0)
