"""Sections 1.2 and 1.8, second half: lists of events and joins of several."""

from __future__ import annotations

import asyncio
from typing import Annotated

import pytest

from stepfleet import Context, Workflow, catch_error, step
from stepfleet.collect import All, Collect, Take
from stepfleet.errors import WorkflowRuntimeError, WorkflowValidationError
from stepfleet.events import Event, StartEvent, StepFailedEvent, StopEvent


class Job(Event):
    n: int = 0


class Ready(Event):
    n: int = 0


class Extra(Event):
    n: int = 0


class ListFanOut(Workflow):
    @step
    async def split(self, ev: StartEvent) -> list[Job]:
        return [Job(n=n) for n in range(ev.width)]

    @step
    async def work(self, ev: Job) -> Ready:
        return Ready(n=ev.n * 10)

    @step
    async def join(self, evs: list[Ready]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))


@pytest.mark.feature("1.8: list fan-out and list fan-in")
@pytest.mark.parametrize("width", [0, 1, 5])
async def test_a_list_is_worked_on_in_parallel_and_joined(width: int) -> None:
    assert await ListFanOut().run(width=width) == [10 * n for n in range(width)]


class SomeAreDropped(Workflow):
    @step
    async def split(self, ev: StartEvent) -> list[Job]:
        return [Job(n=n) for n in range(6)]

    @step
    async def work(self, ev: Job) -> Ready | None:
        return Ready(n=ev.n) if ev.n % 2 else None

    @step
    async def join(self, evs: list[Ready]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))


@pytest.mark.feature("1.8: list fan-out and list fan-in")
async def test_a_member_that_ends_in_nothing_is_left_out() -> None:
    assert await SomeAreDropped().run() == [1, 3, 5]


class TwoStages(Workflow):
    @step
    async def split(self, ev: StartEvent) -> list[Job]:
        return [Job(n=n) for n in range(3)]

    @step
    async def first(self, ev: Job) -> Extra:
        return Extra(n=ev.n + 1)

    @step
    async def second(self, ev: Extra) -> Ready:
        return Ready(n=ev.n * 2)

    @step
    async def join(self, evs: list[Ready]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))


@pytest.mark.feature("1.8: list fan-out and list fan-in")
async def test_a_line_of_steps_stays_in_its_list() -> None:
    assert await TwoStages().run() == [2, 4, 6]


class UnionJoin(Workflow):
    @step
    async def split(self, ev: StartEvent) -> list[Job]:
        return [Job(n=n) for n in range(4)]

    @step
    async def work(self, ev: Job) -> Ready | Extra:
        return Ready(n=ev.n) if ev.n % 2 else Extra(n=ev.n)

    @step
    async def join(self, evs: list[Ready | Extra]) -> StopEvent:
        return StopEvent(result=sorted(f"{type(ev).__name__}{ev.n}" for ev in evs))


@pytest.mark.feature("1.8: list fan-out and list fan-in")
async def test_a_list_may_have_events_of_several_types() -> None:
    assert await UnionJoin().run() == ["Extra0", "Extra2", "Ready1", "Ready3"]


class Group(Event):
    n: int


class Sum(Event):
    n: int


class Nested(Workflow):
    @step
    async def groups(self, ev: StartEvent) -> list[Group]:
        return [Group(n=1), Group(n=2)]

    @step
    async def members(self, ev: Group) -> list[Job]:
        return [Job(n=ev.n * 10 + k) for k in range(3)]

    @step
    async def work(self, ev: Job) -> Ready:
        return Ready(n=ev.n)

    @step
    async def inner(self, evs: list[Ready]) -> Sum:
        return Sum(n=sum(ev.n for ev in evs))

    @step
    async def outer(self, evs: list[Sum]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))


@pytest.mark.feature("1.8: nested lists")
async def test_lists_may_be_nested() -> None:
    assert await Nested().run() == [33, 63]


class FirstTwo(Workflow):
    @step
    async def split(self, ev: StartEvent) -> list[Job]:
        return [Job(n=n) for n in range(4)]

    @step
    async def work(self, ev: Job) -> Ready:
        await asyncio.sleep(0.0 if ev.n < 2 else 30)
        return Ready(n=ev.n)

    @step
    async def join(self, evs: Annotated[list[Ready], Collect(Take(2))]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))


@pytest.mark.feature("1.8: Take(n)")
async def test_a_join_may_take_the_first_ones() -> None:
    assert await FirstTwo().run() == [0, 1]


class TakesMore(Workflow):
    @step
    async def split(self, ev: StartEvent) -> list[Job]:
        return [Job(n=n) for n in range(2)]

    @step
    async def work(self, ev: Job) -> Ready:
        return Ready(n=ev.n)

    @step
    async def join(self, evs: Annotated[list[Ready], Collect(Take(5))]) -> StopEvent:
        return StopEvent(result=len(evs))


@pytest.mark.feature("1.8: Take(n)")
async def test_a_join_that_takes_more_than_there_are_gets_all() -> None:
    assert await TakesMore().run() == 2


class TakesAll(Workflow):
    @step
    async def split(self, ev: StartEvent) -> list[Job]:
        return [Job(n=n) for n in range(3)]

    @step
    async def join(self, evs: Annotated[list[Job], Collect(All())]) -> StopEvent:
        return StopEvent(result=[ev.n for ev in evs])


@pytest.mark.feature("1.8: All()")
async def test_a_join_may_say_that_it_takes_all() -> None:
    assert sorted(await TakesAll().run()) == [0, 1, 2]


@pytest.mark.feature("1.8: Take(n)")
def test_at_least_one_is_taken() -> None:
    with pytest.raises(ValueError, match="n >= 1"):
        Take(0)


class MemberFails(Workflow):
    @step
    async def split(self, ev: StartEvent) -> list[Job]:
        return [Job(n=n) for n in range(3)]

    @step
    async def work(self, ev: Job) -> Ready:
        if ev.n == 1:
            raise ValueError("member 1")
        return Ready(n=ev.n)

    @step
    async def join(self, evs: list[Ready]) -> StopEvent:
        return StopEvent(result=len(evs))


@pytest.mark.feature("1.8: failures in lists")
async def test_a_member_that_fails_fails_the_run() -> None:
    with pytest.raises(ValueError, match="member 1"):
        await MemberFails().run()


class MemberRecovers(Workflow):
    @step
    async def split(self, ev: StartEvent) -> list[Job]:
        return [Job(n=n) for n in range(3)]

    @step
    async def work(self, ev: Job) -> Ready:
        if ev.n == 1:
            raise ValueError("member 1")
        return Ready(n=ev.n)

    @catch_error(for_steps=["work"])
    async def rescue(self, ev: StepFailedEvent) -> Ready:
        return Ready(n=100)

    @step
    async def join(self, evs: list[Ready]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))


@pytest.mark.feature("1.8: failures in lists")
async def test_a_member_may_be_recovered() -> None:
    assert await MemberRecovers().run() == [0, 2, 100]


class BareOfList(Workflow):
    @step
    async def split(self, ev: StartEvent) -> list[Job]:
        return Job(n=1)  # type: ignore[return-value]

    @step
    async def join(self, evs: list[Job]) -> StopEvent:
        return StopEvent()


@pytest.mark.feature("1.8: list fan-out and list fan-in")
async def test_a_bare_event_where_a_list_was_declared_fails() -> None:
    with pytest.raises(
        WorkflowRuntimeError,
        match="Step function split returned a bare Job but its return annotation only declares it "
        "inside a list",
    ):
        await BareOfList().run()


class ListOrEvent(Workflow):
    @step
    async def split(self, ev: StartEvent) -> list[Job] | Extra | None:
        return Extra(n=4) if ev.bare else [Job(n=1), Job(n=2)]

    @step
    async def alone(self, ev: Extra) -> StopEvent:
        return StopEvent(result="alone")

    @step
    async def join(self, evs: list[Job]) -> StopEvent:
        return StopEvent(result=len(evs))


@pytest.mark.feature("1.8: list fan-out and list fan-in")
async def test_a_step_may_return_a_list_or_one_event() -> None:
    assert await ListOrEvent().run(bare=True) == "alone"
    assert await ListOrEvent().run(bare=False) == 2


# -- several event parameters --------------------------------------------------------------------------


class Joins(Workflow):
    @step
    async def one(self, ev: StartEvent) -> Ready:
        return Ready(n=1)

    @step
    async def other(self, ev: StartEvent) -> Extra:
        return Extra(n=2)

    @step
    async def join(self, left: Ready, right: Extra) -> StopEvent:
        return StopEvent(result=[left.n, right.n])


@pytest.mark.feature("1.2: several event parameters")
async def test_a_step_with_two_events_waits_for_both() -> None:
    assert await Joins().run() == [1, 2]


class Pairs(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Ready | Extra | None:
        for n in range(2):
            ctx.send_event(Ready(n=n))
        for n in range(2):
            ctx.send_event(Extra(n=n))

    @step(num_workers=1)
    async def join(self, left: Ready, right: Extra) -> Sum:
        return Sum(n=left.n * 10 + right.n)

    @step
    async def end(self, ctx: Context, ev: Sum) -> StopEvent | None:
        found = ctx.collect_events(ev, [Sum, Sum])
        return None if found is None else StopEvent(result=sorted(e.n for e in found))


@pytest.mark.feature("1.2: several event parameters")
async def test_events_are_paired_in_the_order_of_their_arrival() -> None:
    assert await Pairs().run() == [0, 11]


@pytest.mark.feature("1.2: several event parameters")
def test_each_of_several_parameters_has_one_type() -> None:
    with pytest.raises(
        WorkflowValidationError, match="require each event parameter to declare a single event type"
    ):

        class Wrong(Workflow):
            @step
            async def join(self, a: Job | Ready, b: Extra) -> StopEvent:
                return StopEvent()


@pytest.mark.feature("1.12: lists")
def test_a_list_needs_a_step_that_returns_it() -> None:
    class Unlisted(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Job:
            return Job()

        @step
        async def join(self, e: list[Job]) -> StopEvent:
            return StopEvent()

    with pytest.raises(
        WorkflowValidationError,
        match=r"Step 'join' parameter 'e' collects list\[Job\], but no returned-list producer",
    ):
        Unlisted().validate()
