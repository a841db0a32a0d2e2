"""Workflows whose steps write down what they do. Workers of the process tests load `FLOWS`."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from tests.support import costs
from tests.support.fleet import note


@contextmanager
def noted(ctx: Context[Any], step_name: str, **more: object) -> Iterator[None]:
    """Writes into the ledger that an execution starts and that it came to its end."""
    key = ctx.idempotency_key
    note("start", key, step=step_name, run=ctx.run_id, **more)
    yield
    note("end", key, step=step_name, run=ctx.run_id, **more)


class Item(Event):
    number: int


class Done(Event):
    number: int
    pid: int


class Wide(StartEvent):
    width: int
    seconds: float = 0.0


class FanOut(Workflow):
    """1 -> width -> 1, over all processes."""

    @step
    async def split(self, ctx: Context, ev: Wide) -> Item | None:
        with noted(ctx, "split"):
            await ctx.store.set("width", ev.width)
            await ctx.store.set("seconds", ev.seconds)
            for number in range(ev.width):
                ctx.send_event(Item(number=number))

    @step(num_workers=64)
    async def work(self, ctx: Context, ev: Item) -> Done:
        with noted(ctx, "work", number=ev.number):
            seconds = await ctx.store.get("seconds")
            if seconds:
                await asyncio.sleep(seconds)
        return Done(number=ev.number, pid=os.getpid())

    @step
    async def join(self, ctx: Context, ev: Done) -> StopEvent | None:
        with noted(ctx, "join"):
            width = await ctx.store.get("width")
            done = ctx.collect_events(ev, [Done] * width)
        if done is None:
            return None
        return StopEvent(
            result={
                "numbers": [event.number for event in done],
                "pids": sorted({event.pid for event in done}),
            }
        )


class Part(Event):
    number: int
    width: int


class Counted(Workflow):
    """1 -> width -> 1 with nothing in its steps: for counting what a join costs."""

    @step
    async def split(self, ctx: Context, ev: Wide) -> Part | None:
        for number in range(ev.width):
            ctx.send_event(Part(number=number, width=ev.width))

    @step(num_workers=64)
    async def join(self, ctx: Context, ev: Part) -> StopEvent | None:
        parts = ctx.collect_events(ev, [Part] * ev.width)
        if parts is not None:
            return StopEvent(result=len({part.number for part in parts}))
        return None


class Listed(Workflow):
    """1 -> width -> 1 by lists, over all processes."""

    @step
    async def split(self, ctx: Context, ev: Wide) -> list[Item]:
        with noted(ctx, "split"):
            await ctx.store.set("seconds", ev.seconds)
        return [Item(number=number) for number in range(ev.width)]

    @step(num_workers=64)
    async def work(self, ctx: Context, ev: Item) -> Done:
        with noted(ctx, "work", number=ev.number):
            seconds = await ctx.store.get("seconds")
            if seconds:
                await asyncio.sleep(seconds)
        return Done(number=ev.number, pid=os.getpid())

    @step
    async def join(self, ctx: Context, evs: list[Done]) -> StopEvent:
        with noted(ctx, "join"):
            numbers = [event.number for event in evs]
        return StopEvent(result={"numbers": numbers, "pids": sorted({event.pid for event in evs})})


class CountedList(Workflow):
    """1 -> width -> 1 by lists with nothing in its steps: for counting what it costs."""

    @step
    async def split(self, ev: Wide) -> list[Part]:
        return [Part(number=number, width=ev.width) for number in range(ev.width)]

    @step(num_workers=64)
    async def work(self, ev: Part) -> Item:
        return Item(number=ev.number)

    @step
    async def join(self, evs: list[Item]) -> StopEvent:
        return StopEvent(result=len({item.number for item in evs}))


class Busy(StartEvent):
    seconds: float


class Spin(Workflow):
    """Keeps the CPU, and the event loop, for a while."""

    @step
    async def spin(self, ctx: Context, ev: Busy) -> StopEvent:
        with noted(ctx, "spin"):
            until = time.monotonic() + ev.seconds
            turns = 0
            while time.monotonic() < until:
                turns += 1
        return StopEvent(result=os.getpid())


class Sleep(Workflow):
    """Waits for a while."""

    @step
    async def sleep(self, ctx: Context, ev: Busy) -> StopEvent:
        with noted(ctx, "sleep"):
            await asyncio.sleep(ev.seconds)
        return StopEvent(result=os.getpid())


class Turn(Event):
    number: int
    seconds: float


class Passed(Event):
    number: int


class Narrow(Workflow):
    """A step that runs three times at once within a run."""

    @step
    async def split(self, ctx: Context, ev: Wide) -> Turn | None:
        await ctx.store.set("width", ev.width)
        for number in range(ev.width):
            ctx.send_event(Turn(number=number, seconds=ev.seconds))

    @step(num_workers=3)
    async def three(self, ctx: Context, ev: Turn) -> Passed:
        with noted(ctx, "three"):
            await asyncio.sleep(ev.seconds)
        return Passed(number=ev.number)

    @step(num_workers=64)
    async def join(self, ctx: Context, ev: Passed) -> StopEvent | None:
        width = await ctx.store.get("width")
        passed = ctx.collect_events(ev, [Passed] * width)
        return None if passed is None else StopEvent(result=len(passed))


class Capped(Workflow):
    """A step that runs three times at once over all runs."""

    @step
    async def split(self, ctx: Context, ev: Wide) -> Turn | None:
        await ctx.store.set("width", ev.width)
        for number in range(ev.width):
            ctx.send_event(Turn(number=number, seconds=ev.seconds))

    @step(num_workers=64, max_concurrency=3)
    async def scarce(self, ctx: Context, ev: Turn) -> Passed:
        with noted(ctx, "scarce"):
            await asyncio.sleep(ev.seconds)
        return Passed(number=ev.number)

    @step(num_workers=64)
    async def join(self, ctx: Context, ev: Passed) -> StopEvent | None:
        width = await ctx.store.get("width")
        passed = ctx.collect_events(ev, [Passed] * width)
        return None if passed is None else StopEvent(result=len(passed))


class Token(Event):
    number: int
    text: str


class Tokens(StartEvent):
    count: int
    seconds: float = 0.0
    random: bool = False


class Streaming(Workflow):
    """Publishes tokens, the same ones or others whenever it runs again."""

    @step
    async def speak(self, ctx: Context, ev: Tokens) -> StopEvent:
        with noted(ctx, "speak"):
            for number in range(ev.count):
                text = f"{random.getrandbits(64):x}" if ev.random else f"token {number}"
                ctx.write_event_to_stream(Token(number=number, text=text))
                await asyncio.sleep(ev.seconds)
        return StopEvent(result=ev.count)


class Adding(StartEvent):
    times: int


class Add(Event):
    number: int
    times: int


class Added(Event):
    number: int
    times: int


class Counter(Workflow):
    """Counts in the store, from every process at once."""

    @step
    async def split(self, ctx: Context, ev: Adding) -> Add | None:
        await ctx.store.set("counter", 0)
        for number in range(ev.times):
            ctx.send_event(Add(number=number, times=ev.times))

    @step(num_workers=64)
    async def add(self, ctx: Context, ev: Add) -> Added:
        with noted(ctx, "add"):
            async with ctx.store.edit_state() as state:
                state.counter += 1
        return Added(number=ev.number, times=ev.times)

    @step(num_workers=64)
    async def join(self, ctx: Context, ev: Added) -> StopEvent | None:
        if ctx.collect_events(ev, [Added] * ev.times) is None:
            return None
        return StopEvent(result=await ctx.store.get("counter"))


class Nested(Workflow):
    """Sets paths of one field at the same moment on different hosts."""

    @step
    async def split(self, ctx: Context, ev: Adding) -> Add | None:
        await ctx.store.set("tree", {})
        for number in range(ev.times):
            ctx.send_event(Add(number=number, times=ev.times))

    @step(num_workers=64)
    async def add(self, ctx: Context, ev: Add) -> Added:
        with noted(ctx, "add"):
            await ctx.store.set(f"tree.leaf{ev.number}", os.getpid())
        return Added(number=ev.number, times=ev.times)

    @step(num_workers=64)
    async def join(self, ctx: Context, ev: Added) -> StopEvent | None:
        if ctx.collect_events(ev, [Added] * ev.times) is None:
            return None
        return StopEvent(result=await ctx.store.get("tree"))


class First(Event):
    number: int


class Second(Event):
    number: int


class Begin(StartEvent):
    number: int = 0
    seconds: float = 0.0


class Chain(Workflow):
    """Three steps, one after the other."""

    @step
    async def one(self, ev: Begin) -> First:
        return First(number=ev.number)

    @step
    async def two(self, ev: First) -> Second:
        return Second(number=ev.number + 1)

    @step
    async def three(self, ev: Second) -> StopEvent:
        return StopEvent(result=ev.number + 1)


class NotedChain(Workflow):
    """Three steps that take their time and write down that they ran."""

    @step
    async def one(self, ctx: Context, ev: Begin) -> First:
        with noted(ctx, "one"):
            await asyncio.sleep(ev.seconds)
        return First(number=ev.number)

    @step
    async def two(self, ctx: Context, ev: First) -> Second:
        with noted(ctx, "two"):
            await asyncio.sleep(0.02)
        return Second(number=ev.number + 1)

    @step
    async def three(self, ctx: Context, ev: Second) -> StopEvent:
        with noted(ctx, "three"):
            await asyncio.sleep(0.02)
        return StopEvent(result=ev.number + 1)


class Left(Event):
    number: int


class Open(Workflow):
    """Ends, or fails, or goes on, while much of it is open: held, buffered, published, in the store."""

    @step
    async def split(self, ctx: Context, ev: Tokens) -> Left | Second | None:
        await ctx.store.set("text", "text")
        for number in range(ev.count):
            ctx.send_event(Left(number=number))
        ctx.send_event(Second(number=ev.count))

    @step(num_workers=2)
    async def publish(self, ctx: Context, ev: Left) -> Item | None:
        ctx.write_event_to_stream(Token(number=ev.number, text="published"))
        ctx.send_event(Item(number=ev.number))
        note("published", ctx.run_id)
        await asyncio.sleep(30.0)

    @step
    async def collect(self, ctx: Context, ev: Item) -> StopEvent | None:
        ctx.collect_events(ev, [Item] * 1000)

    @step
    async def wait(self, ctx: Context, ev: Second) -> StopEvent:
        answer = await ctx.wait_for_event(Answer)
        if answer.fails:
            raise ValueError("as it was told")
        return StopEvent(result="ended")


class Answer(Event):
    fails: bool = False


class Poison(Workflow):
    """Kills whatever runs it."""

    @step
    async def kill(self, ctx: Context, ev: Begin) -> StopEvent:
        note("start", ctx.idempotency_key, step="kill", run=ctx.run_id)
        os.kill(os.getpid(), signal.SIGKILL)
        return StopEvent()


#: No run may time out on a machine that is busy with other tests.
TIMEOUT = 600.0

FLOWS: dict[str, Workflow] = {
    cls.__name__: cls(timeout=TIMEOUT)
    for cls in (
        FanOut,
        Counted,
        Listed,
        CountedList,
        Spin,
        Sleep,
        Narrow,
        Capped,
        Streaming,
        Counter,
        Nested,
        Chain,
        NotedChain,
        Open,
        Poison,
    )
}
#: What the worker serves whose costs are counted: they depend on how many streams it reads.
COUNTED_BESIDE = {
    name: flow for name, flow in FLOWS.items() if name not in ("Listed", "CountedList")
}

if costs.SENT in os.environ:
    costs.write_down_all(Path(os.environ[costs.SENT]))
