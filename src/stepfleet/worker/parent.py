"""A running step towards the runs that it starts: their ids, and the slot that it lends meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from stepfleet.core.delivery import content_digest, delivery_id
from stepfleet.worker.execution import Execution
from stepfleet.worker.held import Held
from stepfleet.workflow import Runtime, Workflow, options_of


class Lender(Protocol):
    """What holds the delivery of a step that starts runs: the processor."""

    def instances(self) -> Mapping[str, Workflow]:
        """Return the workflows of this process by name."""
        ...

    def lend(self, held: Held) -> None:
        """Give the slot and the place of a step that waits for a run to others."""
        ...

    async def go_on(self, held: Held) -> None:
        """Return when a step that has waited may run on."""
        ...


class StepParent:
    """One execution of a step (`parents.Parent`). Made for every step, so it makes nothing itself."""

    def __init__(
        self,
        lender: Lender,
        held: Held,
        execution: Execution,
        runtime: Runtime | None,
    ) -> None:
        self._lender = lender
        self._held = held
        self._execution = execution
        self._starts: dict[str, int] | None = None
        self._waits = 0
        self.run_id: str = execution.run_id
        self.runtime = runtime

    def name_of(self, workflow: Workflow) -> str | None:
        """Return the name under which this worker serves a workflow: this instance, else its only one."""
        if options_of(workflow).explicit_name is not None:
            return None
        served = self._lender.instances()
        for name, instance in served.items():
            if instance is workflow:
                return name
        same = [name for name, one in served.items() if type(one) is type(workflow)]
        return same[0] if len(same) == 1 else None

    def next_child(self, workflow: str, type_id: str, payload: bytes) -> str:
        """Return the id of the next run that the step starts.

        `<root>~<delivery>.<n>`, where the delivery stands for this step starting this workflow with
        this content, as if it had sent it, and n counts equal ones. An explicit retry starts anew.
        """
        content = content_digest(type_id, payload)
        delivery = self._execution.delivery
        parent = f"{self.run_id}/{delivery.id}"
        name = delivery_id(parent, workflow, f"child:{delivery.record.attempt}", content)
        if self._starts is None:
            self._starts = {}
        number = self._starts[name] = self._starts.get(name, 0) + 1
        return f"{self.run_id.partition('~')[0]}~{name}.{number}"

    def waits(self) -> None:
        """Lend the slot, if this is the first of the waits that go on."""
        self._waits += 1
        if self._waits == 1:
            self._lender.lend(self._held)

    def waits_no_more(self) -> None:
        """Note that one of the waits is over."""
        self._waits -= 1

    async def goes_on(self) -> None:
        """Return when the step may run on."""
        if self._waits == 0:
            await self._lender.go_on(self._held)

    def saw_end(self, run_id: str) -> None:
        """Note that a run has ended: if it is a child, nobody needs to end it any more."""
        self._execution.ended_runs[run_id] = None
