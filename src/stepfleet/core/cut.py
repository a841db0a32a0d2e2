"""What is recorded of one run at one moment, as a value. Layer: core, pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Pending(NamedTuple):
    """A delivery that somebody still has to run."""

    id: str
    #: Its stream within the workflow.
    label: str
    record: bytes
    #: Where it stands in that stream; '' for one that was taken out of it.
    entry: str = ""


class Ticking(NamedTuple):
    """A timer of the run."""

    member: str
    left_ms: int
    data: bytes


class Buffer(NamedTuple):
    """A collect buffer: its version, and its events in the order in which they came."""

    version: int
    counts: Mapping[str, int]
    events: Sequence[bytes]


class Cut(NamedTuple):
    """A consistent cut through one run."""

    run_id: str
    #: Its record, empty when there is none.
    record: Mapping[str, bytes]
    #: Delivery -> where it is.
    open: Mapping[str, str]
    #: What is in streams, in their order, behind what was taken out of them when the run ended.
    pending: Sequence[Pending]
    timers: Sequence[Ticking]
    waits: Sequence[bytes]
    store: Mapping[str, bytes]
    #: Step -> how many of its deliveries wait for a slot, and, where they were asked for, which.
    held: Mapping[str, int]
    waiting: Mapping[str, Sequence[Pending]]
    #: Buffer (`step:name`) -> its content.
    buffers: Mapping[str, Buffer]
    #: Delivery -> field -> its early effects.
    sent: Mapping[str, Mapping[str, bytes]]
    #: Every further key by its name behind that of the run.
    names: Sequence[str]
    #: Their contents, where they were asked for.
    kept: Mapping[str, Mapping[str, bytes] | Sequence[bytes]] = {}

    def text(self, field: str) -> str:
        """Return a field of the record, '' when it is not there."""
        return self.record.get(field, b"").decode("utf-8", "replace")
