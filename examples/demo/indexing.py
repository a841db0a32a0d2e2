"""The work itself, as plain functions: find Python files, parse one, join all into an index, ask it.

Nothing here knows that it may run on a fleet, so the demo can also do everything in one process
and compare.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The folder of the standard library of the Python that runs this.
LIBRARY = Path(sysconfig.get_path("stdlib"))
#: Folders inside it that are not part of the standard library.
FOREIGN = {"site-packages", "dist-packages", "__pycache__"}
#: Folders of its tests, whose definitions are rarely what somebody looks for.
TESTS = {"test", "tests", "idle_test"}
#: Answers to a query.
TOP = 5


@dataclass(frozen=True)
class Symbol:
    #: With the classes and functions around it: `Queue.put`.
    name: str
    kind: str
    line: int


@dataclass(frozen=True)
class FileFacts:
    path: str
    lines: int
    #: False: no Python can parse it; some test data of the standard library is like that.
    parsed: bool
    symbols: list[Symbol]


@dataclass(frozen=True)
class Totals:
    files: int
    unparsed: int
    lines: int
    functions: int
    classes: int
    sha256: str


@dataclass(frozen=True)
class Definition:
    name: str
    kind: str
    path: str
    line: int


def list_files(limit: int | None = None) -> list[str]:
    """Returns the library's source files, or `limit` of them, spread over the whole."""
    found = sorted(
        path.relative_to(LIBRARY).as_posix()
        for path in LIBRARY.rglob("*.py")
        if FOREIGN.isdisjoint(path.relative_to(LIBRARY).parts)
    )
    if limit is None or limit >= len(found):
        return found
    return [found[position * len(found) // limit] for position in range(limit)]


def parse_file(path: str) -> FileFacts:
    """Returns what is defined in a file of the library."""
    source = (LIBRARY / path).read_bytes()
    lines = len(source.splitlines())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the library's code, which is not ours to mend
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return FileFacts(path, lines, parsed=False, symbols=[])
    return FileFacts(path, lines, parsed=True, symbols=list(_symbols(tree)))


def _symbols(tree: ast.Module) -> Iterator[Symbol]:
    stack: list[tuple[ast.AST, str]] = [(tree, "")]
    while stack:
        node, prefix = stack.pop()
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            prefix = f"{prefix}.{node.name}".lstrip(".")
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            yield Symbol(prefix, kind, node.lineno)
        # Definitions are statements, and statements stand only in these.
        for block in ("body", "orelse", "handlers", "finalbody", "cases"):
            inside = getattr(node, block, ())
            if isinstance(inside, list):
                stack.extend((child, prefix) for child in inside)


def write_index(facts: Iterable[FileFacts], path: Path) -> Totals:
    """Joins all files into one index on disk, which is there completely or not at all."""
    files: dict[str, dict[str, Any]] = {}
    symbols: dict[str, list[list[Any]]] = {}
    counts = {"class": 0, "function": 0}
    for file in facts:
        files[file.path] = {"lines": file.lines, "parsed": file.parsed}
        for symbol in file.symbols:
            counts[symbol.kind] += 1
            place = [file.path, symbol.line, symbol.kind, symbol.name]
            symbols.setdefault(symbol.name.rpartition(".")[2], []).append(place)
    for places in symbols.values():
        places.sort()
    content = json.dumps({"files": files, "symbols": symbols}, sort_keys=True).encode()
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(path)
    return Totals(
        files=len(files),
        unparsed=sum(not file["parsed"] for file in files.values()),
        lines=sum(file["lines"] for file in files.values()),
        functions=counts["function"],
        classes=counts["class"],
        sha256=hashlib.sha256(content).hexdigest(),
    )


def find(path: Path, query: str) -> list[Definition]:
    """Returns the best definitions of a name: public before tests, outer before inner."""
    symbols = json.loads(path.read_bytes())["symbols"]
    name = query.rpartition(".")[2]
    places = symbols.get(name, [])
    if not places:
        lower = name.lower()
        places = [place for known in symbols if lower in known.lower() for place in symbols[known]]
    if "." in query:
        places = [place for place in places if f".{place[3]}".endswith(f".{query}")]
    best = sorted(places, key=_rank)[:TOP]
    return [
        Definition(name=name, kind=kind, path=path, line=line) for path, line, kind, name in best
    ]


def _rank(place: list[Any]) -> tuple[Any, ...]:
    path, line, kind, name = place
    in_tests = not TESTS.isdisjoint(path.split("/"))
    return in_tests, name.count("."), kind != "class", path.count("/"), path, line
