"""How much is kept of runs, and how much they may have. Layer: storage."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The limits of a fleet, by the names of the settings where there are some."""

    retention: timedelta = timedelta(hours=24)
    #: Public events kept per run.
    stream_limit: int = 10_000
    pending_runs_limit: int = 1_000_000
    waiters_limit: int = 1_000
    #: Deliveries that a run may have in all.
    deliveries_limit: int = 1_000_000
    #: Entries kept in the stream of ended runs.
    ends_limit: int = 10_000
    #: Dead letters kept.
    dead_limit: int = 10_000
    #: Operation ids of clients kept per run.
    operations_limit: int = 1_000
