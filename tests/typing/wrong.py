"""What a type checker has to refuse: every marked line, and no other. Checked, never run."""

from pydantic import BaseModel

from stepfleet import Client, Context, Event, StartEvent, StopEvent, Workflow, step


class Tally(BaseModel):
    total: int = 0


class Item(Event):
    number: int


class Wrong(Workflow):
    @step
    async def begin(self, ctx: Context[Tally], ev: StartEvent) -> StopEvent:
        ctx.send_event("no event")  # refused
        ctx.send_event(Item)  # refused
        ctx.write_event_to_stream({"no": "event"})  # refused
        ctx.collect_events(ev, [int])  # refused
        await ctx.wait_for_event(str)  # refused
        async with ctx.store.edit_state() as state:
            state.totl = 1  # refused
            state.total = "one"  # refused
        return Item(number=1)  # refused

    @step
    async def untyped(self, ctx: Context[int], ev: Item) -> StopEvent:  # refused
        return StopEvent()

    @step(workers=4)  # refused
    async def misspelt(self, ev: Item) -> StopEvent:
        return StopEvent()

    @step  # refused
    async def answers(self, ev: Item) -> str:
        return "no event"

    @step()  # refused
    def lists(self, ev: Item) -> list[int]:
        return [ev.number]


async def main(client: Client) -> None:
    handler = Wrong().run()
    await handler.send_event("no event")  # refused
    await client.start(Wrong, start_event=Item(number=1))  # refused
    Wrong().run(start_event=Item(number=1))  # refused
