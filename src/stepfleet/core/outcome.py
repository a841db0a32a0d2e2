"""What became of a delivery: the values that `decide` turns into commits. Layer: core, pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from stepfleet.core.commit import Route
from stepfleet.events import Event


class Encoded(NamedTuple):
    """An event and its bytes."""

    event_type: type[Event]
    type_id: str
    payload: bytes


class Send(NamedTuple):
    """An event that a step sent, with its streams; not yet confirmed by Redis."""

    routes: tuple[tuple[Route, str], ...]
    record: bytes


class Shown(NamedTuple):
    """An event that a step published; not yet confirmed by Redis."""

    entry: bytes
    #: Content digest and occurrence: what makes it the same when the step runs again.
    field: str


Effect = Send | Shown


class Collected(NamedTuple):
    """One call of `collect_events` in an execution."""

    buffer: str
    type: str
    event: bytes
    quota: tuple[tuple[str, int], ...]
    #: Version of the content that the call released; None: it returned None.
    released: int | None


class Traces(NamedTuple):
    """What an execution leaves behind, whatever its outcome."""

    #: Effects that did not go out while the step ran.
    effects: Sequence[Effect] = ()
    #: Effects went out early, or an execution before this one may have sent some.
    guarded: bool = False
    #: Fields of everything that this execution published.
    published: tuple[str, ...] = ()
    #: An execution before this one may have published other entries.
    repeated: bool = False
    #: Token of the edit lock that it took.
    lock: str = ""
    #: How long it ran.
    age_ms: int = 0
    #: Which execution it is.
    execution: str = ""
    #: Inbox elements that answered its waits.
    claimed: tuple[bytes, ...] = ()
    #: Runs that it started and saw end.
    ended_runs: tuple[str, ...] = ()


class Returned(NamedTuple):
    """The step returned."""

    event: Encoded | None
    #: What it returned as a list.
    members: tuple[Encoded, ...] | None = None
    collected: tuple[Collected, ...] = ()
    traces: Traces = Traces()


class Failed(NamedTuple):
    """The step raised."""

    error: BaseException
    traces: Traces = Traces()
    #: Neither its retry policy nor a `catch_error` step is asked.
    final: bool = False


class Suspended(NamedTuple):
    """The step waits for an event."""

    event_type: type[Event]
    waiter_id: str
    requirements: bytes
    #: Seconds until the wait ends in a time-out; None: never.
    timeout: float | None
    #: Published by the commit that suspends.
    request: Encoded | None
    #: Answers so far, this attempt's collects included.
    journal: list[Any]
    collected: tuple[Collected, ...] = ()
    #: Number of inbox events ever, at the time when the inbox was searched in vain.
    inbox_seen: str = ""
    subclasses: bool = False
    traces: Traces = Traces()


class Lost(NamedTuple):
    """Its workers died too often."""


class Unreadable(NamedTuple):
    """This code cannot decode it."""

    error: Exception


Outcome = Returned | Failed | Suspended | Lost | Unreadable
