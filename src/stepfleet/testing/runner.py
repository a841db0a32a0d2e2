"""`WorkflowTestRunner`: one run to its end, with everything that it published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from stepfleet.context import Context
from stepfleet.events import Event, StartEvent
from stepfleet.workflow import Workflow


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowTestResult:
    """What one run published and returned."""

    #: Its public events in their order; the last one ended the run.
    collected: list[Event]
    #: How many there are of each type.
    event_types: dict[type[Event], int]
    #: What awaiting the run gives.
    result: Any
    #: The run's context, for its store.
    ctx: Context[Any]


class WorkflowTestRunner:
    """Runs a workflow as `workflow.run()` does: on `memory://`, unless a runtime or a server is named."""

    def __init__(self, workflow: Workflow) -> None:
        self._workflow = workflow

    async def run(
        self,
        start_event: StartEvent | None = None,
        ctx: Context[Any] | None = None,
        expose_internal: bool = True,
        exclude_events: Collection[type[Event]] | None = None,
    ) -> WorkflowTestResult:
        """Run to the end and return what happened.

        Without a start event one without fields is made. Events of exactly the types in
        `exclude_events` are left out.

        Raises:
            Exception: as awaiting the handler of a run.
        """
        handler = self._workflow.run(ctx=ctx, start_event=start_event)
        left_out = frozenset(exclude_events or ())
        collected = [
            event
            async for event in handler.stream_events(expose_internal=expose_internal)
            if type(event) not in left_out
        ]
        return WorkflowTestResult(
            collected=collected,
            event_types=dict(Counter(type(event) for event in collected)),
            result=await handler,
            ctx=handler.ctx,
        )
