"""stepfleet: event-driven workflows whose steps run on any worker of a fleet."""

from __future__ import annotations

from stepfleet.client import Start
from stepfleet.connect import Client, default_runtime
from stepfleet.context import Context
from stepfleet.decorators import catch_error, step
from stepfleet.events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
)
from stepfleet.handler import WorkflowHandler
from stepfleet.workflow import Workflow, install_default_runtime

__all__ = [
    "Client",
    "Context",
    "Event",
    "HumanResponseEvent",
    "InputRequiredEvent",
    "Start",
    "StartEvent",
    "StopEvent",
    "Workflow",
    "WorkflowHandler",
    "catch_error",
    "step",
]

__version__ = "0.1.0"

install_default_runtime(default_runtime)
