"""`num_concurrent_runs`: at most so many runs of a workflow at once, whoever starts them, each in turn."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.errors import WorkflowCancelledByUser, WorkflowTimeoutError
from tests.conformance.place import Place
from tests.support.wait import eventually


class Number(StartEvent):
    n: int = 0


class Gauge:
    """How many are inside, and the most that ever were."""

    def __init__(self) -> None:
        self.inside = self.most = 0
        self.began: list[int] = []
        self.gate = asyncio.Event()

    def flow(self) -> type[Workflow]:
        gauge = self

        class Limited(Workflow):
            @step
            async def work(self, ev: Number) -> StopEvent:
                gauge.began.append(ev.n)
                gauge.inside += 1
                gauge.most = max(gauge.most, gauge.inside)
                try:
                    await gauge.gate.wait()
                    await asyncio.sleep(0.01)
                finally:
                    gauge.inside -= 1
                return StopEvent(result=ev.n)

        return Limited


async def test_runs_beyond_the_limit_wait_for_their_turn(place: Place) -> None:
    gauge = Gauge()
    flow = await place.serve(gauge.flow(), num_concurrent_runs=2)
    handlers = [flow.run(n=n) for n in range(7)]
    await eventually(lambda: gauge.inside == 2, 20.0)
    statuses = [(await handler.status()).status for handler in handlers]
    assert sorted(statuses) == ["queued"] * 5 + ["running"] * 2
    gauge.gate.set()
    assert await asyncio.gather(*handlers) == list(range(7))
    assert gauge.most == 2
    assert {(await handler.status()).status for handler in handlers} == {"completed"}


async def test_the_one_that_waits_longest_goes_first(place: Place) -> None:
    gauge = Gauge()
    flow = await place.serve(gauge.flow(), num_concurrent_runs=1)
    handlers: list[Any] = []
    for n in range(5):
        handlers.append(flow.run(n=n))
        await handlers[-1].status()
    gauge.gate.set()
    await asyncio.gather(*handlers)
    assert gauge.began == [0, 1, 2, 3, 4]


async def test_the_time_out_runs_from_the_turn_of_a_run(place: Place) -> None:
    gates = {1: asyncio.Event(), 2: asyncio.Event()}
    began: list[int] = []

    class Slow(Workflow):
        @step
        async def work(self, ev: Number) -> StopEvent:
            began.append(ev.n)
            await gates[ev.n].wait()
            return StopEvent(result="done")

    flow = await place.serve(Slow, num_concurrent_runs=1, timeout=60)
    first = flow.run(n=1)
    await eventually(lambda: began == [1], 20.0)
    second = flow.run(n=2)
    assert (await second.status()).status == "queued"
    await asyncio.sleep(0.1)  # it has waited for a while
    turn_ms = await place.now_ms()
    gates[1].set()
    assert await place.deadline_ms(second.run_id) >= turn_ms + 60_000
    gates[2].set()
    assert await asyncio.gather(first, second) == ["done"] * 2


@pytest.mark.parametrize("how", ["cancel", "failure", "time-out"])
async def test_however_a_run_ends_the_next_one_begins(place: Place, how: str) -> None:
    class Flow(Workflow):
        @step
        async def work(self, ev: Number) -> StopEvent:
            if ev.n == 0:
                if how == "failure":
                    raise ValueError("no")
                await asyncio.sleep(600)
            return StopEvent(result=ev.n)

    timeout = 2.0 if how == "time-out" else 60
    flow = await place.serve(Flow, num_concurrent_runs=1, timeout=timeout)
    first = flow.run(n=0)
    await first.status()
    second = flow.run(n=2)
    if how == "cancel":
        await second.status()
        await place.client.handler(first.run_id).cancel_run()
    kinds = {
        "cancel": WorkflowCancelledByUser,
        "failure": ValueError,
        "time-out": WorkflowTimeoutError,
    }
    with pytest.raises(kinds[how]):
        await first
    assert await second == 2


async def test_a_queued_run_can_be_cancelled(place: Place) -> None:
    gauge = Gauge()
    flow = await place.serve(gauge.flow(), num_concurrent_runs=1)
    handlers: list[Any] = []
    for n in range(3):
        handlers.append(flow.run(n=n))
        await handlers[-1].status()
    await handlers[1].cancel_run()
    with pytest.raises(WorkflowCancelledByUser):
        await handlers[1]
    gauge.gate.set()
    assert [await handlers[0], await handlers[2]] == [0, 2]
    assert gauge.began == [0, 2]


async def test_what_is_sent_to_a_queued_run_comes_after_its_turn(place: Place) -> None:
    class Word(Event):
        text: str

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: Number) -> Word | None:
            await ctx.store.set("began", True)

        @step
        async def hear(self, ctx: Context, ev: Word) -> StopEvent:
            return StopEvent(result=[ev.text, await ctx.store.get("began", default=False)])

    flow = await place.serve(Flow, num_concurrent_runs=1, timeout=20)
    first, second = flow.run(n=0), flow.run(n=1)
    await first.status()
    await second.send_event(Word(text="early"))
    assert (await second.status()).status == "queued"
    await first.send_event(Word(text="go"))
    assert (await first)[0] == "go"
    text, _ = await second
    assert text == "early"


async def test_a_child_that_is_queued_counts_like_any_run(place: Place) -> None:
    most = inside = 0
    both = asyncio.Event()

    class Child(Workflow):
        @step
        async def work(self, ev: Number) -> StopEvent:
            nonlocal most, inside
            inside += 1
            most = max(most, inside)
            if most == 2:
                both.set()
            await both.wait()  # two are inside at once, however slow this machine is
            await asyncio.sleep(0.02)
            inside -= 1
            return StopEvent(result=ev.n)

    child = Child(num_concurrent_runs=2)

    class Parent(Workflow):
        @step
        async def call(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await asyncio.gather(*(child.run(n=n) for n in range(8))))

    await place.serve(Child)
    assert await (await place.serve(Parent)).run() == list(range(8))
    assert most == 2


async def test_two_instances_in_memory_have_limits_of_their_own() -> None:
    gauge = Gauge()
    cls = gauge.flow()
    one, other = cls(num_concurrent_runs=1), cls(num_concurrent_runs=1)
    handlers = [one.run(n=1), one.run(n=2), other.run(n=3), other.run(n=4)]
    await eventually(lambda: gauge.inside == 2, 20.0)
    gauge.gate.set()
    assert await asyncio.gather(*handlers) == [1, 2, 3, 4]
    assert gauge.most == 2


async def test_the_limit_of_the_workers_holds_for_callers_that_know_the_class_only(
    fleet: Place,
) -> None:
    gauge = Gauge()
    cls = gauge.flow()
    await fleet.serve(cls, num_concurrent_runs=2)
    others = [fleet.new_client() for _ in range(3)]
    handlers = [await client.start(cls, n=n) for n, client in enumerate(others)]
    handlers += [await others[0].start("Limited", n=3)]
    await eventually(lambda: gauge.inside == 2, 20.0)
    gauge.gate.set()
    assert await asyncio.gather(*handlers) == [0, 1, 2, 3]
    assert gauge.most == 2


async def test_no_key_of_a_limit_outlives_its_runs(fleet: Place) -> None:
    gauge = Gauge()
    gauge.gate.set()
    flow = await fleet.serve(gauge.flow(), num_concurrent_runs=2)
    await asyncio.gather(*(flow.run(n=n) for n in range(9)))
    assert await eventually(partial(_no_places, fleet), 20.0)


async def _no_places(place: Place) -> bool:
    return not await place.call("KEYS", f"{place.keys.tag}:runs:*")


async def test_a_run_that_goes_on_from_a_dictionary_waits_for_its_turn(place: Place) -> None:
    gauge = Gauge()
    flow = await place.serve(gauge.flow(), num_concurrent_runs=1)
    first = flow.run(n=1)
    await eventually(lambda: gauge.inside == 1, 20.0)
    second = flow.run(ctx=Context.from_dict(flow, first.ctx.to_dict()))
    assert (await second.status()).status == "queued"
    gauge.gate.set()
    assert await asyncio.gather(first, second) == [1, 1]
    assert gauge.most == 1
