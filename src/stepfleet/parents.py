"""A step as the runs that it starts see it: whose children they are, and who waits for them.

A worker calls `enter_parent` around a step. What starts or awaits a run looks there: inside a step
of the same worker the run is a child, and awaiting any run lends the step's slot to others.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Protocol
from weakref import ReferenceType, ref

from stepfleet.workflow import Runtime, Workflow, current_runtime


class Parent(Protocol):
    """A running step."""

    @property
    def run_id(self) -> str:
        """Id of its run."""
        ...

    @property
    def runtime(self) -> Runtime | None:
        """The runtime of its worker."""
        ...

    def name_of(self, workflow: Workflow) -> str | None:
        """Return the name under which its worker serves a workflow, None if it does not."""
        ...

    def next_child(self, workflow: str, type_id: str, payload: bytes) -> str:
        """Return the id of the next run that it starts: the same whenever the attempt runs again."""
        ...

    def waits(self) -> None:
        """Note that it waits for a run: until it ends, others may have its slot."""
        ...

    def waits_no_more(self) -> None:
        """Note that a wait is over."""
        ...

    async def goes_on(self) -> None:
        """Return when it may run on after a wait."""
        ...

    def saw_end(self, run_id: str) -> None:
        """Note that a run has ended."""
        ...


#: Weak: a timer or a task that a step leaves behind copies this, and would keep the workflow alive.
_parent: ContextVar[ReferenceType[Parent] | None] = ContextVar("stepfleet.parent", default=None)


def enter_parent(parent: Parent) -> None:
    """Make this the step that runs in the current task, for as long as the caller keeps it."""
    _parent.set(ref(parent))


def current_parent() -> Parent | None:
    """Return the step that runs here."""
    parent = _parent.get()
    return None if parent is None else parent()


def parent_for(runtime: Runtime) -> Parent | None:
    """Return the step that runs here, if this is the runtime of its worker."""
    parent = current_parent()
    return parent if parent is not None and parent.runtime is runtime else None


@asynccontextmanager
async def waiting(parent: Parent | None) -> AsyncGenerator[None]:
    """Lend the slot of the step that waits inside, however the wait ends; None: nobody's."""
    if parent is None:
        yield
        return
    parent.waits()
    try:
        yield
    finally:
        parent.waits_no_more()
        await parent.goes_on()


def outside_of_steps() -> Context:
    """Return a copy of the context for what outlives the step that begins it."""
    context = copy_context()
    context.run(_parent.set, None)
    context.run(current_runtime.set, None)
    return context
