"""A report that is written page by page, and says so as it goes."""

from __future__ import annotations

import asyncio

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step


class ReportOrder(StartEvent):
    title: str
    pages: int = 5
    #: Seconds that a page takes.
    pause: float = 0.5


class Outlined(Event):
    title: str
    pages: int
    pause: float


class Written(Event):
    page: int
    of: int


# No annotation of a step names Written, so the workflow does.
class ReportFlow(Workflow, types=[Written]):
    @step
    async def outline(self, ev: ReportOrder) -> Outlined:
        return Outlined(title=ev.title, pages=ev.pages, pause=ev.pause)

    @step
    async def write(self, ctx: Context, ev: Outlined) -> StopEvent:
        for page in range(1, ev.pages + 1):
            await asyncio.sleep(ev.pause)
            ctx.write_event_to_stream(Written(page=page, of=ev.pages))
        return StopEvent(f"{ev.title}: {ev.pages} pages")
