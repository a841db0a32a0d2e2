"""`get_workflow_representation`: a workflow as nodes and edges, for drawings, servers and reviews.

Pure. The graph is made of pydantic models because it leaves the process as JSON.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, cast

from pydantic import BaseModel, PydanticUserError
from pydantic.json_schema import GenerateJsonSchema

from stepfleet.events import Event, HumanResponseEvent, InputRequiredEvent
from stepfleet.graph import Graph
from stepfleet.resource import ConfigResource, FactoryResource, ResourceDescriptor
from stepfleet.workflow import Workflow, graph_of

#: Id of the node that stands for whoever answers a run from outside.
EXTERNAL_STEP = "external_step"


class WorkflowNodeBase(BaseModel):
    """What every node has."""

    #: Unique in its graph: the name of the step or of the event's class.
    id: str
    label: str

    def truncated_label(self, max_length: int) -> str:
        """Return the label, cut to so many characters, the last of them a star."""
        return self.label if len(self.label) <= max_length else f"{self.label[: max_length - 1]}*"


class WorkflowStepNode(WorkflowNodeBase):
    """A step."""

    node_type: Literal["step"] = "step"
    #: Its docstring.
    description: str | None = None


class WorkflowEventNode(WorkflowNodeBase):
    """A type of event that a step accepts or returns."""

    node_type: Literal["event"] = "event"
    #: Name of the class.
    event_type: str
    #: Its name and those of its parents, up to `Event`.
    event_types: list[str]
    #: Its JSON schema; None when a field has no form in JSON.
    event_schema: dict[str, Any] | None = None
    #: Ids of the steps that return it.
    produced_by: list[str] = []

    def is_subclass_of(self, *type_names: str) -> bool:
        """Tell whether the type has one of these names, or inherits from one that has."""
        return not set(type_names).isdisjoint(self.event_types)


class WorkflowExternalNode(WorkflowNodeBase):
    """Whoever takes part in a run from outside, such as a human."""

    node_type: Literal["external"] = "external"


class WorkflowResourceNode(WorkflowNodeBase):
    """Something that a factory makes for steps."""

    node_type: Literal["resource"] = "resource"
    type_name: str | None = None
    getter_name: str | None = None
    source_file: str | None = None
    source_line: int | None = None
    description: str | None = None


class WorkflowResourceConfigNode(WorkflowNodeBase):
    """A model that is read from a JSON file for steps."""

    node_type: Literal["resource_config"] = "resource_config"
    type_name: str | None = None
    config_file: str | None = None
    path_selector: str | None = None
    config_schema: dict[str, Any] | None = None
    config_value: dict[str, Any] | None = None
    description: str | None = None


class WorkflowGenericNode(WorkflowNodeBase):
    """A node of any other kind, for graphs that somebody else makes."""

    node_type: str
    event_type: str | None = None
    event_types: list[str] | None = None

    def is_subclass_of(self, *type_names: str) -> bool:
        """Tell whether its type has one of these names, or inherits from one that has."""
        return not set(type_names).isdisjoint(self.event_types or ())


# A generic node fits everything: it stands last, so that pydantic takes another one where both fit.
WorkflowGraphNode = (
    WorkflowStepNode
    | WorkflowEventNode
    | WorkflowExternalNode
    | WorkflowResourceNode
    | WorkflowResourceConfigNode
    | WorkflowGenericNode
)


class WorkflowGraphEdge(BaseModel):
    """An arrow between two nodes, named by their ids."""

    source: str
    target: str
    label: str | None = None


class WorkflowGraph(BaseModel):
    """The nodes of a workflow and the edges between them."""

    #: Name of the workflow's class.
    name: str
    nodes: list[WorkflowGraphNode]
    edges: list[WorkflowGraphEdge]
    #: Docstring of the workflow's class.
    description: str | None = None

    def filter_by_node_type(self, *node_types: str) -> WorkflowGraph:
        """Return the graph without the nodes of these types: edges that led through one lead past it.

        Such an edge is labelled with the first node that it passes. Between two nodes there is one
        edge, with all labels.
        """
        hidden = {node.id: node.label for node in self.nodes if node.node_type in node_types}
        leaving: defaultdict[str, list[WorkflowGraphEdge]] = defaultdict(list)
        for edge in self.edges:
            leaving[edge.source].append(edge)
        kept = [node for node in self.nodes if node.id not in hidden]
        labels: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for node in kept:
            for target, label in _past_hidden(node.id, leaving, hidden):
                labels[node.id, target].extend([label] if label else [])
        edges = [
            WorkflowGraphEdge(
                source=source, target=target, label=", ".join(dict.fromkeys(found)) or None
            )
            for (source, target), found in labels.items()
        ]
        return self.model_copy(update={"nodes": kept, "edges": edges})


def get_workflow_representation(workflow: Workflow | type[Workflow]) -> WorkflowGraph:
    """Return the steps and events of a workflow, and which leads to which.

    An event leads to the steps that run for exactly its type. Events that ask somebody outside lead
    to one external node, which leads to the answers. What a step only sends with `ctx.send_event`
    is no edge.

    Raises:
        WorkflowConfigurationError: a class without steps, or not one start and one stop type.
        WorkflowValidationError: state types that do not fit together.
    """
    cls = workflow if isinstance(workflow, type) else type(workflow)
    graph = graph_of(cls)
    event_ids = _event_ids(graph.event_types)
    step_ids = _step_ids(graph, taken=set(event_ids.values()))
    resources = _Resources(graph, step_ids)
    edges = [
        *_step_edges(graph, step_ids, event_ids),
        *_external_edges(event_ids),
        *resources.edges,
    ]
    produced_by: defaultdict[str, list[str]] = defaultdict(list)
    for edge in edges:
        if edge.target in event_ids.values() and edge.source in step_ids.values():
            produced_by[edge.target].append(edge.source)
    nodes: list[WorkflowGraphNode] = [
        *(
            _step_node(step_ids[spec.name], spec.name, spec.function)
            for spec in graph.steps.values()
        ),
        *(_event_node(node_id, t, produced_by[node_id]) for t, node_id in event_ids.items()),
    ]
    if any(EXTERNAL_STEP in (edge.source, edge.target) for edge in edges):
        nodes.append(WorkflowExternalNode(id=EXTERNAL_STEP, label="external_step"))
    nodes += resources.nodes.values()
    return WorkflowGraph(name=cls.__name__, nodes=nodes, edges=edges, description=_description(cls))


# -- ids -------------------------------------------------------------------------------------------


def _event_ids(event_types: Sequence[type[Event]]) -> dict[type[Event], str]:
    """Return the name of each type, with its module where two types have the same name."""
    names = [event_type.__name__ for event_type in event_types]
    return {
        event_type: event_type.__name__
        if names.count(event_type.__name__) == 1
        else f"{event_type.__module__}.{event_type.__qualname__}"
        for event_type in event_types
    }


def _step_ids(graph: Graph, *, taken: set[str]) -> dict[str, str]:
    """Return the id of each step: its name, but `step:name` where something else has that name."""
    taken = {*taken, EXTERNAL_STEP}
    return {name: f"step:{name}" if name in taken else name for name in graph.steps}


# -- edges -----------------------------------------------------------------------------------------


def _step_edges(
    graph: Graph, step_ids: Mapping[str, str], event_ids: Mapping[type[Event], str]
) -> Iterator[WorkflowGraphEdge]:
    for spec in graph.steps.values():
        step_id = step_ids[spec.name]
        for event_type, event_id in event_ids.items():
            if spec.accepts_type(event_type):
                yield WorkflowGraphEdge(source=event_id, target=step_id)
        for event_type in spec.returns:
            yield WorkflowGraphEdge(source=step_id, target=event_ids[event_type])


def _external_edges(event_ids: Mapping[type[Event], str]) -> Iterator[WorkflowGraphEdge]:
    for event_type, event_id in event_ids.items():
        if issubclass(event_type, InputRequiredEvent):
            yield WorkflowGraphEdge(source=event_id, target=EXTERNAL_STEP)
        if issubclass(event_type, HumanResponseEvent):
            yield WorkflowGraphEdge(source=EXTERNAL_STEP, target=event_id)


def _past_hidden(
    source: str, leaving: Mapping[str, Sequence[WorkflowGraphEdge]], hidden: Mapping[str, str]
) -> Iterator[tuple[str, str | None]]:
    """Yield the nodes in sight of a node, looking through hidden ones, with the label on the way."""
    pending = [(edge.target, edge.label) for edge in reversed(leaving.get(source, ()))]
    passed: set[tuple[str, str | None]] = set()
    while pending:
        target, label = pending.pop()
        if target not in hidden:
            yield target, label
        elif (target, label) not in passed:
            passed.add((target, label))
            shown = label or hidden[target]
            pending += [(edge.target, shown) for edge in reversed(leaving.get(target, ()))]


# -- resources -------------------------------------------------------------------------------------


class _Resources:
    """The resources of all steps, and what each is made of."""

    def __init__(self, graph: Graph, step_ids: Mapping[str, str]) -> None:
        self.nodes: dict[str, WorkflowResourceNode | WorkflowResourceConfigNode] = {}
        #: In the order in which they were found; a dict, because one may be found twice.
        self._edges: dict[tuple[str, str, str], None] = {}
        for spec in graph.steps.values():
            for one in spec.resources:
                self._add(step_ids[spec.name], one.name, one.resource, one.type_annotation)

    @property
    def edges(self) -> Iterator[WorkflowGraphEdge]:
        """From whoever asks for a resource to the resource, labelled with the parameter."""
        for source, target, label in self._edges:
            yield WorkflowGraphEdge(source=source, target=target, label=label)

    def _add(self, source: str, parameter: str, resource: ResourceDescriptor, asked: Any) -> None:
        node = _resource_node(resource, asked)
        self._edges[source, node.id, parameter] = None
        if node.id in self.nodes:
            return
        self.nodes[node.id] = node
        for name, needed, needed_type in resource.get_dependencies():
            self._add(node.id, name, needed, needed_type)


def _resource_node(
    resource: ResourceDescriptor, asked: Any
) -> WorkflowResourceNode | WorkflowResourceConfigNode:
    type_name = getattr(asked, "__name__", None) or (None if asked is None else str(asked))
    if isinstance(resource, ConfigResource):
        return _config_node(cast("ConfigResource[Any]", resource), asked, type_name)
    file, line, description = None, None, None
    if isinstance(resource, FactoryResource):
        factory: Any = resource.factory
        with suppress(OSError, TypeError):
            file, line = inspect.getsourcefile(factory), inspect.getsourcelines(factory)[1]
        description = _description(factory)
    return WorkflowResourceNode(
        id=f"resource_{_digest(resource.name, str(file), str(line))}",
        label=type_name or resource.name,
        type_name=type_name,
        getter_name=resource.name,
        source_file=file,
        source_line=line,
        description=description,
    )


def _config_node(
    resource: ConfigResource[Any], asked: Any, type_name: str | None
) -> WorkflowResourceConfigNode:
    file, value = resource.given_file, None
    # A drawing shows the file that is asked for, whether it is there or not.
    with suppress(OSError, ValueError):
        file = resource.config_file
        value = resource.data()
    return WorkflowResourceConfigNode(
        id=f"resource_config_{_digest(file, resource.path_selector or '', str(type_name))}",
        label=resource.label or type_name or file,
        type_name=type_name,
        config_file=file,
        path_selector=resource.path_selector,
        config_schema=_schema(asked) if isinstance(asked, type) else None,
        config_value=value,
        description=resource.description,
    )


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=6).hexdigest()


# -- nodes -----------------------------------------------------------------------------------------


def _step_node(node_id: str, name: str, function: object) -> WorkflowStepNode:
    return WorkflowStepNode(id=node_id, label=name, description=_description(function))


def _event_node(node_id: str, event_type: type[Event], produced_by: list[str]) -> WorkflowEventNode:
    return WorkflowEventNode(
        id=node_id,
        label=event_type.__name__,
        event_type=event_type.__name__,
        event_types=[
            t.__name__
            for t in event_type.__mro__
            if issubclass(t, Event) and (t is not Event or t is event_type)
        ],
        event_schema=_schema(event_type),
        produced_by=produced_by,
    )


class _QuietSchema(GenerateJsonSchema):
    """Leaves out a default that JSON cannot hold without a warning: it is no mistake of the author."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}


def _schema(described: type) -> dict[str, Any] | None:
    if not issubclass(described, BaseModel):
        return None
    try:
        return described.model_json_schema(schema_generator=_QuietSchema)
    except PydanticUserError:
        # Events may have fields of any class; most of those have no schema.
        return None


def _description(described: object) -> str | None:
    """Return the docstring of a class or function itself, not one that it inherits."""
    written = getattr(described, "__doc__", None)
    return inspect.cleandoc(written) if written else None
