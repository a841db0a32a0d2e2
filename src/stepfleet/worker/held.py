"""A delivery that this process owns, and how far it has come."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from stepfleet.core.delivery import Delivery
from stepfleet.worker.execution import Execution


@dataclass(slots=True, eq=False)
class Held:
    """A delivery that this process owns."""

    delivery: Delivery
    started: float
    task: asyncio.Task[None] | None = None
    #: Whether it takes a place: its step runs, or stands in line to run once more.
    has_place: bool = False
    #: Its next execution waits for a place.
    in_line: asyncio.Future[None] | None = None
    execution: Execution | None = None
    armed: bool = False
    #: Runs as the only suspect.
    alone: bool = False
    #: Waits or has waited for another run: others may have its slot.
    lent: bool = False
    #: Why it was cancelled: 'over', 'gone' or 'drain'.
    cancelled: str = ""
