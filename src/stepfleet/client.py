"""`Client`: starts runs, attaches to them, and is a `Runtime`. One client serves thousands of handlers."""

from __future__ import annotations

import asyncio
import re
import string
from collections.abc import Coroutine, Iterable, Mapping
from random import Random
from typing import Any, Final, NamedTuple, Self

from stepfleet.connected import Before, Connected
from stepfleet.context import Context
from stepfleet.errors import RunConflictError
from stepfleet.events import StartEvent
from stepfleet.handler import WorkflowHandler
from stepfleet.remote_run import RemoteRun
from stepfleet.storage.fleet import Fleet
from stepfleet.workflow import Workflow

#: Seconds that a caller waits for a Redis that does not answer.
PATIENCE: Final = 5.0

_RUN_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
#: What the fleet itself makes of one: ids of child runs and of continuations have parts behind `~`.
_ANY_RUN_ID: Final = re.compile(r"[A-Za-z0-9_.~-]{1,512}")
_ALPHABET: Final = string.ascii_letters + string.digits


class Start(NamedTuple):
    """One run for `Client.start_many`."""

    start_event: StartEvent | None = None
    run_id: str | None = None
    #: Fields of the start event, where no event is given.
    fields: Mapping[str, Any] = {}


def new_run_id(random: Random) -> str:
    """Return a random run id."""
    return "".join(random.choice(_ALPHABET) for _ in range(16))


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
            ConnectionLost: Redis is away; the run may or may not be recorded: repeat with the same
            id. StoreRefused: Redis takes no more (memory, rights).
        """
        connected = self.connection()
        target = connected.target(workflow)
        event = _start_event(workflow, start_event, fields)
        name = check_run_id(run_id) if run_id is not None else new_run_id(self._fleet.random)
        run = connected.run(name, target, is_new=run_id is None)
        await connected.record(target, event, fields, name, before=Before(), once=False)
        await connected.announced.warn_unless_served(target.name, name)
        return _handler(run)

    async def start_many(
        self, workflow: Workflow | type[Workflow] | str, starts: Iterable[Start | Mapping[str, Any]]
    ) -> list[WorkflowHandler]:
        """Start many runs in few calls; a plain mapping gives the fields of a start event.

        Raises:
            Exception: as `start`; runs before and after the one that failed are recorded.
        """
        connected = self.connection()
        target = connected.target(workflow)
        runs: list[RemoteRun] = []
        recording: list[Coroutine[Any, Any, None]] = []
        for one in starts:
            start = one if isinstance(one, Start) else Start(fields=one)
            event = _start_event(workflow, start.start_event, dict(start.fields))
            name = (
                check_run_id(start.run_id)
                if start.run_id is not None
                else new_run_id(self._fleet.random)
            )
            recording.append(
                connected.record(target, event, start.fields, name, before=Before(), once=False)
            )
            runs.append(connected.run(name, target, is_new=start.run_id is None))
        await asyncio.gather(*recording)
        if runs:
            await connected.announced.warn_unless_served(target.name, runs[0].run_id)
        return [_handler(run) for run in runs]

    def handler(
        self, run_id: str, *, workflow: Workflow | type[Workflow] | str | None = None
    ) -> WorkflowHandler:
        """Attach to a run by its id, from any process. `workflow` gives the classes of its events.

        Raises:
            ValueError: no run can have such an id.
        """
        if not isinstance(run_id, str) or not _ANY_RUN_ID.fullmatch(run_id):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"{str(run_id)[:140]!r} is no id of a run")
        connected = self.connection()
        target = connected.target(workflow) if workflow is not None else None
        return _handler(connected.run(run_id, target))

    def submit(
        self,
        workflow: Workflow,
        start_event: StartEvent,
        *,
        run_id: str | None,
        ctx: Context[Any] | None,
        name: str | None = None,
    ) -> WorkflowHandler:
        """Start a run without waiting for Redis; what goes wrong is raised where the handler is awaited."""
        connected = self.connection()
        target = connected.target(workflow, name=name)
        identity = check_run_id(run_id) if run_id is not None else new_run_id(self._fleet.random)
        context: Context[Any] = ctx if ctx is not None else Context(workflow)
        context.refuse_if_running()
        earlier = context.previous_run
        before = Before(earlier.run_id if earlier else None, context.initial_values)

        async def record() -> None:
            try:
                await connected.record(target, start_event, {}, identity, before=before, once=True)
            except RunConflictError as error:
                raise RuntimeError(
                    f"Workflow run with run_id '{identity}' already exists."
                ) from error
            await connected.announced.warn_unless_served(target.name, identity)

        run = connected.run(identity, target, is_new=True, started=record())
        context.attach(run)
        return WorkflowHandler(run, context)


def _handler(run: RemoteRun) -> WorkflowHandler:
    context: Context[Any] = Context()
    context.attach(run)
    return WorkflowHandler(run, context)


def _start_event(
    workflow: Workflow | type[Workflow] | str, given: StartEvent | None, fields: dict[str, Any]
) -> StartEvent | None:
    if isinstance(workflow, str):
        return given
    cls = workflow if isinstance(workflow, type) else type(workflow)
    return cls.start_event_of(given, fields)
