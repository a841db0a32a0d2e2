"""`Client`: starts runs, attaches to them, and is a `Runtime`. One client serves thousands of handlers."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from random import Random
from typing import Any, Final, NamedTuple, Self

from stepfleet.connected import Before, Connected, Once, check_recorded
from stepfleet.context import Context
from stepfleet.core.commit import Answer
from stepfleet.core.continuation import next_id
from stepfleet.errors import RunConflictError, RunNotFound
from stepfleet.events import StartEvent
from stepfleet.handler import WorkflowHandler
from stepfleet.parents import Parent, parent_for
from stepfleet.planning import cluster_name
from stepfleet.remote_run import RemoteRun
from stepfleet.storage.committer import MUCH
from stepfleet.storage.fleet import Fleet
from stepfleet.workflow import Workflow

#: Seconds that a caller waits for a Redis that does not answer.
PATIENCE: Final = 5.0

_RUN_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
#: What the fleet itself makes of one: ids of child runs and of continuations have parts behind `~`.
_ANY_RUN_ID: Final = re.compile(r"[A-Za-z0-9_.~-]{1,512}")


class Start(NamedTuple):
    """One run for `Client.start_many`."""

    start_event: StartEvent | None = None
    run_id: str | None = None
    #: Fields of the start event, where no event is given.
    fields: Mapping[str, Any] = {}


def new_run_id(random: Random) -> str:
    """Return a random run id."""
    # 96 random bits, 20 times as fast as sixteen choices of a letter.
    return base64.b64encode(random.randbytes(12), b"aZ").decode()


def check_run_id(run_id: str) -> str:
    """Return a run id that a caller chose.

    Raises:
        ValueError: it has other characters than `A-Z a-z 0-9 _ . -`, or more than 128 of them.
    """
    if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(
            f"run_id {str(run_id)[:140]!r} is not 1 to 128 characters of A-Z a-z 0-9 _ . -"
        )
    return run_id


class Client:
    """Starts runs on a fleet and attaches to them, from any process.

    An async context manager. It is a `Runtime` too: `Flow(runtime=client).run(...)` submits to the
    fleet.

    Args of its maker `stepfleet.Client(url, namespace=..., types=[...])` are in
    `stepfleet.connect`.
    """

    def __init__(
        self, fleet: Fleet, *, types: Iterable[type] = (), patience: float | None = PATIENCE
    ) -> None:
        self._fleet = fleet
        self._types = tuple(types)
        self._patience = patience
        self._connected: Connected | None = None

    async def __aenter__(self) -> Self:
        self.connection()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def connection(self) -> Connected:
        """Return the working part, which belongs to the event loop that first used it."""
        if self._connected is None:
            asyncio.get_running_loop()  # outside of a loop nothing is begun
            self._connected = Connected(self._fleet, types=self._types, patience=self._patience)
        return self._connected

    async def close(self) -> None:
        """Close the connections. Runs go on."""
        connected, self._connected = self._connected, None
        if connected is not None:
            await connected.close()

    async def start(
        self,
        workflow: Workflow | type[Workflow] | str,
        *,
        run_id: str | None = None,
        start_event: StartEvent | None = None,
        **fields: Any,
    ) -> WorkflowHandler:
        """Start a run and return its handler as soon as the run is recorded in Redis.

        With a `run_id` it may be repeated: the same arguments name the same run. Fields build the
        start event. Warns when no live worker serves the workflow: the run then waits for one.

        Raises:
            RunConflictError: the id belongs to a run that was started with other arguments.
            WorkflowRuntimeError: the start event cannot be built or is accepted by no step.
            DefinitionError: only a name was given and no worker has announced it.
            EncodeError: the start event cannot travel.
            Overloaded: `pending_runs_limit` runs are live; `retry_after` says when to try again.
            ConnectionLost: Redis is away; the run may or may not be recorded: repeat with the same
            id. StoreRefused: Redis takes no more (memory, rights).
        """
        connected = self.connection()
        target = connected.target(workflow)
        event = _start_event(workflow, start_event, fields)
        name = self._run_id(run_id)
        run = connected.run(name, target, is_new=run_id is None)
        await connected.record(target, event, fields, name, before=Before())
        await connected.announced.warn_unless_served(target.name, name)
        if target.is_verbose:
            run.speak()
        return self._handler(run, workflow)

    async def start_many(
        self, workflow: Workflow | type[Workflow] | str, starts: Iterable[Start | Mapping[str, Any]]
    ) -> list[WorkflowHandler]:
        """Start many runs in few calls; a plain mapping gives the fields of a start event.

        Raises:
            Exception: as `start`; runs before and after the one that failed are recorded.
        """
        connected = self.connection()
        target = connected.target(workflow)
        chosen = [one if isinstance(one, Start) else Start(fields=one) for one in starts]
        ids = [self._run_id(one.run_id) for one in chosen]
        if not chosen:
            return []
        definition = await connected.definition(target)
        handlers: list[WorkflowHandler] = []
        recording: list[asyncio.Future[Answer]] = []
        failures: list[Exception] = []
        # What a run leaves here is little: garbage collections of the caller's process count its objects.
        resume = partial(self.resume, workflow=workflow)
        for start, name in zip(chosen, ids, strict=True):
            span = None
            try:
                event = _start_event(workflow, start.start_event, dict(start.fields))
                span = connected.span(target, event, name)
                commit = connected.starting(
                    target,
                    definition,
                    event,
                    start.fields,
                    name,
                    headers=None if span is None else span.headers(),
                )
            except Exception as error:  # noqa: BLE001 - raised when the others are recorded
                failures.append(error)
                if span is not None:
                    span.failed(error)
                continue
            run = connected.run(name, target, is_new=start.run_id is None)
            handlers.append(self._handler(run, workflow, resume))
            answer = connected.committer.sent(commit)
            if span is not None:
                answer = connected.spawn(connected.closed_by_end(span, name, target, answer))
            recording.append(answer)
            if len(recording) % MUCH == 0:
                await asyncio.sleep(0)  # these go out while the next ones are made
        for handler, answer in zip(handlers, await asyncio.gather(*recording), strict=True):
            check_recorded(handler.run_id, answer)
        if failures:
            raise failures[0]
        await connected.announced.warn_unless_served(target.name, ids[0])
        return handlers

    def _run_id(self, chosen: str | None) -> str:
        return new_run_id(self._fleet.random) if chosen is None else check_run_id(chosen)

    def handler(
        self, run_id: str, *, workflow: Workflow | type[Workflow] | str | None = None
    ) -> WorkflowHandler:
        """Attach to a run by its id, from any process. `workflow` gives the classes of its events.

        Raises:
            ValueError: no run can have such an id.
        """
        _check_any_run_id(run_id)
        connected = self.connection()
        target = connected.target(workflow) if workflow is not None else None
        return self._handler(connected.run(run_id, target), workflow)

    async def resume(
        self,
        run_id: str,
        *,
        workflow: Workflow | type[Workflow] | str | None = None,
        name: str | None = None,
    ) -> WorkflowHandler:
        """Go on from the work that a run left when it was cancelled or dead-lettered, as a new run.

        The new run has the store of the old one and everything that was pending: events in streams,
        held or backing off, open waits, half-filled joins. It is `<id>~1` (its own continuation
        `<id>~2`), there is one whoever asks and however often, and each run's status names the
        other. Its time-out begins anew. `workflow` gives the classes of its events; without it the
        workers' announcement is used.

        Raises:
            ValueError: no run can have such an id.
            RunNotFound: no such run, or its retention has passed.
            WorkflowRuntimeError: the run goes on still, left no work behind, or left work for a
                step that the workflow does not have any more.
            DefinitionError: nothing is known of the workflow.
            ConnectionLost: Redis is away; repeat it.
        """
        return await self.resume_under(run_id, workflow, name)

    async def resume_under(
        self,
        run_id: str,
        workflow: Workflow | type[Workflow] | str | None,
        name: str | None,
        resume: Callable[[str], Awaitable[WorkflowHandler]] | None = None,
    ) -> WorkflowHandler:
        """`resume`, with how the handler of the new run resumes that one in its turn."""
        _check_any_run_id(run_id)
        connected = self.connection()
        target = connected.target(workflow, name=name) if workflow is not None else None
        run = connected.run(await connected.resume(run_id, target), target)
        resume = resume or partial(self.resume, workflow=workflow, name=name)
        return self._handler(run, workflow, resume)

    async def requeue(
        self, letter: str, *, workflow: Workflow | type[Workflow] | str | None = None
    ) -> WorkflowHandler:
        """Go on from a dead letter: resume the run that it ended, with the event that was given up.

        Args:
            letter: its id in the stream of dead letters.
            workflow: as in `resume`.

        Raises:
            RunNotFound: there is no such letter, or its run is not kept any more.
            Exception: as `resume`.
        """
        run_id = await self.connection().reader.letter(letter)
        if not run_id:
            raise RunNotFound(f"there is no dead letter {letter!r} that names a run")
        return await self.resume(run_id, workflow=workflow)

    def submit(
        self,
        workflow: Workflow,
        start_event: StartEvent | None,
        *,
        run_id: str | None,
        ctx: Context[Any] | None,
    ) -> WorkflowHandler:
        """Start a run without waiting for Redis; what goes wrong is raised where the handler is awaited.

        With the context of a run that was cancelled here, it goes on from the work that is left of
        it. Called inside a step of the worker whose runtime this is, it starts a child of the
        step's run: the same one whenever the step runs again, and it ends with its parent.
        """
        parent = parent_for(self)
        name = parent.name_of(workflow) if parent is not None else None
        return self.submit_as(
            workflow, start_event, run_id=run_id, ctx=ctx, name=name, parent=parent
        )

    def submit_as(
        self,
        workflow: Workflow,
        start_event: StartEvent | None,
        *,
        run_id: str | None,
        ctx: Context[Any] | None,
        name: str | None,
        parent: Parent | None,
        resume: Callable[[str], Awaitable[WorkflowHandler]] | None = None,
    ) -> WorkflowHandler:
        """Start a run under the name that its workflow has in keys, as a child of a step if one is given."""
        connected = self.connection()
        target = connected.target(workflow, name=name)
        context: Context[Any] = ctx if ctx is not None else Context(workflow)
        context.refuse_if_running()
        earlier = context.previous_run
        snapshot = context.snapshot
        goes_on = earlier is not None and earlier.was_cancelled
        identity, once = identity_of(run_id, context, self._fleet.random), Once(self._fleet.token())
        if parent is not None and start_event is not None:
            type_id, payload = connected.plan(workflow, target.name).codec.encode_event(start_event)
            child = parent.next_child(cluster_name(workflow), type_id, payload)
            identity, once = run_id or child, Once(child, parent.run_id)
        before = Before(earlier.run_id if earlier else None, context.initial_values)

        async def record() -> None:
            try:
                if snapshot is not None and snapshot.is_running and target.plan is not None:
                    values = context.initial_values
                    await connected.revive(snapshot, values, target, target.plan, identity)
                elif earlier is not None and goes_on:
                    await connected.resume(earlier.run_id, target, identity)
                else:
                    await connected.record(
                        target,
                        start_event,
                        {},
                        identity,
                        before=before,
                        once=once,
                        headers=context.headers,
                    )
            except RunConflictError as error:
                raise RuntimeError(
                    f"Workflow run with run_id '{identity}' already exists."
                ) from error
            await connected.announced.warn_unless_served(target.name, identity)

        is_new = not goes_on and parent is None
        run = connected.run(identity, target, is_new=is_new, started=record())
        if target.is_verbose:
            run.speak()
        context.attach(run)
        resume = resume or partial(self.resume, workflow=workflow)
        return WorkflowHandler(run, resume, ctx=context)

    def _handler(
        self,
        run: RemoteRun,
        workflow: Workflow | type[Workflow] | str | None,
        resume: Callable[[str], Awaitable[WorkflowHandler]] | None = None,
    ) -> WorkflowHandler:
        resume = resume or partial(self.resume, workflow=workflow)
        return WorkflowHandler(run, resume, workflow=workflow)


def identity_of(run_id: str | None, context: Context[Any] | None, chance: Random) -> str:
    """Return the id of a coming run: the one that was chosen, that of a continuation, or a random one.

    Raises:
        ValueError: the chosen one is no id.
    """
    if run_id is not None:
        return check_run_id(run_id)
    earlier = context.previous_run if context is not None else None
    if earlier is not None and earlier.was_cancelled:
        return next_id(earlier.run_id)
    return new_run_id(chance)


def _check_any_run_id(run_id: str) -> None:
    if not isinstance(run_id, str) or not _ANY_RUN_ID.fullmatch(run_id):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"{str(run_id)[:140]!r} is no id of a run")


def _start_event(
    workflow: Workflow | type[Workflow] | str, given: StartEvent | None, fields: dict[str, Any]
) -> StartEvent | None:
    if isinstance(workflow, str):
        return given
    cls = workflow if isinstance(workflow, type) else type(workflow)
    return cls.start_event_of(given, fields)
