"""`Context`: what a step, a caller or a coming run may do. It records and delegates; it does no I/O itself.

A context has one of three faces: before a run (values for its store), inside a step, and outside,
in the hands of whoever started or attached to the run. A method used on the wrong face says so.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextvars import ContextVar
from math import inf
from typing import Any, Final, Generic, Protocol, TypeVar, cast
from weakref import ReferenceType, ref

from typing_extensions import deprecated

from stepfleet.context.old_forms import OldForms
from stepfleet.context.serializers import BaseSerializer, JsonSerializer
from stepfleet.context.snapshot import Snapshot, compose, read, state_of
from stepfleet.context.state_store import InMemoryStateStore
from stepfleet.deprecation import warn_always_running
from stepfleet.errors import ContextStateError, WorkflowRuntimeError
from stepfleet.events import Event, StopEvent
from stepfleet.retry_policy import RetryInfo
from stepfleet.retry_policy.waits import LONGEST, is_time
from stepfleet.store import LocalPort, StateStore, StateT

EventT = TypeVar("EventT", bound=Event)

#: Seconds that `wait_for_event` waits unless told otherwise.
WAIT_TIMEOUT: Final = 2000.0


class StepFace(Protocol):
    """What the context of a running step does; made by the worker."""

    run_id: str

    @property
    def store(self) -> StateStore[Any]:
        """The run's store."""
        ...

    @property
    def idempotency_key(self) -> str:
        """Return a key that is stable over all executions and attempts of the delivery."""
        ...

    def retry_info(self) -> RetryInfo:
        """Return what is known of the attempts before this one."""
        ...

    def send(self, event: Event, step: str | None) -> None:
        """Queue an event for the steps that accept it, or for one of them."""
        ...

    def publish(self, event: Event) -> None:
        """Queue an event for the public stream."""
        ...

    def collect(
        self, event: Event, expected: Sequence[type[Event]], buffer_id: str | None
    ) -> list[Event] | None:
        """Record a contribution; return all when it was the missing one."""
        ...

    async def wait(
        self,
        event_type: type[Event],
        *,
        request: Event | None,
        waiter_id: str | None,
        requirements: dict[str, Any],
        timeout: float | None,
    ) -> Event:
        """Answer from what is known, or suspend the step."""
        ...


class RunFace(Protocol):
    """What the context of a started run does outside of its steps; made by the client."""

    run_id: str

    @property
    def store(self) -> StateStore[Any]:
        """The run's store."""
        ...

    def send_soon(self, event: Event, step: str | None) -> None:
        """Send an event without waiting."""
        ...

    def is_done(self) -> bool:
        """Whether the end of the run was seen here."""
        ...

    @property
    def is_recorded(self) -> bool:
        """Whether the start of the run was seen here."""
        ...

    def to_dict(self, serializer: BaseSerializer, *, include_state: bool) -> dict[str, Any]:
        """Return a consistent cut through the run as a dictionary."""
        ...

    @property
    def was_cancelled(self) -> bool:
        """Whether that end was a cancellation: its pending work is kept."""
        ...

    async def running_steps(self) -> list[str]:
        """Return the steps whose executions are in streams, by name."""
        ...

    def all_events(self) -> AsyncGenerator[Event]:
        """Give public and internal events."""
        ...

    def ended_with(self) -> StopEvent | None:
        """Return the event that ended the run, if it was seen here."""
        ...


#: Weak: a timer that a step sets copies this, and would keep the workflow alive.
_step_context: ContextVar[ReferenceType[Context[Any]] | None] = ContextVar(
    "stepfleet.step_context", default=None
)


class Context(OldForms, Generic[StateT]):
    """State, events and waits of one run.

    A step gets it by annotating a parameter with `Context` or `Context[State]`.
    `Context(workflow)` made by a caller carries state into `workflow.run(ctx=...)`, and from one
    run into the next.
    """

    def __init__(
        self,
        workflow: Any = None,
        previous_context: dict[str, Any] | None = None,
        serializer: BaseSerializer | None = None,
    ) -> None:
        self._workflow = workflow
        self._snapshot: Snapshot | None = None
        #: Headers of the first deliveries of the next run.
        self.headers: dict[str, str] | None = None
        self._step: StepFace | None = None
        self._run: RunFace | None = None
        self._local_port: LocalPort | None = None
        self._local_store: StateStore[Any] | None = None
        if previous_context is not None:
            serializer = serializer or _serializer_of(workflow)
            steps, types = workflow.step_names(), workflow.travelling_types()
            self._snapshot = read(previous_context, serializer, steps, types)
            self._local.values.update(self._snapshot.values)

    @classmethod
    def from_dict(
        cls, workflow: Any, data: dict[str, Any], serializer: BaseSerializer | None = None
    ) -> Context[Any]:
        """Return a context from what `to_dict` returned, here or in another process.

        `workflow.run(ctx=...)` then goes on from it: with the state, and, when the run was going on
        or was cancelled, with its pending work. What llama-index-workflows wrote is read as well,
        as far as it can be mapped.

        Raises:
            ContextSerdeError: the dictionary is none of a context, was written by a newer version,
                or has work that this workflow cannot go on from.
        """
        return cls(workflow, data, serializer)

    @classmethod
    def of_step(cls, face: StepFace) -> Context[Any]:
        """Return the context of a running step."""
        context: Context[Any] = cls()
        context._step = face
        return context

    @property
    def _local(self) -> LocalPort:
        # Most contexts are those of steps, which never need it (1.2 us).
        if self._local_port is None:
            self._local_port = LocalPort()
        return self._local_port

    @staticmethod
    def get_step_context() -> Context[Any]:
        """Return the context of the step that is running, without a parameter.

        Raises:
            WorkflowRuntimeError: no step is running here.
        """
        entered = _step_context.get()
        context = None if entered is None else entered()
        if context is None:
            raise WorkflowRuntimeError(
                "Context.get_step_context() may only be called from within a step function"
            )
        return context

    def enter_step(self) -> None:
        """Make this the context that `get_step_context` finds in the current task."""
        _step_context.set(ref(self))

    def refuse_if_running(self) -> None:
        """Make sure that this context can take a new run.

        Raises:
            ContextStateError: it has a run that goes on.
        """
        if self._run is not None and not self._run.is_done():
            raise ContextStateError(
                "Cannot start a new run while context is already running. "
                "Wait for completion or use a new Context."
            )

    def attach(self, face: RunFace) -> None:
        """Give a started run to a context made by its caller."""
        self._run = face

    @property
    def previous_run(self) -> RunFace | None:
        """The run that this context was used for last."""
        return self._run

    @property
    def goes_on(self) -> bool:
        """Whether the next run goes on from pending work, so that it needs no start event."""
        if self._run is not None:
            return self._run.was_cancelled
        return self._snapshot is not None and self._snapshot.is_running

    def give(self, event: StopEvent) -> None:
        """Let the next run, which goes on from a dictionary, end at once with this event."""
        if self._snapshot is not None:
            self._snapshot = self._snapshot._replace(given=event)

    @property
    def snapshot(self) -> Snapshot | None:
        """What the next run goes on from, when this context was read from a dictionary."""
        return self._snapshot if self._run is None else None

    @property
    def initial_values(self) -> dict[str, Any]:
        """Store values set before any run."""
        return self._local.values

    # -- everywhere --------------------------------------------------------------------------------

    @property
    def store(self) -> StateStore[StateT]:
        """The state that all steps of the run share, on whatever host they run."""
        if self._step is not None:
            return cast("StateStore[StateT]", self._step.store)
        if self._run is not None:
            return cast("StateStore[StateT]", self._run.store)
        if self._local_store is None:
            state_type = getattr(self._workflow, "state_type", None)
            self._local_store = InMemoryStateStore[Any].over(self._local, state_type)
        return cast("StateStore[StateT]", self._local_store)

    @property
    def run_id(self) -> str:
        """Id of the run.

        Raises:
            ContextStateError: there is no run yet.
        """
        face = self._step or self._run
        if face is None:
            raise _not_running("run_id")
        return face.run_id

    @property
    def is_running(self) -> bool:
        """Whether the run goes on; inside of a step it does, so asking there is deprecated."""
        if self._step is not None:
            warn_always_running()
            return True
        if self._run is None:
            return self._snapshot is not None and self._snapshot.is_running
        return not self._run.is_done()

    def to_dict(
        self, serializer: BaseSerializer | None = None, *, include_state: bool = True
    ) -> dict[str, Any]:
        """Return the context as a dictionary that JSON can write: state, and what is pending of the run.

        It is a consistent cut through the run, whatever its workers do meanwhile, and the run goes
        on. It is read by one short call that blocks the event loop until Redis has answered.
        `is_running` is true while the run goes on, and after it was cancelled.

        Raises:
            ContextStateError: inside of a step.
            ValueError: a value of the state cannot be written; it names the key.
            RunNotFound: the retention of the run has passed.
            ConnectionLost: Redis is away.
        """
        if self._step is not None:
            raise ContextStateError(
                "to_dict is only available from handler code, not from within steps."
            )
        serializer = serializer or _serializer_of(self._workflow)
        if self._run is not None and self._run.is_recorded:
            return self._run.to_dict(serializer, include_state=include_state)
        state = {}
        if include_state:
            state_type = getattr(self._workflow, "state_type", None)
            state = state_of(self._local.values, state_type, serializer)
        steps = () if self._workflow is None else self._workflow.step_names()
        return compose(state, steps)

    async def running_steps(self) -> list[str]:
        """Return the names of the steps that run now, or that the next free worker takes.

        Raises:
            ContextStateError: not outside of steps, in the hands of whoever started the run.
            RunNotFound: no such run.
        """
        return await self._outside("running_steps").running_steps()

    @deprecated("Context.stream_events is deprecated: use handler.stream_events")
    def stream_events(self) -> AsyncGenerator[Event]:
        """Give public and internal events.

        Raises:
            ContextStateError: not outside of steps, in the hands of whoever started the run.
        """
        return self._outside("stream_events").all_events()

    @deprecated("Context.get_result is deprecated: await the handler")
    def get_result(self) -> Any:
        """Return the result of the run, which has ended.

        Raises:
            ContextStateError: not outside of steps, in the hands of whoever started the run.
            WorkflowRuntimeError: its end was not seen here, or it failed.
        """
        run = self._outside("get_result")
        event = run.ended_with()
        if event is None:
            raise WorkflowRuntimeError(
                f"Workflow run with run_id {run.run_id} is not complete, or has failed: "
                "await its handler."
            )
        return event.result if type(event) is StopEvent else event

    def send_event(self, message: Event, step: str | None = None) -> None:
        """Send an event to every step that accepts it, or to one step.

        In a step it takes effect promptly, while the step still runs, and stays sent when the
        attempt fails: equal events of one attempt, in the same order, are delivered once however
        often the attempt runs again.

        Raises:
            WorkflowRuntimeError: there is no such step, or it does not accept this type.
            EncodeError: the event cannot travel.
            ContextStateError: the run was not started.
        """
        if self._step is not None:
            self._step.send(message, step)
        elif self._run is not None:
            self._run.send_soon(message, step)
        else:
            raise ContextStateError(
                "send_event() called before workflow started. Call workflow.run() first."
            )

    # -- in a step ---------------------------------------------------------------------------------

    @property
    def idempotency_key(self) -> str:
        """A key for effects outside of Redis: the same in every execution of this attempt's delivery."""
        return self._in_step("idempotency_key").idempotency_key

    def retry_info(self) -> RetryInfo:
        """Tell which attempt this is, and what the last one raised; each delivery counts for itself.

        Raises:
            ContextStateError: not in a step.
        """
        return self._in_step("retry_info").retry_info()

    def write_event_to_stream(self, ev: Event | None) -> None:
        """Publish an event to the readers of the run, at once.

        Raises:
            EncodeError: the event cannot travel.
            ContextStateError: not in a step.
        """
        face = self._in_step("write_event_to_stream")
        if ev is not None:
            face.publish(ev)

    def collect_events(
        self, ev: Event, expected: Sequence[type[EventT]], buffer_id: str | None = None
    ) -> list[EventT] | None:
        """Keep the event; return all expected ones, in their order, when this is the one that was missing.

        Events are kept by the commit of this execution, so a failed attempt leaves none behind. An
        event beyond what is expected of its type is dropped.

        Raises:
            ContextStateError: not in a step.
        """
        return cast(
            "list[EventT] | None", self._in_step("collect_events").collect(ev, expected, buffer_id)
        )

    async def wait_for_event(
        self,
        event_type: type[EventT],
        waiter_event: Event | None = None,
        waiter_id: str | None = None,
        requirements: dict[str, Any] | None = None,
        timeout: float | None = WAIT_TIMEOUT,
    ) -> EventT:
        """Wait for an event without holding a worker: the step runs again from its top when it comes.

        `waiter_event` is published when the wait begins; `requirements` are field values that the
        event must have.

        Raises:
            TimeoutError: nothing came within `timeout` seconds.
            ContextStateError: not in a step.
            ValueError: `timeout` is no time.
        """
        if timeout is not None and timeout != inf and not is_time(timeout):
            raise ValueError(
                f"wait_for_event: timeout must be a number of seconds less than {LONGEST:g}, or "
                f"None, not {str(timeout)[:40]!r}"
            )
        event = await self._in_step("wait_for_event").wait(
            event_type,
            request=waiter_event,
            waiter_id=waiter_id,
            requirements=requirements or {},
            timeout=timeout,
        )
        return cast(EventT, event)

    def _outside(self, what: str) -> RunFace:
        if self._run is not None:
            return self._run
        if self._step is None:
            raise _not_running(what)
        raise ContextStateError(
            f"{what} is only available from handler code, not from within steps."
        )

    def _in_step(self, what: str) -> StepFace:
        if self._step is not None:
            return self._step
        if self._run is None:
            raise _not_running(what)
        raise ContextStateError(f"{what} is only available from within step functions.")


def _serializer_of(workflow: Any) -> BaseSerializer:
    chosen = getattr(workflow, "serializer", None)
    return chosen if isinstance(chosen, BaseSerializer) else JsonSerializer()


def _not_running(what: str) -> ContextStateError:
    return ContextStateError(f"{what} requires a running workflow. Call workflow.run() first.")
