"""`python -m tests.chaos.soak_producer URL RUNS_AT_ONCE SECONDS`: starts runs until it is told to stop.

It attends to each of its runs as a program does: follows its public events, answers its question,
awaits its result, and begins again where Redis was away. What it saw goes into the ledger.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from random import SystemRandom

from stepfleet import Client, WorkflowHandler
from stepfleet.client import new_run_id
from stepfleet.errors import ConnectionLost
from tests.chaos.soak_flows import Answer, Ask, Begin, Soak
from tests.support.fleet import note

#: Seconds to wait for a Redis that is away, between two attempts.
PAUSE_S = 0.2


async def main(url: str, at_once: int, seconds: float) -> None:
    """Keeps runs going until SIGTERM, then sees those under way to their end."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with Client(url) as client, asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(_produce(client, seconds, stopping))


async def _produce(client: Client, seconds: float, stopping: asyncio.Event) -> None:
    dice = SystemRandom()
    while not stopping.is_set():
        run_id = new_run_id(dice)
        began = time.monotonic()
        note("started", run_id)
        handler = await _started(client, run_id, dice.uniform(0.5, 1.5) * seconds)
        following = asyncio.create_task(_follow(handler))
        result = await _result(handler)
        published = await following
        note("finished", run_id, result=result, published=published, s=time.monotonic() - began)


async def _started(client: Client, run_id: str, seconds: float) -> WorkflowHandler:
    while True:
        try:
            return await client.start(Soak, run_id=run_id, start_event=Begin(seconds=seconds))
        except ConnectionLost:  # as documented: with the same id it names the same run
            await asyncio.sleep(PAUSE_S)


async def _result(handler: WorkflowHandler) -> object:
    while True:
        try:
            return await handler
        except ConnectionLost:
            await asyncio.sleep(PAUSE_S)


async def _follow(handler: WorkflowHandler) -> list[str]:
    """Answers the question, and returns the public events as they came."""
    published: list[str] = []
    while True:
        try:
            async for event in handler.stream_events(after=len(published)):
                published.append(f"{handler.last_sequence} {type(event).__name__}")
                if isinstance(event, Ask):
                    await _answer(handler)
            return published
        except ConnectionLost:
            await asyncio.sleep(PAUSE_S)


async def _answer(handler: WorkflowHandler) -> None:
    while True:
        try:
            await handler.send_event(Answer(run=handler.run_id, text=f"to {handler.run_id}"))
            return
        except ConnectionLost:
            await asyncio.sleep(PAUSE_S)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
