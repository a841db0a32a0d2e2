"""Redis is killed and comes back: workers and clients go on by themselves, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.scenarios.durability import everything_is_lost, killed_and_started


@pytest.mark.timeout(300)
async def test_redis_is_killed_under_load_and_every_run_ends_correctly(tmp_path: Path) -> None:
    await killed_and_started(tmp_path, restarts=1)


async def test_workers_serve_again_after_redis_has_lost_everything(tmp_path: Path) -> None:
    await everything_is_lost.run(tmp_path)
