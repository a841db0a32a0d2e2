"""W7: a step that streams 1,000 events, to one reader and to 100."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from benchmarks.workloads.measure import WORKFLOW_PEERS, Figures, Measure, check

TITLE = "W7: 1,000 streamed events"

EVENTS = 1_000


async def stream(peer: Any, readers: int, per_second: int) -> Figures:
    """Time from the start of the run to the last event read; late is read minus written."""
    began = time.perf_counter()
    handler = await peer.begin("stream", events=EVENTS, per_second=per_second)
    late = await asyncio.gather(*(read(one) for one in peer.readers(handler, readers)))
    seconds = time.perf_counter() - began
    check(await handler, EVENTS)
    every = sorted(one for reader in late for one in reader)
    return {
        "events read per second": len(every) / seconds,
        "late p50 ms": every[len(every) // 2],
        "late p99 ms": every[int(len(every) * 0.99)],
        "seconds": seconds,
        "steps": EVENTS,
    }


async def read(events: Any) -> list[float]:
    late: list[float] = []
    numbers: list[int] = []
    async for event in events:
        if hasattr(event, "at"):
            late.append((time.time() - event.at) * 1000)
            numbers.append(event.n)
    check(numbers, list(range(EVENTS)))
    return late


MEASURES = (
    Measure(
        name="as fast as it goes, one reader",
        run=partial(stream, readers=1, per_second=0),
        peers=WORKFLOW_PEERS,
    ),
    Measure(
        name="as fast as it goes, 100 readers",
        run=partial(stream, readers=100, per_second=0),
        peers=("stepfleet",),
    ),
    Measure(
        name="1,000 events/s, one reader",
        run=partial(stream, readers=1, per_second=1_000),
        peers=WORKFLOW_PEERS,
    ),
    Measure(
        name="1,000 events/s, 100 readers",
        run=partial(stream, readers=100, per_second=1_000),
        peers=("stepfleet",),
    ),
)
