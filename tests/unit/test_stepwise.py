"""`run_step()` lets one step of a run go; plain code and code in an event loop can use it."""

from __future__ import annotations

import asyncio

import pytest

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.client import Client
from stepfleet.embedded.memory import memory_fleet
from stepfleet.errors import WorkflowConfigurationError, WorkflowRuntimeError


class Next(Event):
    number: int


class Counting(Workflow):
    @step
    async def first(self, ev: StartEvent) -> Next:
        ev.seen.append("first") if "seen" in ev else None
        return Next(number=1)

    @step
    async def more(self, ctx: Context, ev: Next) -> Next | StopEvent:
        await ctx.store.set("number", ev.number)
        return Next(number=ev.number + 1) if ev.number < 3 else StopEvent(result=ev.number)


def test_plain_code_runs_a_workflow_step_by_step() -> None:
    flow = Counting()
    assert flow.is_done()
    flow.run_step()
    steps = 1
    while not flow.is_done():
        flow.run_step()
        steps += 1
    assert (steps, flow.get_result()) == (4, 3)


async def test_a_step_that_is_awaited_gives_what_it_returned() -> None:
    flow = Counting()
    returned = [await flow.run_step() for _ in range(4)]
    assert returned[:3] == [Next(number=1), Next(number=2), Next(number=3)]
    assert isinstance(returned[3], StopEvent)
    assert flow.is_done()
    assert flow.get_result() == 3


def test_no_step_runs_that_was_not_let_go() -> None:
    ran: list[str] = []

    class Flow(Workflow):
        @step
        async def first(self, ev: StartEvent) -> Next:
            ran.append("first")
            return Next(number=1)

        @step
        async def second(self, ev: Next) -> StopEvent:
            ran.append("second")
            return StopEvent()

    flow = Flow()
    flow.run_step().wait()
    assert ran == ["first"]
    assert not flow.is_done()
    assert ran == ["first"]
    flow.run_step().wait()
    assert ran == ["first", "second"]


def test_a_run_that_has_ended_is_followed_by_a_new_one() -> None:
    flow = Counting()
    for _ in range(2):
        flow.run_step()
        while not flow.is_done():
            flow.run_step()
        assert flow.get_result() == 3


def test_the_result_is_there_when_the_run_has_ended() -> None:
    flow = Counting()
    with pytest.raises(WorkflowRuntimeError, match="There is no run"):
        flow.get_result()
    flow.run_step()
    with pytest.raises(WorkflowRuntimeError, match="The run goes on"):
        flow.get_result()
    while not flow.is_done():
        flow.run_step()
    assert flow.get_result() == 3


def test_a_step_that_fails_ends_the_run_and_gives_its_error() -> None:
    class Flow(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            raise KeyError("broken")

    flow = Flow()
    assert flow.run_step().wait() is None
    assert flow.is_done()
    with pytest.raises(KeyError, match="broken"):
        flow.get_result()


def test_what_cannot_start_is_told_by_the_step() -> None:
    with pytest.raises(WorkflowConfigurationError, match="has no configured steps"):
        Workflow().run_step().wait()


async def test_a_run_on_a_server_cannot_be_stopped_before_each_step() -> None:
    client = Client(memory_fleet())
    with pytest.raises(WorkflowRuntimeError, match="in this process only"):
        await Counting(runtime=client).run_step()
    await client.close()


async def test_other_runs_of_the_instance_go_on_by_themselves() -> None:
    flow = Counting()
    flow.run_step().wait()
    assert await asyncio.wait_for(flow.run(), 10) == 3
    while not flow.is_done():
        flow.run_step()


async def test_of_two_branches_one_runs_to_its_end_before_the_other_begins() -> None:
    log: list[str] = []

    class Flow(Workflow):
        @step
        async def first(self, ctx: Context, ev: StartEvent) -> Next | None:
            ctx.send_event(Next(number=1))
            ctx.send_event(Next(number=2))

        @step
        async def work(self, ctx: Context, ev: Next) -> StopEvent | None:
            log.append("begin")
            await asyncio.sleep(0.02)
            log.append("end")
            both = ctx.collect_events(ev, [Next, Next])
            return None if both is None else StopEvent()

    flow = Flow()
    flow.run_step()
    while not flow.is_done():
        await flow.run_step()
        assert log[-1] == "end"
    assert log[:4] == ["begin", "end", "begin", "end"]
