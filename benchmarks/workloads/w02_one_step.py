"""W2: runs of one step that does nothing."""

from __future__ import annotations

from typing import Any

from benchmarks.workloads.measure import QUICK, Figures, Measure, at_once, latency

TITLE = "W2: runs of one step, one after the other and 2,000 (QUICK: 500) at once"


async def idle(peer: Any) -> Figures:
    return await latency(peer, "one", range(20 if QUICK else 300), 1)


async def many(peer: Any) -> Figures:
    return await at_once(peer, "one", 500 if QUICK else 2_000, 1)


MEASURES = (
    Measure(name="one run at idle", run=idle, quick=True),
    Measure(name="many runs at once", run=many, quick=True, workers=(1, 2)),
)
