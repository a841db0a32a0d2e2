"""The graph of a workflow: which step runs for which event, and every static check of it.

Below `workflow` in the layers: it takes a name and step functions, so that `Workflow` can build and
check its graph without an import cycle. Pure: the same steps give the same graph.
"""

from __future__ import annotations

import hashlib
import inspect
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType, NoneType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel

from stepfleet.collect import Collect
from stepfleet.decorators import (
    CatchErrorHandler,
    StepConfig,
    WorkflowGraphCheck,
    required_step_config,
)
from stepfleet.errors import (
    StateTypeError,
    WorkflowConfigurationError,
    WorkflowValidationError,
)
from stepfleet.events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepFailedEvent,
    StopEvent,
)
from stepfleet.levels import collectors_in, level_of, scope_level
from stepfleet.recoveries import handlers_by_step
from stepfleet.resource import ResourceDefinition
from stepfleet.retry_policy import RetryPolicy

#: The names that `skip_graph_checks=` of a workflow may contain.
GRAPH_CHECKS: tuple[str, ...] = get_args(WorkflowGraphCheck)

_EventT = TypeVar("_EventT", bound=Event)

#: Bytes of a digest: enough to tell the versions of one workflow apart, short enough to print.
DIGEST_BYTES = 8

#: Accepted by a step although no step returns them: somebody else makes them.
_MADE_OUTSIDE = (InputRequiredEvent, HumanResponseEvent, StepFailedEvent, StopEvent)
#: Returned by a step although no step accepts them: somebody else takes them.
_TAKEN_OUTSIDE = (InputRequiredEvent, HumanResponseEvent, StopEvent)
#: Where a path through the graph may end.
_EXITS = (StopEvent, InputRequiredEvent)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpec:
    """One step: what to call, for which events, within which limits."""

    name: str
    function: Callable[..., Any]
    is_method: bool
    is_async: bool
    accepts: tuple[type[Event], ...]
    returns: tuple[type[Event], ...]
    event_param: str
    slots: tuple[tuple[str, type[Event]], ...]
    collects: Collect | None
    bare: tuple[type[Event], ...]
    listed: tuple[type[Event], ...]
    #: What the annotation of the function names beside events, such as None.
    other_returns: tuple[Any, ...]
    context_param: str | None
    state_type: type[BaseModel] | None
    num_workers: int
    max_concurrency: int | None
    retry_policy: RetryPolicy | None
    timeout: float | None
    skip_graph_checks: frozenset[str]
    accept_event_subclasses: bool
    resources: tuple[ResourceDefinition, ...] = ()
    pass_context: bool = False
    #: Of a `catch_error` step.
    handler: CatchErrorHandler | None = None

    def accepts_type(self, event_type: type[Event]) -> bool:
        """Tell whether the step runs for events of exactly this type."""
        if self.accept_event_subclasses:
            return issubclass(event_type, self.accepts)
        return event_type in self.accepts


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """The steps of a workflow and the events between them."""

    workflow_name: str
    steps: Mapping[str, StepSpec]
    start_event_class: type[StartEvent]
    stop_event_class: type[StopEvent]
    event_types: tuple[type[Event], ...]
    _acceptors: dict[type[Event], tuple[StepSpec, ...]] = field(
        default_factory=dict[type[Event], tuple[StepSpec, ...]],
        init=False,
        repr=False,
        compare=False,
    )

    def acceptors(self, event_type: type[Event]) -> tuple[StepSpec, ...]:
        """Return the steps that run for events of exactly this type."""
        found = self._acceptors.get(event_type)
        if found is None:
            found = tuple(spec for spec in self.steps.values() if spec.accepts_type(event_type))
            self._acceptors[event_type] = found
        return found

    @cached_property
    def state_type(self) -> type[BaseModel] | None:
        """The state type that extends those of all steps.

        Raises:
            StateTypeError: there is none.
        """
        return _common_state_type(self.steps.values())

    @property
    def collects(self) -> bool:
        """Whether a step takes lists of events."""
        return any(spec.collects for spec in self.steps.values())

    @cached_property
    def collectors(self) -> Mapping[str, tuple[StepSpec, ...]]:
        """The steps that collect events out of the scope of a list, by the step that returns it."""
        return {
            name: tuple(
                self.steps[found.name]
                for found in collectors_in(self.steps, scope_level(self.steps, spec))
            )
            for name, spec in self.steps.items()
            if spec.listed
        }

    @cached_property
    def handlers(self) -> Mapping[str, CatchErrorHandler]:
        """The `@catch_error` step of each step whose failures are handled.

        Raises:
            WorkflowValidationError: the handlers do not fit the steps, or one another.
        """
        return handlers_by_step(
            self.steps, [spec.handler for spec in self.steps.values() if spec.handler is not None]
        )

    @cached_property
    def digest(self) -> str:
        """A short hex name of this version of the workflow's code; reads source files, so kept."""
        described = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for name, spec in sorted(self.steps.items()):
            accepted = ",".join(sorted(f"{t.__module__}.{t.__qualname__}" for t in spec.accepts))
            shape = f"{spec.collects} {_names(spec.listed)} {_names(t for _, t in spec.slots)}"
            parts = (name, accepted, str(spec.num_workers), shape, _source(spec.function))
            described.update("\0".join(parts).encode() + b"\1")
        return described.hexdigest()


def build_graph(name: str, steps: Mapping[str, Callable[..., Any]]) -> Graph:
    """Return the graph of the workflow that has this name and these decorated functions.

    Raises:
        WorkflowConfigurationError: when there are no steps, or not one start and one stop type.
        WorkflowValidationError: when a function is no step, or the state types do not fit together.
    """
    if not steps:
        raise WorkflowConfigurationError(
            f"Workflow '{name}' has no configured steps. Did you forget to annotate methods with "
            "@step or to register free-function steps via @step(workflow=...)? "
            "At least one Event of type StartEvent must be received by any step."
        )
    specs = {step_name: _spec(step_name, function) for step_name, function in steps.items()}
    accepted = _unique(t for spec in specs.values() for t in spec.accepts)
    returned = _unique(t for spec in specs.values() for t in spec.returns)
    return Graph(
        workflow_name=name,
        steps=MappingProxyType(specs),
        start_event_class=_only_subclass(StartEvent, accepted, name, "received by", "accepts"),
        stop_event_class=_only_subclass(StopEvent, returned, name, "returned by", "returns"),
        event_types=_unique([*accepted, *returned]),
    )


def check_graph(graph: Graph, *, skip: Collection[str] = ()) -> None:
    """Check that events connect the steps: nothing is unreachable, unused or a dead end.

    Raises:
        WorkflowValidationError: naming what does not fit.
    """
    _ = graph.state_type
    _check_stop_is_not_accepted(graph)
    _check_lists_are_returned(graph)
    _check_joins_have_a_level(graph)
    _check_connections(graph)
    _check_steps_return_events(graph)
    _ = graph.handlers
    problems = [
        problem
        for check, find in (
            ("reachability", _unreachable_steps),
            ("terminal_event", _terminal_events),
            ("dead_end", _dead_end_steps),
        )
        if check not in skip and (problem := find(graph))
    ]
    if problems:
        raise WorkflowValidationError("Graph validation failed:\n" + "\n".join(problems))


def uses_human_input(graph: Graph) -> bool:
    """Tell whether a step asks for input from outside or accepts an answer."""
    return any(issubclass(t, InputRequiredEvent | HumanResponseEvent) for t in graph.event_types)


# -- building --------------------------------------------------------------------------------------


def _spec(name: str, function: Callable[..., Any]) -> StepSpec:
    config = required_step_config(function)
    return StepSpec(
        name=name,
        function=function,
        is_async=inspect.iscoroutinefunction(function),
        is_method=config.is_method,
        accepts=config.accepts,
        returns=config.returns,
        event_param=config.event_param,
        slots=config.slots,
        collects=config.collects,
        bare=config.bare,
        listed=config.listed,
        other_returns=config.other_returns,
        context_param=config.context_param,
        state_type=config.state_type,
        num_workers=config.num_workers,
        max_concurrency=config.max_concurrency,
        retry_policy=config.retry_policy,
        timeout=config.timeout,
        skip_graph_checks=config.skip_graph_checks,
        accept_event_subclasses=config.accept_event_subclasses,
        resources=config.resources,
        pass_context=config.pass_context,
        handler=_handler(name, config),
    )


def _handler(name: str, config: StepConfig) -> CatchErrorHandler | None:
    if config.role != "catch_error":
        return None
    scope = config.catch_error_for_steps
    return CatchErrorHandler(
        name, None if scope is None else list(scope), config.catch_error_max_recoveries
    )


def _unique(event_types: Iterable[type[Event]]) -> tuple[type[Event], ...]:
    return tuple(dict.fromkeys(event_types))


def _only_subclass(
    root: type[_EventT], found: Iterable[type[Event]], workflow: str, passive: str, active: str
) -> type[_EventT]:
    """Return the one event type of this kind, such as the start event that some step accepts."""
    kinds = [event_type for event_type in found if issubclass(event_type, root)]
    if not kinds:
        raise WorkflowConfigurationError(
            f"At least one Event of type {root.__name__} must be {passive} any step. "
            f"(Workflow '{workflow}' has no @step that {active} {root.__name__}.)"
        )
    if len(kinds) > 1:
        raise WorkflowConfigurationError(
            f"Only one type of {root.__name__} is allowed per workflow, found {len(kinds)}: "
            f"{{{_names(kinds)}}} in workflow '{workflow}'."
        )
    return kinds[0]


def _common_state_type(specs: Iterable[StepSpec]) -> type[BaseModel] | None:
    """Return the state type that extends those of all steps."""
    declared = list(dict.fromkeys(spec.state_type for spec in specs if spec.state_type is not None))
    for candidate in declared:
        if all(issubclass(candidate, other) for other in declared):
            return candidate
    if declared:
        raise StateTypeError(
            "Multiple state types are not in a compatible inheritance hierarchy. "
            f"One of them must extend all others. Found: {_names(declared)}"
        )
    return None


def _source(function: Callable[..., Any]) -> str:
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        # Typed into a shell, or shipped without sources: compiled code tells versions apart too.
        return inspect.unwrap(function).__code__.co_code.hex()


# -- checking --------------------------------------------------------------------------------------


def _check_stop_is_not_accepted(graph: Graph) -> None:
    for spec in graph.steps.values():
        if StopEvent in spec.accepts:
            raise WorkflowValidationError(
                f"Step '{spec.name}' cannot accept StopEvent. StopEvent signals the end of the "
                "workflow. Use a different Event type instead."
            )


def _check_lists_are_returned(graph: Graph) -> None:
    in_scopes = {
        t for spec in graph.steps.values() if spec.listed for t in scope_level(graph.steps, spec)
    }
    problems = [
        f"Step '{spec.name}' parameter '{spec.event_param}' collects list[{_names(missing)}], but "
        "no returned-list producer creates a stream for those event types. list[E] fan-in only "
        "consumes events from steps annotated as returning list[E]; use ctx.collect_events for "
        "unstreamed ctx.send_event flows."
        for spec in graph.steps.values()
        if spec.collects is not None
        and (missing := [t for t in spec.accepts if not _is_produced(spec, t, in_scopes)])
    ]
    if problems:
        raise WorkflowValidationError("\n".join(problems))


def _check_joins_have_a_level(graph: Graph) -> None:
    joins = [spec for spec in graph.steps.values() if spec.slots]
    if not joins:
        return
    outside = [t for t in graph.event_types if issubclass(t, HumanResponseEvent)]
    levels = {"the top level": level_of(graph.steps, [graph.start_event_class, *outside])}
    for spec in graph.steps.values():
        if spec.listed:
            levels[f"the stream of step '{spec.name}'"] = scope_level(graph.steps, spec)
    problems: list[str] = []
    for spec in joins:
        found = {
            slot: [name for name, level in sorted(levels.items()) if _is_produced(spec, t, level)]
            for slot, t in spec.slots
        }
        if not any(all(name in names for names in found.values()) for name in levels):
            where = "; ".join(
                f"'{slot}' ({t.__name__}) is produced at {', '.join(found[slot]) or 'no level'}"
                for slot, t in spec.slots
            )
            problems.append(
                f"Step '{spec.name}' joins event parameters that are never produced at a common "
                f"stream level: {where}. A multi-slot join only fires when all of its inputs "
                "originate at the same level. To gate in-stream work on input from another level, "
                "use ctx.wait_for_event inside the producing step instead."
            )
    if problems:
        raise WorkflowValidationError("\n".join(problems))


def _check_connections(graph: Graph) -> None:
    produced = {graph.start_event_class, *(t for s in graph.steps.values() for t in s.returns)}
    never_produced = {
        accepted
        for spec in graph.steps.values()
        for accepted in spec.accepts
        if not issubclass(accepted, _MADE_OUTSIDE) and not _is_produced(spec, accepted, produced)
    }
    if never_produced:
        raise WorkflowValidationError(
            f"The following events are consumed but never produced: {_names(never_produced)}"
        )
    never_consumed = {
        t for t in produced if not issubclass(t, _TAKEN_OUTSIDE) and not graph.acceptors(t)
    }
    if never_consumed:
        raise WorkflowValidationError(
            f"The following events are produced but never consumed: {_names(never_consumed)}"
        )


def _check_steps_return_events(graph: Graph) -> None:
    for spec in graph.steps.values():
        others = [one for one in spec.other_returns if one is not NoneType]
        if others:
            names = sorted(getattr(one, "__name__", str(one)) for one in others)
            raise WorkflowValidationError(
                "The following events are produced but never consumed: "
                f"{', '.join(names)}. Step '{spec.name}' must return events or None."
            )


def _is_produced(spec: StepSpec, accepted: type[Event], produced: Collection[type[Event]]) -> bool:
    if spec.accept_event_subclasses:
        return any(issubclass(event_type, accepted) for event_type in produced)
    return accepted in produced


def _unreachable_steps(graph: Graph) -> str | None:
    entries = [
        graph.start_event_class,
        *(t for t in graph.event_types if issubclass(t, HumanResponseEvent)),
    ]
    reached: set[str] = set()
    pending = [spec for event_type in entries for spec in graph.acceptors(event_type)]
    pending += [spec for spec in graph.steps.values() if spec.handler is not None]
    while pending:
        spec = pending.pop()
        if spec.name not in reached:
            reached.add(spec.name)
            pending.extend(after for t in spec.returns for after in graph.acceptors(t))
    return _problem(
        "reachability",
        "Unreachable steps",
        [
            spec.name
            for spec in graph.steps.values()
            if spec.name not in reached and "reachability" not in spec.skip_graph_checks
        ],
        "Steps must be reachable from StartEvent or HumanResponseEvent.",
    )


def _terminal_events(graph: Graph) -> str | None:
    return _problem(
        "terminal_event",
        "Events produced but never consumed",
        [
            event_type.__name__
            for event_type in graph.event_types
            if not graph.acceptors(event_type) and not issubclass(event_type, _EXITS)
        ],
        "Only StopEvent and InputRequiredEvent may be terminal.",
    )


def _dead_end_steps(graph: Graph) -> str | None:
    open_ended = [
        s for s in graph.steps.values() if not any(issubclass(t, _EXITS) for t in s.returns)
    ]
    # Each round drops the steps that lead to a step which was found to lead out.
    while True:
        stuck = {spec.name for spec in open_ended}
        still = [
            spec
            for spec in open_ended
            if all(after.name in stuck for t in spec.returns for after in graph.acceptors(t))
        ]
        if len(still) == len(open_ended):
            break
        open_ended = still
    return _problem(
        "dead_end",
        "Dead-end steps",
        [s.name for s in open_ended if s.returns and "dead_end" not in s.skip_graph_checks],
        "Steps must have a path to StopEvent or InputRequiredEvent.",
    )


def _problem(check: str, what: str, names: list[str], rule: str) -> str | None:
    if not names:
        return None
    return f"  - [{check}] {what}: {', '.join(sorted(names))}\n    {rule}"


def _names(classes: Iterable[type]) -> str:
    return ", ".join(sorted(cls.__name__ for cls in classes))
