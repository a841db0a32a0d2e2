"""Resources are injected into steps, one for each instance of a workflow in each worker process."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import pytest

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.resource import Resource, ResourceManager
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_none
from tests.conformance.place import WORKERS, Place


class Next(Event):
    seen: int


class Counter:
    """Numbers the resources that a process makes."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.number = type(self).made


def make_counter() -> Counter:
    return Counter()


async def make_slowly() -> Counter:
    await asyncio.sleep(0)
    return Counter()


@pytest.fixture(autouse=True)
def counted_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counter, "made", 0)


async def test_a_cached_resource_is_shared_by_all_steps_and_runs_of_an_instance(
    place: Place,
) -> None:
    class Flow(Workflow):
        @step
        async def first(
            self, ev: StartEvent, counter: Annotated[Counter, Resource(make_slowly)]
        ) -> Next:
            return Next(seen=counter.number)

        @step
        def second(self, ev: Next, c: Annotated[Counter, Resource(make_slowly)]) -> StopEvent:
            return StopEvent(result=(ev.seen, c.number))

    flow = await place.serve(Flow)
    for _ in range(6):
        await flow.run()
    assert Counter.made <= (1 if place.in_memory else WORKERS)


async def test_a_resource_that_is_not_cached_is_made_for_each_execution(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def only(
            self,
            ev: StartEvent,
            one: Annotated[Counter, Resource(make_counter, cache=False)],
            two: Annotated[Counter, Resource(make_counter, cache=False)],
        ) -> StopEvent:
            return StopEvent(result=one is two)

    flow = await place.serve(Flow)
    assert [await flow.run(), await flow.run()] == [True, True]
    assert Counter.made == 2


async def test_a_factory_that_fails_is_a_failure_of_the_step_and_retried(place: Place) -> None:
    calls: list[int] = []

    def flaky() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError("not yet")
        return "ready"

    class Flow(Workflow):
        @step(retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(3)))
        async def only(self, ev: StartEvent, it: Annotated[str, Resource(flaky)]) -> StopEvent:
            return StopEvent(result=it)

    flow = await place.serve(Flow)
    assert await flow.run() == "ready"
    assert len(calls) == 3


async def test_a_test_replaces_a_resource_by_its_name(place: Place) -> None:
    def client() -> str:
        raise AssertionError("the real one")

    class Flow(Workflow):
        @step
        async def only(self, ev: StartEvent, it: Annotated[str, Resource(client)]) -> StopEvent:
            return StopEvent(result=it)

    manager = ResourceManager()
    await manager.set(Resource(client).name, "fake")
    flow = await place.serve(Flow, resource_manager=manager)
    assert await flow.run() == "fake"


async def test_a_step_with_a_time_out_does_not_wait_longer_for_its_resources(place: Place) -> None:
    async def never() -> str:
        await asyncio.Event().wait()
        return ""

    class Flow(Workflow):
        @step(timeout=0.05)
        async def only(self, ev: StartEvent, it: Annotated[str, Resource(never)]) -> StopEvent:
            return StopEvent(result=it)

    flow = await place.serve(Flow)
    with pytest.raises(TimeoutError, match="Step 'only' timed out"):
        await flow.run()


async def test_a_free_function_gets_resources_too(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def first(self, ev: StartEvent) -> Next:
            return Next(seen=1)

    @step(workflow=Flow)
    async def last(
        ctx: Context[Any], ev: Next, counter: Annotated[Counter, Resource(make_counter)]
    ) -> StopEvent:
        return StopEvent(result=counter.number >= ev.seen)

    flow = await place.serve(Flow)
    assert await flow.run() is True
