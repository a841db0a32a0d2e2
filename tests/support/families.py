"""Workflows that start each other and write down what they do, for process tests: `FLOWS`."""

from __future__ import annotations

import asyncio
import os
import signal

from stepfleet import Context, StartEvent, StopEvent, Workflow, step
from stepfleet.errors import DeadLettered
from tests.support.fleet import note
from tests.support.flows import TIMEOUT, noted


class Below(StartEvent):
    depth: int
    seconds: float = 0.0


class Family(Workflow):
    """Calls itself until the last one takes its time."""

    @step(num_workers=1)
    async def call(self, ctx: Context, ev: Below) -> StopEvent:
        with noted(ctx, "call", depth=ev.depth):
            if ev.depth == 0:
                await asyncio.sleep(ev.seconds)
                return StopEvent(result=0)
            handler = Family(timeout=TIMEOUT).run(depth=ev.depth - 1, seconds=ev.seconds)
            note("child", handler.run_id, parent=ctx.run_id)
            return StopEvent(result=await handler + 1)


class Lethal(Workflow):
    """Kills whatever runs it."""

    @step
    async def kill(self, ctx: Context, ev: StartEvent) -> StopEvent:
        note("start", ctx.idempotency_key, step="kill", run=ctx.run_id)
        os.kill(os.getpid(), signal.SIGKILL)
        return StopEvent()


class Careful(Workflow):
    """Awaits a child that kills its workers, this one among them."""

    @step
    async def call(self, ev: StartEvent) -> StopEvent:
        try:
            await Lethal(timeout=TIMEOUT).run()
        except DeadLettered as error:
            return StopEvent(result=str(error))
        return StopEvent()


class Doomed(Workflow):
    """Awaits a child that is over at once, and then kills its worker."""

    @step
    async def call(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await Family(timeout=TIMEOUT).run(depth=0)
        note("start", ctx.idempotency_key, step="call", run=ctx.run_id)
        os.kill(os.getpid(), signal.SIGKILL)
        return StopEvent()


FLOWS: dict[str, Workflow] = {
    cls.__name__: cls(timeout=TIMEOUT) for cls in (Family, Lethal, Careful, Doomed)
}
