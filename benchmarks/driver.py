"""The producer's side of one peer: runs in its environment and measures what it is told to.

Told by lines of JSON on the standard input, `{"workload": "W1", "measure": "one chain at idle"}`; answers
with one line each: `{"figures": {...}}`, `{"wrong": text}` for a wrong result, or `{"error": text}`.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from typing import Any

from benchmarks.peers import module_of
from benchmarks.workloads import WORKLOADS
from benchmarks.workloads.measure import WrongResult

#: Workers may take that long to come up.
READY_SECONDS = 20


async def warm_up(peer: Any) -> None:
    """Return when the workers answer."""
    async with asyncio.timeout(READY_SECONDS):
        await (await peer.start("one", 1))
        await (await peer.start_many("one", range(100)))


async def answer(peer: Any, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        if asked["measure"] == "warm up":
            await warm_up(peer)
            return {"figures": {}}
        measures = {one.name: one for one in WORKLOADS[asked["workload"]].MEASURES}
        measure = measures[asked["measure"]]
        async with asyncio.timeout(measure.seconds):
            return {"figures": await measure.run(peer)}
    except WrongResult as error:
        return {"wrong": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is reported
        return {"error": f"{type(error).__name__}: {error}"[:300]}


async def main(name: str) -> None:
    output = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a peer prints goes to the log
    peer = importlib.import_module(module_of(name)).Adapter(os.environ["BENCH_REDIS_URL"])
    await peer.open()
    print(json.dumps({"ready": True}), file=output)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await answer(peer, json.loads(line))), file=output)
    await peer.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
