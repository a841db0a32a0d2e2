"""Starts three runs and prints the way each took: on the fleet, else in this process."""

from __future__ import annotations

import asyncio

from examples.branches.workflow import CollatzFlow


async def main() -> None:
    handlers = {number: CollatzFlow().run(number=number) for number in (1, 6, 11)}
    for number, handler in handlers.items():
        print(f"{number}:", " ".join(map(str, await handler)))


if __name__ == "__main__":
    asyncio.run(main())
