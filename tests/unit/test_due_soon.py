"""What is due soon happens then, and not when a worker looks next: measured in virtual time."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from stepfleet import Context, Event, HumanResponseEvent, StartEvent, StopEvent, Workflow, step
from stepfleet.errors import WorkflowTimeoutError
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from stepfleet.testing import run_in_virtual_time

#: Seconds that it may be late by: a worker that only looks now and then is late by up to a second.
LATE = 0.06
DELAYS = (0.01, 0.1, 0.2, 0.3, 0.45, 0.7)


class More(Event):
    pass


class Slow(Workflow):
    @step
    async def sleep(self, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(1.5)
        return StopEvent()


class SlowLater(Workflow):
    """Its deadline is armed by a step that has ended."""

    @step
    def begin(self, ev: StartEvent) -> More:
        return More()

    @step
    async def sleep(self, ev: More) -> StopEvent:
        await asyncio.sleep(1.5)
        return StopEvent()


class Telling(Workflow):
    """Its deadline is armed by what its step publishes."""

    @step
    async def sleep(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(More())
        await asyncio.sleep(1.5)
        return StopEvent()


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("workflow", [Slow, SlowLater, Telling])
def test_a_run_times_out_when_its_time_is_over(workflow: type[Workflow], delay: float) -> None:
    async def main() -> float:
        began = asyncio.get_running_loop().time()
        with pytest.raises(WorkflowTimeoutError):
            await workflow(timeout=delay).run()
        return asyncio.get_running_loop().time() - began

    assert delay <= run_in_virtual_time(main()) < delay + LATE


@pytest.mark.parametrize("delay", DELAYS)
def test_a_wait_ends_when_its_time_is_over(delay: float) -> None:
    class Waiting(Workflow):
        @step
        async def wait(self, ctx: Context, ev: StartEvent) -> StopEvent:
            with pytest.raises(TimeoutError):
                await ctx.wait_for_event(HumanResponseEvent, timeout=delay)
            return StopEvent()

    async def main() -> float:
        began = asyncio.get_running_loop().time()
        await Waiting().run()
        return asyncio.get_running_loop().time() - began

    assert delay <= run_in_virtual_time(main()) < delay + LATE


@pytest.mark.parametrize("delay", DELAYS)
def test_a_step_is_tried_again_when_its_back_off_is_over(delay: float) -> None:
    tries: list[float] = []

    class Failing(Workflow):
        @step(retry_policy=retry_policy(wait=wait_fixed(delay), stop=stop_after_attempt(3)))
        async def fail_twice(self, ev: StartEvent) -> StopEvent:
            tries.append(asyncio.get_running_loop().time())
            if len(tries) < 3:
                raise ValueError
            return StopEvent()

    async def main() -> None:
        await Failing().run()

    run_in_virtual_time(main())
    pauses = [later - earlier for earlier, later in pairwise(tries)]
    assert len(pauses) == 2
    assert all(delay <= pause < delay + LATE for pause in pauses), pauses
