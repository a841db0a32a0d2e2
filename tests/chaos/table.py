"""The table of faults in docs/guarantees.md: a row for each scenario, written by a run of it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

from tests.chaos.catalogue import SCENARIOS
from tests.support.servers import available_binaries

PAGE = Path(__file__).parents[2] / "docs" / "guarantees.md"
BEGIN, END = "<!-- made by make chaos -->", "<!-- end -->"
HEAD = (
    "| | fault | what the user sees | what is lost | recovery | counted |\n"
    "| --- | --- | --- | --- | --- | --- |"
)


def rows(page: str) -> dict[str, str]:
    """Returns the rows of a page, by the name of their scenario."""
    table = page.partition(BEGIN)[2].partition(END)[0]
    return {match[1]: match[0] for match in re.finditer(r"^\| (F\d+) \|.*$", table, re.MULTILINE)}


def write(fresh: dict[str, str]) -> None:
    """Writes rows into the page; those of other scenarios stay."""
    page = PAGE.read_text()
    known = rows(page) | fresh
    before, _, rest = page.partition(BEGIN)
    table = "\n".join([HEAD, *(known[name] for name in SCENARIOS if name in known)])
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{_machine()}\n\n{END}{rest.partition(END)[2]}")


def _machine() -> str:
    """Says where a row was measured last."""
    server = subprocess.run(
        [available_binaries()["redis"], "--version"], capture_output=True, text=True, check=True
    )
    (version,) = re.findall(r"v=([\d.]+)", server.stdout)
    return (
        f"Measured with Python {platform.python_version()} and Redis {version} on {os.cpu_count()} processors "
        "that had other work too."
    )
