"""A workflow's graph says which step leads to which event, and what is known of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stepfleet import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from stepfleet.representation import (
    WorkflowEventNode,
    WorkflowExternalNode,
    WorkflowGenericNode,
    WorkflowGraph,
    WorkflowGraphEdge,
    WorkflowGraphNode,
    WorkflowStepNode,
    get_workflow_representation,
)


class Found(Event):
    count: int


class FoundMore(Found):
    pass


class Search(Workflow):
    """Searches until something is found."""

    @step
    async def search(self, ev: StartEvent) -> Found | FoundMore:
        """Look around."""
        return Found(count=0)

    @step
    async def judge(self, ev: Found) -> StopEvent | FoundMore:
        return StopEvent()

    @step(accept_event_subclasses=True)
    async def write(self, ev: Found) -> None:
        pass


class Question(InputRequiredEvent):
    pass


class Answer(HumanResponseEvent):
    pass


class Asking(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> Question:
        return Question()

    @step
    async def told(self, ev: Answer) -> StopEvent:
        return StopEvent()


def pairs(graph: WorkflowGraph) -> set[tuple[str, str]]:
    return {(edge.source, edge.target) for edge in graph.edges}


def event_node(graph: WorkflowGraph, node_id: str) -> WorkflowEventNode:
    (node,) = [node for node in graph.nodes if node.id == node_id]
    assert isinstance(node, WorkflowEventNode)
    return node


def test_steps_and_events_are_nodes_named_as_they_are_in_the_code() -> None:
    graph = get_workflow_representation(Search)

    assert graph.name == "Search"
    assert graph.description == "Searches until something is found."
    assert [(node.node_type, node.id, node.label) for node in graph.nodes] == [
        ("step", "search", "search"),
        ("step", "judge", "judge"),
        ("step", "write", "write"),
        ("event", "StartEvent", "StartEvent"),
        ("event", "Found", "Found"),
        ("event", "FoundMore", "FoundMore"),
        ("event", "StopEvent", "StopEvent"),
    ]
    assert graph.nodes[0] == WorkflowStepNode(
        id="search", label="search", description="Look around."
    )


def test_an_event_leads_to_the_steps_that_run_for_exactly_its_type() -> None:
    assert pairs(get_workflow_representation(Search)) == {
        ("StartEvent", "search"),
        ("search", "Found"),
        ("search", "FoundMore"),
        ("Found", "judge"),
        ("Found", "write"),
        ("FoundMore", "write"),
        ("judge", "FoundMore"),
        ("judge", "StopEvent"),
    }


def test_an_instance_has_the_graph_of_its_class() -> None:
    assert get_workflow_representation(Search()) == get_workflow_representation(Search)


def test_a_docstring_is_not_inherited() -> None:
    assert get_workflow_representation(Asking).description is None


def test_an_event_knows_its_parents_its_schema_and_the_steps_that_return_it() -> None:
    node = event_node(get_workflow_representation(Search), "FoundMore")

    assert node.event_types == ["FoundMore", "Found"]
    assert node.is_subclass_of("Found")
    assert node.is_subclass_of("Other", "Found")
    assert not node.is_subclass_of("StopEvent")
    assert node.event_schema is not None
    assert node.event_schema["properties"]["count"]["type"] == "integer"
    assert node.produced_by == ["search", "judge"]


def test_an_event_that_json_cannot_describe_has_no_schema() -> None:
    class Thing:
        pass

    class Strange(StartEvent):
        thing: Thing

    class Odd(StopEvent):
        made_by: Callable[[], Any] | int = int

    class Flow(Workflow):
        @step
        async def only(self, ev: Strange) -> Odd:
            return Odd()

    graph = get_workflow_representation(Flow)

    assert event_node(graph, "Strange").event_schema is None
    assert event_node(graph, "Odd").event_schema is not None


def test_questions_lead_to_somebody_outside_who_answers() -> None:
    graph = get_workflow_representation(Asking)

    assert graph.nodes[-1] == WorkflowExternalNode(id="external_step", label="external_step")
    assert {("Question", "external_step"), ("external_step", "Answer")} <= pairs(graph)
    assert event_node(graph, "Answer").produced_by == []


def test_a_workflow_that_asks_nobody_has_no_external_node() -> None:
    kinds = {node.node_type for node in get_workflow_representation(Search).nodes}

    assert kinds == {"step", "event"}


def test_what_shares_a_name_has_ids_of_its_own() -> None:
    def another() -> type[Event]:
        class Found(Event):
            pass

        return Found

    other = another()

    class Flow(Workflow):
        @step
        async def first(self, ev: StartEvent) -> Found | other:  # pyright: ignore[reportInvalidTypeForm]
            return Found(count=1)

        @step
        async def StopEvent(self, ev: Found | other) -> StopEvent:  # noqa: N802  # pyright: ignore[reportInvalidTypeForm]
            return StopEvent()

    graph = get_workflow_representation(Flow)
    ids = [node.id for node in graph.nodes]

    assert len(set(ids)) == len(ids) == 6
    assert [node.label for node in graph.nodes].count("Found") == 2
    assert ("step:StopEvent", "StopEvent") in pairs(graph)


def test_a_graph_survives_its_way_through_json() -> None:
    nodes: list[WorkflowGraphNode] = [WorkflowGenericNode(id="a", label="a", node_type="agent")]
    for graph in (
        get_workflow_representation(Search),
        get_workflow_representation(Asking),
        WorkflowGraph(name="Other", nodes=nodes, edges=[]),
    ):
        again = WorkflowGraph.model_validate_json(graph.model_dump_json())
        assert again == graph
        assert [type(node) for node in again.nodes] == [type(node) for node in graph.nodes]


# -- without some nodes ----------------------------------------------------------------------------


def labelled(graph: WorkflowGraph) -> list[tuple[str, str, str | None]]:
    return [(edge.source, edge.target, edge.label) for edge in graph.edges]


def test_without_events_steps_lead_to_steps_and_edges_name_the_events() -> None:
    graph = get_workflow_representation(Search).filter_by_node_type("event")

    assert [node.id for node in graph.nodes] == ["search", "judge", "write"]
    assert labelled(graph) == [
        ("search", "judge", "Found"),
        ("search", "write", "Found, FoundMore"),
        ("judge", "write", "FoundMore"),
    ]


def test_an_edge_leads_past_several_hidden_nodes_with_the_name_of_the_first() -> None:
    graph = get_workflow_representation(Asking).filter_by_node_type("event", "external")

    assert labelled(graph) == [("ask", "told", "Question")]


def test_hiding_nothing_changes_nothing() -> None:
    graph = get_workflow_representation(Search)

    for same in (graph.filter_by_node_type(), graph.filter_by_node_type("resource")):
        assert same.nodes == graph.nodes
        assert sorted(labelled(same)) == sorted(labelled(graph))


def test_a_loop_of_hidden_nodes_is_passed_once() -> None:
    nodes: list[WorkflowGraphNode] = [
        WorkflowGenericNode(id=name, label=name.upper(), node_type=kind)
        for name, kind in (("a", "kept"), ("b", "hidden"), ("c", "hidden"), ("d", "kept"))
    ]
    edges = [
        WorkflowGraphEdge(source=source, target=target)
        for source, target in ("ab", "bc", "cb", "cd", "da")
    ]

    graph = WorkflowGraph(name="Loop", nodes=nodes, edges=edges).filter_by_node_type("hidden")

    assert labelled(graph) == [("a", "d", "B"), ("d", "a", None)]


@pytest.mark.parametrize(
    "name", ["WorkflowNodeBase", "WorkflowResourceNode", "WorkflowResourceConfigNode"]
)
def test_the_other_names_of_the_programming_model_are_there(name: str) -> None:
    import stepfleet.representation

    assert hasattr(stepfleet.representation, name)


def test_lists_and_joins_have_their_arrows() -> None:
    class Item(Event):
        pass

    class Part(Event):
        pass

    class Flow(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item | Part]:
            return []

        @step
        async def join(self, item: Item, part: Part) -> Part:
            return part

        @step
        async def collect(self, evs: list[Part]) -> StopEvent:
            return StopEvent()

    arrows = {(edge.source, edge.target) for edge in get_workflow_representation(Flow).edges}
    assert arrows >= {
        ("split", "Item"),
        ("split", "Part"),
        ("Item", "join"),
        ("Part", "join"),
        ("Part", "collect"),
    }
