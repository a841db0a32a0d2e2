"""Every sentence of the guarantees names tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "guarantees.md"


@cache
def functions_in(path: Path) -> frozenset[str]:
    """Returns the names of the tests of a file."""
    if not path.exists():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, functions))


def missing(named: list[str]) -> list[str]:
    """Returns those of `tests/file.py::test` that are not there."""
    parts = [(name, *name.split("::")) for name in named]
    return [name for name, path, test in parts if test not in functions_in(ROOT / path)]


def test_each_of_the_ten_sentences_names_tests_that_exist() -> None:
    promise = PAGE.read_text().partition("## The promise\n")[2].partition("\n## ")[0]
    sentences = re.split(r"^\d+\. ", promise, flags=re.MULTILINE)[1:]
    proofs = [re.findall(r"`(tests/[\w/]+\.py::\w+)`", sentence) for sentence in sentences]
    assert len(proofs) == 10
    assert all(proofs)
    assert missing([name for names in proofs for name in names]) == []


def test_a_test_that_is_not_there_is_found() -> None:
    here = "tests/docs/test_guarantees.py::test_a_test_that_is_not_there_is_found"
    away = ["tests/docs/test_guarantees.py::test_nothing", "tests/nowhere.py::test_nothing"]
    assert missing([here, *away]) == away
