"""The modules that decide are pure: no clock, no loop, no environment, no log, no chance."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "stepfleet"

#: The modules and folders whose answers depend on their arguments only.
PURE = ("core", "graph.py", "representation.py", "retry_policy", "wire.py", "codec")

#: Each brings something in that is not an argument; of `random` only the class `Random` is let in.
IMPURE = {"asyncio", "time", "os", "logging", "random", "secrets", "socket"}


def pure_files() -> list[Path]:
    roots = [PACKAGE / name for name in PURE]
    return sorted(
        path for root in roots for path in ([root] if root.is_file() else root.rglob("*.py"))
    )


def impurities(source: str) -> Iterator[str]:
    """Say what in a module is not an argument: an impure import, or chance without a seed."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names if name.name.split(".")[0] in IMPURE)
            case ast.ImportFrom(module="random", names=[ast.alias(name="Random")]):
                pass
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in IMPURE:
                yield module
            case ast.Call(func=ast.Name(id="Random"), args=[], keywords=[]):
                yield "Random()"
            case ast.Attribute(attr="now" | "utcnow" | "today" as name):
                yield f".{name}"
            case _:
                pass


@pytest.mark.parametrize("path", pure_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_deciding_module_is_pure(path: Path) -> None:
    assert list(impurities(path.read_text(encoding="utf-8"))) == []


def test_every_module_named_here_exists() -> None:
    assert [name for name in PURE if not (PACKAGE / name).exists()] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import asyncio", ["asyncio"]),
        ("import os.path", ["os.path"]),
        ("from time import monotonic", ["time"]),
        ("def f():\n    import logging", ["logging"]),
        ("import random", ["random"]),
        ("from random import Random, uniform", ["random"]),
        ("from random import Random\nRandom().random()", ["Random()"]),
        ("from datetime import datetime\ndatetime.now()", [".now"]),
        ("from random import Random\nRandom(7).random()", []),
        ("import math\nfrom stepfleet.core import decide", []),
    ],
)
def test_the_check_finds_what_is_impure(source: str, found: list[str]) -> None:
    assert list(impurities(source)) == found
