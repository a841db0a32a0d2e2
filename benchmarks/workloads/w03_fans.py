"""W3: one step fans out, every item is a step, one step joins them."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.workloads.measure import QUICK, Figures, Measure, latency

TITLE = "W3: fan-out and fan-in"

#: llama-index-workflows takes minutes for 2,000 items and half an hour or more for 10,000; dramatiq,
#: arq and the other queues are not asked for more than 1,000 either.
WIDEST = ("stepfleet", "ceiling")


async def fan(peer: Any, width: int, times: int) -> Figures:
    return await latency(peer, "fan", [width] * times, 2 * width + 1)


MEASURES = (
    Measure(
        name="1 -> 100 -> 1 at idle",
        run=partial(fan, width=100, times=3 if QUICK else 10),
        kind="fan",
        quick=True,
    ),
    Measure(name="1 -> 1,000 -> 1", run=partial(fan, width=1_000, times=1), kind="fan"),
    Measure(
        name="1 -> 10,000 -> 1",
        run=partial(fan, width=10_000, times=1),
        kind="fan",
        peers=WIDEST,
        seconds=240,
    ),
)
