"""Growth: what a step costs with many live runs, many workflows and many workers."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from benchmarks.workloads.measure import Figures, Measure, at_once

TITLE = "Growth: chains among other runs, over many workflows and workers"

OURS = ("stepfleet",)
TIMES = 8


async def prepare(peer: Any, live: int) -> Figures:
    """Park more runs; they stay live while the next measure runs."""
    parked = peer.__dict__.setdefault("parked", [])
    parked += await peer.park(live - len(parked))
    return {}


async def chains(peer: Any, kind: str) -> Figures:
    """Several times: one alone takes a tenth of a second, and garbage is looked for in every fourth."""
    figures = [await at_once(peer, kind, 500, 3) for _ in range(TIMES)]
    seconds, steps = (sum(one[what] for one in figures) for what in ("seconds", "steps"))
    return {"per second": steps / 3 / seconds, "seconds": seconds, "steps": steps}


async def chains_per_worker(peer: Any) -> Figures:
    return await at_once(peer, "chain", 500 * int(os.environ["BENCH_WORKERS"]), 3)


MEASURES = (
    *(
        Measure(name=name, run=run, peers=OURS)
        for live in (10, 1_000, 10_000)
        for name, run in (
            (f"{live:,} runs park", partial(prepare, live=live)),
            (f"{live:,} live runs", partial(chains, kind="chain")),
        )
    ),
    Measure(name="1 workflow", run=partial(chains, kind="chain"), peers=OURS, target="fifty"),
    Measure(
        name="50 workflows",
        run=partial(chains, kind="chain over fifty"),
        peers=OURS,
        target="fifty",
    ),
    Measure(name="500 chains per worker", run=chains_per_worker, peers=OURS, workers=(1, 2, 4, 8)),
)
