"""A running step towards the runs that it starts: their ids, and the slot that it lends meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

from stepfleet.core.delivery import Delivery, content_digest, delivery_id
from stepfleet.workflow import Runtime, Workflow, options_of


class StepParent:
    """One execution of a step (`parents.Parent`)."""

    def __init__(
        self,
        delivery: Delivery,
        runtime: Runtime | None,
        served: Mapping[str, Workflow],
        *,
        lend: Callable[[], None],
        go_on: Callable[[], Awaitable[None]],
        saw_end: Callable[[str], None],
    ) -> None:
        self._delivery = delivery
        self._served = served
        self._lend = lend
        self._go_on = go_on
        self._saw_end = saw_end
        self._starts: Counter[str] = Counter()
        self._ended: set[str] = set()
        self._waits = 0
        self.run_id: str = delivery.run_id
        self.runtime = runtime

    def name_of(self, workflow: Workflow) -> str | None:
        """Return the name under which this worker serves a workflow: this instance, else its only one."""
        if options_of(workflow).explicit_name is not None:
            return None
        for name, instance in self._served.items():
            if instance is workflow:
                return name
        same = [name for name, one in self._served.items() if type(one) is type(workflow)]
        return same[0] if len(same) == 1 else None

    def next_child(self, workflow: str, type_id: str, payload: bytes) -> str:
        """Return the id of the next run that the step starts.

        `<root>~<delivery>.<n>`, where the delivery stands for this step starting this workflow with
        this content, as if it had sent it, and n counts equal ones. An explicit retry starts anew.
        """
        content = content_digest(type_id, payload)
        parent = f"{self.run_id}/{self._delivery.id}"
        kind = f"child:{self._delivery.record.attempt}"
        name = delivery_id(parent, workflow, kind, content)
        self._starts[name] += 1
        return f"{self.run_id.partition('~')[0]}~{name}.{self._starts[name]}"

    def waits(self) -> None:
        """Lend the slot, if this is the first of the waits that go on."""
        self._waits += 1
        if self._waits == 1:
            self._lend()

    def waits_no_more(self) -> None:
        """Note that one of the waits is over."""
        self._waits -= 1

    async def goes_on(self) -> None:
        """Return when the step may run on."""
        if self._waits == 0:
            await self._go_on()

    def saw_end(self, run_id: str) -> None:
        """Note that a run has ended: if it is a child, nobody needs to end it any more."""
        if run_id not in self._ended:
            self._ended.add(run_id)
            self._saw_end(run_id)
