"""The workflow of the soak: whatever a run can do, with steps that write down what they do."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.events import HumanResponseEvent, InputRequiredEvent
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from tests.support.fleet import note
from tests.support.flows import noted

#: Events that a run sends one by one, and members of the list that it returns.
WIDTH = 8
LIST = 4
#: Deliveries of a run, retried and resumed ones counted once: split, work, spread, crumble, gather, ask, join.
DELIVERIES = 1 + WIDTH + 1 + LIST + 1 + 1 + (WIDTH + 2)
#: Steps whose body runs again when others moved a buffer meanwhile, as it is documented.
COLLECTING = frozenset({"join"})


class Begin(StartEvent):
    #: Seconds of each of its longer steps.
    seconds: float


class Item(Event):
    number: int
    seconds: float


class Done(Event):
    number: int


class Spread(Event):
    seconds: float


class Bit(Event):
    number: int
    seconds: float


class Crumb(Event):
    number: int


class Side(Event):
    numbers: list[int]


class Question(Event): ...


class Ask(InputRequiredEvent): ...


class Answer(HumanResponseEvent):
    run: str
    text: str


class Answered(Event):
    text: str


class EveryThirdFails(Exception):
    """A step fails in its first attempt, as its number says."""


class Soak(Workflow, types=[Ask, Answer]):
    """Sends events, returns a list, asks, waits for nobody, fails, edits the store, and joins it all."""

    @step
    async def split(self, ctx: Context, ev: Begin) -> Item | Spread | Question | None:
        with noted(ctx, "split"):
            for number in range(WIDTH):
                ctx.send_event(Item(number=number, seconds=ev.seconds))
            ctx.send_event(Spread(seconds=ev.seconds))
            ctx.send_event(Question())

    # One attempt fails as it is told to; an edit whose lock ran out while Redis was away fails one more.
    @step(
        num_workers=6, retry_policy=retry_policy(wait=wait_fixed(0.2), stop=stop_after_attempt(9))
    )
    async def work(self, ctx: Context, ev: Item) -> Done:
        with noted(ctx, "work"):
            await asyncio.sleep(ev.seconds)
            if ev.number % 3 == 0 and ctx.retry_info().retry_number == 0:
                raise EveryThirdFails(str(ev.number))
            note("edit", ctx.run_id)
            async with ctx.store.edit_state() as state:
                state["counter"] = state.get("counter", 0) + 1
            note("edited", ctx.run_id)
        return Done(number=ev.number)

    @step
    async def spread(self, ctx: Context, ev: Spread) -> list[Bit]:
        with noted(ctx, "spread"):
            return [Bit(number=number, seconds=ev.seconds) for number in range(LIST)]

    @step(max_concurrency=12)
    async def crumble(self, ctx: Context, ev: Bit) -> Crumb:
        with noted(ctx, "crumble"):
            await asyncio.sleep(ev.seconds)
        return Crumb(number=ev.number)

    @step
    async def gather(self, ctx: Context, evs: list[Crumb]) -> Side:
        with noted(ctx, "gather"):
            return Side(numbers=sorted(crumb.number for crumb in evs))

    @step
    async def ask(self, ctx: Context, ev: Question) -> Answered:
        with noted(ctx, "ask"):
            with suppress(TimeoutError):
                await ctx.wait_for_event(
                    Answer, waiter_id="nobody", requirements={"run": "nobody"}, timeout=0.3
                )
            answer = await ctx.wait_for_event(
                Answer, waiter_event=Ask(), waiter_id="human", requirements={"run": ctx.run_id}
            )
        return Answered(text=answer.text)

    @step
    async def join(self, ctx: Context, ev: Done | Side | Answered) -> StopEvent | None:
        with noted(ctx, "join"):
            found = ctx.collect_events(ev, [Done] * WIDTH + [Side, Answered])
            if found is None:
                return None
            counter = await ctx.store.get("counter")
        return StopEvent(
            result={
                "numbers": sorted(event.number for event in found if isinstance(event, Done)),
                "list": [event.numbers for event in found if isinstance(event, Side)],
                "answers": [event.text for event in found if isinstance(event, Answered)],
                "counter": counter,
            }
        )


#: No run may time out on a machine that is busy with other things.
FLOWS = {"Soak": Soak(timeout=3600.0)}
