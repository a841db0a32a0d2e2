"""Bars as SVG: medians with their spread, on a logarithmic scale, since peers differ by powers of ten."""

from __future__ import annotations

import math
import statistics
from html import escape

WIDTH, LABEL, ROW, MARGIN = 760, 210, 22, 34
OURS, OTHERS = "#3a6ea5", "#b9bec5"


def bars(title: str, figures: dict[str, list[float]]) -> str:
    """Return a picture with one bar per name."""
    every = [value for values in figures.values() for value in values if value > 0]
    low = math.floor(math.log10(min(every, default=1)))
    high = max(math.ceil(math.log10(max(every, default=10))), low + 1)

    def at(value: float) -> float:
        share = (math.log10(max(value, 10**low)) - low) / (high - low)
        return LABEL + share * (WIDTH - LABEL - 90)

    height = MARGIN + ROW * len(figures) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="8" y="18" font-weight="bold">{escape(title)}</text>',
    ]
    for power in range(low, high + 1):
        x, end = at(10.0**power), height - 20
        parts.append(f'<path d="M{x:.0f} {MARGIN - 6}V{end}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{x:.0f}" y="{height - 6}" text-anchor="middle">{10.0**power:,g}</text>'
        )
    for row, (name, values) in enumerate(figures.items()):
        y, median = MARGIN + row * ROW, statistics.median(values)
        color = OURS if name.startswith("stepfleet") else OTHERS
        right = at(median)
        parts += [
            f'<text x="{LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LABEL}" y="{y + 2}" width="{right - LABEL:.1f}" height="15" fill="{color}"/>',
            f'<path d="M{at(min(values)):.1f} {y + 9.5}H{at(max(values)):.1f}" stroke="#222"/>',
            f'<text x="{at(max(values)) + 6:.1f}" y="{y + 13}">{median:,.3g}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
