"""What a type checker says about the code of users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


FILES = ("good.py", "wrong.py")

#: Lines that a checker refuses, by file.
Complaints = dict[str, set[int]]


def by_pyright() -> Complaints:
    done = run("pyright", "-p", str(HERE), "--outputjson")
    report: dict[str, Any] = json.loads(done)
    assert report["summary"]["filesAnalyzed"] == len(FILES)
    return lines(
        (diagnostic["file"], diagnostic["range"]["start"]["line"] + 1)
        for diagnostic in report["generalDiagnostics"]
    )


def by_mypy() -> Complaints:
    files = [str(HERE / name) for name in FILES]
    done = run("mypy", "--strict", "--cache-dir", os.devnull, "--output", "json", *files)
    diagnostics = [json.loads(line) for line in done.splitlines()]
    return lines((diagnostic["file"], diagnostic["line"]) for diagnostic in diagnostics)


def run(checker: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", checker, *arguments],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert not done.stderr
    return done.stdout


def lines(places: Iterable[tuple[str, int]]) -> Complaints:
    found: Complaints = {name: set() for name in FILES}
    for file, line in places:
        found[Path(file).name].add(line)
    return found


@pytest.fixture(scope="module", params=[by_pyright, by_mypy])
def complaints(request: pytest.FixtureRequest) -> Complaints:
    return request.param()


def test_a_typed_workflow_passes_strict_checking(complaints: Complaints) -> None:
    assert complaints["good.py"] == set()


def test_wrong_events_states_and_options_are_errors(complaints: Complaints) -> None:
    source = (HERE / "wrong.py").read_text().splitlines()
    refused = {number for number, line in enumerate(source, start=1) if "# refused" in line}
    assert complaints["wrong.py"] == refused
