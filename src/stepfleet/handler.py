"""`WorkflowHandler`: a run in the hands of its caller, in this process or any other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol

from typing_extensions import deprecated

from stepfleet.context import Context, RunFace
from stepfleet.errors import WorkflowCancelledByUser, WorkflowRuntimeError
from stepfleet.events import Event, StopEvent

#: Seconds in which a generator of this task that nobody holds any more is closed.
LEAVING: Final = 0.5


class RunStatus(NamedTuple):
    """What Redis records of a run."""

    run_id: str
    workflow: str
    #: queued (it waits for its turn under `num_concurrent_runs`), running, completed, failed, cancelled
    #: or timed_out.
    status: str
    started: datetime
    ended: datetime | None
    #: Last sequence of the public stream.
    last_sequence: int
    #: Deliveries in streams, waiting for a time or an event, or held for a slot.
    pending: int
    #: Step whose failure ended the run.
    failed_step: str | None
    #: Its message.
    error: str | None
    #: The run that this one goes on from.
    continues: str | None = None
    #: The run that goes on from this one.
    continued_by: str | None = None
    #: The run whose step started it.
    parent: str | None = None


class ToldRun(NamedTuple):
    """What a run did, as far as it was kept."""

    workflow: str
    status: str
    rows: Sequence[Any]


class RunPort(RunFace, Protocol):
    """What a handler needs of the client that made it."""

    workflow: str
    #: How a user calls the workflow.
    shown_as: str

    @property
    def last_sequence(self) -> int:
        """Sequence of the last public event that was given."""
        ...

    async def result(self) -> Any:
        """Wait for the end and return the result."""
        ...

    async def stop_event(self) -> StopEvent:
        """Wait for the end and return its event, or raise its error."""
        ...

    def events(self, after: int | None, expose_internal: bool) -> AsyncGenerator[Event]:
        """Give public events."""
        ...

    async def send(self, event: Event, step: str | None) -> None:
        """Send an event into the run."""
        ...

    async def cancel(self, timeout: float) -> None:
        """Cancel the run, and wait for its end to be seen here."""
        ...

    async def told(self) -> ToldRun:
        """Return what the run did until now, over a connection of the running event loop."""
        ...

    def cancel_soon(self) -> None:
        """Cancel the run without waiting."""
        ...

    async def status(self) -> RunStatus:
        """Return what is recorded."""
        ...

    def failed_with(self) -> BaseException | None:
        """Return the error that the run ended in, if its end was seen here."""
        ...


class WorkflowHandler:
    """Awaits, streams, answers and cancels one run.

    Await it for the result. It may be awaited often, by many tasks, and from any process that
    attached by run id.
    """

    def __init__(
        self,
        run: RunPort,
        resume: Callable[[str], Awaitable[WorkflowHandler]],
        *,
        workflow: Any = None,
        ctx: Context[Any] | None = None,
    ) -> None:
        self._run = run
        self._resume = resume
        self._workflow = workflow
        #: Made when it is asked for: most handlers are only awaited.
        self._ctx = ctx
        #: Held by the one that streams; most handlers are only awaited.
        self._reading: asyncio.Lock | None = None
        self._reader: asyncio.Task[Any] | None = None
        self._consumed = False

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self._run.run_id

    @property
    def ctx(self) -> Context[Any]:
        """The run's context, seen from outside of its steps."""
        if self._ctx is None:
            self._ctx = Context(self._workflow)
            self._ctx.attach(self._run)
        return self._ctx

    @property
    def last_sequence(self) -> int:
        """Sequence of the last public event that `stream_events` gave; pass it as `after=` to go on there."""
        return self._run.last_sequence

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait for the end and return the result; waits on while Redis is away.

        Raises:
            Exception: the error of the step that failed, as its own class where that is known here.
            WorkflowTimeoutError: the deadline passed; the message says what the run waited for.
            WorkflowCancelledByUser: it was cancelled.
            RunNotFound: no such run, or its retention has passed.
            ConnectionLost: the client was closed before the end.
        """
        return self._run.result().__await__()

    async def stop_event_result(self) -> StopEvent:
        """Wait for the end and return the event that ended the run.

        Raises:
            Exception: as awaiting the handler.
        """
        return await self._run.stop_event()

    def is_done(self) -> bool:
        """Whether this process has seen the end of the run."""
        return self._run.is_done()

    def get_stop_event(self) -> StopEvent | None:
        """Return the event that ended the run, None while it goes on or when it failed."""
        return self._run.ended_with()

    async def stream_events(
        self, expose_internal: bool = False, *, after: int | None = None
    ) -> AsyncGenerator[Event]:
        """Give the run's public events in their one order, up to and with the first StopEvent.

        It begins where the last stream of this handler stopped, at the first event for a new
        handler, or behind `after` (a sequence; 0 for all).

        Raises:
            WorkflowRuntimeError: this handler has given the last event already, also to a reader that
            this one waited for. RunNotFound: no such run.
        """
        if after is not None:
            async with aclosing(self._run.events(after, expose_internal)) as events:
                async for event in events:
                    yield event
            return
        if self._consumed:
            raise WorkflowRuntimeError("All the streamed events have already been consumed.")
        async with self._one_reader():
            async with aclosing(self._run.events(None, expose_internal)) as events:
                async for event in events:
                    if isinstance(event, StopEvent):
                        self._consumed = True
                    yield event
            self._consumed = True

    @asynccontextmanager
    async def _one_reader(self) -> AsyncGenerator[None]:
        """Wait until nobody else reads.

        A reader that has left its loop by `break` goes a moment later, when its generator is
        collected; one that this task itself still has open never would.
        """
        task = asyncio.current_task()
        reading = self._reading = self._reading or asyncio.Lock()
        try:
            async with asyncio.timeout(LEAVING if self._reader is task else None):
                await reading.acquire()
        except TimeoutError:
            raise _consumed_already() from None
        self._reader = task
        try:
            if self._consumed:
                raise _consumed_already()
            yield
        finally:
            self._reader = None
            reading.release()

    async def send_event(self, event: Event, step: str | None = None) -> None:
        """Send an event into the run; it is recorded when this returns, and sent once.

        Raises:
            WorkflowRuntimeError: no such step, it does not accept the type, or the run has ended.
            ConnectionLost: Redis is away; the event may or may not be recorded.
        """
        await self._run.send(event, step)

    async def cancel_run(self, *, timeout: float = 5.0) -> None:
        """Cancel the run; nothing of it starts any more, and running steps are cancelled within two seconds.

        Its pending work is kept as long as the run: `resume`, or `workflow.run(ctx=handler.ctx)`,
        goes on from it. A run that has ended stays as it is.

        Args:
            timeout: seconds to wait until the end is seen here; the run is cancelled all the same.

        Raises:
            RunNotFound: no such run. ConnectionLost: Redis is away; it may or may not be cancelled.
        """
        await self._run.cancel(timeout)

    async def resume(self) -> WorkflowHandler:
        """Go on from the work that this run left when it was cancelled or dead-lettered, as a new run.

        There is one such run, `<id>~1`, with the store and the pending work of this one, whoever
        asks for it and however often.

        Raises:
            WorkflowRuntimeError: the run goes on still, left no work behind, or left work for a
                step that the workflow does not have any more.
            RunNotFound: no such run, or its retention has passed.
            DefinitionError: no class is known here, and no worker has announced the workflow.
            ConnectionLost: Redis is away; repeat it.
        """
        return await self._resume(self.run_id)

    async def status(self) -> RunStatus:
        """Return what Redis records of the run.

        Raises:
            RunNotFound: no such run.
        """
        return await self._run.status()

    @deprecated("WorkflowHandler.done is deprecated: use is_done()")
    def done(self) -> bool:
        """Whether this process has seen the end of the run."""
        return self.is_done()

    @deprecated("WorkflowHandler.cancel is deprecated: use `await handler.cancel_run()`")
    def cancel(self) -> None:
        """Cancel the run a little later; the handler, awaited, then raises `WorkflowCancelledByUser`."""
        self._run.cancel_soon()

    @deprecated("WorkflowHandler.exception is deprecated: await the handler, which raises it")
    def exception(self) -> BaseException | None:
        """Return what awaiting the handler raises, None while that is not known here or nothing is."""
        return self._run.failed_with()

    @deprecated("WorkflowHandler.cancelled is deprecated: see `get_stop_event` or `await status()`")
    def cancelled(self) -> bool:
        """Whether the run was cancelled, as far as this process has seen its end."""
        return isinstance(self._run.failed_with(), WorkflowCancelledByUser)

    def __str__(self) -> str:
        ended = self._run.ended_with()
        return (
            f"WorkflowHandler(workflow={self._run.shown_as}, run_id={self.run_id}, result={ended})"
        )

    __repr__ = __str__


def _consumed_already() -> WorkflowRuntimeError:
    return WorkflowRuntimeError(
        "Event stream already consumed. Events can only be streamed once per workflow run."
    )


def port_of(handler: WorkflowHandler) -> RunPort:
    """Return what a handler stands on, for the modules that show runs."""
    return handler._run  # pyright: ignore[reportPrivateUsage]
