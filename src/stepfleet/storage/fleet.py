"""What clients and workers need to reach one partition of one namespace. Made by the composition roots."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random, SystemRandom
from typing import Any

from stepfleet.clock import Clock
from stepfleet.codec import Limits
from stepfleet.storage.bounds import Bounds
from stepfleet.storage.keys import Keys
from stepfleet.storage.link import Link
from stepfleet.storage.scripts import Script
from stepfleet.tracing import Mode, Tracing, tracing_of

#: Runs a script from the lease thread, on a connection of its own.
BeatCall = Callable[[Script, list[str], list[Any]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Keys, connections, bounds, clocks, chance and the name of this process: what a simulation replaces."""

    keys: Keys
    #: Makes a connection; the name shows in CLIENT LIST.
    link: Callable[[str], Link]
    #: Makes a synchronous caller for the lease thread; None: leases are renewed by the event loop
    #: (in memory).
    beat_call: Callable[[], BeatCall] | None
    bounds: Bounds = field(default_factory=Bounds)
    clock: Clock = field(default_factory=Clock)
    #: Ids and jitter come from here.
    random: Random = field(default_factory=SystemRandom)
    #: Host and process id, as they show in consumer names.
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    limits: Limits = field(default_factory=Limits)
    #: The runs that are started through it keep a history, unless they are told otherwise.
    keeps_history: bool = False
    #: Unclaimed events kept per run.
    inbox_limit: int = 100
    #: Every class met in this process may travel (in memory: producer and worker are one process).
    open_types: bool = False
    #: Makes a synchronous caller for who cannot wait in the event loop (`Context.to_dict`).
    call_now: Callable[[], BeatCall] | None = None

    #: Whether spans are made, for which a tracer provider must be configured.
    tracing: Mode = "auto"

    def tracer(self) -> Tracing | None:
        """Return what makes spans, None when nobody takes them; asked once by a client or worker.

        Raises:
            SettingsError: tracing is on, and nothing is there to take spans.
        """
        return tracing_of(self.tracing, namespace=self.keys.namespace, host=self.host, pid=self.pid)

    def token(self) -> str:
        """Return an id that nobody had before."""
        return self.random.randbytes(12).hex()
