"""What the live workers of a fleet announced: which workflows they serve, and where events go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from stepfleet.awaited import not_found
from stepfleet.codec import Codec
from stepfleet.core.commit import Route
from stepfleet.core.plan import SYSTEM, Plan, routes_of, type_name
from stepfleet.errors import DefinitionError, StoreError, WorkflowRuntimeError
from stepfleet.events import Event
from stepfleet.storage.fleet import Fleet
from stepfleet.storage.reader import Definition, RunReader

logger = logging.getLogger("stepfleet.client")

#: Seconds for which what workers announced is believed.
FRESH: Final = 5.0


class Announced:
    """Definitions and workers as they stand in Redis, believed for a few seconds."""

    def __init__(self, fleet: Fleet, reader: RunReader) -> None:
        self._fleet = fleet
        self._reader = reader
        self._definitions: dict[str, tuple[float, Definition]] = {}
        self._seen_workers: tuple[float, dict[str, dict[str, Any]]] = (-1e9, {})
        #: One of many callers asks; the others find its answer.
        self._asking = asyncio.Lock()

    async def definition(self, workflow: str) -> Definition | None:
        """Return what live workers announced last, None in memory or when nobody has announced it."""
        if self._fleet.open_types:
            return None
        return self._fresh(workflow) or await self._asked(workflow)

    def _fresh(self, workflow: str) -> Definition | None:
        seen, definition = self._definitions.get(workflow, (0.0, None))
        return None if self._fleet.clock.steady() - seen > FRESH else definition

    async def _asked(self, workflow: str) -> Definition | None:
        async with self._asking:
            if definition := self._fresh(workflow):
                return definition
            announced = await self._reader.definitions(workflow)
            workers = await self._workers()
            if not announced:
                return None
            live = {worker.get("workflows", {}).get(workflow) for worker in workers.values()}
            candidates = [one for digest, one in announced.items() if digest in live]
            definition = (candidates or list(announced.values()))[-1]
            self._definitions[workflow] = (self._fleet.clock.steady(), definition)
            return definition

    async def _workers(self) -> dict[str, dict[str, Any]]:
        now = self._fleet.clock.steady()
        if now - self._seen_workers[0] > FRESH:
            self._seen_workers = (now, await self._reader.workers())
        return self._seen_workers[1]

    async def warn_unless_served(self, workflow: str, run_id: str) -> None:
        """Log when no live worker serves the workflow."""
        if self._fleet.open_types:
            return
        try:
            workers = await self._workers()
        except StoreError:
            return  # the run is recorded: a warning is not worth an error
        if not any(workflow in worker.get("workflows", {}) for worker in workers.values()):
            self._seen_workers = (-1e9, {})
            logger.warning(
                "no live worker serves this workflow, the run waits for one: "
                "workflow=%s run_id=%s namespace=%s",
                workflow,
                run_id,
                self._fleet.keys.namespace,
            )

    async def unknown(self, name: str) -> DefinitionError:
        """Return the error for a workflow of which nothing is known."""
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
            f"{self._fleet.keys.namespace!r} ({served}); "
            "start a workflow-worker for it, or pass the workflow's class"
        )

    # -- runs --------------------------------------------------------------------------------------
    async def routes(
        self, run_id: str, name: str, type_id: str, step: str | None
    ) -> Sequence[Route]:
        """Return the streams of an event type, as the run's workers announced them.

        Raises:
            WorkflowRuntimeError: the step does not accept the type.
        """
        if not name:
            record = (await self._reader.runs([run_id]))[0]
            if record is None:
                raise not_found(run_id)
            name = record.workflow
        definition = await self.definition(name)
        if definition is None:
            raise await self.unknown(name)
        routes = definition.routes.get(type_name(type_id), ())
        if step is None:
            return routes or (Route(name, SYSTEM, ""),)
        targeted = [route for route in routes if route.step == step]
        if not targeted:
            raise WorkflowRuntimeError(f"Step {step} does not exist or does not accept a {type_id}")
        return targeted


class PlannedRouting:
    """Where events go, as the workflow's class says."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def encode(self, event: Event, step: str | None) -> tuple[str, bytes]:
        """As `Routing.encode`."""
        routes_of(self._plan, event, step)
        return self._plan.codec.encode_event(event)

    async def routes(self, event: Event, type_id: str, step: str | None) -> Sequence[Route]:
        """As `Routing.routes`."""
        return routes_of(self._plan, event, step)


class AnnouncedRouting:
    """Where events go, as workers announced it."""

    def __init__(self, announced: Announced, codec: Codec, run_id: str, workflow: str) -> None:
        self._announced = announced
        self._codec = codec
        self._run_id = run_id
        self._workflow = workflow

    def encode(self, event: Event, step: str | None) -> tuple[str, bytes]:
        """As `Routing.encode`."""
        return self._codec.encode_event(event)

    async def routes(self, event: Event, type_id: str, step: str | None) -> Sequence[Route]:
        """As `Routing.routes`."""
        return await self._announced.routes(self._run_id, self._workflow, type_id, step)
