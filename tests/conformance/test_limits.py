"""Limits on what runs at once hold over all workers."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from tests.conformance.place import Place


class Item(Event):
    n: int


class Gauge:
    """How many are inside, and the most that ever were; nobody leaves before it was full once."""

    def __init__(self, full: int) -> None:
        self.inside: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._full = full
        self._was_full: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def pass_through(self, name: str) -> None:
        self.inside[name] += 1
        self.most[name] = max(self.most[name], self.inside[name])
        if self.inside[name] == self._full:
            self._was_full[name].set()
        await self._was_full[name].wait()
        for _ in range(3):
            await asyncio.sleep(0.002)
        self.inside[name] -= 1


async def test_a_step_runs_at_most_num_workers_times_at_once_in_a_run(place: Place) -> None:
    gauge = Gauge(3)

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(24):
                ctx.send_event(Item(n=n))

        @step(num_workers=3)
        async def work(self, ctx: Context, ev: Item) -> StopEvent | None:
            await gauge.pass_through(ctx.run_id)
            return StopEvent() if ctx.collect_events(ev, [Item] * 24) else None

    flow = await place.serve(Flow)
    first, second = flow.run(), flow.run()
    await asyncio.gather(first, second)
    assert gauge.most == {first.run_id: 3, second.run_id: 3}


async def test_the_default_is_four(place: Place) -> None:
    gauge = Gauge(4)

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(16):
                ctx.send_event(Item(n=n))

        @step
        async def work(self, ctx: Context, ev: Item) -> StopEvent | None:
            await gauge.pass_through("")
            return StopEvent() if ctx.collect_events(ev, [Item] * 16) else None

    flow = await place.serve(Flow)
    await flow.run()
    assert gauge.most[""] == 4


async def test_one_limit_counts_all_types_that_a_step_accepts(place: Place) -> None:
    gauge = Gauge(2)

    class Other(Event):
        n: int

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | Other | None:
            for n in range(8):
                ctx.send_event(Item(n=n))
                ctx.send_event(Other(n=n))

        @step(num_workers=2)
        async def work(self, ctx: Context, ev: Item | Other) -> StopEvent | None:
            await gauge.pass_through("")
            return StopEvent() if ctx.collect_events(ev, [Item, Other] * 8) else None

    flow = await place.serve(Flow)
    await flow.run()
    assert gauge.most[""] == 2


async def test_max_concurrency_counts_the_executions_of_all_runs(place: Place) -> None:
    gauge = Gauge(2)

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(4):
                ctx.send_event(Item(n=n))

        @step(max_concurrency=2)
        async def work(self, ctx: Context, ev: Item) -> StopEvent | None:
            await gauge.pass_through("")
            return StopEvent() if ctx.collect_events(ev, [Item] * 4) else None

    flow = await place.serve(Flow)
    await asyncio.gather(*[flow.run() for _ in range(5)])
    assert gauge.most[""] == 2


async def test_a_back_off_holds_no_slot(place: Place) -> None:
    order: list[int] = []

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            ctx.send_event(Item(n=0))
            ctx.send_event(Item(n=1))

        @step(
            num_workers=1,
            retry_policy=retry_policy(wait=wait_fixed(600), stop=stop_after_attempt(2)),
        )
        async def work(self, ctx: Context, ev: Item) -> StopEvent | None:
            order.append(ev.n)
            if ev.n == 0:
                raise ValueError("once")
            return StopEvent(result=order)

    flow = await place.serve(Flow)
    assert await flow.run() == [0, 1]


async def test_a_failed_run_gives_its_places_back(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(4):
                ctx.send_event(Item(n=n if ev.fails else n + 10))

        @step(max_concurrency=1)
        async def work(self, ctx: Context, ev: Item) -> StopEvent | None:
            if ev.n == 1:
                raise ValueError("fails with work pending")
            return StopEvent() if ctx.collect_events(ev, [Item] * 4) else None

    flow = await place.serve(Flow)
    failing = [flow.run(fails=True) for _ in range(3)]
    results = await asyncio.gather(*failing, return_exceptions=True)
    assert [type(result) for result in results] == [ValueError] * 3
    async with asyncio.timeout(30):
        await flow.run(fails=False)
