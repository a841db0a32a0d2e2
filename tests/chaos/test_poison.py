"""A delivery that kills its workers ends as a dead letter, and the work beside it goes on."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.scenarios.entries import a_step_kills_its_workers


async def test_a_step_that_kills_its_workers_is_given_up_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    await a_step_kills_its_workers(tmp_path)
