"""dramatiq: a pipeline for chains, a group with a callback for fans."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.message import Message
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits.backends import RedisBackend as Limits
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.peers.peer import IO_SECONDS, Peer, Waiting, burn

URL = os.environ["BENCH_REDIS_URL"]
WAIT_MS = 120_000

broker = RedisBroker(url=URL)
broker.add_middleware(Results(backend=RedisBackend(url=URL), store_results=True))
broker.add_middleware(GroupCallbacks(Limits(url=URL)))
dramatiq.set_broker(broker)


@dramatiq.actor
def one(n: Any) -> Any:
    return n


@dramatiq.actor
def io(n: int) -> int:
    time.sleep(IO_SECONDS)
    return n


@dramatiq.actor
def cpu(n: int) -> int:
    burn()
    return n


@dramatiq.actor
def child() -> int:
    return 1


@dramatiq.actor
def fan(width: int, join: dict[str, Any]) -> None:
    join["args"] = tuple(join["args"])
    group = dramatiq.group([child.message() for _ in range(width)])
    group.add_completion_callback(Message(**join))
    group.run()


def begin(kind: str, value: Any) -> Any:
    match kind:
        case "chain":
            return dramatiq.pipeline([one.message(value), one.message(), one.message()]).run()
        case "fan":
            join = one.message(value)
            fan.send(value, join.asdict())
            return join
        case "io" | "cpu":
            return {"io": io, "cpu": cpu}[kind].send(value)
        case _:
            return one.send(value)


class Adapter(Peer):
    """Its client blocks, so it has a thread; one is the fastest."""

    async def open(self) -> None:
        self._thread = ThreadPoolExecutor(1)

    async def close(self) -> None:
        self._thread.shutdown()

    async def start(self, kind: str, value: Any) -> Waiting:
        message = await self._call(begin, kind, value)
        return self._call(result, message)

    async def start_many(self, kind: str, values: Sequence[Any]) -> Waiting:
        messages = await self._call(lambda: [begin(kind, value) for value in values])
        return self._call(lambda: [result(message) for message in messages])

    async def _call(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


def result(message: Any) -> Any:
    return message.get_result(block=True, timeout=WAIT_MS)
