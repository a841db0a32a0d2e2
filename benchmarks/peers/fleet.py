"""Stepfleet on a fleet: a client here, `workflow-worker` processes beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import redis.asyncio as redis

from benchmarks.flows import FLOWS, Answer
from benchmarks.peers.peer import Peer, Waiting, gathered
from stepfleet import Client

PARKING = "{default:0}:s:Park:StartEvent:ask"


class Adapter(Peer):
    """The public API; Redis itself is only asked whether all runs are parked."""

    async def open(self) -> None:
        self._client = Client(self.url)
        self._server = redis.Redis.from_url(self.url)

    async def close(self) -> None:
        await self._client.close()
        await self._server.aclose()

    async def start(self, kind: str, value: Any) -> Waiting:
        return await self.begin(kind, n=value)

    async def start_many(self, kind: str, values: Sequence[Any]) -> Waiting:
        if kind == "chain over fifty":
            names = [values[at::50] for at in range(50)]
            handlers = [
                handler
                for at, some in enumerate(names)
                for handler in await self._client.start_many(f"Chain{at}", [{"n": n} for n in some])
            ]
            return _in_order(handlers, [n for some in names for n in some], values)
        return gathered(await self._client.start_many(FLOWS[kind], [{"n": n} for n in values]))

    async def begin(self, kind: str, **fields: Any) -> Any:
        return await self._client.start(FLOWS[kind], **fields)

    async def park(self, count: int) -> list[Any]:
        """Return the handlers of runs that all wait for an answer now."""
        handlers = await self._client.start_many(FLOWS["park"], [{"n": -1}] * count)
        while await self._server.xlen(PARKING):  # noqa: ASYNC110 - other processes empty it
            await asyncio.sleep(0.02)
        return handlers

    async def answer(self, handlers: list[Any]) -> list[Any]:
        await asyncio.gather(*(one.send_event(Answer(n=n)) for n, one in enumerate(handlers)))
        return list(await asyncio.gather(*handlers))

    def readers(self, handler: Any, count: int) -> list[Any]:
        """Return readers of the public events of a run, each with a handler of its own."""
        runs = [
            self._client.handler(handler.run_id, workflow=FLOWS["stream"]) for _ in range(count)
        ]
        return [one.stream_events() for one in runs]


async def _in_order(handlers: list[Any], numbers: list[int], values: Sequence[Any]) -> list[Any]:
    results = dict(zip(numbers, await gathered(handlers), strict=True))
    return [results[value] for value in values]
