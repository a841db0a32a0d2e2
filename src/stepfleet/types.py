"""Types for annotations of what a run returns."""

from __future__ import annotations

from typing import Any, TypeVar

from stepfleet.events import StopEvent

#: The stop event of a workflow.
StopEventT = TypeVar("StopEventT", bound=StopEvent)

#: What awaiting a handler gives: the stop event where it has a class of its own, else its result.
RunResultT = StopEventT | Any
