"""Celery: chains and chords."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import Celery, chord
from celery import chain as in_a_row

from benchmarks.peers.peer import IO_SECONDS, Peer, Waiting, burn

URL = os.environ["BENCH_REDIS_URL"]
WAIT_SECONDS = 120

app = Celery("benchmarks.peers.on_celery", broker=URL + "/0", backend=URL + "/0")
app.conf.update(
    worker_prefetch_multiplier=64,
    broker_connection_retry_on_startup=True,
    result_expires=3600,
    worker_hijack_root_logger=False,
)


@app.task
def one(n: Any) -> Any:
    return n


@app.task
def join(children: list[int], n: int) -> int:
    return n


@app.task
def io(n: int) -> int:
    time.sleep(IO_SECONDS)
    return n


@app.task
def cpu(n: int) -> int:
    burn()
    return n


TASKS: dict[str, Any] = {"one": one, "echo": one, "io": io, "cpu": cpu}


def begin(kind: str, value: Any) -> Any:
    match kind:
        case "chain":
            return in_a_row(one.s(value), one.s(), one.s()).apply_async()
        case "fan":
            children = chord([one.si(n) for n in range(value)], join.s(value))
            return in_a_row(one.si(value), children).apply_async()
        case _:
            return TASKS[kind].delay(value)


def result(sent: Any) -> Any:
    return sent.get(timeout=WAIT_SECONDS)


class Adapter(Peer):
    """Its client blocks, so it has a thread."""

    async def open(self) -> None:
        self._thread = ThreadPoolExecutor(1)

    async def close(self) -> None:
        self._thread.shutdown()

    async def start(self, kind: str, value: Any) -> Waiting:
        sent = await self._call(begin, kind, value)
        return self._call(result, sent)

    async def start_many(self, kind: str, values: Sequence[Any]) -> Waiting:
        sent = await self._call(lambda: [begin(kind, value) for value in values])
        return self._call(lambda: [result(each) for each in sent])

    async def _call(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)
