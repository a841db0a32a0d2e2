"""Starts one run with many texts and prints what was counted: on the fleet, else in this process."""

from __future__ import annotations

import asyncio

from examples.fan_in.workflow import CountFlow

TEXTS = {f"text {number}": "word " * number for number in range(1, 21)}


async def main() -> None:
    counts = await CountFlow().run(texts=TEXTS)
    for name in ("text 1", "text 20"):
        print(f"{name}: {counts[name]}")
    print(f"{len(counts)} texts, {sum(counts.values())} words")


if __name__ == "__main__":
    asyncio.run(main())
