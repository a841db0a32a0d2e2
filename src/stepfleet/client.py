"""`Client`: starts runs, attaches to them, and is a `Runtime`. One client serves thousands of handlers.

It has three connections: commits (batched), reads, and one that waits for ends and public events.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import string
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self, TypeVar

from stepfleet.codec import Codec, TypeRegistry
from stepfleet.context import Context
from stepfleet.core import endings
from stepfleet.core.commit import Route
from stepfleet.core.plan import SYSTEM, Plan, routes_of, type_name
from stepfleet.errors import (
    DefinitionError,
    RunConflictError,
    StoreError,
    WorkflowRuntimeError,
)
from stepfleet.events import Event, StartEvent
from stepfleet.handler import WorkflowHandler
from stepfleet.planning import arguments_digest, cluster_name, make_plan
from stepfleet.remote_run import RemoteRun, not_found, values_to_write
from stepfleet.storage.committer import Committer
from stepfleet.storage.fleet import Fleet
from stepfleet.storage.reader import Definition, RunReader, RunRecord
from stepfleet.storage.run_store import RunStore
from stepfleet.storage.watcher import RECHECK, Watcher
from stepfleet.workflow import Workflow, options_of

T = TypeVar("T")

logger = logging.getLogger("stepfleet.client")

#: Seconds that a caller waits for a Redis that does not answer.
PATIENCE: Final = 5.0
#: Seconds for which what workers announced is believed.
FRESH: Final = 5.0

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


def new_run_id() -> str:
    """Return a random run id."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(16))


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


class Before(NamedTuple):
    """The state that a run begins with: that of an earlier run, or values of the caller."""

    run_id: str | None = None
    values: Mapping[str, Any] = {}


class _Target(NamedTuple):
    """A workflow as a caller named it."""

    name: str
    #: None: only the name is known.
    plan: Plan | None
    instance: Workflow | None
    timeout_ms: int | None


class Connected:
    """The working part of a client: connections and tasks of one event loop."""

    def __init__(
        self, fleet: Fleet, *, types: Iterable[type] = (), patience: float | None = PATIENCE
    ) -> None:
        self.fleet = fleet
        self.codec = Codec(
            TypeRegistry(types, open=fleet.open_types), limits=fleet.limits, generic=True
        )
        self._types = tuple(types)
        self._calls = fleet.link("client")
        self._reads = fleet.link("client-reads")
        store = RunStore(self._calls, fleet.keys, consumer="client", bounds=fleet.bounds)
        self.committer = Committer(store, patience=patience)
        self.reader = RunReader(self._reads, fleet.keys)
        self.watcher = Watcher(
            fleet.link("client-watch"), self.reader, fleet.keys, on_end=self._told
        )
        self._waiting: dict[str, asyncio.Future[RunRecord]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._plans: dict[tuple[Any, str], Plan] = {}
        self._definitions: dict[str, tuple[float, dict[str, Definition]]] = {}
        self._served: tuple[float, set[str]] = (-FRESH, set())
        self.spawn(self.committer.run())
        self.spawn(self._recheck())

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something beside the callers, until it ends or the client is closed."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Stop the tasks and close the connections."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.watcher.close()
        await self._calls.close()
        await self._reads.close()

    # -- starting ----------------------------------------------------------------------------------

    def target(
        self, workflow: Workflow | type[Workflow] | str, *, name: str | None = None
    ) -> _Target:
        """Return a workflow as the fleet knows it."""
        if isinstance(workflow, str):
            return _Target(type_name(workflow), None, None, None)
        key = name or cluster_name(workflow)
        plan = self.plan(workflow, key)
        if isinstance(workflow, type):
            return _Target(key, plan, None, None)
        timeout = options_of(workflow).timeout
        return _Target(key, plan, workflow, -1 if timeout is None else int(timeout * 1000))

    def plan(self, workflow: Workflow | type[Workflow], key: str) -> Plan:
        """Return the plan of a workflow under a name; it is made once."""
        cls = workflow if isinstance(workflow, type) else type(workflow)
        plan = self._plans.get((cls, key))
        if plan is None:
            plan = self._plans[cls, key] = make_plan(
                workflow, key, limits=self.fleet.limits, open_types=self.fleet.open_types
            )
        return plan

    async def record(
        self,
        target: _Target,
        event: StartEvent | None,
        fields: Mapping[str, Any],
        run_id: str,
        *,
        before: Before,
        once: bool,
    ) -> None:
        """Record a run; with `once`, a second start under its id is refused even with the same arguments.

        Raises:
            RunConflictError: the id belongs to a run with other arguments.
            DefinitionError: nothing is known of the workflow, or its workers run another instance.
            EncodeError, StoreError: the event cannot travel; Redis does not take it.
        """
        definition = await self._definition(target)
        if target.plan is not None and event is not None:
            type_id, payload = target.plan.codec.encode_event(event)
            routes: Sequence[Route] = target.plan.accepted_by(type(event))
            timeout_ms = target.timeout_ms
            if definition is not None:
                routes = definition.routes.get(type_name(type_id), routes)
                self._same_instance(target, definition)
                timeout_ms = definition.timeout_ms if timeout_ms is None else timeout_ms
            elif timeout_ms is None:
                timeout_ms = 45_000
        else:
            if definition is None:
                raise await self._unknown_workflow(target.name)
            type_id, payload = self._by_name(definition, event, fields)
            routes, timeout_ms = (
                definition.routes.get(type_name(type_id), ()),
                definition.timeout_ms,
            )
        if not routes:
            raise WorkflowRuntimeError(
                f"no step of workflow {target.name} accepts a {type_id} as its start event"
            )
        values = await self._initial_values(before, target)
        nonce = secrets.token_hex(8) if once else ""
        digest = hashlib.blake2b(
            f"{target.name}\0{type_id}\0{nonce}".encode() + payload, digest_size=16
        ).hexdigest()
        commit = endings.start(
            run_id,
            routes,
            type_id=type_id,
            payload=payload,
            digest=digest,
            timeout_ms=None if timeout_ms == -1 else timeout_ms,
            values=values,
        )
        answer = await self.committer.commit(commit)
        if answer.word == "exists":
            raise RunConflictError(
                f"run {run_id} exists and was started with other arguments: choose another run_id, "
                "or attach to it with client.handler()"
            )
        if answer.word != "applied":
            raise WorkflowRuntimeError(
                f"run {run_id} was not recorded: {answer.word} {answer.detail}".rstrip()
            )

    def _same_instance(self, target: _Target, definition: Definition) -> None:
        if target.instance is None or target.plan is None:
            return
        mine = arguments_digest(target.instance, target.plan.codec)
        if mine and "?" not in (mine, definition.arguments) and mine != definition.arguments:
            raise DefinitionError(
                f"{target.name} was constructed here with other arguments than on its workers, "
                "where its steps run: pass them in the start event or the store, "
                "or start workers with this instance as their TARGET"
            )

    def _by_name(
        self, definition: Definition, event: StartEvent | None, fields: Mapping[str, Any]
    ) -> tuple[str, bytes]:
        if event is not None:
            return self.codec.encode_event(event)
        return definition.start, self.codec.encode_fields(
            fields, where=f"start event {definition.start}"
        )

    async def _initial_values(self, before: Before, target: _Target) -> dict[str, bytes]:
        if before.run_id is None:
            codec = target.plan.codec if target.plan is not None else self.codec
            return values_to_write(before.values, codec)
        rows = await self._reads.call("HGETALL", self.fleet.keys.store(before.run_id))
        return {
            name.decode(): data.partition(b":")[2]
            for name, data in zip(rows[::2], rows[1::2], strict=True)
        }

    async def _definition(self, target: _Target) -> Definition | None:
        """Return what live workers announced last."""
        if self.fleet.open_types:
            return None
        now = self.fleet.clock.steady()
        known = self._definitions.get(target.name)
        if known is None or now - known[0] > FRESH or not known[1]:
            known = self._definitions[target.name] = (
                now,
                await self.reader.definitions(target.name),
            )
        announced = known[1]
        if not announced:
            return None
        live = {
            digest
            for worker in (await self._workers()).values()
            for digest in [worker.get("workflows", {}).get(target.name)]
            if digest
        }
        candidates = [definition for digest, definition in announced.items() if digest in live]
        return (candidates or list(announced.values()))[-1]

    async def _workers(self) -> dict[str, dict[str, Any]]:
        now = self.fleet.clock.steady()
        if now - self._seen_workers[0] > FRESH:
            self._seen_workers = (now, await self.reader.workers())
        return self._seen_workers[1]

    _seen_workers: tuple[float, dict[str, dict[str, Any]]] = (-1e9, {})

    async def warn_unless_served(self, target: _Target, run_id: str) -> None:
        """Log when no live worker serves the workflow."""
        if self.fleet.open_types:
            return
        try:
            workers = await self._workers()
        except StoreError:
            return  # the run is recorded: a warning is not worth an error
        if not any(target.name in worker.get("workflows", {}) for worker in workers.values()):
            self._seen_workers = (-1e9, {})
            logger.warning(
                "no live worker serves this workflow, the run waits for one: "
                "workflow=%s run_id=%s namespace=%s",
                target.name,
                run_id,
                self.fleet.keys.namespace,
            )

    async def _unknown_workflow(self, name: str) -> DefinitionError:
        known = sorted(
            {
                flow
                for worker in (await self._workers()).values()
                for flow in worker.get("workflows", {})
            }
        )
        served = f"live workers serve: {', '.join(known)}" if known else "no worker is live"
        return DefinitionError(
            f"no worker has announced a workflow {name!r} in namespace "
            f"{self.fleet.keys.namespace!r} ({served}); "
            "start a workflow-worker for it, or pass the workflow's class"
        )

    # -- runs --------------------------------------------------------------------------------------

    def run(
        self, run_id: str, target: _Target | None, started: Coroutine[Any, Any, None] | None = None
    ) -> RemoteRun:
        """Return a run that was started or is attached to."""
        plan = target.plan if target is not None else None
        name = target.name if target is not None else ""
        return RemoteRun(
            self,
            run_id,
            workflow=name,
            codec=self._reading_codec(plan),
            routing=_AnnouncedRouting(self, run_id, name)
            if plan is None
            else _PlannedRouting(plan),
            state_type=plan.graph.state_type if plan is not None else None,
            started=started,
        )

    def _reading_codec(self, plan: Plan | None) -> Codec:
        if plan is None:
            return self.codec
        if self._types:
            plan.add_types(self._types)
        return plan.reading_codec

    async def routes(
        self, run_id: str, name: str, type_id: str, step: str | None
    ) -> Sequence[Route]:
        """Return the streams of an event type, as the run's workers announced them.

        Raises:
            WorkflowRuntimeError: the step does not accept the type.
        """
        if not name:
            record = (await self.reader.runs([run_id]))[0]
            if record is None:
                raise not_found(run_id)
            name = record.workflow
        definition = await self._definition(_Target(name, None, None, None))
        if definition is None:
            raise await self._unknown_workflow(name)
        routes = definition.routes.get(type_name(type_id), ())
        if step is None:
            return routes or (Route(name, SYSTEM, ""),)
        targeted = [route for route in routes if route.step == step]
        if not targeted:
            raise WorkflowRuntimeError(f"Step {step} does not exist or does not accept a {type_id}")
        return targeted

    async def ended(self, run_id: str) -> RunRecord:
        """Wait for the end of a run and return its record.

        Raises:
            RunNotFound: no such run.
        """
        future = self._waiting.get(run_id)
        if future is None:
            await self.watcher.ready()
            future = self._waiting.get(run_id)
        if future is None:
            future = self._waiting[run_id] = asyncio.get_running_loop().create_future()
            self.spawn(self._look([run_id]))
        return await asyncio.shield(future)

    def _told(self, run_ids: list[str]) -> None:
        awaited = [run_id for run_id in run_ids if run_id in self._waiting]
        if awaited:
            self.spawn(self._look(awaited))

    async def _look(self, run_ids: Sequence[str]) -> None:
        try:
            records = await self.reader.runs(run_ids)
        except StoreError as error:
            logger.debug("a look at awaited runs failed, the next one is due: error=%s", error)
            return
        for run_id, record in zip(run_ids, records, strict=True):
            future = self._waiting.get(run_id)
            if future is None or (record is not None and record.status == "running"):
                continue
            del self._waiting[run_id]
            if future.done():
                continue
            if record is None:
                future.set_exception(not_found(run_id))
                future.exception()
            else:
                future.set_result(record)

    async def _recheck(self) -> None:
        """Look at awaited runs now and then: an announcement may be lost with a connection or trimmed."""
        while True:
            await asyncio.sleep(RECHECK)
            for run_id in [
                run_id for run_id, future in self._waiting.items() if future.cancelled()
            ]:
                del self._waiting[run_id]
            waiting = list(self._waiting)
            for first in range(0, len(waiting), 500):
                await self._look(waiting[first : first + 500])


class _PlannedRouting:
    """Where events go, as the workflow's class says."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def encode(self, event: Event, step: str | None) -> tuple[str, bytes]:
        routes_of(self._plan, event, step)
        return self._plan.codec.encode_event(event)

    async def routes(self, event: Event, type_id: str, step: str | None) -> Sequence[Route]:
        return routes_of(self._plan, event, step)


class _AnnouncedRouting:
    """Where events go, as workers announced it."""

    def __init__(self, connected: Connected, run_id: str, workflow: str) -> None:
        self._connected = connected
        self._run_id = run_id
        self._workflow = workflow

    def encode(self, event: Event, step: str | None) -> tuple[str, bytes]:
        return self._connected.codec.encode_event(event)

    async def routes(self, event: Event, type_id: str, step: str | None) -> Sequence[Route]:
        return await self._connected.routes(self._run_id, self._workflow, type_id, step)


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
        name = check_run_id(run_id) if run_id is not None else new_run_id()
        await connected.record(target, event, fields, name, before=Before(), once=False)
        await connected.warn_unless_served(target, name)
        return _handler(connected.run(name, target))

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
            name = check_run_id(start.run_id) if start.run_id is not None else new_run_id()
            recording.append(
                connected.record(target, event, start.fields, name, before=Before(), once=False)
            )
            runs.append(connected.run(name, target))
        await asyncio.gather(*recording)
        if runs:
            await connected.warn_unless_served(target, runs[0].run_id)
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
        identity = check_run_id(run_id) if run_id is not None else new_run_id()
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
            await connected.warn_unless_served(target, identity)

        run = connected.run(identity, target, record())
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
