"""One run seen by a client: its result, its events, its store, what is sent to it. Behind `WorkflowHandler`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from stepfleet.awaited import Ending, not_found
from stepfleet.codec import Codec
from stepfleet.context import BaseSerializer
from stepfleet.core import endings, history
from stepfleet.core.commit import (
    AmendFence,
    Answer,
    Commit,
    Expectation,
    OperationFence,
    Route,
    Word,
)
from stepfleet.core.cut import Cut
from stepfleet.core.delivery import Record, delivery_id
from stepfleet.core.plan import arrival
from stepfleet.dispatched import RunSpan
from stepfleet.errors import (
    RunFailed,
    TooLargeError,
    WorkflowCancelledByUser,
    WorkflowError,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)
from stepfleet.events import Event, StopEvent
from stepfleet.handler import RunStatus, ToldRun
from stepfleet.narration import Speaker
from stepfleet.parents import current_parent, waiting
from stepfleet.snapshots import dictionary_of
from stepfleet.storage.committer import Committer
from stepfleet.storage.cutting import checkpoint_of
from stepfleet.storage.fleet import Fleet
from stepfleet.storage.reader import Ended, HistoryEntry, RunReader, RunRecord, damage
from stepfleet.storage.state import RedisPort
from stepfleet.storage.watcher import Watcher
from stepfleet.store import StateStore
from stepfleet.streamed import Streamed
from stepfleet.tracing import Tracing
from stepfleet.wire import decode_completed, encode_record

T = TypeVar("T")

logger = logging.getLogger("stepfleet.client")

#: Seconds that an `edit_state` outside of steps may take.
EDIT_LEASE_MS: Final = 15_000


class Kept(NamedTuple):
    """A checkpoint as it was read."""

    delivery: str
    step: str
    input: Event
    output: Event | None
    state: dict[str, Any]


class Services(Protocol):
    """What a run needs of its client."""

    fleet: Fleet
    committer: Committer
    reader: RunReader
    watcher: Watcher
    #: What makes spans, if anybody takes them.
    tracing: Tracing | None
    #: Spans of runs that were started here and go on.
    carried: dict[str, RunSpan]

    def cut_now(self, run_id: str) -> Cut:
        """Return everything that is recorded of a run, without waiting in the event loop."""
        ...

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something beside the callers, until the client is closed."""
        ...


class Routing(Protocol):
    """How events that a caller sends are encoded, and where they go."""

    def encode(self, event: Event, step: str | None) -> tuple[str, bytes]:
        """Return an event's type id and bytes.

        Raises:
            WorkflowRuntimeError: as far as is known here, there is no such step, or it does not
                accept this type.
            EncodeError: the event cannot travel.
        """
        ...

    async def routes(self, event: Event, type_id: str, step: str | None) -> Sequence[Route]:
        """Return the streams that the event goes to.

        Raises:
            WorkflowRuntimeError: there is no such step, or it does not accept this type.
        """
        ...


class RemoteRun:
    """The port of a handler (`handler.RunPort`)."""

    def __init__(
        self,
        services: Services,
        run_id: str,
        *,
        workflow: str,
        end: Ending,
        codec: Codec,
        routing: Routing,
        state_type: Any,
        steps: Iterable[str] = (),
        started: Coroutine[Any, Any, None] | None = None,
        kept: int | None = None,
        shown_as: str = "",
    ) -> None:
        self._services = services
        self._codec = codec
        self._routing = routing
        self.run_id = run_id
        self.workflow = workflow
        self._steps = steps
        self._state_type = state_type
        self.shown_as = shown_as or workflow
        self._end = end
        self._streamed: Streamed | None = None
        #: What the run's history keeps; None: not known yet.
        self._history = kept
        self._speaker: asyncio.Task[None] | None = None
        self._start: asyncio.Task[None] | None = None
        #: The last event that was sent without waiting: the next one goes behind it.
        self._sending: asyncio.Task[None] | None = None
        if started is not None:
            self._start = services.spawn(started)
            self._start.add_done_callback(_seen)
        self._store: StateStore[Any] | None = None

    @property
    def last_sequence(self) -> int:
        """Sequence of the last public event that was given here."""
        return 0 if self._streamed is None else self._streamed.last_sequence

    @property
    def store(self) -> StateStore[Any]:
        """The run's store."""
        if self._store is None:
            self._store = StateStore(self._port(), self._state_type)
        return self._store

    # -- the end -----------------------------------------------------------------------------------

    def is_done(self) -> bool:
        """Whether the end was seen here."""
        return self._end.ended is not None or (self._start is not None and _failed(self._start))

    def ended_with(self) -> StopEvent | None:
        """Return the event that ended the run, if it was seen here and is no failure."""
        ended = self._end.ended
        if ended is None or ended.status in ("failed", "timed_out"):
            return None
        return self._stop_event(ended)

    @property
    def was_cancelled(self) -> bool:
        """Whether its end was seen here, and was a cancellation: its pending work is kept."""
        return self._end.ended is not None and self._end.ended.status == "cancelled"

    @property
    def is_recorded(self) -> bool:
        """Whether its start was seen here."""
        return self._start is None or (self._start.done() and not _failed(self._start))

    def to_dict(self, serializer: BaseSerializer, *, include_state: bool) -> dict[str, Any]:
        """Return a consistent cut through the run as the dictionary of a context.

        Raises:
            ValueError: a value of the state cannot be written. RunNotFound: its retention passed.
            ConnectionLost: Redis is away.
        """
        cut = self._services.cut_now(self.run_id)
        if not cut.record:
            raise not_found(self.run_id)
        return dictionary_of(
            cut,
            self._steps,
            codec=self._codec,
            serializer=serializer,
            state_type=self._state_type,
            include_state=include_state,
        )

    def checkpoints(self, serializer: BaseSerializer) -> list[Kept]:
        """Return the checkpoints of the run, the oldest first; none when it keeps none.

        Raises:
            ConnectionLost: Redis is away.
        """
        found: list[Kept] = []
        for data in self._services.cut_now(self.run_id).kept.get("checkpoints", ()):
            if not isinstance(data, bytes):
                continue
            raw, cut = checkpoint_of(self.run_id, data)
            about = decode_completed(raw)
            state = dictionary_of(
                cut,
                self._steps,
                codec=self._codec,
                serializer=serializer,
                state_type=self._state_type,
                include_state=True,
            )
            output = None
            if about.output_type:
                output = self._codec.decode_event(about.output_type, about.output)
            input_ = self._codec.decode_event(about.input_type, about.input)
            found.append(Kept(about.delivery, about.step, input_, output, state))
        return found

    def failed_with(self) -> BaseException | None:
        """Return the error that the run ended in, if its end was seen here."""
        ended = self._end.ended
        if ended is None:
            start = self._start
            return start.exception() if start is not None and _failed(start) else None
        match ended.status:
            case "completed":
                return None
            case "cancelled":
                return WorkflowCancelledByUser()
            case "timed_out":
                return self._time_out(ended, "")
            case _:
                return self._failure(ended.error)

    async def started(self) -> None:
        """Wait until the run is recorded."""
        if self._start is not None:
            await asyncio.shield(self._start)

    async def ended(self) -> Ended:
        """Wait for the end and return how the run ended."""
        if self._start is not None:
            await self.started()
        parent = current_parent()
        if parent is None:
            return self._end.ended or await self._end.seen()
        ended = self._end.ended
        if ended is None:
            async with waiting(parent):
                ended = await self._end.seen()
        parent.saw_end(self.run_id)
        return ended

    async def stop_event(self) -> StopEvent:
        """Wait for the end and return its event, or raise its error."""
        ended = await self.ended()
        if self._speaker is not None:
            await asyncio.wait([self._speaker])
        match ended.status:
            case "completed":
                return self._stop_event(ended)
            case "cancelled":
                raise WorkflowCancelledByUser
            case "timed_out":
                raise await self._timed_out(ended)
            case _:
                raise self._failure(ended.error)

    async def result(self) -> Any:
        """Wait for the end and return `StopEvent.result`, or the event itself when it is of a subclass."""
        event = await self.stop_event()
        return event.result if type(event) is StopEvent else event

    def _stop_event(self, ended: Ended) -> StopEvent:
        entry = ended.entry
        if entry is None:
            raise RunFailed(f"run {self.run_id} has ended without a terminal event")
        event = self._codec.decode_event(entry.type_id, entry.payload)
        if not isinstance(event, StopEvent):
            raise RunFailed(
                f"run {self.run_id} ended with a {entry.type_id}, which is not known here: "
                f"pass workflow=, or types=[{entry.type_id}] to the Client"
            )
        return event

    def _failure(self, error: bytes | None) -> BaseException:
        if error is None:
            return RunFailed(f"run {self.run_id} failed")
        return self._codec.decode_error(error)

    async def _timed_out(self, ended: Ended) -> WorkflowTimeoutError:
        waiting = await self._services.reader.link.call(
            "HGET", self._services.fleet.keys.run(self.run_id), "reason"
        )
        return self._time_out(ended, waiting.decode() if waiting else "")

    def _time_out(self, ended: Ended, waiting: str) -> WorkflowTimeoutError:
        event = self._stop_event(ended)
        timeout, steps = getattr(event, "timeout", 0.0), getattr(event, "active_steps", [])
        active = f"Currently active steps: {', '.join(steps)}" if steps else "No steps active"
        more = f". {waiting}" if waiting else ""
        return WorkflowTimeoutError(
            f"Operation timed out after {timeout:g} seconds. {active}{more}"
        )

    # -- events ------------------------------------------------------------------------------------

    async def events(self, after: int | None, expose_internal: bool) -> AsyncGenerator[Event]:
        """Give public events behind `after`, up to the first StopEvent."""
        parent = current_parent()
        async with waiting(parent):
            end = await self._followed_end()
        try:
            if expose_internal and not await self._kept():
                logger.warning(
                    "this run keeps no history, so it has no internal events: run_id=%s; start "
                    "it with Client(history=True) or STEPFLEET_HISTORY=on",
                    self.run_id,
                )
            streamed = self._streaming()
            given = streamed.events(end, after, expose_internal=expose_internal)
            async with aclosing(given) as events:
                while True:
                    async with waiting(parent):
                        event = await anext(events, None)
                    if event is None:
                        break
                    yield event
        finally:
            end.cancel()

    async def _followed_end(self) -> asyncio.Task[Ended]:
        """Return the run's end, for who follows what happens until then."""
        await self.started()
        await self._services.watcher.ready()
        end = self._services.spawn(self.ended())
        end.add_done_callback(_seen)
        return end

    def _streaming(self) -> Streamed:
        if self._streamed is None:
            services = self._services
            self._streamed = Streamed(services.reader, services.watcher, self.run_id, self._codec)
        return self._streamed

    # -- verbose -----------------------------------------------------------------------------------

    def speak(self) -> None:
        """Say what the run does, from its beginning; whoever awaits the result waits for the last line."""
        if self._speaker is None:
            self._speaker = self._services.spawn(self._spoken(Speaker(self._codec)))
            self._speaker.add_done_callback(_seen)

    async def _spoken(self, speaker: Speaker) -> None:
        end = await self._followed_end()
        async with aclosing(self._streaming().everything(end)) as items:
            async for item in items:
                speaker.say(item)
        speaker.end(end.result().entry)

    # -- what is asked of it -----------------------------------------------------------------------

    async def send(self, event: Event, step: str | None) -> None:
        """Send an event into the run, once however often it is tried."""
        type_id, payload = self._routing.encode(event, step)
        await self._after(self._sending)
        await self._send(event, type_id, payload, step, self._services.fleet.token())

    def send_soon(self, event: Event, step: str | None) -> None:
        """Send an event behind those sent before, without waiting."""
        type_id, payload = self._routing.encode(event, step)
        operation, before = self._services.fleet.token(), self._sending

        async def in_turn() -> None:
            try:
                await self._after(before)
                await self._send(event, type_id, payload, step, operation)
            except WorkflowError as error:
                # Nobody waits for it. An event for a run that has ended is dropped, as in the model.
                logger.warning(
                    "an event was not sent: run_id=%s type=%s error=%s", self.run_id, type_id, error
                )

        self._sending = self._services.spawn(in_turn())

    async def _after(self, before: asyncio.Task[None] | None) -> None:
        await self.started()
        if before is not None:
            await asyncio.wait([before])

    async def _send(
        self, event: Event, type_id: str, payload: bytes, step: str | None, operation: str
    ) -> None:
        routes = await self._routing.routes(event, type_id, step)
        parent = f"{self.run_id}/{operation}"
        kept = await self._kept()
        lineage = {history.HISTORY: kept} if kept else None
        tracing = self._services.tracing
        headers = None if tracing is None else tracing.headers()
        span = self._services.carried.get(self.run_id)
        if span is not None:
            headers = span.headers(headers)
        sent = Record(parent, type_id, payload, lineage=lineage, headers=headers, target=step)
        record = encode_record(sent)
        words: list[Word] = [
            arrival(
                route,
                delivery_id(parent, route.step, "external", 0),
                record,
                also=position > 0,
            )
            for position, route in enumerate(routes)
        ]
        commit = history.emitted(Commit(self.run_id, OperationFence(operation), words), sent, None)
        answer = await self._services.committer.commit(commit)
        if answer.word == "over":
            raise WorkflowRuntimeError(f"run {self.run_id} has ended: it takes no more events")
        if answer.word == "full":
            raise TooLargeError(
                f"run {self.run_id} takes no more events: it has had as many deliveries as "
                "deliveries_limit allows. Go on in another run, or raise the setting"
            )
        self._settled(answer)

    async def running_steps(self) -> list[str]:
        """Return the steps whose executions are in streams, by name."""
        await self.started()
        reader = self._services.reader
        if (await self._record(reader)).status != "running":
            return []
        return endings.what_it_waits_for(await reader.pending(self.run_id), {}, {})[0]

    def all_events(self) -> AsyncGenerator[Event]:
        """Give public and internal events."""
        return self.events(None, expose_internal=True)

    async def _kept(self) -> int:
        if self._history is None:
            self._history = await self._services.reader.kept(self.run_id)
        return self._history

    async def cancel(self, timeout: float) -> None:
        """Cancel the run, if it goes on, and look at its end."""
        await self.started()
        workflow = self.workflow or (await self._record(self._services.reader)).workflow
        commit = endings.cancelled(self.run_id, workflow, self._codec)
        answer = await self._services.committer.commit(commit)
        if answer.word != "over":
            self._settled(answer)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self.ended()

    async def told(self) -> ToldRun:
        """Return what the run did until now, over a connection of the running event loop."""
        fleet = self._services.fleet
        link = fleet.link("client-history")
        try:
            reader = RunReader(link, fleet.keys)
            record = await self._record(reader)
            rows: list[HistoryEntry] = []
            while more := await reader.history(self.run_id, rows[-1].entry if rows else "0-0"):
                rows += more
            return ToldRun(record.workflow, record.status, [entry.row for entry in rows])
        finally:
            await link.close()

    def cancel_soon(self) -> None:
        """Cancel the run without waiting."""
        self._services.spawn(self.cancel(timeout=0)).add_done_callback(_seen)

    async def status(self) -> RunStatus:
        """Return what is recorded of the run."""
        await self.started()
        reader = self._services.reader
        record = await self._record(reader)
        live = record.status == "running"
        pending = len(await reader.pending(self.run_id)) if live else 0
        held = sum((await reader.held(self.run_id)).values()) if live else 0
        return RunStatus(
            run_id=self.run_id,
            workflow=record.workflow,
            status=record.stands,
            started=_moment(record.started_ms),
            ended=_moment(record.ended_ms) if record.ended_ms else None,
            last_sequence=record.seq or (1 if record.ended_ms else 0),
            pending=pending + held,
            failed_step=record.step,
            error=str(self._failure(record.error)) if record.status == "failed" else None,
            continues=record.continues,
            continued_by=record.continued,
            parent=record.parent,
        )

    async def _record(self, reader: RunReader) -> RunRecord:
        (record,) = await reader.runs([self.run_id])
        if record is None:
            raise not_found(self.run_id)
        return record

    def _settled(self, answer: Answer) -> None:
        if answer.word == "unknown-run":
            raise not_found(self.run_id)
        if answer.word == "broken":
            raise WorkflowRuntimeError(
                f"a key of run {self.run_id} is damaged: {damage(self.run_id)}"
            )
        if answer.word != "applied":
            raise WorkflowRuntimeError(
                f"run {self.run_id} answers {answer.word} {answer.detail}".rstrip()
            )

    def _port(self) -> RedisPort:
        services = self._services

        async def apply(words: Sequence[Word], expects: Sequence[Expectation]) -> Answer:
            await self.started()
            operation = services.fleet.token()
            commit = Commit(self.run_id, OperationFence(operation), words, expects)
            answer = await services.committer.commit(commit)
            if answer.word != "over":
                return answer
            # The state of a run that has ended may be changed: the next run of the context has it.
            amend = commit._replace(fence=AmendFence(operation))
            return await services.committer.commit(amend)

        return RedisPort(
            services.reader.together,
            services.fleet.keys,
            self.run_id,
            self._codec,
            apply,
            token=lambda: f"client:{services.fleet.token()}",
            lock_ms=EDIT_LEASE_MS,
            turn=asyncio.Lock(),
            on_lock=lambda _: None,
            random=services.fleet.random,
        )


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _seen(task: asyncio.Future[Any]) -> None:
    """An error that nobody awaits is no noise: whoever awaits the handler gets it."""
    if not task.cancelled():
        task.exception()
