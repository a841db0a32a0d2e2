"""A workflow's graph as streams: which routes an event takes. Layer: core, pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from stepfleet.codec import Codec, TypeRegistry
from stepfleet.core.commit import Emit, Pair, Route
from stepfleet.errors import WorkflowRuntimeError
from stepfleet.events import CollectionReleaseEvent, Event
from stepfleet.graph import Graph, StepSpec

#: Event type name of a workflow's system stream (`storage.keys.SYSTEM` is the same word).
SYSTEM: Final = "__sys"

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]")


@lru_cache(maxsize=4_096)
def type_name(type_id: str) -> str:
    """Return a type id as it stands in keys and fields."""
    return _UNSAFE.sub(lambda match: f".x{ord(match[0]):x}.", type_id)


class Plan:
    """The routes of one workflow under the name it has in keys."""

    def __init__(self, workflow: str, graph: Graph, registry: TypeRegistry, codec: Codec) -> None:
        self.workflow = workflow
        self.graph = graph
        self.codec = codec
        #: For readers: a type that is not known becomes a generic one instead of an error.
        self.reading_codec = codec.generic()
        self._registry = registry
        self.system = Route(workflow, SYSTEM, "")
        self._accepted: dict[type[Event], tuple[Route, ...]] = {}
        self._would_collect: dict[type[Event], tuple[str, ...]] = {}
        self._by_label: dict[tuple[str, str], StepSpec] = {}
        routes: list[Route] = []
        for spec in graph.steps.values():
            own = [self.collector(spec)] if spec.collects else self._routes(spec)
            for route in own:
                routes.append(route)
                self._by_label[route.type, route.step] = spec
        #: Every step stream of the workflow.
        self.routes: tuple[Route, ...] = tuple(routes)

    def _routes(self, spec: StepSpec) -> list[Route]:
        names = tuple(map(self.name_of, spec.accepts))
        ceiling = spec.max_concurrency or 0
        return [
            Route(self.workflow, name, spec.name, spec.num_workers, ceiling, names)
            for name in names
        ]

    def collector(self, spec: StepSpec) -> Route:
        """Return the one stream of a step that takes lists of events."""
        name, ceiling = self.name_of(CollectionReleaseEvent), spec.max_concurrency or 0
        return Route(self.workflow, name, spec.name, spec.num_workers, ceiling, (name,))

    def releases(self, source: str) -> tuple[Route, ...]:
        """Return the streams that are told when the scope of a step's list ends."""
        return tuple(map(self.collector, self.graph.collectors.get(source, ())))

    def collected_by(self, event_type: type[Event], source: str) -> tuple[StepSpec, ...]:
        """Return the steps that collect events of this type in the scope of a step's list."""
        found = self.graph.collectors.get(source, ())
        return tuple(spec for spec in found if spec.accepts_type(event_type))

    def name_of(self, event_type: type[Event]) -> str:
        """Return how keys name an event type.

        Raises:
            EncodeError: the type is not known to this workflow.
        """
        return type_name(self._registry.id_of(event_type))

    def class_of(self, type_id: str) -> type[Event] | None:
        """Return the event class with this id on the wire."""
        found = self._registry.class_of(type_id)
        return found if found is not None and issubclass(found, Event) else None

    def add_types(self, types: Iterable[type]) -> None:
        """Make further classes known, for a reader that has them."""
        for cls in types:
            self._registry.add(cls)

    def id_of(self, event_type: type[Event]) -> str:
        """Return the type's id on the wire.

        Raises:
            EncodeError: the type is not known to this workflow.
        """
        return self._registry.id_of(event_type)

    def spec(self, route: Route) -> StepSpec | None:
        """Return the step that a stream belongs to, None when this code has no such step."""
        return self._by_label.get((route.type, route.step))

    def accepted_by(self, event_type: type[Event]) -> tuple[Route, ...]:
        """Return the streams that an event of this type goes to by itself: no collector's."""
        found = self._accepted.get(event_type)
        if found is None:
            specs = [spec for spec in self.graph.acceptors(event_type) if not spec.collects]
            found = tuple(self._into(spec, event_type) for spec in specs)
            self._accepted[event_type] = found
        return found

    def would_collect(self, event_type: type[Event]) -> tuple[str, ...]:
        """Return the steps that take events of this type in lists, and so only inside of scopes."""
        found = self._would_collect.get(event_type)
        if found is None:
            specs = self.graph.acceptors(event_type)
            found = tuple(spec.name for spec in specs if spec.collects)
            self._would_collect[event_type] = found
        return found

    def _into(self, spec: StepSpec, event_type: type[Event]) -> Route:
        accepted = event_type
        if event_type not in spec.accepts:
            accepted = next(cls for cls in event_type.__mro__ if cls in spec.accepts)
        needs = Counter(slot for _, slot in spec.slots)
        route = self._routes(spec)[spec.accepts.index(accepted)]
        return route._replace(slots=tuple(needs[cls] for cls in spec.accepts) if needs else ())


def routes_of(plan: Plan, event: Event, step: str | None) -> tuple[Route, ...]:
    """Return the streams that a sent event goes to.

    Raises:
        WorkflowRuntimeError: there is no such step, or it does not accept this type.
    """
    routes = plan.accepted_by(type(event))
    if step is None:
        return routes or (plan.system,)
    if step not in plan.graph.steps:
        raise WorkflowRuntimeError(f"Step {step} does not exist")
    targeted = tuple(route for route in routes if route.step == step)
    if step in plan.would_collect(type(event)):
        return (plan.system,)  # where such a send ends the run: it cannot join a list
    if not targeted:
        accepted = ", ".join(sorted({route.type for route in plan.routes if route.step == step}))
        raise WorkflowRuntimeError(
            f"Step {step} does not accept event of type {type(event)}; it accepts {accepted}"
        )
    return targeted


def arrival(
    route: Route,
    delivery: str,
    record: bytes,
    *,
    scope: str = "",
    guard: str = "",
    awaitable: bool = True,
    also: bool = False,
) -> Emit | Pair:
    """Return the word that brings an event to a step; of several that a step joins, the last one starts it."""
    if route.slots:
        return Pair(route, delivery, record, scope, guard, awaitable, also)
    return Emit(route, ((delivery, record),), guard, awaitable, also)
