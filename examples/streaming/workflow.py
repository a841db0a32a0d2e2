"""Progress while the run goes on: each step publishes what it has done so far."""

from __future__ import annotations

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step


class ImportRows(StartEvent):
    rows: list[str]
    batch: int


class Imported(Event):
    amounts: list[int]


class Progress(Event):
    step: str
    done: int
    total: int


# No annotation of a step names Progress, so the workflow does.
class ImportFlow(Workflow, types=[Progress]):
    @step
    async def read(self, ctx: Context, ev: ImportRows) -> Imported:
        amounts: list[int] = []
        for first in range(0, len(ev.rows), ev.batch):
            amounts += [int(row) for row in ev.rows[first : first + ev.batch]]
            ctx.write_event_to_stream(Progress(step="read", done=len(amounts), total=len(ev.rows)))
        return Imported(amounts=amounts)

    @step
    async def add_up(self, ctx: Context, ev: Imported) -> StopEvent:
        ctx.write_event_to_stream(Progress(step="add_up", done=1, total=1))
        return StopEvent(sum(ev.amounts))
