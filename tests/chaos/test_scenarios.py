"""Every scenario holds what it says, and the table in the documentation is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.catalogue import SCENARIOS
from tests.chaos.scenarios.scenario import Scenario, skip_without_programs
from tests.chaos.table import PAGE, rows


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(one, id=one.name, marks=[] if one.is_quick else pytest.mark.slow)
        for one in SCENARIOS.values()
    ],
)
@pytest.mark.timeout(600)
async def test_a_fault_costs_what_the_table_says_and_no_more(
    scenario: Scenario, tmp_path: Path
) -> None:
    skip_without_programs(scenario)
    figures = await scenario.run(tmp_path)
    assert bool(figures.recovery) == bool(scenario.recovery)


def test_the_table_has_a_row_for_every_scenario_and_says_what_it_says() -> None:
    found = rows(PAGE.read_text())
    assert list(found) == list(SCENARIOS)
    for name, row in found.items():
        scenario = SCENARIOS[name]
        cells = row.strip("|").split(" | ")
        assert [cell.strip() for cell in cells[:4]] == [
            name,
            scenario.fault,
            scenario.seen,
            scenario.lost,
        ]
        assert scenario.recovery in cells[4]
