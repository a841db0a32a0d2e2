"""A user's workflow in strict typing: pyright has nothing to say about it. Checked, never run."""

from typing import assert_type

from pydantic import BaseModel

from stepfleet import (
    Client,
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    step,
)
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed


class Tally(BaseModel):
    total: int = 0


class Order(StartEvent):
    numbers: list[int]


class Item(Event):
    number: int


class Answer(HumanResponseEvent):
    text: str


class Receipt(StopEvent):
    text: str


class Shop(Workflow):
    def __init__(self, currency: str) -> None:
        super().__init__(timeout=30)
        self.currency = currency

    @step
    async def begin(self, ctx: Context[Tally], ev: Order) -> Item | None:
        for number in ev.numbers:
            ctx.send_event(Item(number=number))
        ctx.write_event_to_stream(InputRequiredEvent(prefix="working"))
        return None

    @step(num_workers=8, retry_policy=retry_policy(wait=wait_fixed(1), stop=stop_after_attempt(3)))
    async def add(self, ctx: Context[Tally], ev: Item) -> Receipt | None:
        async with ctx.store.edit_state() as state:
            assert_type(state, Tally)
            state.total += ev.number
        items = ctx.collect_events(ev, [Item] * 3)
        assert_type(items, list[Item] | None)
        if items is None:
            return None
        answer = await ctx.wait_for_event(Answer)
        assert_type(answer, Answer)
        state = await ctx.store.get_state()
        assert_type(state.total, int)
        return Receipt(text=f"{answer.text} {state.total} {self.currency}")

    @step()
    def plain(self, ctx: Context, ev: Answer) -> StopEvent:
        return StopEvent(result=ev.text)

    @step
    async def many(self, ev: StartEvent) -> list[Item] | Receipt | None:
        return [Item(number=1)]

    @step
    def give_up(self, ev: Item) -> None:
        raise RuntimeError


@step(workflow=Shop)
async def free(ev: Item) -> StopEvent:
    return StopEvent(result=ev.number)


async def main() -> None:
    handler = Shop("EUR").run(numbers=[1, 2, 3])
    assert_type(handler, WorkflowHandler)
    async for event in handler.stream_events():
        assert_type(event, Event)
        if isinstance(event, InputRequiredEvent):
            await handler.send_event(Answer(text="yes"))
    await handler.cancel_run()
    async with Client("redis://127.0.0.1:6379") as client:
        started = await client.start(Shop, run_id="one", numbers=[1])
        assert_type(started, WorkflowHandler)
        assert_type(client.handler("one", workflow=Shop), WorkflowHandler)
        await Shop("EUR").run(start_event=Order(numbers=[1]))
