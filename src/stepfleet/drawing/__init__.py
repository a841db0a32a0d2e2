"""Draws workflows: as a Mermaid flowchart, or as one HTML file that needs nothing else."""

from __future__ import annotations

import asyncio
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import Any

from typing_extensions import deprecated

from stepfleet.client import Client
from stepfleet.connect import default_runtime
from stepfleet.drawing.execution import execution_graph
from stepfleet.drawing.layout import NODE_HEIGHT, Layout, Point, layered
from stepfleet.errors import WorkflowRuntimeError
from stepfleet.handler import WorkflowHandler, port_of
from stepfleet.representation import (
    WorkflowEventNode,
    WorkflowGraph,
    WorkflowGraphNode,
    WorkflowResourceConfigNode,
    WorkflowResourceNode,
    WorkflowStepNode,
    get_workflow_representation,
)
from stepfleet.workflow import Workflow, last_run_of

__all__ = [
    "draw_all_possible_flows",
    "draw_all_possible_flows_mermaid",
    "draw_all_possible_paths",
    "draw_most_recent_execution",
    "draw_most_recent_execution_mermaid",
]

#: Fill and border of each kind of node; the text is dark on all of them.
COLOURS = {
    "step": ("#dbeafe", "#1d4ed8"),
    "event": ("#f3f4f6", "#4b5563"),
    "start": ("#dcfce7", "#15803d"),
    "stop": ("#fee2e2", "#b91c1c"),
    "external": ("#fef3c7", "#b45309"),
    "failed": ("#fecaca", "#991b1b"),
    "resource": ("#ede9fe", "#6d28d9"),
    "resource_config": ("#fae8ff", "#a21caf"),
    "other": ("#ffffff", "#4b5563"),
}

#: Width of a character of the drawing's monospaced font, a little generous.
CHARACTER_WIDTH = 8.0
#: Left and right of a label together.
LABEL_ROOM = 28.0
#: Around the whole drawing, so that no border or arrow is cut.
MARGIN = 12.0

#: Tells a browser to load nothing from anywhere.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width">
<title>{name}</title>
<style>
body {{ margin: 2em; font-family: system-ui, sans-serif; color: #111827; background: #ffffff; }}
pre {{ font-family: ui-monospace, monospace; white-space: pre-wrap; }}
main {{ overflow-x: auto; }}
svg text {{ font: 13px ui-monospace, monospace; text-anchor: middle; dominant-baseline: central; }}
svg path {{ fill: none; stroke: #6b7280; stroke-width: 1.4; }}
svg marker path {{ fill: #6b7280; stroke: none; }}
{styles}
</style>
</head>
<body>
<h1>{name}</h1>
{description}<main>
{drawing}
</main>
<details>
<summary>Mermaid</summary>
<pre>{mermaid}</pre>
</details>
</body>
</html>
"""


def draw_all_possible_flows(
    workflow: Workflow | type[Workflow],
    filename: str | os.PathLike[str] = "workflow_all_flows.html",
) -> Path:
    """Write a page with the steps and events of a workflow, and return its path.

    The page is one file that loads nothing else.

    Raises:
        WorkflowConfigurationError: a class without steps, or not one start and one stop type.
        OSError: the file cannot be written.
    """
    path = Path(filename)
    path.write_text(_page(get_workflow_representation(workflow)), encoding="utf-8")
    return path


def draw_all_possible_flows_mermaid(
    workflow: Workflow | type[Workflow], filename: str | os.PathLike[str] | None = None
) -> str:
    """Return the steps and events of a workflow as a Mermaid flowchart, and write it to a file if one is named.

    Raises:
        WorkflowConfigurationError: a class without steps, or not one start and one stop type.
        OSError: the file cannot be written.
    """
    mermaid = _mermaid(get_workflow_representation(workflow))
    if filename is not None:
        Path(filename).write_text(mermaid, encoding="utf-8")
    return mermaid


@deprecated("draw_all_possible_paths is the old name of draw_all_possible_flows")
def draw_all_possible_paths(
    workflow: Workflow | type[Workflow],
    filename: str | os.PathLike[str] = "workflow_all_flows.html",
) -> Path:
    """Write the page of `draw_all_possible_flows`.

    Raises:
        Exception: as `draw_all_possible_flows`.
    """
    return draw_all_possible_flows(workflow, filename)


def draw_most_recent_execution(
    run: WorkflowHandler | Workflow | str,
    filename: str | os.PathLike[str] = "workflow_recent_execution.html",
    *,
    client: Client | None = None,
) -> Path:
    """Write a page with what a run did, and return its path.

    It is read from the run's history in Redis, also while the run goes on, and blocks meanwhile.

    Args:
        run: a handler, the id of a run, or a workflow instance, for the last run that it started.
        filename: the page is one file that loads nothing else.
        client: where a run id is known; without it, where `Workflow.run()` sends runs.

    Raises:
        WorkflowRuntimeError: the run keeps no history, or the instance started none.
        RunNotFound: no such run.
        OSError: the file cannot be written.
    """
    path = Path(filename)
    path.write_text(_page(_execution(run, client)), encoding="utf-8")
    return path


def draw_most_recent_execution_mermaid(
    run: WorkflowHandler | Workflow | str,
    filename: str | os.PathLike[str] | None = None,
    *,
    client: Client | None = None,
) -> str:
    """Return what a run did as a Mermaid flowchart, and write it to a file if one is named.

    Raises:
        Exception: as `draw_most_recent_execution`.
    """
    mermaid = _mermaid(_execution(run, client))
    if filename is not None:
        Path(filename).write_text(mermaid, encoding="utf-8")
    return mermaid


def _execution(run: WorkflowHandler | Workflow | str, client: Client | None) -> WorkflowGraph:
    if isinstance(run, Workflow):
        handler = last_run_of(run)
        if handler is None:
            raise WorkflowRuntimeError(
                f"this instance of {type(run).__name__} has started no run that could be drawn"
            )
    elif isinstance(run, str):
        runtime: Any = client if client is not None else default_runtime()
        handler = getattr(runtime, "client", runtime).handler(run)
    else:
        handler = run
    # The connections of a client belong to its event loop, which this call does not leave.
    with ThreadPoolExecutor(1) as thread:
        told = thread.submit(asyncio.run, port_of(handler).told()).result()
    if not told.rows:
        raise WorkflowRuntimeError(
            f"run {handler.run_id} keeps no history, so what it did cannot be drawn: start it with "
            "Client(history=True) or STEPFLEET_HISTORY=on"
        )
    status = told.status.replace("_", " ")
    return execution_graph(told.workflow, told.rows, description=f"run {handler.run_id}: {status}")


def _look(node: WorkflowGraphNode) -> str:
    """Return which of the `COLOURS` a node has."""
    if isinstance(node, WorkflowEventNode):
        kinds = {"StartEvent": "start", "StopEvent": "stop"}
        return next((look for name, look in kinds.items() if node.is_subclass_of(name)), "event")
    return node.node_type if node.node_type in COLOURS else "other"


# -- Mermaid ---------------------------------------------------------------------------------------


def _mermaid(graph: WorkflowGraph) -> str:
    lines = ["flowchart TD"]
    # A bare `end` is a word of Mermaid's own, so every id begins with its kind.
    ids = {node.id: _mermaid_id(f"{node.node_type}_{node.id}") for node in graph.nodes}
    looks = {node.id: _look(node) for node in graph.nodes}
    for node in graph.nodes:
        opening, closing = ("([", "])") if isinstance(node, WorkflowEventNode) else ("[", "]")
        label = f'{opening}"{_mermaid_label(node.label)}"{closing}'
        lines.append(f"    {ids[node.id]}{label}:::{looks[node.id]}")
    lines += [f"    {ids[edge.source]} --> {ids[edge.target]}" for edge in graph.edges]
    for look, (fill, stroke) in COLOURS.items():
        if look in looks.values():
            lines.append(f"    classDef {look} fill:{fill},stroke:{stroke},color:#111827")
    return "\n".join(lines) + "\n"


def _mermaid_id(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", lambda match: f"-{ord(match[0]):x}-", name)


def _mermaid_label(label: str) -> str:
    return re.sub(r"[^\w .,:-]", lambda match: f"#{ord(match[0])};", label)


# -- HTML ------------------------------------------------------------------------------------------


def _page(graph: WorkflowGraph) -> str:
    description = f"<pre>{escape(graph.description)}</pre>\n" if graph.description else ""
    return _PAGE.format(
        policy=escape(_POLICY),
        name=escape(graph.name),
        styles="\n".join(
            f".{look} rect {{ fill: {fill}; stroke: {stroke}; }}"
            for look, (fill, stroke) in COLOURS.items()
        ),
        description=description,
        drawing=_svg(graph),
        mermaid=escape(_mermaid(graph)),
    )


def _svg(graph: WorkflowGraph) -> str:
    widths = {node.id: _label_width(node.label) + LABEL_ROOM for node in graph.nodes}
    layout = layered(widths, [(edge.source, edge.target) for edge in graph.edges])
    width, height = layout.width + 2 * MARGIN, layout.height + 2 * MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="{-MARGIN:g} {-MARGIN:g} {width:.1f} {height:.1f}" role="img" '
            f'aria-label="{escape(graph.name)}">',
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
            'markerHeight="8" orient="auto" markerUnits="userSpaceOnUse">'
            '<path d="M0 0L8 4L0 8z"/></marker></defs>',
            *(
                f'<path d="{_curve(points)}" marker-end="url(#arrow)"/>'
                for points in layout.edges.values()
            ),
            *_svg_nodes(graph, layout, widths),
            "</svg>",
        ]
    )


def _svg_nodes(graph: WorkflowGraph, layout: Layout, widths: dict[str, float]) -> Iterator[str]:
    for node in graph.nodes:
        (x, y), width = layout.nodes[node.id], widths[node.id]
        corner = NODE_HEIGHT / 2 if isinstance(node, WorkflowEventNode) else 4
        hint = _hint(node)
        yield (
            f'<g class="{_look(node)}">'
            + (f"<title>{escape(hint)}</title>" if hint else "")
            + f'<rect x="{x - width / 2:.1f}" y="{y - NODE_HEIGHT / 2:.1f}" width="{width:.1f}" '
            f'height="{NODE_HEIGHT:g}" rx="{corner:g}"/>'
            f'<text x="{x:.1f}" y="{y:.1f}">{escape(node.label)}</text></g>'
        )


def _curve(points: Sequence[Point]) -> str:
    """Return a path that leaves and reaches every point straight up or down."""
    (x, y), *rest = points
    parts = [f"M{x:.1f} {y:.1f}"]
    for next_x, next_y in rest:
        half = (y + next_y) / 2
        parts.append(f"C{x:.1f} {half:.1f} {next_x:.1f} {half:.1f} {next_x:.1f} {next_y:.1f}")
        x, y = next_x, next_y
    return "".join(parts)


def _hint(node: WorkflowGraphNode) -> str | None:
    """Return what a browser shows while the pointer is on a node."""
    if isinstance(node, WorkflowStepNode | WorkflowResourceNode | WorkflowResourceConfigNode):
        return node.description
    if isinstance(node, WorkflowEventNode) and node.event_schema:
        return ", ".join(node.event_schema.get("properties", ())) or None
    return None


def _label_width(label: str) -> float:
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in label)
    return (len(label) + wide) * CHARACTER_WIDTH
