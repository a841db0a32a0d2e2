"""A question to somebody: the step waits for the answer without holding a worker."""

from __future__ import annotations

from stepfleet import (
    Context,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)


class Order(StartEvent):
    item: str
    price: int


class ApprovalNeeded(InputRequiredEvent):
    question: str


class Approval(HumanResponseEvent):
    granted: bool


# No annotation of a step names these two, so the workflow does.
class OrderFlow(Workflow, types=[ApprovalNeeded, Approval]):
    @step
    async def order(self, ctx: Context, ev: Order) -> StopEvent:
        if ev.price > 100:
            answer = await ctx.wait_for_event(
                Approval,
                waiter_event=ApprovalNeeded(question=f"Buy a {ev.item} for {ev.price}?"),
                timeout=3600,
            )
            if not answer.granted:
                return StopEvent(f"{ev.item}: refused")
        return StopEvent(f"{ev.item}: ordered")
