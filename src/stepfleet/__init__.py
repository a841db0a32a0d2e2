"""stepfleet: event-driven workflows whose steps run on any worker of a fleet."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stepfleet.client import Start
from stepfleet.connect import Client, default_runtime
from stepfleet.context import Context
from stepfleet.decorators import catch_error, step
from stepfleet.errors import (
    WorkflowRuntimeError,
    WorkflowTimeoutError,
    WorkflowValidationError,
)
from stepfleet.events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
)
from stepfleet.handler import WorkflowHandler
from stepfleet.sync import SyncClient
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
    "SyncClient",
    "Workflow",
    "WorkflowHandler",
    "WorkflowRuntimeError",
    "WorkflowTimeoutError",
    "WorkflowValidationError",
    "catch_error",
    "step",
]

__version__ = "0.1.0"

#: What `llama_index.core.workflow` offered too, and few programs need: imported when it is asked for.
_ON_DEMAND = {
    "JsonPickleSerializer": "stepfleet.context.serializers",
    "JsonSerializer": "stepfleet.context.serializers",
    "draw_all_possible_flows": "stepfleet.drawing",
    "draw_all_possible_paths": "stepfleet.drawing",
    "draw_most_recent_execution": "stepfleet.drawing",
}

if TYPE_CHECKING:
    from stepfleet.drawing import draw_all_possible_flows as draw_all_possible_flows
else:

    def __getattr__(name: str) -> Any:
        module = _ON_DEMAND.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(module), name)


install_default_runtime(default_runtime)
