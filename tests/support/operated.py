"""Workflows that get stuck in one way each, for the operator's tool."""

from __future__ import annotations

import asyncio
import os

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.events import HumanResponseEvent, InputRequiredEvent
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed


class Item(Event):
    n: int


class Done(Event):
    n: int


class Proof(Event):
    pass


class Joining(Workflow):
    """One of three branches returns None."""

    @step
    async def spread(self, ev: StartEvent, ctx: Context) -> Item | None:
        for n in range(3):
            ctx.send_event(Item(n=n))

    @step
    async def work(self, ev: Item) -> Done | None:
        return None if ev.n == 1 else Done(n=ev.n)

    @step
    async def join(self, ev: Done, ctx: Context) -> StopEvent | None:
        done = ctx.collect_events(ev, [Done] * 3)
        return StopEvent(result=len(done)) if done else None


class Pairing(Workflow):
    """A step joins events of two types, and the branch of one returns None."""

    @step
    async def spread(self, ev: StartEvent, ctx: Context) -> Item | Done | None:
        ctx.send_event(Item(n=1))
        ctx.send_event(Done(n=1))

    @step
    async def prove(self, ev: Item) -> Proof | None:
        return None

    @step
    async def join(self, done: Done, proof: Proof) -> StopEvent:
        return StopEvent()


class Listing(Workflow):
    """One of the three events of a list is waited for."""

    @step
    async def spread(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(3)]

    @step
    async def work(self, ev: Item, ctx: Context) -> Done:
        if ev.n == 1:
            await ctx.wait_for_event(HumanResponseEvent, timeout=3600)
        return Done(n=ev.n)

    @step
    async def join(self, done: list[Done]) -> StopEvent:
        return StopEvent(result=len(done))


class Slow(Workflow):
    """Both slots of a step are taken for long."""

    @step
    async def spread(self, ev: StartEvent, ctx: Context) -> Item | None:
        for n in range(5):
            ctx.send_event(Item(n=n))

    @step(num_workers=2)
    async def work(self, ev: Item, ctx: Context) -> StopEvent:
        ctx.write_event_to_stream(Done(n=ev.n))
        await asyncio.sleep(600)
        return StopEvent(result=ev.n)


class Human(Workflow):
    @step
    async def ask(self, ev: StartEvent, ctx: Context) -> StopEvent:
        answer = await ctx.wait_for_event(HumanResponseEvent, waiter_id="approval", timeout=3600)
        return StopEvent(result=answer.get("word"))


class Failing(Workflow):
    @step(retry_policy=retry_policy(wait=wait_fixed(600), stop=stop_after_attempt(3)))
    async def fall(self, ev: StartEvent) -> StopEvent:
        raise ValueError("the floor is wet")


class Deadly(Workflow):
    @step
    async def kill(self, ev: StartEvent) -> StopEvent:
        if "MENDED" not in os.environ:
            os._exit(137)
        return StopEvent(result="mended")


class Narrow(Workflow):
    """One execution of a step over all runs."""

    @step(max_concurrency=1)
    async def squeeze(self, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(600)
        return StopEvent()


class Lonely(Workflow):
    """One run at once."""

    @step
    async def wait(self, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(600)
        return StopEvent()


class Asking(Workflow):
    """A step of its own takes the answer of a human."""

    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent()

    @step
    async def take(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.get("word"))


class Parent(Workflow):
    """A step awaits another run."""

    @step
    async def delegate(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await Human(timeout=None).run())


class Quick(Workflow):
    @step
    async def only(self, ev: StartEvent, ctx: Context) -> StopEvent:
        ctx.write_event_to_stream(Done(n=1))
        return StopEvent(result="quick")


FLOWS: dict[str, Workflow] = {
    flow.__name__: flow(timeout=None)
    for flow in (Joining, Listing, Slow, Human, Asking, Failing, Narrow, Pairing, Parent, Quick)
}
FLOWS["Lonely"] = Lonely(timeout=None, num_concurrent_runs=1)
#: Served only by workers of their own.
DEADLY = {"Deadly": Deadly(timeout=None)}
