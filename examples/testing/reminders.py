"""An invoice that is paid, or reminded of after three days, twice, and then handed on."""

from __future__ import annotations

from stepfleet import (
    Context,
    Event,
    HumanResponseEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)

DAY = 86_400.0


class Invoice(StartEvent):
    number: int


class Paid(HumanResponseEvent):
    amount: int


class Reminder(Event):
    number: int
    count: int


# No annotation of a step names Paid, so the workflow does.
class InvoiceFlow(Workflow, types=[Paid]):
    @step
    async def send(self, ev: Invoice) -> Reminder:
        return Reminder(number=ev.number, count=0)

    @step
    async def wait(self, ctx: Context, ev: Reminder) -> Reminder | StopEvent:
        ctx.write_event_to_stream(ev)
        try:
            paid = await ctx.wait_for_event(Paid, timeout=3 * DAY)
        except TimeoutError:
            if ev.count == 2:
                return StopEvent("handed on")
            return Reminder(number=ev.number, count=ev.count + 1)
        return StopEvent(f"paid {paid.amount}")


#: A run may take two weeks.
FLOWS = {"InvoiceFlow": InvoiceFlow(timeout=14 * DAY)}
