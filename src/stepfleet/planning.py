"""A workflow's class as a plan of streams, and as the definition that its workers announce."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from inspect import Parameter, isfunction, signature
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

from stepfleet.codec import Codec, Limits, TypeRegistry
from stepfleet.core.plan import Plan, type_name
from stepfleet.errors import DefinitionError, EncodeError
from stepfleet.events import CollectionReleaseEvent
from stepfleet.graph import Graph
from stepfleet.storage.reader import Definition
from stepfleet.workflow import Workflow, graph_of, options_of

#: Constructor arguments that belong to a run or to a process, not to what the steps do.
OWN_ARGUMENTS: Final = frozenset(
    {
        "timeout",
        "disable_validation",
        "verbose",
        "num_concurrent_runs",
        "runtime",
        "workflow_name",
        "skip_graph_checks",
        "serializer",
        "resource_manager",
    }
)


def cluster_name(workflow: Workflow | type[Workflow]) -> str:
    """Return the name of a workflow in keys, where no target mapping gives one."""
    explicit = None if isinstance(workflow, type) else options_of(workflow).explicit_name
    cls = workflow if isinstance(workflow, type) else type(workflow)
    return type_name(explicit or cls.__name__)


def make_plan(
    workflow: Workflow | type[Workflow], name: str, *, limits: Limits, open_types: bool
) -> Plan:
    """Return the plan of a workflow under a name.

    Raises:
        DefinitionError: its steps do not make a workflow, or a type cannot travel.
    """
    graph = graph_of(workflow, name=name)
    registry = TypeRegistry(open=open_types)
    types = () if isinstance(workflow, type) else options_of(workflow).types
    if isinstance(workflow, type):
        types = workflow.declared_types()
    state = (graph.state_type,) if graph.state_type is not None else ()
    lists = (CollectionReleaseEvent,) if graph.collects else ()
    declared = [*graph.event_types, *lists, *types, *state]
    registry.reachable(declared)
    if not open_types:
        cls = workflow if isinstance(workflow, type) else type(workflow)
        attributes = () if isinstance(workflow, type) else vars(workflow).values()
        inner = [type(value) for value in attributes if isinstance(value, Workflow)]
        for mentioned in _mentioned_types(cls, graph, also=inner):
            if _disturbs_no_name(mentioned, declared, registry):
                registry.reachable([mentioned])
    return Plan(name, graph, registry, Codec(registry, limits=limits))


def _mentioned_types(
    cls: type[Workflow],
    graph: Graph,
    *,
    also: Sequence[type] = (),
    known: frozenset[type] = frozenset(),
) -> list[type]:
    """Return the classes that the code of a workflow names: what its steps may publish, send and raise.

    Most of them stand in no annotation, such as the progress events that a step only publishes. Of
    another workflow that it names or has (`also`), and whose events it may forward, these are the types too.
    """
    functions: list[Any] = [spec.function for spec in graph.steps.values()]
    for owner in cls.__mro__:
        if owner is not Workflow and issubclass(owner, Workflow):
            functions += [value for value in vars(owner).values() if isfunction(value)]
    found = [*also, *(value for function in functions for value in _named_in(function))]
    mentioned: list[type] = []
    for value in dict.fromkeys(value for value in found if isinstance(value, type)):
        if not issubclass(value, Workflow):
            mentioned += [value] if value.__module__ != "builtins" else []
        elif value not in known:
            with suppress(DefinitionError):  # a base class without steps
                inner = graph_of(value)
                mentioned += inner.event_types
                mentioned += _mentioned_types(value, inner, known=known | {cls, value})
    return list(dict.fromkeys(mentioned))


def _disturbs_no_name(cls: type, declared: Sequence[type], registry: TypeRegistry) -> bool:
    """Tell whether a class can be registered, and what is declared keeps its names in keys."""
    trial = TypeRegistry()
    try:
        trial.reachable([*declared, cls])
    except DefinitionError:
        return False
    return all(trial.id_of(known) == registry.id_of(known) for known in declared)


def _named_in(function: FunctionType) -> Iterator[Any]:
    closure = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    pending = [function.__code__]
    while pending:
        code = pending.pop()
        pending += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        for name in code.co_freevars:
            with suppress(ValueError):  # a variable that has no value yet
                if name in closure:
                    yield closure[name].cell_contents
        for name in code.co_names:
            value = function.__globals__.get(name)
            yield value
            if isinstance(value, ModuleType):
                yield from (getattr(value, attribute, None) for attribute in code.co_names)


def definition_of(plan: Plan, workflow: Workflow) -> Definition:
    """Return what a worker announces of a workflow."""
    graph, options = plan.graph, options_of(workflow)
    routes = {
        plan.name_of(cls): plan.accepted_by(cls)
        for cls in graph.event_types
        if plan.accepted_by(cls)
    }
    return Definition(
        digest=graph.digest,
        routes=routes,
        start=plan.id_of(graph.start_event_class),
        timeout_ms=None if options.timeout is None else int(options.timeout * 1000),
        arguments=arguments_digest(workflow, plan.codec),
        limit=options.num_concurrent_runs,
    )


def arguments_digest(workflow: Workflow, codec: Codec) -> str:
    """Return a digest of the constructor arguments that steps may see; '?' when they are not comparable."""
    args, kwargs = options_of(workflow).constructor_arguments
    if not args and OWN_ARGUMENTS.issuperset(kwargs):
        return ""
    given = signature(type(workflow).__init__).bind(workflow, *args, **kwargs)
    # Self is no argument; what goes into **kwargs counts under its own name, as if it were named.
    (_, *named), rest = given.arguments.items(), given.kwargs
    own = {
        name: value for name, value in {**dict(named), **rest}.items() if name not in OWN_ARGUMENTS
    }
    for name, parameter in given.signature.parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            own.pop(name, None)
    if not own:
        return ""
    described: list[Any] = sorted(own.items())
    try:
        return hashlib.blake2b(
            codec.encode_value(described, where="arguments"), digest_size=8
        ).hexdigest()
    except EncodeError:
        return "?"
