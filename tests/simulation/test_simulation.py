"""Many seeds of the simulation, and that a seed says all that happens."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.simulation import simulate

#: Seeds in every `make test`, and in `make test-all`; `make simulate` runs more.
QUICK, ALL = 60, 200
BLOCK = 5


@pytest.mark.parametrize(
    "first",
    [
        *range(0, QUICK, BLOCK),
        *(pytest.param(first, marks=pytest.mark.slow) for first in range(QUICK, ALL, BLOCK)),
    ],
)
def test_every_invariant_holds(first: int) -> None:
    reports = [simulate(seed) for seed in range(first, first + BLOCK)]
    assert [
        (f"make simulate SEED={report.seed}", report.violations)
        for report in reports
        if report.violations
    ] == []
    # Nothing is proved by runs in which nothing happens.
    assert sum(report.commits for report in reports) > 20 * BLOCK
    assert sum(sum(report.faults.values()) for report in reports) > BLOCK


def test_every_invariant_holds_without_faults() -> None:
    reports = [simulate(seed, faults=False) for seed in range(10)]
    assert [report.violations for report in reports] == [[]] * 10
    assert all("weather" not in report.faults for report in reports)


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_a_seed_gives_the_same_trace_in_every_process(hash_seed: str) -> None:
    program = (
        "from tests.simulation.simulation import simulate;"
        "print([simulate(seed).digest for seed in (3, 5, 8, 9)])"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told.strip() == str([simulate(seed).digest for seed in (3, 5, 8, 9)])
    assert simulate(3).digest != simulate(5).digest
