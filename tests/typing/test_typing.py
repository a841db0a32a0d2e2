"""What a type checker says about the code of users."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def complaints() -> dict[str, set[int]]:
    """Lines that pyright refuses in strict mode, by file."""
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "-p", str(HERE), "--outputjson"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 2
    lines: dict[str, set[int]] = {"good.py": set(), "wrong.py": set()}
    for diagnostic in report["generalDiagnostics"]:
        lines[Path(diagnostic["file"]).name].add(diagnostic["range"]["start"]["line"] + 1)
    return lines


def test_a_typed_workflow_passes_strict_checking(complaints: dict[str, set[int]]) -> None:
    assert complaints["good.py"] == set()


def test_wrong_events_states_and_options_are_errors(complaints: dict[str, set[int]]) -> None:
    source = (HERE / "wrong.py").read_text().splitlines()
    refused = {number for number, line in enumerate(source, start=1) if "# refused" in line}
    assert complaints["wrong.py"] == refused
