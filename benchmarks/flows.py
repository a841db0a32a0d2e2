"""The workflows that are measured, on stepfleet or, with BENCH_MODEL=workflows, on llama-index-workflows.

The same source for both: what is compared is the library.
"""

from __future__ import annotations

import asyncio
import os
import time

from benchmarks.peers.peer import IO_SECONDS, burn

if os.environ.get("BENCH_MODEL") == "workflows":
    from workflows import Context, Workflow, step
    from workflows.events import Event, HumanResponseEvent, StartEvent, StopEvent
else:
    from stepfleet import Context, Event, HumanResponseEvent, StartEvent, StopEvent, Workflow, step

#: What a step says to a producer in the same process.
ASKED: list[int] = []


class First(Event):
    n: int


class Second(Event):
    n: int


class Item(Event):
    n: int
    width: int


class Done(Event):
    width: int


class Answer(HumanResponseEvent):
    n: int


class Tick(Event):
    n: int
    at: float


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


class Fan(Workflow):
    """One event, n events, one join."""

    @step
    async def spread(self, ev: StartEvent, ctx: Context) -> Item | None:
        for n in range(ev.n):
            ctx.send_event(Item(n=n, width=ev.n))

    @step(num_workers=100)
    async def work(self, ev: Item) -> Done:
        return Done(width=ev.width)

    @step(num_workers=100)
    async def join(self, ev: Done, ctx: Context) -> StopEvent | None:
        done = ctx.collect_events(ev, [Done] * ev.width)
        if done is None:
            return None
        return StopEvent(result=len(done))


class Io(Workflow):
    """A step that waits for something else."""

    @step(num_workers=100)
    async def only(self, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(IO_SECONDS)
        return StopEvent(result=ev.n)


class Cpu(Workflow):
    """A step that computes."""

    @step(num_workers=100)
    async def only(self, ev: StartEvent) -> StopEvent:
        burn()
        return StopEvent(result=ev.n)


class Park(Workflow):
    """A step that waits for a human."""

    @step
    async def ask(self, ev: StartEvent, ctx: Context) -> StopEvent:
        if ev.n >= 0:
            ASKED.append(ev.n)
        answer = await ctx.wait_for_event(Answer, timeout=None)
        return StopEvent(result=answer.n)


class Stream(Workflow):
    """A step that publishes events, at once or so many per second."""

    @step
    async def tell(self, ev: StartEvent, ctx: Context) -> StopEvent:
        began = time.perf_counter()
        for n in range(ev.events):
            if ev.per_second:
                await asyncio.sleep(max(0, began + n / ev.per_second - time.perf_counter()))
            ctx.write_event_to_stream(Tick(n=n, at=time.time()))
        return StopEvent(result=ev.events)


class Store(Workflow):
    """A step that uses the run's store and says how often per second it could."""

    @step
    async def use(self, ev: StartEvent, ctx: Context) -> StopEvent:
        began = time.perf_counter()
        for n in range(ev.n):
            await ctx.store.set("number", n)
        was_set = time.perf_counter()
        for _ in range(ev.n):
            assert await ctx.store.get("number") == ev.n - 1
        was_got = time.perf_counter()
        for n in range(ev.n):
            async with ctx.store.edit_state() as state:
                state["edited"] = n
        edited = time.perf_counter()
        assert await ctx.store.get("edited") == ev.n - 1
        seconds = (was_set - began, was_got - was_set, edited - was_got)
        return StopEvent(result=[ev.n / each for each in seconds])


#: By kind; `echo` gives its payload back as `one` does its number.
FLOWS = {
    "one": One(timeout=None),
    "echo": One(timeout=None),
    "chain": Chain(timeout=None),
    "fan": Fan(timeout=None),
    "io": Io(timeout=None),
    "cpu": Cpu(timeout=None),
    "park": Park(timeout=None),
    "stream": Stream(timeout=None),
    "store": Store(timeout=None),
}

workflows = {type(flow).__name__: flow for flow in FLOWS.values()}
#: The same, and 50 workflows of the same three steps.
fifty = workflows | {f"Chain{n}": Chain(timeout=None) for n in range(50)}
