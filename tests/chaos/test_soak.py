"""The soak in short: `make chaos MINUTES=30` is the same, for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.soak import Shape, soak


@pytest.mark.timeout(480)
def test_workers_are_killed_again_and_again_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    soak(tmp_path, Shape(seconds=12.0, restarts_s=12.0, workers=4, retention_s=10))
