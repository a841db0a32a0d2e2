"""What a step may do besides returning an event: `Context`, its store and what carries it between processes."""

from stepfleet.context.context import Context, RunFace, StepFace
from stepfleet.context.serializers import BaseSerializer, JsonSerializer, PickleSerializer

__all__ = [
    "BaseSerializer",
    "Context",
    "JsonSerializer",
    "PickleSerializer",
    "RunFace",
    "StepFace",
]
