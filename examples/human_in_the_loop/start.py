"""Starts three orders and answers what they ask: on the fleet, else in this process."""

from __future__ import annotations

import asyncio

from examples.human_in_the_loop.workflow import Approval, ApprovalNeeded, OrderFlow

#: What somebody at a screen would decide.
BUDGET = 1000


async def place(item: str, price: int) -> None:
    handler = OrderFlow(timeout=None).run(item=item, price=price)
    async for event in handler.stream_events():
        if isinstance(event, ApprovalNeeded):
            granted = price <= BUDGET
            print(event.question, "yes" if granted else "no")
            await handler.send_event(Approval(granted=granted))
    print(await handler)


async def main() -> None:
    await place("pencil", 2)
    await place("desk", 400)
    await place("yacht", 90_000)


if __name__ == "__main__":
    asyncio.run(main())
