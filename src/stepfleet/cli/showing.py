"""How the operator's commands show what they found: a table, or JSON, one object a line. Layer: cli."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import click

#: What a command found: column -> value.
Row = Mapping[str, Any]


def show(rows: Sequence[Row], *, as_json: bool, empty: str, limit: int | None = None) -> None:
    """Print rows, all with the same columns; `empty` is said in place of a table without rows.

    Beyond `limit` rows it is said that there are more.
    """
    if limit is not None and len(rows) > limit:
        show(rows[:limit], as_json=as_json, empty=empty)
        click.echo(f"There are more than these {limit}: --limit shows them.", err=True)
        return
    if as_json:
        for row in rows:
            click.echo(as_line(row))
    elif rows:
        click.echo(table(rows))
    else:
        click.echo(empty, err=not sys.stdout.isatty())


def tell(row: Row, text: str, *, as_json: bool) -> None:
    """Print what became of one thing: as a line of JSON, or in words."""
    click.echo(as_line(row) if as_json else text)


def as_line(row: Row) -> str:
    """Return one row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False, default=str)


def table(rows: Sequence[Row]) -> str:
    """Return rows as aligned columns; on a terminal the last column is cut at its edge."""
    names = list(rows[0])
    lines = [[name.replace("_", " ").upper() for name in names]]
    lines += [["-" if row[name] is None else _plain(row[name]) for name in names] for row in rows]
    widths = [max(len(line[n]) for line in lines) for n in range(len(names))]
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    texts = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return "\n".join(text[:limit] for text in texts)


def ago(milliseconds: int | None) -> str | None:
    """Return a time span in the two units that tell most: `350ms`, `12s`, `3m05s`, `2h10m`, `4d03h`."""
    if milliseconds is None:
        return None
    seconds = milliseconds // 1000
    if seconds < 1:
        return f"{milliseconds}ms"
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    if seconds < 86_400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"
    return f"{seconds // 86_400}d{seconds % 86_400 // 3600:02}h"


def moment(milliseconds: int | None) -> str | None:
    """Return a point in time, UTC, to the second."""
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def on_one_line(text: str) -> str:
    """Return text without line feeds and control characters that a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _plain(value: object) -> str:
    text = ", ".join(map(str, cast("list[Any]", value))) if isinstance(value, list) else str(value)
    return on_one_line(text)
