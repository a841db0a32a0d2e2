"""W1: chains of three steps that do nothing."""

from __future__ import annotations

from typing import Any

from benchmarks.workloads.measure import QUICK, Figures, Measure, at_once, latency

TITLE = "W1: chains of three steps that do nothing"


async def idle(peer: Any) -> Figures:
    return await latency(peer, "chain", range(15 if QUICK else 200), 3)


async def five_hundred(peer: Any) -> Figures:
    return await at_once(peer, "chain", 500, 3)


MEASURES = (
    Measure(name="one chain at idle", run=idle, kind="chain", quick=True),
    Measure(name="500 chains at once", run=five_hundred, kind="chain", quick=True, workers=(1, 2)),
)
