"""Starts a run and prints its public events as they come: on the fleet, else in this process."""

from __future__ import annotations

import asyncio

from examples.streaming.workflow import ImportFlow, Progress


async def main() -> None:
    handler = ImportFlow().run(rows=[str(number) for number in range(1, 11)], batch=4)
    async for event in handler.stream_events():
        if isinstance(event, Progress):
            print(f"{event.step}: {event.done} of {event.total}")
    print("total:", await handler)


if __name__ == "__main__":
    asyncio.run(main())
