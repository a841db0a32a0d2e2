"""The working part of a client: its connections, and how a run is recorded.

It has three connections: commits (batched), reads, and one that waits for ends and public events; a
fourth where it has many commits at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from stepfleet.announced import Announced, AnnouncedRouting, PlannedRouting
from stepfleet.awaited import Awaited
from stepfleet.codec import Codec, TypeRegistry
from stepfleet.context.snapshot import Snapshot
from stepfleet.core import endings, history
from stepfleet.core.commit import Answer, Commit, Route
from stepfleet.core.continuation import check_continuable, continuation, next_id, revival
from stepfleet.core.cut import Cut
from stepfleet.core.plan import SYSTEM, Plan, type_name
from stepfleet.dispatched import RunSpan, is_used
from stepfleet.errors import (
    ConnectionLost,
    DefinitionError,
    Overloaded,
    RunConflictError,
    WorkflowRuntimeError,
)
from stepfleet.events import StartEvent
from stepfleet.parents import outside_of_steps
from stepfleet.planning import arguments_digest, cluster_name, make_plan
from stepfleet.remote_run import RemoteRun
from stepfleet.snapshots import cut_of, given
from stepfleet.storage.committer import Committer
from stepfleet.storage.cutting import cut_of as cut_of_reply
from stepfleet.storage.cutting import reading
from stepfleet.storage.fleet import BeatCall, Fleet
from stepfleet.storage.reader import Announcement, Definition, RunReader
from stepfleet.storage.run_store import RunStore
from stepfleet.storage.watcher import Watcher
from stepfleet.workflow import Workflow, options_of

T = TypeVar("T")

#: Seconds after which a caller that was refused may try again.
RETRY_AFTER: Final = 1.0
#: Seconds between tries to read, for who waits for Redis without end.
AGAIN = 0.2


class Before(NamedTuple):
    """The state that a run begins with: that of an earlier run, or values of the caller."""

    run_id: str | None = None
    values: Mapping[str, Any] = {}


class Once(NamedTuple):
    """A start that no other one under its id may repeat, but itself."""

    #: What tells it from others.
    token: str
    #: The run whose step starts it; '': nobody's child.
    parent: str = ""


class Target(NamedTuple):
    """A workflow as a caller named it."""

    name: str
    #: None: only the name is known.
    plan: Plan | None
    instance: Workflow | None
    timeout_ms: int | None
    #: How many of its runs may go on at once; None: what its workers say, for an instance no limit.
    limit: int | None = None
    #: Its runs are told of in the program that starts them.
    is_verbose: bool = False


class Connected:
    """The working part of a client: connections and tasks of one event loop."""

    def __init__(self, fleet: Fleet, *, types: Iterable[type], patience: float | None) -> None:
        self.fleet = fleet
        #: What makes spans, if anybody takes them.
        self.tracing = fleet.tracer()
        self.codec = Codec(
            TypeRegistry(types, open=fleet.open_types), limits=fleet.limits, generic=True
        )
        self._types = tuple(types)
        self._is_patient = patience is None
        self._calls = fleet.link("client")
        self._reads = fleet.link("client-reads")
        self._more_calls = fleet.link("client")
        store, beside = (
            RunStore(link, fleet.keys, consumer="client", bounds=fleet.bounds)
            for link in (self._calls, self._more_calls)
        )
        self.committer = Committer(store, beside=beside, patience=patience, random=fleet.random)
        self.reader = RunReader(self._reads, fleet.keys)
        self.announced = Announced(fleet, self.reader)
        self.watcher = Watcher(
            fleet.link("client-watch"), self.reader, fleet.keys, on_end=self._told
        )
        self.awaited = Awaited(self.reader, self.spawn, hearing=self.watcher.ready)
        self._call_now: BeatCall | None = None
        #: Spans of runs that go on.
        self.carried: dict[str, RunSpan] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._plans: dict[tuple[Any, str], Plan] = {}
        self._routings: dict[Plan, PlannedRouting] = {}
        self.spawn(self.committer.run())
        self.spawn(self.awaited.recheck())

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something beside the callers, until it ends or the client is closed."""
        context = outside_of_steps()  # it may outlive the step that begins it
        task = asyncio.get_running_loop().create_task(coroutine, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Stop the tasks and close the connections."""
        self.awaited.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.watcher.close()
        await self._calls.close()
        await self._more_calls.close()
        await self._reads.close()

    def _told(self, announced: list[Announcement]) -> None:
        self.awaited.told(announced)

    # -- starting ----------------------------------------------------------------------------------

    def target(
        self, workflow: Workflow | type[Workflow] | str, *, name: str | None = None
    ) -> Target:
        """Return a workflow as the fleet knows it."""
        if isinstance(workflow, str):
            return Target(type_name(workflow), None, None, None)
        key = name or cluster_name(workflow)
        plan = self.plan(workflow, key)
        if isinstance(workflow, type):
            return Target(key, plan, None, None)
        options = options_of(workflow)
        timeout, limit = options.timeout, options.num_concurrent_runs
        budget = -1 if timeout is None else int(timeout * 1000)
        return Target(key, plan, workflow, budget, limit, options.verbose)

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
        target: Target,
        event: StartEvent | None,
        fields: Mapping[str, Any],
        run_id: str,
        *,
        before: Before,
        once: Once | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Record a run; with `once`, another start under its id is refused even with the same arguments.

        Raises:
            RunConflictError: the id belongs to a run with other arguments.
            DefinitionError: nothing is known of the workflow, or its workers run another instance.
            EncodeError, StoreError: the event cannot travel; Redis does not take it.
        """
        definition = await self.definition(target)
        values = await self._initial_values(before, target)
        span = self.span(target, event, run_id)
        if span is not None:
            headers = span.headers(headers)
        commit = self.starting(
            target, definition, event, fields, run_id, values=values, once=once, headers=headers
        )
        answer = self.committer.commit(commit)
        if span is not None:
            answer = self.closed_by_end(span, run_id, target, answer)
        check_recorded(run_id, await answer, once.parent if once else "")

    # -- the span of a run, where llama_index_instrumentation is used ------------------------------

    def span(self, target: Target, event: StartEvent | None, run_id: str) -> RunSpan | None:
        """Begin the span of a run that is about to start; None where nobody uses such spans."""
        if not is_used():
            return None
        cls = type(target.instance).__name__ if target.instance is not None else target.name
        return RunSpan(cls, target.instance, event, run_id)

    async def closed_by_end(
        self, span: RunSpan, run_id: str, target: Target, recorded: Awaitable[Answer]
    ) -> Answer:
        """Return the answer of a start; the span of the run ends with the run, or with that failure."""
        try:
            answer = await recorded
        except Exception as error:
            span.failed(error)
            raise
        if answer.word != "applied":
            span.failed(WorkflowRuntimeError(f"run {run_id} was not recorded: {answer.word}"))
        elif span.is_open:
            self.carried[run_id] = span
            self.spawn(self._close(span, run_id, target))
        return answer

    async def _close(self, span: RunSpan, run_id: str, target: Target) -> None:
        try:
            span.ended(await self.run(run_id, target).stop_event())
        except BaseException as error:
            span.failed(error)
            if not isinstance(error, Exception):
                raise  # the client is closed
        finally:
            del self.carried[run_id]

    async def definition(self, target: Target) -> Definition | None:
        """Return what is announced of a workflow, None where its class has to be enough.

        Raises:
            DefinitionError: only its name is known, and nobody has announced it.
        """
        definition = await self._announced(target.name)
        if definition is None and target.plan is None:
            raise await self.announced.unknown(target.name)
        return definition

    async def _announced(self, workflow: str) -> Definition | None:
        while True:
            try:
                return await self.announced.definition(workflow)
            except ConnectionLost:
                if not self._is_patient:
                    raise
                # A worker's: a step that starts a run does not fail because Redis is away.
                await asyncio.sleep(AGAIN)

    def starting(
        self,
        target: Target,
        definition: Definition | None,
        event: StartEvent | None,
        fields: Mapping[str, Any],
        run_id: str,
        *,
        values: Mapping[str, bytes] = {},
        once: Once | None = None,
        headers: dict[str, str] | None = None,
    ) -> Commit:
        """Return the commit that records a run.

        Raises:
            DefinitionError: the workflow's workers run another instance.
            WorkflowRuntimeError: no step accepts the event.
            EncodeError: the event cannot travel.
        """
        limit = target.limit
        if target.instance is None and definition is not None:
            limit = definition.limit
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
        elif definition is None:
            raise DefinitionError(f"no worker has announced a workflow {target.name!r}")
        else:
            type_id, payload = self._by_name(definition, event, fields)
            routes = definition.routes.get(type_name(type_id), ())
            timeout_ms = definition.timeout_ms
        if not routes:
            raise WorkflowRuntimeError(
                f"no step of workflow {target.name} accepts a {type_id} as its start event"
            )
        # A child's name in memory is that of an instance, and its re-run parent may have another.
        who = "" if once and once.parent else f"{target.name}\0{type_id}"
        text = f"{who}\0{once.token if once else ''}"
        digest = hashlib.blake2b(text.encode() + payload, digest_size=16).hexdigest()
        if self.tracing is not None:
            headers = self.tracing.started(target.name, run_id, type_id, headers)
        return endings.start(
            run_id,
            routes,
            type_id=type_id,
            payload=payload,
            digest=digest,
            timeout_ms=None if timeout_ms == -1 else timeout_ms,
            values=values,
            parent=once.parent if once else "",
            limit=limit,
            headers=headers,
            keeps=self._kept(target),
            plan=target.plan,
        )

    def cut_now(self, run_id: str) -> Cut:
        """Return everything that is recorded of a run; blocks the event loop until Redis answers.

        Raises:
            ConnectionLost, StoreRefused: as `Link.call`.
        """
        if self._call_now is None:
            if self.fleet.call_now is None:
                raise WorkflowRuntimeError("this fleet has no connection that can be waited for")
            self._call_now = self.fleet.call_now()
        script, keys, args = reading(self.fleet.keys, run_id, contents=True)
        return cut_of_reply(run_id, self._call_now(script, keys, list(args)))

    def _kept(self, target: Target) -> int:
        if target.is_verbose:
            return history.CONTENT
        return history.TYPES if self.fleet.keeps_history else 0

    async def resume(self, earlier: str, target: Target | None, into: str | None = None) -> str:
        """Record the one continuation of a run that was cancelled or dead-lettered; return its id.

        Raises:
            RunNotFound: no such run. RunConflictError: it goes on under another id already.
            WorkflowRuntimeError: it goes on still, it left no work behind when it ended, or it left
            work for a step that the workflow does not have.
            DefinitionError: nothing is known of the workflow.
            StoreError: Redis does not take it.
        """
        run_id = into or next_id(earlier)
        while True:
            cut = await self.reader.cut(earlier)
            continued = cut.text("continued")
            if continued:
                if into not in (None, continued):
                    raise RunConflictError(f"run {earlier} goes on as {continued} already")
                return continued
            check_continuable(cut)
            name = target.name if target is not None else cut.text("workflow")
            routes, timeout_ms = await self._streams(name, target, cut)
            commit = continuation(cut, run_id, name, routes, timeout_ms=timeout_ms)
            answer = await self.committer.commit(commit)
            if answer.word == "exists":
                raise RunConflictError(
                    f"run {run_id} exists and does not go on from {earlier}: choose another run_id"
                )
            if answer.word == "applied":
                await self._strike(cut)
                return run_id
            if answer.word != "conflict":
                raise WorkflowRuntimeError(
                    f"run {earlier} does not go on: {answer.word} {answer.detail}".rstrip()
                )
            # Workers were still putting its work aside.

    async def revive(
        self,
        snapshot: Snapshot,
        values: Mapping[str, Any],
        target: Target,
        plan: Plan,
        run_id: str,
    ) -> None:
        """Record a run that goes on from the pending work of a snapshot.

        Raises:
            RunConflictError: the id is taken.
            ContextSerdeError, WorkflowRuntimeError: the workflow cannot go on from that work.
            EncodeError, StoreError: a value cannot travel; Redis does not take it.
        """
        cut = cut_of(snapshot, plan, run_id)
        routes, timeout_ms = await self._streams(target.name, target, cut)
        commit = revival(
            cut,
            run_id,
            target.name,
            routes,
            digest=self.fleet.token(),
            values=_values_to_write(values, plan.codec),
            timeout_ms=timeout_ms,
            limit=target.limit,
        )
        if snapshot.given is not None:
            commit = commit._replace(words=[*commit.words, given(snapshot.given, plan)])
        check_recorded(run_id, await self.committer.commit(commit))

    async def _streams(
        self, name: str, target: Target | None, cut: Cut
    ) -> tuple[dict[str, Route], int | None]:
        """Return the streams of a workflow by label, and the budget of its continuation."""
        definition = await self.announced.definition(name)
        plan = target.plan if target is not None else None
        if definition is None and plan is None:
            raise await self.announced.unknown(name)
        if definition is not None and target is not None:
            self._same_instance(target, definition)
        planned = plan.routes if plan is not None else ()
        announced = definition.routes.values() if definition is not None else ()
        streams = [*planned, *(route for routes in announced for route in routes)]
        routes = {route.label: route for route in (Route(name, SYSTEM, ""), *streams)}
        timeout = int(cut.text("timeout")) if cut.text("timeout") else None
        if target is not None and target.timeout_ms is not None:
            timeout = None if target.timeout_ms == -1 else target.timeout_ms
        return routes, timeout

    async def _strike(self, cut: Cut) -> None:
        """Take the letters of a run that goes on out of the dead letters."""
        if cut.text("status") == "failed":
            letters = await self.reader.letters(cut.run_id, int(cut.text("started")))
            if letters:
                await self._reads.call("XDEL", self.fleet.keys.dead, *letters)

    def _same_instance(self, target: Target, definition: Definition) -> None:
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

    async def _initial_values(self, before: Before, target: Target) -> dict[str, bytes]:
        if before.run_id is None:
            codec = target.plan.codec if target.plan is not None else self.codec
            return _values_to_write(before.values, codec)
        rows = await self._reads.call("HGETALL", self.fleet.keys.store(before.run_id))
        return {
            name.decode(): data.partition(b":")[2]
            for name, data in zip(rows[::2], rows[1::2], strict=True)
        }

    def run(
        self,
        run_id: str,
        target: Target | None,
        *,
        is_new: bool = False,
        started: Coroutine[Any, Any, None] | None = None,
    ) -> RemoteRun:
        """Return a run that is attached to, or, if it `is_new`, one that will begin after this call."""
        plan = target.plan if target is not None else None
        name = target.name if target is not None else ""
        instance = target.instance if target is not None else None
        return RemoteRun(
            self,
            run_id,
            end=self.awaited.ending(run_id, is_heard=is_new and self.watcher.is_ready),
            workflow=name,
            shown_as=name if instance is None else instance.workflow_name,
            codec=self._reading_codec(plan),
            routing=AnnouncedRouting(self.announced, self.codec, run_id, name)
            if plan is None
            else self._routing(plan),
            state_type=plan.graph.state_type if plan is not None else None,
            steps=plan.graph.steps if plan is not None else (),
            started=started,
            # Of a run that is recorded already it has to be read.
            kept=self._kept(target) if is_new and target is not None else None,
        )

    def _routing(self, plan: Plan) -> PlannedRouting:
        routing = self._routings.get(plan)
        if routing is None:
            routing = self._routings[plan] = PlannedRouting(plan)
        return routing

    def _reading_codec(self, plan: Plan | None) -> Codec:
        if plan is None:
            return self.codec
        if self._types:
            plan.add_types(self._types)
        return plan.reading_codec


def check_recorded(run_id: str, answer: Answer, parent: str = "") -> None:
    """Pass when a run was recorded; `parent` is the run whose step starts it.

    Raises:
        RunConflictError: the id belongs to a run with other arguments.
        Overloaded: as many runs are live as the fleet takes.
        WorkflowRuntimeError: Redis answers something else.
    """
    if answer.word == "exists":
        raise RunConflictError(
            f"run {run_id} exists and was started with other arguments: choose another run_id, "
            "or attach to it with client.handler()"
        )
    if answer.word == "over":
        raise WorkflowRuntimeError(
            f"run {parent or run_id} has ended: its steps start no runs any more"
        )
    if answer.word == "full":
        raise Overloaded(
            f"run {run_id} was not recorded: as many runs are live as pending_runs_limit allows. "
            f"Try again in {RETRY_AFTER:g} s, start more workers, or raise the setting",
            RETRY_AFTER,
        )
    if answer.word != "applied":
        raise WorkflowRuntimeError(
            f"run {run_id} was not recorded: {answer.word} {answer.detail}".rstrip()
        )


def _values_to_write(values: Mapping[str, Any], codec: Codec) -> dict[str, bytes]:
    """Return first store values as bytes."""
    return {
        name: codec.encode_value(value, where=f"state key {name!r}")
        for name, value in values.items()
    }
