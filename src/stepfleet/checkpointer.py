"""`WorkflowCheckpointer`: keeps what each completed step took and gave, and starts runs anew from there.

An old form of llama-index-workflows. The checkpoints are in Redis, beside the run, and are kept as
long as it is, the last 100 of each run. Runs that are not started here keep none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from pydantic import BaseModel, ConfigDict

from stepfleet.context import BaseSerializer, Context, JsonSerializer
from stepfleet.core.checkpoints import header
from stepfleet.errors import WorkflowStepDoesNotExistError
from stepfleet.events import Event, StopEvent
from stepfleet.handler import WorkflowHandler
from stepfleet.remote_run import RemoteRun
from stepfleet.workflow import Workflow


class Checkpoint(BaseModel):
    """One completed step of a run: what it took and gave, and the context when it had."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    id_: str
    last_completed_step: str | None
    input_event: Event | None
    output_event: Event | None
    ctx_state: dict[str, Any]


class WorkflowCheckpointer:
    """Runs a workflow with checkpoints.

    Args:
        workflow: the instance whose runs keep them.
        checkpoint_serializer: writes `ctx_state`; `JsonSerializer()` unless given.
        disabled_steps: steps that keep none.

    Raises:
        WorkflowStepDoesNotExistError: a disabled step is none of the workflow.
    """

    def __init__(
        self,
        workflow: Workflow,
        checkpoint_serializer: BaseSerializer | None = None,
        disabled_steps: Iterable[str] = (),
    ) -> None:
        self.workflow = workflow
        self._serializer = checkpoint_serializer or JsonSerializer()
        self._disabled: set[str] = set()
        self._runs: dict[str, RemoteRun] = {}
        for step in disabled_steps:
            self.disable_checkpoint(step)

    @property
    def enabled_checkpoints(self) -> set[str]:
        """The steps that keep checkpoints in runs that start from now on."""
        return set(self.workflow.step_names()) - self._disabled

    def enable_checkpoint(self, step: str) -> None:
        """Let a step keep checkpoints in runs that start from now on.

        Raises:
            WorkflowStepDoesNotExistError: the workflow has no such step.
        """
        self._disabled.discard(self._known(step))

    def disable_checkpoint(self, step: str) -> None:
        """Let a step keep none in runs that start from now on.

        Raises:
            WorkflowStepDoesNotExistError: the workflow has no such step.
        """
        self._disabled.add(self._known(step))

    def run(self, **kwargs: Any) -> WorkflowHandler:
        """Start a run with checkpoints; the arguments are those of `Workflow.run`."""
        ctx: Context[Any] = kwargs.pop("ctx", None) or Context(self.workflow)
        return self._follow(ctx, **kwargs)

    def run_from(self, checkpoint: Checkpoint, **kwargs: Any) -> WorkflowHandler:
        """Start a new run where a checkpoint was taken: with its state, and what was pending then.

        Raises:
            ContextSerdeError: the workflow cannot go on from its context.
        """
        ctx = Context.from_dict(self.workflow, checkpoint.ctx_state, self._serializer)
        if isinstance(checkpoint.output_event, StopEvent):
            ctx.give(checkpoint.output_event)
        return self._follow(ctx, **kwargs)

    @property
    def checkpoints(self) -> dict[str, list[Checkpoint]]:
        """Run id -> the checkpoints of each run that was started here, in the order of its commits.

        Reads Redis, and blocks the event loop until it has answered.
        """
        return {run_id: self._read(run) for run_id, run in self._runs.items()}

    def filter_checkpoints(
        self,
        run_id: str | None = None,
        last_completed_step: str | None = None,
        input_event_type: type[Event] | None = None,
        output_event_type: type[Event] | None = None,
    ) -> list[Checkpoint]:
        """Return the checkpoints that fit all that is given.

        Raises:
            ValueError: nothing is given.
        """
        if not any((run_id, last_completed_step, input_event_type, output_event_type)):
            raise ValueError("Please specify a filter.")
        runs = self._runs if run_id is None else {run_id: self._runs[run_id]}
        return [
            one
            for run in runs.values()
            for one in self._read(run)
            if last_completed_step in (None, one.last_completed_step)
            and input_event_type in (None, type(one.input_event))
            and output_event_type in (None, type(one.output_event))
        ]

    def _follow(self, ctx: Context[Any], **kwargs: Any) -> WorkflowHandler:
        ctx.headers = header(self._disabled)
        handler = self.workflow.run(ctx=ctx, **kwargs)
        self._runs[handler.run_id] = cast(RemoteRun, handler.ctx.previous_run)
        return handler

    def _read(self, run: RemoteRun) -> list[Checkpoint]:
        return [
            Checkpoint(
                id_=f"{run.run_id}/{one.delivery}",
                last_completed_step=one.step,
                input_event=one.input,
                output_event=one.output,
                ctx_state=one.state,
            )
            for one in run.checkpoints(self._serializer)
        ]

    def _known(self, step: str) -> str:
        if step not in self.workflow.step_names():
            raise WorkflowStepDoesNotExistError(
                f"workflow {type(self.workflow).__name__} has no step {step!r}; it has "
                f"{', '.join(self.workflow.step_names())}"
            )
        return step
