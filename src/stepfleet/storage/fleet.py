"""What clients and workers need to reach one partition of one namespace. Made by the composition roots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stepfleet.clock import Clock
from stepfleet.codec import Limits
from stepfleet.storage.keys import Keys
from stepfleet.storage.link import Link
from stepfleet.storage.run_store import Bounds
from stepfleet.storage.scripts import Script

#: Runs a script from the lease thread, on a connection of its own.
BeatCall = Callable[[Script, list[str], list[Any]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Keys, connections, bounds and clocks."""

    keys: Keys
    #: Makes a connection; the name shows in CLIENT LIST.
    link: Callable[[str], Link]
    #: Makes a synchronous caller for the lease thread; None: leases are renewed by the event loop
    #: (in memory).
    beat_call: Callable[[], BeatCall] | None
    bounds: Bounds = field(default_factory=Bounds)
    clock: Clock = field(default_factory=Clock)
    limits: Limits = field(default_factory=Limits)
    #: Unclaimed events kept per run.
    inbox_limit: int = 100
    #: Every class met in this process may travel (in memory: producer and worker are one process).
    open_types: bool = False
