"""The workflow of F22 before it is changed."""

from __future__ import annotations

import asyncio

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from tests.support.flows import noted


class Begin(StartEvent):
    number: int


class Counted(Event):
    number: int


class Rolling(Workflow):
    @step
    async def count(self, ctx: Context, ev: Begin) -> Counted:
        with noted(ctx, "count"):
            await asyncio.sleep(0.2)
        return Counted(number=ev.number)

    @step
    async def finish(self, ctx: Context, ev: Counted) -> StopEvent:
        with noted(ctx, "finish"):
            await asyncio.sleep(0.2)
        return StopEvent(result="before")


FLOWS = {"Rolling": Rolling(timeout=600.0)}
