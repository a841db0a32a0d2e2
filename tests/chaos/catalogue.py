"""Every scenario, in order."""

from __future__ import annotations

from tests.chaos.scenarios import crashes
from tests.chaos.scenarios.scenario import Scenario

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        crashes.workers_are_killed_at_random,
        crashes.workers_are_killed_at_fail_points,
        crashes.a_worker_is_stopped_beyond_its_lease,
        crashes.a_step_takes_five_leases,
        crashes.a_step_keeps_the_cpu,
    )
}
