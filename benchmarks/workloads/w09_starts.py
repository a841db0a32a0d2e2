"""W9: how fast a producer starts runs, one by one and many, with one worker running."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.workloads.measure import Figures, Measure, check

TITLE = "W9: starting runs"

ONE_BY_ONE = 500
MANY = 2_000


async def one_by_one(peer: Any) -> Figures:
    began = time.perf_counter()
    waiting = [await peer.start("one", n) for n in range(ONE_BY_ONE)]
    seconds = time.perf_counter() - began
    check([await one for one in waiting], list(range(ONE_BY_ONE)))
    return {"starts per second": ONE_BY_ONE / seconds, "steps": ONE_BY_ONE}


async def many(peer: Any) -> Figures:
    """The starts alone: nothing runs them."""
    began = time.perf_counter()
    await peer.start_many("one", range(MANY))
    return {"starts per second": MANY / (time.perf_counter() - began), "items": MANY}


MEASURES = (
    Measure(name="one by one", run=one_by_one, quick=True),
    Measure(
        name="2,000 in the fastest way, no worker",
        run=many,
        with_workers=False,
        peers=(
            *("stepfleet", "ceiling", "dramatiq", "arq", "saq"),
            *("taskiq", "streaq", "docket", "celery", "redflow"),
        ),
    ),
)
