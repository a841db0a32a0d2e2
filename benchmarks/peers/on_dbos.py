"""DBOS on SQLite: a workflow per run, in the producer's process; every step is recorded on disk."""

from __future__ import annotations

import asyncio
import tempfile
from typing import Any

from dbos import DBOS

from benchmarks.peers.peer import IO_SECONDS, Peer, Waiting, burn


@DBOS.step()
async def hand_on(n: Any) -> Any:
    return n


@DBOS.step()
async def sleep(n: int) -> int:
    await asyncio.sleep(IO_SECONDS)
    return n


@DBOS.step()
async def compute(n: int) -> int:
    burn()
    return n


@DBOS.workflow()
async def one(n: Any) -> Any:
    return await hand_on(n)


@DBOS.workflow()
async def chain(n: int) -> int:
    return await hand_on(await hand_on(await hand_on(n)))


@DBOS.workflow()
async def io(n: int) -> int:
    return await sleep(n)


@DBOS.workflow()
async def cpu(n: int) -> int:
    return await compute(n)


FLOWS: dict[str, Any] = {"one": one, "echo": one, "chain": chain, "io": io, "cpu": cpu}


class Adapter(Peer):
    """Workflows are started and awaited by their handles."""

    async def open(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        database = f"sqlite:///{self._folder.name}/bench.sqlite"
        DBOS(config={"name": "bench", "system_database_url": database, "log_level": "ERROR"})
        DBOS.launch()

    async def close(self) -> None:
        DBOS.destroy()
        self._folder.cleanup()

    async def start(self, kind: str, value: Any) -> Waiting:
        handle = await DBOS.start_workflow_async(FLOWS[kind], value)
        return handle.get_result()
