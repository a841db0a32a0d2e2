"""Draws the spans of one trace as an SVG picture: a row each, in the color of its process; dotted: links."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from html import escape
from typing import Any, NamedTuple

Span = dict[str, Any]

WIDTH, NAMES, ROW, BAR, TOP = 900, 250, 30, 16, 64
COLORS = ("#4c6ef5", "#0ca678", "#f08c00", "#ae3ec9", "#e64980", "#1098ad")
INK = "#495057"


class Row(NamedTuple):
    span: Span
    depth: int
    #: Pixels.
    x: float
    width: float
    y: float


def draw(spans: list[Span]) -> str:
    """Returns the picture of a trace."""
    began = min(_time(span["start_time"]) for span in spans)
    ended = max(_time(span["end_time"]) for span in spans)
    scale = (WIDTH - NAMES - 20) / max(ended - began, 1e-6)
    rows = [
        Row(
            span,
            depth,
            NAMES + (_time(span["start_time"]) - began) * scale,
            max(3.0, (_time(span["end_time"]) - _time(span["start_time"])) * scale),
            TOP + number * ROW,
        )
        for number, (span, depth) in enumerate(_tree(spans, parent=None, depth=0))
    ]
    pids = list(dict.fromkeys(_pid(row.span) for row in rows))
    height = TOP + len(rows) * ROW + 10
    title = (
        f"One trace: {len(rows)} spans of {len(pids)} processes, {(ended - began) * 1000:.0f} ms"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'font-family="system-ui, sans-serif" font-size="12" role="img">',
            f"<title>{title}</title>",
            f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
            f'<text x="16" y="24" font-size="14" font-weight="600" fill="#212529">{title}</text>',
            *_legend(pids),
            *(line for row in rows for line in _links(row, rows)),
            *(line for row in rows for line in _bar(row, COLORS[pids.index(_pid(row.span)) % 6])),
            "</svg>\n",
        ]
    )


def _legend(pids: list[int]) -> Iterator[str]:
    for number, pid in enumerate(pids):
        x = 16 + number * 130
        yield f'<rect x="{x}" y="36" width="10" height="10" rx="2" fill="{COLORS[number % 6]}"/>'
        yield f'<text x="{x + 16}" y="45" fill="{INK}">process {pid}</text>'


def _bar(row: Row, color: str) -> Iterator[str]:
    span, attributes = row.span, row.span["attributes"]
    text = span["name"]
    if attributes.get("stepfleet.attempt", 1) > 1:
        text += f", attempt {attributes['stepfleet.attempt']}"
    failed = span["status"]["status_code"] == "ERROR"
    middle = row.y + BAR / 2 + 4
    yield f'<text x="{16 + row.depth * 16}" y="{middle}" fill="#212529">{escape(text)}</text>'
    edge = ' stroke="#e03131" stroke-width="2"' if failed else ""
    yield (
        f'<rect class="span" x="{row.x:.1f}" y="{row.y}" width="{row.width:.1f}" height="{BAR}" '
        f'rx="3" fill="{color}"{edge}/>'
    )
    if failed:
        error = escape(attributes.get("error.type", "error"))
        # With a rim: the link to the next attempt runs behind it.
        yield (
            f'<text x="{row.x + row.width + 6:.1f}" y="{middle}" fill="#e03131" stroke="#ffffff" '
            f'stroke-width="6" paint-order="stroke">{error}</text>'
        )


def _links(row: Row, rows: list[Row]) -> Iterator[str]:
    for link in row.span["links"]:
        for other in rows:
            if other.span["context"]["span_id"] == link["context"]["span_id"]:
                x, y = other.x + other.width, other.y + BAR / 2
                yield (
                    f'<path class="link" d="M {x:.1f} {y} H {row.x + 1:.1f} V {row.y}" fill="none" '
                    f'stroke="{INK}" stroke-dasharray="2 3"/>'
                )


def _tree(spans: list[Span], *, parent: str | None, depth: int) -> Iterator[tuple[Span, int]]:
    known = {span["context"]["span_id"] for span in spans}
    for span in spans:
        above = span["parent_id"] if span["parent_id"] in known else None
        if above == parent:
            yield span, depth
            yield from _tree(spans, parent=span["context"]["span_id"], depth=depth + 1)


def _pid(span: Span) -> int:
    return span["resource"]["attributes"]["process.pid"]


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
