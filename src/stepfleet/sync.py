"""`SyncClient`: the client for programs without an event loop, such as Django and Flask services."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, Self, TypeVar

from stepfleet.connect import Client
from stepfleet.errors import WorkflowRuntimeError
from stepfleet.events import Event, StartEvent
from stepfleet.handler import RunStatus, WorkflowHandler
from stepfleet.workflow import Workflow

T = TypeVar("T")

#: Seconds for the connections to be closed.
CLOSING_S: Final = 5.0


class SyncClient:
    """Starts runs on a fleet and attaches to them, by plain calls that wait. Any thread may call it.

    One for a process is enough; its work is done in a thread that the first call starts, also in
    the children of a server that forks. A context manager; without one it closes with the program.

    Args:
        url: as for `stepfleet.Client`, like the others.

    Raises:
        SettingsError: no server is named anywhere, or a setting is wrong.
    """

    def __init__(
        self, url: str | None = None, *, namespace: str | None = None, types: Iterable[type] = ()
    ) -> None:
        self._url, self._namespace, self._types = url, namespace, tuple(types)
        self._starting = threading.Lock()
        self._background: _Background | None = None
        self._client()  # wrong settings are said here

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(
        self,
        workflow: Workflow | type[Workflow] | str,
        *,
        run_id: str | None = None,
        start_event: StartEvent | None = None,
        **fields: Any,
    ) -> SyncHandler:
        """Start a run and return its handler as soon as the run is recorded in Redis.

        Raises:
            Exception: as `Client.start`.
        """
        background = self._running()
        handler = background.call(
            background.client.start(workflow, run_id=run_id, start_event=start_event, **fields)
        )
        return SyncHandler(self, background, handler)

    def handler(
        self, run_id: str, *, workflow: Workflow | type[Workflow] | str | None = None
    ) -> SyncHandler:
        """Attach to a run by its id, from any process. `workflow` gives the classes of its events.

        Raises:
            ValueError: no run can have such an id.
        """
        background = self._running()

        async def attach() -> WorkflowHandler:
            return background.client.handler(run_id, workflow=workflow)

        return SyncHandler(self, background, background.call(attach()))

    def close(self) -> None:
        """Close the connections and end the thread. Runs go on."""
        with self._starting:
            background, self._background = self._background, None
        if background is not None:
            background.close()

    def _client(self) -> Client:
        return Client(self._url, namespace=self._namespace, types=self._types)

    def _running(self) -> _Background:
        with self._starting:
            # A fork takes the object along and leaves its thread behind.
            if self._background is None or self._background.process != os.getpid():
                self._background = _Background(self._client())
                weakref.finalize(self, self._background.close)
            return self._background


class SyncHandler:
    """One run in the hands of a caller that waits. Any thread may use it."""

    def __init__(
        self, client: SyncClient, background: _Background, handler: WorkflowHandler
    ) -> None:
        self._client = client  # which would close if nobody held it
        self._background = background
        self._handler = handler

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self._handler.run_id

    @property
    def last_sequence(self) -> int:
        """Sequence of the last public event that `stream_events` gave; pass it as `after=` to go on there."""
        return self._handler.last_sequence

    def result(self, *, timeout: float | None = None) -> Any:
        """Wait for the end and return the result.

        Args:
            timeout: seconds to wait; None: for ever.

        Raises:
            TimeoutError: the run goes on still. Exception: as awaiting a `WorkflowHandler`.
        """

        async def ended() -> Any:
            async with asyncio.timeout(timeout):
                return await self._handler

        return self._background.call(ended())

    def stream_events(self, *, after: int | None = None) -> Generator[Event]:
        """Give the run's public events, as `WorkflowHandler.stream_events` does; one reader at a time.

        Raises:
            Exception: as `WorkflowHandler.stream_events`.
        """
        events = self._handler.stream_events(after=after)
        try:
            while (event := self._background.call(_next(events))) is not None:
                yield event
        finally:
            # Not waited for: a generator that nobody holds may be closed in any thread.
            with suppress(WorkflowRuntimeError):
                self._background.send(_leave(events))

    def send_event(self, event: Event, step: str | None = None) -> None:
        """Send an event into the run; it is recorded when this returns, and sent once.

        Raises:
            Exception: as `WorkflowHandler.send_event`.
        """
        self._background.call(self._handler.send_event(event, step))

    def cancel_run(self, *, timeout: float = 5.0) -> None:
        """Cancel the run, as `WorkflowHandler.cancel_run` does.

        Raises:
            Exception: as `WorkflowHandler.cancel_run`.
        """
        self._background.call(self._handler.cancel_run(timeout=timeout))

    def status(self) -> RunStatus:
        """Return what Redis records of the run.

        Raises:
            RunNotFound: no such run.
        """
        return self._background.call(self._handler.status())

    def __repr__(self) -> str:
        return f"SyncHandler(run_id={self.run_id})"


async def _next(events: AsyncGenerator[Event]) -> Event | None:
    return await anext(events, None)


async def _leave(events: AsyncGenerator[Event]) -> None:
    await events.aclose()


class _Background:
    """A client and the thread of the event loop that it lives in."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="stepfleet-client", daemon=True
        )
        self._thread.start()

    def send(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine there, with the caller's context variables."""
        if self._loop.is_closed() or self.process != os.getpid():
            coroutine.close()
            raise WorkflowRuntimeError("the client was closed: make another SyncClient")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for it."""
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise WorkflowRuntimeError("a call from the client's own thread would wait for itself")
        future = self.send(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Close the client and end the thread; does nothing when that was done, or after a fork."""
        if self._loop.is_closed() or self.process != os.getpid():
            return
        asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        if threading.current_thread() is self._thread:
            return  # collected there: the thread ends by itself
        self._thread.join(CLOSING_S)
        if not self._thread.is_alive():
            self._loop.close()

    async def _close(self) -> None:
        try:
            await self.client.close()
        finally:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            self._loop.stop()
