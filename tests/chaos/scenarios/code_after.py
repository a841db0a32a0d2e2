"""The workflow of F22 after it was changed: a step, an event and a field more, a step under another name."""

from __future__ import annotations

import asyncio

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from tests.support.flows import noted


class Begin(StartEvent):
    number: int
    reason: str = "none"


class Counted(Event):
    number: int
    twice: int = 0


class Checked(Event):
    number: int


class Rolling(Workflow):
    @step
    async def count(self, ctx: Context, ev: Begin) -> Counted:
        with noted(ctx, "count"):
            await asyncio.sleep(0.2)
        return Counted(number=ev.number, twice=2 * ev.number)

    @step
    async def inspect(self, ctx: Context, ev: Counted) -> Checked:
        with noted(ctx, "inspect"):
            await asyncio.sleep(0.2)
        return Checked(number=ev.number)

    @step
    async def finish(self, ctx: Context, ev: Checked) -> StopEvent:
        with noted(ctx, "finish"):
            await asyncio.sleep(0.2)
        return StopEvent(result="after")


FLOWS = {"Rolling": Rolling(timeout=600.0)}
