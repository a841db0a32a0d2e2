"""beat.lua: a lease is extended, locks with it, and what there is to reclaim is told."""

from __future__ import annotations

from tests.scripts.rig import Rig

LEASE_MS = 3_000


def beat(rig: Rig, consumer: str = "me", *locks: tuple[str, str]) -> list[int]:
    keys = [rig.keys.leases, rig.keys.workers, *(rig.keys.lock(run_id) for run_id, _ in locks)]
    args = [consumer, LEASE_MS, b"about me", *(token for _, token in locks)]
    return rig.script("beat", keys, args)


def test_a_beat_writes_the_lease_and_what_the_worker_tells_of_itself(rig: Rig) -> None:
    answer, now, *left = beat(rig)
    assert (answer, left) == (1, [0, 0, 0])
    assert abs(now - rig.now_ms()) < 1_000
    assert rig.client.zscore(rig.keys.leases, "me") == now + LEASE_MS
    assert rig.client.hgetall(rig.keys.workers) == {b"me": b"about me"}


def test_a_lease_that_ran_out_comes_back_to_life(rig: Rig) -> None:
    rig.client.zadd(rig.keys.leases, {"me": rig.now_ms() - 1})
    assert beat(rig)[0] == 1
    assert rig.client.zscore(rig.keys.leases, "me") > rig.now_ms()


def test_a_buried_worker_is_told_and_stays_buried(rig: Rig) -> None:
    rig.client.zadd(rig.keys.leases, {"me": -rig.now_ms()})
    assert beat(rig) == [0]
    assert rig.client.zscore(rig.keys.leases, "me") < 0
    assert not rig.client.exists(rig.keys.workers)


def test_a_beat_tells_what_there_is_to_reclaim(rig: Rig) -> None:
    now = rig.now_ms()
    rig.client.zadd(
        rig.keys.leases, {"late": now - 1, "later": now - 2, "alive": now + 60_000, "dead": -now}
    )
    assert beat(rig)[2:] == [2, 1, 0]
    rig.client.zadd(rig.keys.leases, {"returned": 0})
    assert beat(rig)[2:] == [2, 1, 1]


def test_a_beat_extends_the_locks_that_are_still_held(rig: Rig) -> None:
    for run_id, holder in (("mine", "token"), ("lost", "other")):
        rig.client.set(rig.keys.lock(run_id), holder, px=1_000)
    beat(rig, "me", ("mine", "token"), ("lost", "token"), ("gone", "token"))
    assert rig.client.pttl(rig.keys.lock("mine")) > 2_000
    assert rig.client.pttl(rig.keys.lock("lost")) <= 1_000
    assert not rig.client.exists(rig.keys.lock("gone"))


def test_a_lock_of_a_wrong_type_does_not_cost_the_lease(rig: Rig) -> None:
    rig.client.rpush(rig.keys.lock("broken"), "no token")
    rig.client.set(rig.keys.lock("mine"), "token", px=1_000)
    assert beat(rig, "me", ("broken", "token"), ("mine", "token"))[0] == 1
    assert rig.client.pttl(rig.keys.lock("mine")) > 2_000
