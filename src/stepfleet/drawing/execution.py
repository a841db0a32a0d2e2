"""What a run did, as a graph to draw: from the rows of its history, not from memory. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from stepfleet.core.history import NOTHING
from stepfleet.representation import (
    EXTERNAL_STEP,
    WorkflowEventNode,
    WorkflowExternalNode,
    WorkflowGenericNode,
    WorkflowGraph,
    WorkflowGraphEdge,
    WorkflowGraphNode,
    WorkflowStepNode,
)
from stepfleet.wire import HistoryRow

#: Nodes of a drawing that can still be read; a larger one has one node for each step and each type.
MOST_NODES = 200


def execution_graph(name: str, rows: Sequence[HistoryRow], *, description: str) -> WorkflowGraph:
    """Return what a run did, as nodes and edges.

    Executions of a step for the same event of the same origin share a node, which counts them.
    """
    for is_fine in (True, False):
        drawn = _Drawn(is_fine=is_fine)
        for row in rows:
            drawn.add(row)
        if drawn.size <= MOST_NODES:
            break
    return drawn.graph(name, description)


class _Drawn:
    """Groups of executions and events, and the arrows between them."""

    def __init__(self, *, is_fine: bool) -> None:
        self._is_fine = is_fine
        #: Group -> its id in the graph, by first appearance.
        self._ids: dict[Hashable, str] = {}
        self._labels: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._roots: dict[str, str] = {}
        self._edges: dict[tuple[str, str], None] = {}
        #: Delivery -> the group of its execution; of one in the system stream that of its event.
        self._groups: dict[str, str] = {}
        self._passing: dict[str, str] = {}
        self._has_begun = False

    @property
    def size(self) -> int:
        return len(self._ids)

    def add(self, row: HistoryRow) -> None:
        origin = self._origin(row)
        if row.step:
            self._outcomes[origin][row.outcome] += 1
        for step, event, deliveries in row.emitted:
            fresh = [one for one in deliveries if one not in self._groups]
            passed = self._passing.get(row.delivery)
            shown = passed or self._event(origin, event, len(fresh))
            for one in deliveries:
                if one in self._groups:
                    if passed and one not in self._passing:
                        self._edges[passed, self._groups[one]] = None  # an answer
                elif step:
                    self._groups[one] = self._step(shown, step)
                else:
                    self._groups[one] = self._passing[one] = shown
        if row.outcome == "returned" and row.output not in (NOTHING, "list"):
            self._returned(origin, row)
        self._has_begun = True

    def _returned(self, origin: str, row: HistoryRow) -> None:
        """Draw what no step takes: the end of the run, or a question to somebody outside."""
        if row.ends:
            self._roots[self._event(origin, row.output, 1)] = "StopEvent"
        elif all(event != row.output for _, event, _ in row.emitted):
            self._event(origin, row.output, 1)

    def _origin(self, row: HistoryRow) -> str:
        if row.step and row.delivery not in self._groups:
            # It was emitted by a commit that keeps no row.
            self._groups[row.delivery] = self._step("", row.step)
        known = self._groups.get(row.delivery)
        if known is not None:
            return known
        return self._node(EXTERNAL_STEP, "external_step") if self._has_begun else ""

    def _event(self, origin: str, event: str, count: int) -> str:
        group = ("event", origin, event) if self._is_fine else ("event", event)
        shown = self._node(group, event.rpartition(".")[2])
        self._counts[shown] += count
        if origin:
            self._edges[origin, shown] = None
        elif not self._has_begun:
            self._roots[shown] = "StartEvent"
        return shown

    def _step(self, event: str, step: str) -> str:
        group = ("step", event, step) if self._is_fine else ("step", step)
        shown = self._node(group, step)
        self._counts[shown] += 1
        if event:
            self._edges[event, shown] = None
        return shown

    def _node(self, group: Hashable, label: str) -> str:
        known = self._ids.get(group)
        if known is None:
            known = f"{label.replace(' ', '_')}_{len(self._ids)}"
            self._ids[group] = known
            self._labels[known] = label
        return known

    def graph(self, name: str, description: str) -> WorkflowGraph:
        nodes = [self._drawn(group, node_id) for group, node_id in self._ids.items()]
        edges = [WorkflowGraphEdge(source=a, target=b) for a, b in self._edges]
        return WorkflowGraph(name=name, nodes=nodes, edges=edges, description=description)

    def _drawn(self, group: Hashable, node_id: str) -> WorkflowGraphNode:
        count, label = self._counts[node_id], self._labels[node_id]
        shown = f"{label} x{count}" if count > 1 else label
        if group == EXTERNAL_STEP:
            return WorkflowExternalNode(id=node_id, label=label)
        if isinstance(group, tuple) and group[0] == "event":
            types = [label, *([self._roots[node_id]] if node_id in self._roots else []), "Event"]
            return WorkflowEventNode(
                id=node_id, label=shown, event_type=label, event_types=list(dict.fromkeys(types))
            )
        outcomes = self._outcomes[node_id]
        told = ", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items()))
        if outcomes["failed"] and not outcomes["returned"]:
            return WorkflowGenericNode(id=node_id, label=f"{shown} (failed)", node_type="failed")
        return WorkflowStepNode(id=node_id, label=shown, description=told or "still runs")
