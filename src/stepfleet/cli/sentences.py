"""What `stepfleet why` says: a sentence for each thing, and words that several of them use. Layer: cli."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from stepfleet.cli.showing import ago
from stepfleet.storage.inspector import WorkerRow

#: How many things of a kind are told one by one.
TOLD: Final = 5


class Sentence(NamedTuple):
    """One thing that a run waits for."""

    #: damaged, ended, continued, running, backlog, unserved, silent, turn, slots, ceiling, join, wait,
    #: timer, lock, child, dead, parked, idle, deadline
    kind: str
    step: str
    text: str


def number_of(count: int, noun: str) -> str:
    """Return `2 events`, `1 event`, `2 Item`: the names of classes have no plural."""
    return f"{count} {noun}" + ("s" if noun in ("event", "live worker") and count != 1 else "")


def waiting(count: int, noun: str) -> str:
    """Return `2 events wait`, `1 event waits`."""
    return f"{number_of(count, noun)} {'waits' if count == 1 else 'wait'}"


def listed(names: Sequence[str]) -> str:
    """Return `a, b and c`, of many the first few and how many more there are."""
    told = list(names[:TOLD])
    if len(names) > TOLD:
        told.append(f"{len(names) - TOLD} more")
    *first, last = told
    return f"{', '.join(first)} and {last}" if first else last


def no_sign(worker: WorkerRow | None) -> str:
    """Say that nothing is heard of a worker, and for how long where that is known."""
    silent = worker.silent_ms if worker is not None else None
    return "has given no sign of life" + (f" for {ago(silent)}" if silent is not None else "")


def is_well(worker: WorkerRow | None) -> bool:
    """Whether a worker lives and has not missed two beats: three come per lease."""
    if worker is None or worker.state != "live":
        return False
    lease = int(worker.about.get("lease", 0))
    return not lease or (worker.silent_ms or 0) <= lease * 2 / 3
