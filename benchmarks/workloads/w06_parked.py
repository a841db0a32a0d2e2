"""W6: many runs that wait for a human, and are then answered."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.workloads.measure import (
    QUICK,
    WORKFLOW_PEERS,
    Figures,
    Measure,
    at_once,
    check,
)

TITLE = "W6: 10,000 runs parked on a human, then answered"

RUNS = 500 if QUICK else 10_000


async def park(peer: Any) -> Figures:
    began = time.perf_counter()
    peer.parked = await peer.park(RUNS)
    seconds = time.perf_counter() - began
    return {"per second": RUNS / seconds, "seconds": seconds, "steps": RUNS, "items": RUNS}


async def answer(peer: Any) -> Figures:
    began = time.perf_counter()
    results = await peer.answer(peer.parked)
    seconds = time.perf_counter() - began
    check(results, list(range(RUNS)))
    del peer.parked
    return {"per second": RUNS / seconds, "seconds": seconds, "steps": RUNS}


async def for_comparison(peer: Any) -> Figures:
    return await at_once(peer, "one", RUNS, 1)


MEASURES = (
    Measure(name="10,000 runs park", run=park, peers=WORKFLOW_PEERS, seconds=240),
    Measure(name="all are answered", run=answer, peers=WORKFLOW_PEERS, seconds=240),
    Measure(name="10,000 runs of one step", run=for_comparison, peers=WORKFLOW_PEERS, seconds=240),
)
