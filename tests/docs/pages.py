"""Reads the project's pages: their links, headings and fenced blocks.

A comment on the line above a block says what the tests do with it:

    <!-- file: NAME -->   it is saved under this name in the page's folder
    <!-- continued -->    (Python) it goes on where the block before it stopped
    <!-- run -->          (shell) it is run to its end
    <!-- background -->   (shell) it is a worker: it is started, and runs until the end of the page
    <!-- output -->       (text) it is what the block before it prints, exactly
    <!-- server -->       (Python) it needs the page's server; only a mark for the reader

Every Python block without `file` is run. Every shell block is checked for programs, options and
recipes that exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[a-z]+)(?:: (?P<argument>[\w./:-]+))? -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"(?<!!)\[[^\]\n]*(?:\n[^\]\n]*)?\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

MARKS = {"", "file", "continued", "run", "background", "output", "server"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block with the mark above it."""

    page: Path
    line: int
    language: str
    text: str
    mark: str
    argument: str


def pages() -> list[Path]:
    """Find every page that people read."""
    found = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "workers").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
    return sorted(path for path in found if path.name != "AGENTS.md")


def name_of(page: Path) -> str:
    """Name a page in a test's id."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        yield Block(
            page=page,
            line=text.count("\n", 0, match.start("language")) + 1,
            language=match["language"],
            text=match["text"],
            mark=match["mark"] or "",
            argument=match["argument"] or "",
        )


def links(page: Path) -> list[str]:
    """Return the targets of a page's links, without those inside of blocks."""
    return _LINK.findall(_prose(page))


def anchors(page: Path) -> set[str]:
    """Return what a link may name behind `#`."""
    return {_slug(heading) for heading in _HEADING.findall(_prose(page))}


def _prose(page: Path) -> str:
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def _slug(heading: str) -> str:
    plain = re.sub(r"[^\w\- ]", "", heading.lower())
    return plain.strip().replace(" ", "-")
