"""A delivery: an entry of a step's stream in the hands of one consumer. Layer: core, pure."""

from __future__ import annotations

import hashlib
from binascii import b2a_base64
from typing import Any, Final, NamedTuple

from stepfleet.core.commit import Route

_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")

#: Header under which W3C carries a span's ids.
TRACEPARENT: Final = "traceparent"


class Record(NamedTuple):
    """One delivery as it stands in a stream. All fields exist from the first version on."""

    #: Id of the delivery that emitted it; the run id for the first ones of a run.
    parent: str
    type_id: str
    payload: bytes
    #: 1-based; an explicit retry counts, a redelivery does not.
    attempt: int = 1
    #: When the first attempt began, ms of Redis time; 0: not yet.
    first_ms: int = 0
    #: Answers to earlier waits and collects of the same attempt: (kind, name, ...) each.
    journal: list[Any] | None = None
    #: The last failure: ms of Redis time, encoded error, and the traceparent of the attempt if it was traced.
    failure: list[Any] | None = None
    #: What every event that follows from this one inherits, a mapping. `recoveries`: how often each
    #: `catch_error` step was come to on the way here.
    lineage: Any = None
    #: Trace headers, and other text that every event which follows from this one carries too.
    headers: dict[str, str] | None = None
    #: Digest of the code that emitted it.
    code: str | None = None
    #: The one step that it was sent to; None: every step that accepts it.
    target: str | None = None


class Delivery(NamedTuple):
    """One entry that this consumer owns. Made by `storage.consumer` and by tests."""

    run_id: str
    id: str
    route: Route
    entry: str
    record: Record
    #: How often Redis delivered it to a consumer that could start it: 1 + how often its worker was
    #: lost.
    deliveries: int = 1
    #: No execution of this delivery can have begun before.
    fresh: bool = True
    #: Of a step that takes several events: type name of the stream and encoded record of each.
    batch: tuple[tuple[str, bytes], ...] | None = None
    #: Trace headers of its execution here, which what follows from it carries; None: its own.
    trace: dict[str, str] | None = None

    @property
    def is_first(self) -> bool:
        """It belongs to the events that the run was started with."""
        return self.record.parent == self.run_id


def delivery_id(parent: str, step: str, kind: str, index: str | int) -> str:
    """Return the id of what `parent` emits to `step`: the same whenever the same attempt runs again.

    Args:
        parent: id of the emitting delivery, or the run id, or run id and operation id of a
        client's send. kind: how it is emitted (`return`, `send`, `start`, ...).
        index: position, or content digest and occurrence.
    """
    text = f"{parent}\0{step}\0{kind}\0{index}".encode()
    return _text(hashlib.blake2b(text, digest_size=16).digest())[:22]


def content_digest(type_id: str, payload: bytes) -> str:
    """Return a short digest of an event's content."""
    return _text(hashlib.blake2b(payload, digest_size=12, key=type_id.encode()[:64]).digest())


def _text(digest: bytes) -> str:
    """What `base64.urlsafe_b64encode` makes of it, at half the cost."""
    return b2a_base64(digest, newline=False).translate(_URL_SAFE).decode()
