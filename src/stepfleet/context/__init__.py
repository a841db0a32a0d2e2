"""What a step may do besides returning an event: `Context`, its store and what carries it between processes."""

from stepfleet.context.context import Context, RunFace, StepFace

__all__ = ["Context", "RunFace", "StepFace"]
