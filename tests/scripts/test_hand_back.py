"""hand_back.lua: a worker that leaves gives everything back, uncounted, and nothing is lost."""

from __future__ import annotations

from stepfleet.storage.keys import GROUP
from tests.scripts.rig import NARROW, WIDE, Rig, emit, settle


def hand_back(rig: Rig, *rows: tuple[int, str], what: str = "leaves") -> int:
    keys = [rig.keys.leases, rig.keys.workers, rig.stream(WIDE), rig.stream(NARROW)]
    return rig.script(
        "hand_back", keys, [GROUP, "me", what, *(part for row in rows for part in row)]
    )


def arrive(rig: Rig, consumer: str = "me") -> None:
    rig.client.zadd(rig.keys.leases, {consumer: rig.now_ms() + 60_000})
    rig.client.hset(rig.keys.workers, consumer, "about")


def consumers(rig: Rig) -> set[bytes]:
    return {row["name"] for row in rig.client.xinfo_consumers(rig.stream(WIDE), GROUP)}


def test_deliveries_go_to_everybody_and_keep_their_count(rig: Rig) -> None:
    arrive(rig)
    rig.start(emit(WIDE, "a"), emit(NARROW, "b"))
    one, two = rig.take(WIDE), rig.take(NARROW)
    rig.claim(two, "me")
    assert hand_back(rig, (1, one.entry), (2, two.entry)) == 2
    assert rig.pending(WIDE, "returned") == {one.entry: 1}
    assert rig.pending(NARROW, "returned") == {two.entry: 2}
    assert rig.client.zrange(rig.keys.leases, 0, -1, withscores=True) == [(b"returned", 0.0)]
    assert not rig.client.exists(rig.keys.workers)
    assert consumers(rig) == {b"returned"}


def test_a_worker_may_give_a_delivery_back_and_stay(rig: Rig) -> None:
    arrive(rig)
    rig.start(emit(WIDE, "a", "b"))
    late, runs = rig.read(WIDE)
    assert hand_back(rig, (1, late.entry), what="stays") == 1
    assert rig.pending(WIDE, "returned") == {late.entry: 1}
    assert rig.pending(WIDE, "me") == {runs.entry: 1}
    assert rig.client.zscore(rig.keys.leases, "me") > rig.now_ms()
    assert rig.client.zscore(rig.keys.leases, "returned") == 0.0
    assert rig.client.hexists(rig.keys.workers, "me")


def test_a_worker_that_holds_nothing_just_leaves(rig: Rig) -> None:
    arrive(rig)
    rig.start(emit(WIDE, "a"))
    rig.apply(settle(rig.take(WIDE)))
    assert hand_back(rig) == 0
    assert not rig.client.exists(rig.keys.leases, rig.keys.workers)
    assert consumers(rig) == set()


def test_what_others_took_or_what_was_settled_is_not_given_back(rig: Rig) -> None:
    arrive(rig)
    rig.start(emit(WIDE, "a", "b"))
    taken, settled = rig.read(WIDE)
    rig.claim(taken, "other")
    rig.apply(settle(settled))
    assert hand_back(rig, (1, taken.entry), (1, settled.entry)) == 0
    assert rig.pending(WIDE, "other") == {taken.entry: 2}
    assert rig.client.zscore(rig.keys.leases, "returned") is None


def test_a_worker_with_rows_that_it_never_saw_leaves_its_lease_to_run_out(rig: Rig) -> None:
    arrive(rig)
    rig.start(emit(WIDE, "a", "b"))
    seen, unseen = rig.read(WIDE)
    assert hand_back(rig, (1, seen.entry)) == 1
    assert rig.pending(WIDE, "me") == {unseen.entry: 1}, "the consumer stays, or the row were lost"
    assert rig.client.zscore(rig.keys.leases, "me") is not None
