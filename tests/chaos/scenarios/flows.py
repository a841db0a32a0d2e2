"""Workflows of the scenarios, beside those of every process test."""

from __future__ import annotations

from stepfleet import Context, StartEvent, StopEvent, Workflow, step
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from tests.support import flows
from tests.support.flows import noted

#: Seconds between the attempts of `Delayed`, and how many there are.
DELAY, ATTEMPTS = 1.0, 4


class Delayed(Workflow):
    """Fails until its last attempt."""

    @step(retry_policy=retry_policy(wait=wait_fixed(DELAY), stop=stop_after_attempt(ATTEMPTS)))
    async def delayed(self, ctx: Context, ev: StartEvent) -> StopEvent:
        with noted(ctx, "delayed"):
            number = ctx.retry_info().retry_number + 1
        if number < ATTEMPTS:
            raise ValueError("once more")
        return StopEvent(result=number)


FLOWS = {**flows.FLOWS, "Delayed": Delayed(timeout=flows.TIMEOUT)}
