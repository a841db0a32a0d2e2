"""Workflows in the producer's own process: stepfleet on memory://, and llama-index-workflows."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.flows import ASKED, FLOWS, Answer
from benchmarks.peers.peer import Peer, Waiting


class Adapter(Peer):
    """Both have the same `run()`."""

    async def start(self, kind: str, value: Any) -> Waiting:
        return self.handler(kind, n=value)

    def handler(self, kind: str, **fields: Any) -> Any:
        return FLOWS[kind].run(**fields)

    async def begin(self, kind: str, **fields: Any) -> Any:
        return self.handler(kind, **fields)

    async def park(self, count: int) -> list[Any]:
        """Return the handlers of runs that all wait for an answer now."""
        ASKED.clear()
        handlers = [self.handler("park", n=n) for n in range(count)]
        while len(ASKED) < count:  # noqa: ASYNC110 - steps that know nothing of it fill it
            await asyncio.sleep(0.01)
        return handlers

    async def answer(self, handlers: list[Any]) -> list[Any]:
        for n, handler in enumerate(handlers):
            handler.ctx.send_event(Answer(n=n))
        return list(await asyncio.gather(*handlers))

    def readers(self, handler: Any, count: int) -> list[Any]:
        """Return readers of the public events of a run: here it has only one."""
        return [handler.stream_events() for _ in range(min(count, 1))]
