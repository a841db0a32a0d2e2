"""The workflows that are measured: steps that do nothing, so that what is measured is stepfleet."""

from __future__ import annotations

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step


class First(Event):
    n: int


class Second(Event):
    n: int


class Chain(Workflow):
    """Three steps in a row."""

    @step
    async def begin(self, ev: StartEvent) -> First:
        return First(n=ev.n)

    @step
    async def go_on(self, ev: First) -> Second:
        return Second(n=ev.n)

    @step
    async def finish(self, ev: Second) -> StopEvent:
        return StopEvent(result=ev.n)


class One(Workflow):
    """One step."""

    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.n)


class Item(Event):
    n: int


class Done(Event):
    n: int


class Fan(Workflow):
    """One event, n events, one join."""

    @step
    async def spread(self, ev: StartEvent, ctx: Context) -> Item | None:
        for n in range(ev.width):
            ctx.send_event(Item(n=n * 1_000_000 + ev.width))

    @step(num_workers=100)
    async def work(self, ev: Item) -> Done:
        return Done(n=ev.n)

    @step(num_workers=100)
    async def join(self, ev: Done, ctx: Context) -> StopEvent | None:
        done = ctx.collect_events(ev, [Done] * (ev.n % 1_000_000))
        if done is None:
            return None
        return StopEvent(result=len(done))


workflows = {"Chain": Chain(timeout=None), "One": One(timeout=None), "Fan": Fan(timeout=None)}
