"""The goals: ratios of medians of one run, and what a goal is compared with.

A goal is a function of the medians that returns how far it is and whether that is enough; None where
something it needs was not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: (peer, server, workers, target, workload, measure, figure) -> median.
Medians = dict[tuple[str, str, int, str, str, str, str], float]

QUEUES = ("dramatiq", "arq", "saq", "taskiq", "streaq", "docket", "celery", "dbos", "redflow")
LARGER, SMALLER = "at least", "at most"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A ratio or a figure that is to be reached."""

    text: str
    figure: Callable[[Look], float | None]
    bound: float
    direction: str = LARGER

    def reached(self, figure: float) -> bool:
        return figure >= self.bound if self.direction == LARGER else figure <= self.bound


@dataclass(frozen=True)
class Look:
    """Looks medians up."""

    medians: Medians

    def of(
        self, peer: str, workload: str, measure: str, figure: str, workers: int | None = None
    ) -> float | None:
        """Return a median without persistence; in-process peers and some measures have one setup only."""
        for (who, server, count, _, *rest), value in self.medians.items():
            if (who, server, rest) != (peer, "none", [workload, measure, figure]):
                continue
            if workers is None or workers == count:
                return value
        return None

    def best(
        self, workload: str, measure: str, figure: str, pick: Callable[..., float]
    ) -> float | None:
        """Return the figure of the best queue."""
        found = [self.of(peer, workload, measure, figure) for peer in QUEUES]
        known = [value for value in found if value is not None]
        return pick(known) if known else None


def over(first: float | None, second: float | None) -> float | None:
    return first / second if first is not None and second else None


W1_MANY, W1_IDLE = ("W1", "500 chains at once"), ("W1", "one chain at idle")
W2_MANY, W2_IDLE = ("W2", "many runs at once"), ("W2", "one run at idle")
FAN_100, FAN_1000, FAN_10000 = (("W3", f"1 -> {n} -> 1") for n in ("100", "1,000", "10,000"))
FAN_100 = ("W3", "1 -> 100 -> 1 at idle")
IO = ("W4", "2,000 steps of 20 ms waiting")
CPU_1 = ("W4", "2,000 steps of 5 ms computing, one process")
CPU_2 = ("W4", "2,000 steps of 5 ms computing, two processes")
RATE, P50, SECONDS = "per second", "p50 ms", "seconds"
OURS, MEMORY, CEILING, LLAMA = "stepfleet", "stepfleet-memory", "ceiling", "llama"


def against(
    peer: str, what: tuple[str, str], figure: str, ours: str = OURS
) -> Callable[[Look], float | None]:
    return lambda look: over(look.of(ours, *what, figure), look.of(peer, *what, figure))


def faster_than(
    peer: str, what: tuple[str, str], ours: str = OURS
) -> Callable[[Look], float | None]:
    return lambda look: over(look.of(peer, *what, P50), look.of(ours, *what, P50))


def against_best(
    what: tuple[str, str], figure: str, pick: Callable[..., float]
) -> Callable[[Look], float | None]:
    return lambda look: over(look.of(OURS, *what, figure), look.best(*what, figure, pick))


def faster_than_best(what: tuple[str, str]) -> Callable[[Look], float | None]:
    return lambda look: over(look.best(*what, P50, min), look.of(OURS, *what, P50))


def own(workload: str, measure: str, figure: str) -> Callable[[Look], float | None]:
    return lambda look: look.of(OURS, workload, measure, figure)


def growth(
    figure: str, few: tuple[str, int], many: tuple[str, int]
) -> Callable[[Look], float | None]:
    return lambda look: over(
        look.of(OURS, "growth", many[0], figure, many[1]),
        look.of(OURS, "growth", few[0], figure, few[1]),
    )


def two_workers(what: tuple[str, str], first: str, figure: str) -> Callable[[Look], float | None]:
    return lambda look: over(
        look.of(OURS, *what, figure, 2), look.of(OURS, what[0], first, figure, 1)
    )


MANY_EVENTS = ("W7", "as fast as it goes, one reader", "events read per second")
LATE = ("W7", "1,000 events/s, one reader", "late p99 ms")
PER_WORKER = "500 chains per worker"
FEW_RUNS, MANY_RUNS = ("10 live runs", 1), ("10,000 live runs", 1)
FEW_FLOWS, MANY_FLOWS = ("1 workflow", 1), ("50 workflows", 1)

GOALS = (
    Goal(text="W1, 500 chains: x the best queue", figure=against_best(W1_MANY, RATE, max), bound=8),
    Goal(text="W1, 500 chains: x the ceiling", figure=against(CEILING, W1_MANY, RATE), bound=0.6),
    Goal(
        text="W1, worker CPU per step, µs",
        figure=own(*W1_MANY, "worker us per step"),
        bound=100,
        direction=SMALLER,
    ),
    Goal(
        text="W1, idle p50: x the ceiling",
        figure=against(CEILING, W1_IDLE, P50),
        bound=1.5,
        direction=SMALLER,
    ),
    Goal(
        text="W1, idle p50: x the best queue",
        figure=against_best(W1_IDLE, P50, min),
        bound=0.4,
        direction=SMALLER,
    ),
    Goal(
        text="W2, idle p50: x the ceiling",
        figure=against(CEILING, W2_IDLE, P50),
        bound=1.5,
        direction=SMALLER,
    ),
    Goal(
        text="W2, idle p50: x the best queue",
        figure=against_best(W2_IDLE, P50, min),
        bound=0.5,
        direction=SMALLER,
    ),
    Goal(text="W2, runs/s: x the ceiling", figure=against(CEILING, W2_MANY, RATE), bound=0.4),
    Goal(text="W2, runs/s: x the best queue", figure=against_best(W2_MANY, RATE, max), bound=4),
    Goal(
        text="W2, runs/s: x llama-index-workflows", figure=against(LLAMA, W2_MANY, RATE), bound=10
    ),
    Goal(
        text="two workers, chains of no-op steps: x one",
        figure=two_workers(W1_MANY, W1_MANY[1], RATE),
        bound=1.3,
    ),
    Goal(
        text="two workers, steps of 5 ms computing: x one",
        figure=two_workers(CPU_2, CPU_1[1], RATE),
        bound=1.8,
    ),
    Goal(
        text="W3, 1→100→1: x the time of the ceiling",
        figure=against(CEILING, FAN_100, P50),
        bound=3,
        direction=SMALLER,
    ),
    Goal(
        text="W3, 1→100→1: x faster than the best queue", figure=faster_than_best(FAN_100), bound=7
    ),
    Goal(
        text="W3, 1→1,000→1: x faster than llama-index-workflows",
        figure=faster_than(LLAMA, FAN_1000),
        bound=60,
    ),
    Goal(
        text="W3, 1→10,000→1: x the time of 1→1,000→1",
        figure=lambda look: over(look.of(OURS, *FAN_10000, P50), look.of(OURS, *FAN_1000, P50)),
        bound=11,
        direction=SMALLER,
    ),
    Goal(
        text="memory://, runs of one step: x llama-index-workflows",
        figure=against(LLAMA, W2_MANY, RATE, MEMORY),
        bound=0.5,
    ),
    Goal(
        text="memory://, 1→1,000→1: x faster than llama-index-workflows",
        figure=faster_than(LLAMA, FAN_1000, MEMORY),
        bound=3,
    ),
    Goal(text="W4, waiting: share of the ideal", figure=own(*IO, "share of ideal"), bound=0.95),
    Goal(
        text="W4, computing: share of the ideal", figure=own(*CPU_1, "share of ideal"), bound=0.92
    ),
    Goal(
        text="calls to Redis per step under load",
        figure=own(*W1_MANY, "calls per step"),
        bound=0.05,
        direction=SMALLER,
    ),
    Goal(
        text="calls to Redis per step at idle",
        figure=own(*W1_IDLE, "calls per step"),
        bound=2,
        direction=SMALLER,
    ),
    Goal(
        text="Redis CPU per step under load, µs",
        figure=own(*W1_MANY, "Redis us per step"),
        bound=75,
        direction=SMALLER,
    ),
    Goal(
        text="W6, Redis bytes of a parked run (here without a public stream)",
        figure=own("W10", "a parked run", "Redis bytes per item"),
        bound=2_048,
        direction=SMALLER,
    ),
    Goal(
        text="W6, 10,000 answers: x the time of 10,000 runs of one step",
        figure=lambda look: over(
            look.of(OURS, "W6", "all are answered", SECONDS),
            look.of(OURS, "W6", "10,000 runs of one step", SECONDS),
        ),
        bound=3,
        direction=SMALLER,
    ),
    Goal(text="W7, events/s written and read", figure=own(*MANY_EVENTS), bound=10_000),
    Goal(
        text="W7, reader p99 at 1,000 events/s, ms",
        figure=own(*LATE),
        bound=10,
        direction=SMALLER,
    ),
    Goal(
        text="W9, start_many, runs/s",
        figure=own("W9", "2,000 in the fastest way, no worker", "starts per second"),
        bound=8_000,
    ),
    Goal(
        text="W10, a worker's memory, MB RSS",
        figure=own("W10", "a worker that has nothing to do", "worker MB"),
        bound=60,
        direction=SMALLER,
    ),
    Goal(
        text="W10, an idle worker, % of a core",
        figure=own("W10", "a worker that has nothing to do", "worker CPU %"),
        bound=1,
        direction=SMALLER,
    ),
    Goal(
        text="W10, Redis bytes of a finished run",
        figure=own("W10", "a finished run", "Redis bytes per item"),
        bound=2_048,
        direction=SMALLER,
    ),
    *(
        Goal(
            text=f"growth, {who} CPU per step, {text}",
            figure=growth(f"{who} us per step", few, many),
            bound=bound,
            direction=SMALLER,
        )
        for text, few, many, bound in (
            ("10,000 live runs: x 10", FEW_RUNS, MANY_RUNS, 1.1),
            ("50 workflows: x 1", FEW_FLOWS, MANY_FLOWS, 1.3),
        )
        for who in ("worker", "Redis")
    ),
    Goal(
        text="growth, calls per step, 8 workers with 500 chains each: x 1 (flat: up to 1.1)",
        figure=growth("calls per step", (PER_WORKER, 1), (PER_WORKER, 8)),
        bound=1.1,
        direction=SMALLER,
    ),
)
