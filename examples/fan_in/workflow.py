"""Fan-out and fan-in: texts are counted side by side, the counts are added up once all are there."""

from __future__ import annotations

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step


class CountWords(StartEvent):
    texts: dict[str, str]


class Text(Event):
    name: str
    text: str


class Counted(Event):
    name: str
    words: int


class CountFlow(Workflow):
    @step
    async def split(self, ctx: Context, ev: CountWords) -> Text | None:
        await ctx.store.set("expected", len(ev.texts))
        for name, text in ev.texts.items():
            ctx.send_event(Text(name=name, text=text))

    @step(num_workers=8)
    async def count(self, ev: Text) -> Counted:
        return Counted(name=ev.name, words=len(ev.text.split()))

    @step
    async def add_up(self, ctx: Context, ev: Counted) -> StopEvent | None:
        expected: int = await ctx.store.get("expected")
        counted = ctx.collect_events(ev, [Counted] * expected)
        if counted is None:
            return None
        return StopEvent({one.name: one.words for one in counted})
