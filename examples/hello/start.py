"""Starts one run and prints its result: on the fleet at STEPFLEET_REDIS_URL, else in this process."""

from __future__ import annotations

import asyncio

from examples.hello.workflow import JokeFlow


async def main() -> None:
    result = await JokeFlow().run(topic="pirates")
    print("joke:   ", result["joke"])
    print("verdict:", result["verdict"])


if __name__ == "__main__":
    asyncio.run(main())
