"""janitor.lua: the dead are forgotten, but never their work."""

from __future__ import annotations

from stepfleet.storage.keys import GROUP
from tests.scripts.rig import WIDE, Rig, emit, settle

HOUR_MS = 3_600_000
LEASE_MS = 15_000


def clean(rig: Rig, *, age_ms: int = -1, retention_ms: int = HOUR_MS) -> int:
    keys = [rig.keys.leases, rig.keys.workers, rig.keys.ended, rig.stream(WIDE), "nothing"]
    return rig.script("janitor", keys, [GROUP, age_ms, retention_ms, LEASE_MS])


def consumers(rig: Rig) -> set[str]:
    return {row["name"].decode() for row in rig.client.xinfo_consumers(rig.stream(WIDE), GROUP)}


def leases(rig: Rig) -> dict[str, float]:
    return {n.decode(): s for n, s in rig.client.zrange(rig.keys.leases, 0, -1, withscores=True)}


def known(rig: Rig, **ends_in_ms: int) -> None:
    """Makes consumers without work: with a lease that ends in so many ms; 0: without one."""
    rig.start(emit(WIDE, *ends_in_ms))
    for consumer in ends_in_ms:
        rig.apply(settle(rig.take(WIDE, consumer)), consumer)
        rig.client.hset(rig.keys.workers, consumer, "about")
    now = rig.now_ms()
    for consumer, ends in ends_in_ms.items():
        if ends:
            rig.client.zadd(rig.keys.leases, {consumer: now + ends})


def test_consumers_without_work_go_when_they_are_dead(rig: Rig) -> None:
    known(rig, alive=60_000, late=-10_000, unknown=0, buried=1)
    rig.client.zadd(rig.keys.leases, {"buried": -rig.now_ms()})
    assert clean(rig) == 3
    assert consumers(rig) == {"alive"}
    assert rig.client.hkeys(rig.keys.workers) == [b"alive"]


def test_a_lease_that_ran_out_long_ago_goes_with_its_consumer(rig: Rig) -> None:
    known(rig, alive=60_000, late=-10_000, lately=-1)
    assert clean(rig, age_ms=5_000) == 0, "it was heard of a moment ago"
    assert leases(rig).keys() == {"alive", "lately"}


def test_a_consumer_with_pending_rows_stays_and_so_does_its_lease(rig: Rig) -> None:
    rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE, "dead")
    rig.client.zadd(rig.keys.leases, {"dead": 1})
    assert clean(rig) == 0
    assert rig.pending(WIDE, "dead") == {entry.entry: 1}
    assert leases(rig) == {"dead": 1}


def test_a_consumer_with_pending_rows_and_no_lease_gets_one_to_come_back_or_be_reclaimed(
    rig: Rig,
) -> None:
    """Its last read arrived behind its hand-back: without a lease nobody would look at it."""
    rig.start(emit(WIDE, "a"))
    rig.take(WIDE, "gone")
    before = rig.now_ms()
    clean(rig)
    ends = leases(rig)["gone"]
    assert before + LEASE_MS <= ends <= rig.now_ms() + LEASE_MS
    clean(rig)
    assert leases(rig) == {"gone": ends}


def test_those_to_whom_work_was_handed_back_stay(rig: Rig) -> None:
    rig.client.xgroup_createconsumer(rig.stream(WIDE), GROUP, "returned")
    rig.client.zadd(rig.keys.leases, {"returned": 0})
    assert clean(rig) == 0
    assert consumers(rig) == {"returned"}
    assert leases(rig) == {"returned": 0}


def test_tombstones_stay_a_while_and_go(rig: Rig) -> None:
    now = rig.now_ms()
    rig.client.zadd(
        rig.keys.leases, {"fresh": -now, "day": -(now - 23 * 1000), "old": -(now - 25 * 1000)}
    )
    clean(rig, age_ms=1000)
    assert leases(rig).keys() == {"fresh", "day"}


def test_ended_runs_are_forgotten_after_their_retention(rig: Rig) -> None:
    now = rig.now_ms()
    rig.client.zadd(rig.keys.ended, {"old": now - HOUR_MS - 1, "new": now})
    clean(rig)
    assert rig.client.zrange(rig.keys.ended, 0, -1) == [b"new"]
