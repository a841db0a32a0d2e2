"""W4: steps that wait for something else, and steps that compute."""

from __future__ import annotations

import math
import os
from functools import partial
from typing import Any

from benchmarks.peers.peer import CPU_SECONDS, IO_SECONDS
from benchmarks.workloads.measure import QUICK, Figures, Measure, at_once

TITLE = "W4: steps of 20 ms of waiting, and of 5 ms of computing"

IO_STEPS = 2_000
CPU_STEPS = 200 if QUICK else 2_000


async def io(peer: Any) -> Figures:
    """The ideal: 100 slots, always taken."""
    figures = await at_once(peer, "io", IO_STEPS, 1)
    ideal = math.ceil(IO_STEPS / 100) * IO_SECONDS
    return figures | {"share of ideal": ideal / figures["seconds"]}


async def cpu(peer: Any, processes: int) -> Figures:
    """The ideal: every process computes all of the time, as far as there are cores."""
    figures = await at_once(peer, "cpu", CPU_STEPS, 1)
    ideal = CPU_STEPS * CPU_SECONDS / min(processes, os.cpu_count() or 1)
    return figures | {"share of ideal": ideal / figures["seconds"]}


MEASURES = (
    Measure(name="2,000 steps of 20 ms waiting", run=io, kind="io"),
    Measure(
        name="2,000 steps of 5 ms computing, one process",
        run=partial(cpu, processes=1),
        kind="cpu",
    ),
    Measure(
        name="2,000 steps of 5 ms computing, two processes",
        run=partial(cpu, processes=2),
        kind="cpu",
        workers=(2,),
    ),
)
