"""What a workload is made of: measures, which run in the driver of a peer and return figures.

Only the standard library is imported here.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

QUICK = bool(os.environ.get("QUICK"))

#: Name to value; `steps` is the number of step executions, by which the runner divides costs.
Figures = dict[str, float]

#: Peers that run workflows: they can wait for events, publish and store.
WORKFLOW_PEERS = ("stepfleet", "stepfleet-memory", "llama")


class WrongResult(Exception):
    """A peer gave another result than it should have: the benchmark fails."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One thing that is measured, on every peer that can do it."""

    name: str
    run: Callable[[Any], Awaitable[Figures]]
    #: What the peer has to be able to do.
    kind: str = "one"
    #: Only these peers; None: all that have the kind.
    peers: tuple[str, ...] | None = None
    #: Done by `make bench QUICK=1` too.
    quick: bool = False
    #: The numbers of worker processes it is measured with.
    workers: tuple[int, ...] = (1,)
    #: What the workers of stepfleet serve: `workflows`, or `fifty` of them.
    target: str = "workflows"
    #: Measured with processes that have done nothing before.
    is_alone: bool = False
    #: False: no workers run.
    with_workers: bool = True
    seconds: float = 120


def check(actual: Any, expected: Any) -> None:
    """Raise `WrongResult` if the two are not equal."""
    if actual != expected:
        raise WrongResult(f"{str(actual)[:200]} instead of {str(expected)[:200]}")


async def latency(peer: Any, kind: str, values: Iterable[Any], steps: int) -> Figures:
    """Start one after the other and wait for each."""
    took: list[float] = []
    for value in values:
        began = time.perf_counter()
        result = await (await peer.start(kind, value))
        took.append((time.perf_counter() - began) * 1000)
        check(result, value)
    took.sort()
    return {
        "p50 ms": statistics.median(took),
        "p99 ms": took[int(len(took) * 0.99)],
        "steps": len(took) * steps,
    }


async def at_once(peer: Any, kind: str, count: int, steps: int) -> Figures:
    """Start all and wait for all."""
    values = list(range(count))
    began = time.perf_counter()
    results = await (await peer.start_many(kind, values))
    seconds = time.perf_counter() - began
    check(results, values)
    return {"per second": count / seconds, "seconds": seconds, "steps": count * steps}
