"""Every scenario, in order."""

from __future__ import annotations

from tests.chaos.scenarios import (
    clock,
    crashes,
    deploys,
    durability,
    entries,
    failover,
    limits,
    network,
    readers,
)
from tests.chaos.scenarios.scenario import Scenario

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        crashes.workers_are_killed_at_random,
        crashes.workers_are_killed_at_fail_points,
        crashes.a_worker_is_stopped_beyond_its_lease,
        crashes.a_step_takes_five_leases,
        crashes.a_step_keeps_the_cpu,
        durability.redis_is_killed,
        durability.the_tail_of_the_log_is_lost,
        durability.redis_has_a_bad_disk,
        durability.everything_is_lost,
        failover.a_master_dies,
        failover.a_master_is_cut_off,
        network.answers_to_commits_are_lost,
        network.connections_are_half_open,
        network.a_worker_is_cut_off,
        network.the_network_is_slow,
        network.redis_hiccups,
        clock.clocks_jump,
        readers.a_reader_is_slow,
        entries.steps_kill_their_workers,
        entries.entries_cannot_be_read,
        entries.entries_change_hands,
        deploys.two_versions_take_turns,
        deploys.workers_leave_one_by_one,
        readers.calls_are_cancelled,
        limits.a_limit_of_redis_is_reached,
    )
}
