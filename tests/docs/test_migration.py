"""Every row of the table on moving over names a test that is there."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "migration.md"
ROW = re.compile(r"^\| (.+) \| (\w+) \| (.*?)\| `(tests/[\w/.]+)::(\w+)` \|$", re.MULTILINE)

ROWS = ROW.findall(PAGE.read_text())


def test_every_row_is_read() -> None:
    table = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    rules = [line for line in table if line.startswith(("| ---", "| feature"))]
    assert len(ROWS) == len(table) - len(rules) > 60


@pytest.mark.parametrize(("feature", "verdict", "why", "file", "test"), ROWS)
def test_a_row_has_a_verdict_a_reason_and_a_test(
    feature: str, verdict: str, why: str, file: str, test: str
) -> None:
    assert verdict in ("same", "better", "different", "absent", "open")
    assert why.strip() or verdict in ("same", "open"), f"{feature} is {verdict}: how, or why?"
    assert re.search(rf"^(?:async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE)
