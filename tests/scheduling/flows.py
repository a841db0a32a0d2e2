"""What the scheduler starts."""

from __future__ import annotations

from stepfleet import StartEvent, StopEvent, Workflow, step


class Report(Workflow):
    @step
    async def write(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.get("day"))


FLOWS = {"Report": Report(timeout=None)}
