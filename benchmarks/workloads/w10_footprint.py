"""W10: memory and idle CPU of a worker, and what runs take in Redis.

The runner adds `worker MB`, `worker CPU %` and, where there are `items`, `Redis bytes per item`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.workloads.measure import Figures, Measure, at_once

TITLE = "W10: footprint"

IDLE_SECONDS = 5
RUNS = 2_000


async def idle(peer: Any) -> Figures:
    await asyncio.sleep(IDLE_SECONDS)
    return {"seconds": IDLE_SECONDS}


async def live(peer: Any) -> Figures:
    """Runs that no worker has taken yet."""
    await peer.start_many("one", range(RUNS))
    return {"items": RUNS}


async def parked(peer: Any) -> Figures:
    """Runs that wait for a human and have published nothing."""
    peer.parked = await peer.park(RUNS)
    return {"items": RUNS}


async def finished(peer: Any) -> Figures:
    """Runs that have ended, without public events of their own."""
    await at_once(peer, "one", RUNS, 1)
    return {"items": RUNS}


MEASURES = (
    Measure(name="a worker that has nothing to do", run=idle, is_alone=True),
    Measure(name="a finished run", run=finished),
    Measure(name="a parked run", run=parked, peers=("stepfleet",)),
    Measure(name="a live run", run=live, peers=("stepfleet",), with_workers=False),
)
