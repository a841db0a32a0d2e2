"""W5: one step that is given a payload and gives it back."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.workloads.measure import Figures, Measure, latency

TITLE = "W5: payloads, there and back"


async def echo(peer: Any, kilobytes: int, times: int) -> Figures:
    payload = "x" * (kilobytes * 1_000)
    return await latency(peer, "echo", [payload] * times, 1)


MEASURES = tuple(
    Measure(
        name=f"{kilobytes:,} KB", run=partial(echo, kilobytes=kilobytes, times=times), kind="echo"
    )
    for kilobytes, times in ((1, 50), (10, 50), (100, 20), (1_000, 5))
)
