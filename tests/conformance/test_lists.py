"""Lists of events: a returned list opens a scope, and steps that take lists collect out of it."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Any

import pytest

from stepfleet import Context, Event, HumanResponseEvent, StartEvent, StopEvent, Workflow, step
from stepfleet.collect import Collect, Take
from stepfleet.decorators import catch_error
from stepfleet.errors import WorkflowRuntimeError, WorkflowTimeoutError
from stepfleet.events import CollectionReleaseEvent, StepFailedEvent
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed, wait_none
from tests.conformance.place import Place
from tests.support.wait import eventually


class Item(Event):
    n: int


class Other(Event):
    n: int


class Part(Event):
    n: int


class Sum(Event):
    numbers: list[int]


class Answer(HumanResponseEvent):
    n: int = 0


class Split(Workflow):
    """Returns as many items as it is asked for."""

    @step
    async def split(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(ev.get("width", 3))]


class Joins(Workflow):
    """Ends with the numbers of the parts."""

    @step
    async def join(self, evs: list[Part]) -> StopEvent:
        return StopEvent(result=[ev.n for ev in evs])


class Works(Split, Joins):
    """The plain form: each item becomes a part."""

    @step
    async def work(self, ev: Item) -> Part | None:
        return Part(n=ev.n)


async def test_a_list_is_worked_on_one_by_one_and_collected_once(place: Place) -> None:
    flow = await place.serve(Works)
    assert sorted(await flow.run(width=7)) == list(range(7))


async def test_members_come_in_the_order_in_which_they_were_done(place: Place) -> None:
    class Flow(Works):
        @step
        async def work(self, ctx: Context, ev: Item) -> Part | None:  # type: ignore[override]
            async def later_ones_are_done() -> bool:
                return (await place.client.handler(ctx.run_id).status()).pending == ev.n + 1

            await eventually(later_ones_are_done, 20.0)
            return Part(n=ev.n)

    flow = await place.serve(Flow)
    assert await flow.run() == [2, 1, 0]


async def test_a_branch_that_ends_is_left_out(place: Place) -> None:
    class Flow(Works):
        @step
        async def work(self, ev: Item) -> Part | None:
            return Part(n=ev.n) if ev.n % 2 else None

    flow = await place.serve(Flow)
    assert sorted(await flow.run(width=6)) == [1, 3, 5]


async def test_an_empty_list_is_collected_as_one(place: Place) -> None:
    flow = await place.serve(Works)
    assert await flow.run(width=0) == []


async def test_members_are_collected_directly(place: Place) -> None:
    class Flow(Split):
        @step
        async def join(self, evs: list[Item]) -> StopEvent:
            return StopEvent(result=[ev.n for ev in evs])

    flow = await place.serve(Flow)
    assert await flow.run(width=5) == [0, 1, 2, 3, 4]


async def test_a_list_of_two_types_is_collected_in_its_order(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item | Other]:
            return [Item(n=0), Other(n=1), Item(n=2)]

        @step
        async def join(self, evs: list[Item | Other]) -> StopEvent:
            return StopEvent(result=[f"{type(ev).__name__}{ev.n}" for ev in evs])

    flow = await place.serve(Flow)
    assert await flow.run() == ["Item0", "Other1", "Item2"]


async def test_a_longer_way_stays_in_the_scope(place: Place) -> None:
    class Flow(Split, Joins):
        @step
        async def first(self, ev: Item) -> Other:
            return Other(n=ev.n)

        @step
        async def second(self, ev: Other) -> Part | Item:
            return Part(n=ev.n) if ev.n > 2 else Item(n=ev.n + 2)

    flow = await place.serve(Flow)
    assert sorted(await flow.run()) == [3, 4, 4]


async def test_every_collecting_step_gets_the_list(place: Place) -> None:
    class Flow(Works):
        @step
        async def join(self, evs: list[Part]) -> Sum:  # type: ignore[override]
            return Sum(numbers=sorted(ev.n for ev in evs))

        @step
        async def count(self, evs: list[Part]) -> Other:
            return Other(n=len(evs))

        @step
        async def end(self, all_: Sum, count: Other) -> StopEvent:
            return StopEvent(result=(all_.numbers, count.n))

    flow = await place.serve(Flow)
    assert list(await flow.run()) == [[0, 1, 2], 3]


class Nested(Workflow):
    @step
    async def outer(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(4)]

    @step
    async def inner(self, ev: Item) -> list[Other]:
        return [Other(n=10 * ev.n + n) for n in range(ev.n)]

    @step
    async def work(self, ev: Other) -> Part:
        return Part(n=ev.n)

    @step
    async def part(self, evs: list[Part]) -> Sum:
        return Sum(numbers=sorted(ev.n for ev in evs))

    @step
    async def whole(self, evs: list[Sum]) -> StopEvent:
        return StopEvent(result=sorted(ev.numbers for ev in evs))


async def test_lists_inside_of_lists_are_collected_inside_first(place: Place) -> None:
    flow = await place.serve(Nested)
    assert await flow.run() == [[], [10], [20, 21], [30, 31, 32]]


async def test_a_collecting_step_may_return_the_next_list(place: Place) -> None:
    class Flow(Split):
        @step
        async def again(self, evs: list[Item]) -> list[Item] | StopEvent:
            if len(evs) == 1:
                return StopEvent(result="one is left")
            return [Item(n=n) for n in range(len(evs) - 1)]

    flow = await place.serve(Flow)
    assert await flow.run(width=4) == "one is left"


async def test_a_single_event_of_a_union_opens_no_scope(place: Place) -> None:
    class Flow(Joins):
        @step
        async def choose(self, ev: StartEvent) -> list[Part] | Other | None:
            return Other(n=1) if ev.get("single") else [Part(n=2)]

        @step
        async def other(self, ev: Other) -> StopEvent:
            return StopEvent(result="single")

    flow = await place.serve(Flow)
    assert await flow.run(single=True) == "single"
    assert await flow.run() == [2]


async def test_a_stop_event_in_a_list_ends_the_run(place: Place) -> None:
    class Flow(Joins):
        @step
        async def split(self, ev: StartEvent) -> list[Part | StopEvent]:
            return [Part(n=1), StopEvent(result="stopped"), Part(n=2)]

    flow = await place.serve(Flow)
    assert await flow.run() == "stopped"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            Part(n=1),
            "Step function split returned a bare Part but its return annotation only declares it "
            "inside a list. Return a one-element list to fan out, or declare the bare type as a "
            "union member (e.g. -> list[A] | B) for ordinary dispatch.",
        ),
        ("text", "Step function split returned str instead of an Event instance."),
        (
            [Part(n=1), 2],
            "Step function split returned a list containing int instead of an Event instance.",
        ),
    ],
)
async def test_what_the_signature_does_not_say_fails_the_run(
    place: Place, returned: Any, message: str
) -> None:
    class Flow(Joins):
        @step
        async def split(self, ev: StartEvent) -> list[Part]:
            return returned

    flow = await place.serve(Flow)
    with pytest.raises(WorkflowRuntimeError) as caught:
        await flow.run()
    assert str(caught.value) == message


async def test_a_list_that_the_signature_does_not_declare_fails_the_run(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def split(self, ev: StartEvent) -> Part:
            return [Part(n=1)]  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

        @step
        async def end(self, ev: Part) -> StopEvent:
            return StopEvent()

    flow = await place.serve(Flow)
    with pytest.raises(WorkflowRuntimeError, match="returned list instead of an Event instance"):
        await flow.run()


# -- Take


async def test_the_first_of_a_list_are_taken_while_others_still_run(place: Place) -> None:
    class Flow(Split):
        @step(num_workers=8)
        async def work(self, ev: Item) -> Part:
            await asyncio.sleep(0 if ev.n < 2 else 60)
            return Part(n=ev.n)

        @step
        async def join(self, evs: Annotated[list[Part], Collect(Take(2))]) -> StopEvent:
            return StopEvent(result=sorted(ev.n for ev in evs))

    flow = await place.serve(Flow)
    async with asyncio.timeout(20):
        assert await flow.run(width=4) == [0, 1]


async def test_what_comes_after_the_last_that_was_taken_is_ignored(place: Place) -> None:
    class Flow(Works):
        @step
        async def join(self, evs: Annotated[list[Part], Collect(Take(2))]) -> Sum:  # type: ignore[override]
            return Sum(numbers=[ev.n for ev in evs])

        @step
        async def every(self, evs: list[Part]) -> Other:
            return Other(n=len(evs))

        @step
        async def end(self, some: Sum, count: Other) -> StopEvent:
            return StopEvent(result=[len(some.numbers), count.n])

    flow = await place.serve(Flow)
    assert await flow.run(width=6) == [2, 6]


async def test_fewer_than_wanted_come_when_the_scope_ends(place: Place) -> None:
    class Flow(Split):
        @step
        async def join(self, evs: Annotated[list[Item], Collect(Take(9))]) -> StopEvent:
            return StopEvent(result=len(evs))

    flow = await place.serve(Flow)
    assert await flow.run(width=4) == 4
    assert await flow.run(width=0) == 0
    assert await flow.run(width=20) == 9


# -- failures, retries, waits


async def test_a_member_that_fails_ends_the_run(place: Place) -> None:
    class Flow(Works):
        @step
        async def work(self, ev: Item) -> Part | None:
            if ev.n == 1:
                raise ValueError("no one")
            return Part(n=ev.n)

    flow = await place.serve(Flow)
    with pytest.raises(ValueError, match="no one"):
        await flow.run()


async def test_a_member_that_fails_may_be_recovered_inside_of_its_scope(place: Place) -> None:
    class Flow(Works):
        @step
        async def work(self, ev: Item) -> Part | None:
            if ev.n == 1:
                raise ValueError("no one")
            return Part(n=ev.n)

        @catch_error(max_recoveries=2)
        async def recover(self, ev: StepFailedEvent) -> Part:
            return Part(n=-ev.input_event.n)

    flow = await place.serve(Flow)
    assert sorted(await flow.run()) == [-1, 0, 2]


async def test_a_collecting_step_that_fails_shows_what_it_had_collected(place: Place) -> None:
    class Flow(Works):
        @step
        async def join(self, evs: list[Part]) -> StopEvent:  # type: ignore[override]
            raise ValueError("no list")

        @catch_error
        async def recover(self, ev: StepFailedEvent) -> StopEvent:
            assert isinstance(ev.input_event, CollectionReleaseEvent)
            return StopEvent(result=sorted(part.n for part in ev.input_event.events))

    flow = await place.serve(Flow)
    assert await flow.run() == [0, 1, 2]


async def test_a_member_is_tried_again_and_counted_once(place: Place) -> None:
    class Flow(Works):
        @step(retry_policy=retry_policy(wait=wait_fixed(0.1), stop=stop_after_attempt(3)))
        async def work(self, ev: Item) -> Part | None:
            path = f"tried_{ev.n}"
            context = Context[Any].get_step_context()
            tries = await context.store.get(path, default=0)
            await context.store.set(path, tries + 1)
            if tries < 2:
                raise ValueError("again")
            return Part(n=ev.n)

    flow = await place.serve(Flow)
    assert sorted(await flow.run()) == [0, 1, 2]


async def test_a_collecting_step_is_tried_again_with_the_same_list(place: Place) -> None:
    class Flow(Works):
        @step(retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(3)))
        async def join(self, ctx: Context, evs: list[Part]) -> StopEvent:  # type: ignore[override]
            seen = [*await ctx.store.get("seen", default=[]), [ev.n for ev in evs]]
            await ctx.store.set("seen", seen)
            if len(seen) < 3:
                raise ValueError("again")
            return StopEvent(result=seen)

    flow = await place.serve(Flow)
    seen = await flow.run()
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]


async def test_a_member_that_waits_keeps_its_scope_open(place: Place) -> None:
    class Flow(Works):
        @step
        async def work(self, ctx: Context, ev: Item) -> Part | None:  # type: ignore[override]
            if ev.n == 1:
                answer = await ctx.wait_for_event(Answer, waiter_event=Other(n=0))
                return Part(n=answer.n)
            return Part(n=ev.n)

    flow = await place.serve(Flow)
    handler = flow.run()
    async for event in handler.stream_events():
        if isinstance(event, Other):
            await handler.send_event(Answer(n=7))
    assert sorted(await handler) == [0, 2, 7]


async def test_a_collecting_step_can_wait(place: Place) -> None:
    class Flow(Works):
        @step
        async def join(self, ctx: Context, evs: list[Part]) -> StopEvent:  # type: ignore[override]
            answer = await ctx.wait_for_event(Answer, waiter_event=Other(n=0))
            return StopEvent(result=[len(evs), answer.n])

    flow = await place.serve(Flow)
    handler = flow.run()
    async for event in handler.stream_events():
        if isinstance(event, Other):
            await handler.send_event(Answer(n=7))
    assert await handler == [3, 7]


async def test_a_member_that_somebody_waits_for_is_collected_as_well(place: Place) -> None:
    class Flow(Works):
        @step
        async def watch(self, ctx: Context, ev: StartEvent) -> None:
            part = await ctx.wait_for_event(Part)
            ctx.write_event_to_stream(Other(n=part.n))

        @step
        async def work(self, ctx: Context, ev: Item) -> Part | None:  # type: ignore[override]
            await asyncio.sleep(0.3)
            return Part(n=ev.n)

    flow = await place.serve(Flow)
    handler = flow.run()
    watched = [event.n async for event in handler.stream_events() if isinstance(event, Other)]
    assert sorted(await handler) == [0, 1, 2]
    assert len(watched) <= 1


# -- what was sent


async def test_a_sent_event_joins_no_list(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    class Flow(Works):
        @step
        async def work(self, ctx: Context, ev: Item) -> Part | None:  # type: ignore[override]
            ctx.send_event(Part(n=100 + ev.n))
            return Part(n=ev.n)

        @step(num_workers=1)
        async def join(self, ctx: Context, evs: list[Part]) -> StopEvent:  # type: ignore[override]
            await eventually(lambda: caplog.text.count(ignored) == 3, 20.0)
            return StopEvent(result=sorted(ev.n for ev in evs))

    ignored = (
        "Ignoring Part for collect step 'join': it was sent outside any collection stream "
        "(e.g. via ctx.send_event) so it cannot join a batch."
    )
    flow = await place.serve(Flow)
    with caplog.at_level(logging.WARNING):
        assert await flow.run() == [0, 1, 2]


async def test_an_event_sent_to_a_collecting_step_fails_the_run(place: Place) -> None:
    class Flow(Works):
        @step
        async def work(self, ctx: Context, ev: Item) -> Part | None:  # type: ignore[override]
            ctx.send_event(Part(n=100), step="join")
            return Part(n=ev.n)

    flow = await place.serve(Flow)
    with pytest.raises(
        WorkflowRuntimeError, match=r"^Part was sent to collect step 'join' via send_event\(step"
    ):
        await flow.run()


async def test_a_caller_who_sends_to_a_collecting_step_fails_the_run(place: Place) -> None:
    class Flow(Works):
        @step
        async def work(self, ev: Item) -> Part | None:
            await asyncio.sleep(60)
            return Part(n=ev.n)

    flow = await place.serve(Flow)
    handler = flow.run()
    await handler.send_event(Part(n=1), step="join")
    with pytest.raises(WorkflowRuntimeError, match="a collect step cannot receive targeted events"):
        await handler


# -- the end


async def test_a_scope_leaves_no_key_when_it_was_collected(place: Place) -> None:
    class Flow(Works):
        @step
        async def join(self, evs: list[Part]) -> Other:  # type: ignore[override]
            return Other(n=len(evs))

        @step
        async def end(self, ctx: Context, ev: Other) -> StopEvent:
            await ctx.wait_for_event(Answer, waiter_event=ev)
            return StopEvent()

    flow = await place.serve(Flow)
    handler, left = flow.run(), ["nobody looked"]
    async for event in handler.stream_events():
        if isinstance(event, Other):
            left = [key for key in await place.run_keys() if ":scope:" in key]
            await handler.send_event(Answer())
    await handler
    assert left == []


async def test_a_run_that_is_cancelled_inside_of_a_scope_leaves_nothing(place: Place) -> None:
    class Flow(Works):
        @step
        async def work(self, ctx: Context, ev: Item) -> Part | None:  # type: ignore[override]
            ctx.write_event_to_stream(Other(n=ev.n))
            await asyncio.sleep(0 if ev.n == 0 else 60)
            return Part(n=ev.n)

    flow = await place.serve(Flow)
    handler = flow.run(width=8)

    async def one_is_done() -> bool:
        rows = [key for key in await place.run_keys() if key.endswith(":join")]
        return bool(rows)

    await eventually(one_is_done, 20.0)
    await handler.cancel_run()
    with pytest.raises(Exception):  # noqa: B017, PT011
        await handler


async def test_a_run_that_times_out_inside_of_a_scope_says_what_it_waits_for(place: Place) -> None:
    class Flow(Works):
        @step
        async def work(self, ev: Item) -> Part | None:
            await asyncio.sleep(0 if ev.n == 0 else 60)
            return Part(n=ev.n)

    flow = await place.serve(Flow, timeout=2)
    with pytest.raises(WorkflowTimeoutError, match="work"):
        await flow.run()


async def test_a_wide_list_is_collected_whole(place: Place) -> None:
    class Flow(Works):
        @step(num_workers=50)
        async def work(self, ev: Item) -> Part | None:
            return Part(n=ev.n)

    flow = await place.serve(Flow, timeout=120)
    assert sorted(await flow.run(width=1200)) == list(range(1200))


async def test_a_wide_list_of_two_types_for_one_step_is_collected_whole(place: Place) -> None:
    class Flow(Joins):
        @step
        async def split(self, ctx: Context, ev: StartEvent) -> list[Item | Other]:
            for n in range(700):
                ctx.send_event(Item(n=-n - 1))
            return [*[Item(n=n) for n in range(600)], *[Other(n=n) for n in range(600, 1200)]]

        @step(num_workers=50)
        async def work(self, ev: Item | Other) -> Part | None:
            return Part(n=ev.n) if ev.n >= 0 else None

        @step(num_workers=50)
        async def count(self, ev: Item | Other) -> None:
            return None

    flow = await place.serve(Flow, timeout=120)
    assert sorted(await flow.run()) == list(range(1200))
