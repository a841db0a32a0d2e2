"""reclaim.lua: only the dead lose their deliveries, and only they are counted."""

from __future__ import annotations

from typing import NamedTuple

from stepfleet.storage.keys import GROUP
from tests.scripts.rig import NARROW, WIDE, Entry, Rig, Route, emit

LEASE_MS = 3_000


class Taken(NamedTuple):
    stream: int
    entry: str
    deliveries: int
    owner: str


def reclaim(
    rig: Rig,
    *routes: Route,
    me: str = "me",
    most: int = 100,
    lost_once: bool = True,
    suspect: bool = True,
    until_ms: int = 1_000,
) -> list[Taken]:
    keys = [rig.keys.leases, *(rig.stream(route) for route in routes or (WIDE,))]
    args = [GROUP, me, most, int(lost_once), int(suspect), rig.now_ms() + until_ms, LEASE_MS]
    rows = rig.script("reclaim", keys, args)
    return [
        Taken(index, entry.decode(), deliveries, owner.decode())
        for index, entry, deliveries, _, owner in rows
    ]


def lease(rig: Rig, consumer: str, ends_in_ms: int) -> None:
    rig.client.zadd(rig.keys.leases, {consumer: rig.now_ms() + ends_in_ms})


def own(rig: Rig, consumer: str, *names: object) -> list[Entry]:
    rig.start(emit(WIDE, *names))
    return rig.read(WIDE, consumer)


def give_back(rig: Rig, entry: Entry) -> None:
    rig.client.xclaim(rig.stream(entry.route), GROUP, "returned", 0, [entry.entry], justid=True)


def test_a_worker_with_a_lease_keeps_its_deliveries(rig: Rig) -> None:
    (entry,) = own(rig, "alive", "a")
    lease(rig, "alive", 60_000)
    assert reclaim(rig) == []
    assert rig.pending(WIDE, "alive") == {entry.entry: 1}


def test_a_worker_whose_lease_ran_out_is_buried_and_its_deliveries_are_counted(rig: Rig) -> None:
    (entry,) = own(rig, "dead", "a")
    lease(rig, "dead", -1)
    assert reclaim(rig) == [Taken(1, entry.entry, 2, "dead")]
    assert rig.pending(WIDE, "me") == {entry.entry: 2}
    assert rig.client.zscore(rig.keys.leases, "dead") < 0


def test_what_is_reclaimed_comes_with_its_content(rig: Rig) -> None:
    (entry,) = own(rig, "dead", "a")
    lease(rig, "dead", -1)
    keys = [rig.keys.leases, rig.stream(WIDE)]
    (row,) = rig.script("reclaim", keys, [GROUP, "me", 10, 1, 1, rig.now_ms() + 1_000, LEASE_MS])
    assert row[3] == [b"r", entry.run_id.encode(), b"i", entry.id.encode(), b"d", b"record of a"]


def test_a_worker_without_a_full_lease_of_its_own_buries_nobody(rig: Rig) -> None:
    (entry,) = own(rig, "dead", "a")
    lease(rig, "dead", -1)
    assert reclaim(rig, until_ms=-1_000) == []
    assert rig.pending(WIDE, "dead") == {entry.entry: 1}
    assert rig.client.zscore(rig.keys.leases, "dead") > 0
    rig.client.zadd(rig.keys.leases, {"dead": -rig.now_ms()})
    assert reclaim(rig, until_ms=-1_000) == [], "not even from the buried"


def test_a_lease_that_redis_lost_gets_one_lease_of_grace(rig: Rig) -> None:
    (entry,) = own(rig, "forgotten", "a")
    assert reclaim(rig) == []
    assert 0 < rig.client.zscore(rig.keys.leases, "forgotten") - rig.now_ms() <= LEASE_MS
    lease(rig, "forgotten", -1)
    assert reclaim(rig) == [Taken(1, entry.entry, 2, "forgotten")]


def test_my_own_deliveries_are_left_alone_whatever_my_lease_says(rig: Rig) -> None:
    own(rig, "me", "a")
    lease(rig, "me", -1)
    assert reclaim(rig) == []


def test_what_was_handed_back_goes_to_anybody_at_once_and_keeps_its_count(rig: Rig) -> None:
    (entry,) = own(rig, "left", "a")
    give_back(rig, entry)
    rig.client.zadd(rig.keys.leases, {"returned": 0})
    assert reclaim(rig, until_ms=-1_000) == [Taken(1, entry.entry, 1, "returned")]
    assert rig.pending(WIDE, "me") == {entry.entry: 1}
    assert rig.client.zscore(rig.keys.leases, "returned") == 0


def test_no_more_is_taken_than_there_is_room_for(rig: Rig) -> None:
    own(rig, "dead", *range(5))
    lease(rig, "dead", -1)
    assert len(reclaim(rig, most=2)) == 2
    assert len(rig.pending(WIDE, "dead")) == 3
    assert len(reclaim(rig, me="other", most=100)) == 3, "the buried stay reclaimable"


def test_the_oldest_go_first_and_over_all_streams(rig: Rig) -> None:
    rig.start(emit(WIDE, "a", "b"), emit(NARROW, "c"))
    wide, narrow = rig.read(WIDE, "dead"), rig.read(NARROW, "dead")
    lease(rig, "dead", -1)
    taken = reclaim(rig, WIDE, NARROW)
    assert [(row.stream, row.entry) for row in taken] == [
        (1, wide[0].entry),
        (1, wide[1].entry),
        (2, narrow[0].entry),
    ]


def test_a_suspect_is_taken_when_no_other_that_was_lost_is_left_and_without_another(
    rig: Rig,
) -> None:
    suspect_1, suspect_2, innocent = own(rig, "dead", *"abc")
    for entry in (suspect_1, suspect_2):
        rig.claim(entry, "dead")
    lease(rig, "dead", -1)
    assert reclaim(rig) == [Taken(1, innocent.entry, 2, "dead")]
    assert reclaim(rig, suspect=False) == []
    assert reclaim(rig) == [Taken(1, suspect_1.entry, 3, "dead")]
    assert reclaim(rig) == [Taken(1, suspect_2.entry, 3, "dead")]


def test_what_was_lost_once_is_left_to_others_where_a_suspect_is(rig: Rig) -> None:
    given, lost = own(rig, "dead", *"ab")
    give_back(rig, given)
    rig.client.zadd(rig.keys.leases, {"returned": 0})
    lease(rig, "dead", -1)
    assert reclaim(rig, lost_once=False, suspect=False) == [Taken(1, given.entry, 1, "returned")]
    assert reclaim(rig, suspect=False) == [Taken(1, lost.entry, 2, "dead")]


def test_no_suspect_is_taken_beyond_the_places_that_others_have_filled(rig: Rig) -> None:
    suspect, given = own(rig, "dead", *"ab")
    rig.claim(suspect, "dead")
    give_back(rig, given)
    rig.client.zadd(rig.keys.leases, {"returned": 0})
    lease(rig, "dead", -1)
    assert [row.entry for row in reclaim(rig, most=1)] == [given.entry]
    assert [row.entry for row in reclaim(rig, most=1)] == [suspect.entry]


def test_what_was_lost_and_handed_back_still_counts_as_lost(rig: Rig) -> None:
    suspect, lost_once = own(rig, "left", *"ab")
    for entry in (suspect, suspect, lost_once):
        rig.claim(entry, "left")
    for entry in (suspect, lost_once):
        give_back(rig, entry)
    assert [row.deliveries for row in reclaim(rig)] == [2]
    assert reclaim(rig, suspect=False) == []
    assert [row.deliveries for row in reclaim(rig, lost_once=False)] == [3]


def test_a_row_without_an_entry_is_removed(rig: Rig) -> None:
    entry, other = own(rig, "dead", "a", "b")
    lease(rig, "dead", -1)
    rig.client.xdel(rig.stream(WIDE), entry.entry)
    assert [row.entry for row in reclaim(rig)] == [other.entry]
    assert rig.pending(WIDE, "dead") == {}
    assert rig.pending(WIDE, "me") == {other.entry: 2}


def test_a_stream_that_is_not_there_does_not_hinder_the_others(rig: Rig) -> None:
    (entry,) = own(rig, "dead", "a")
    lease(rig, "dead", -1)
    keys = [rig.keys.leases, "nothing", rig.stream(WIDE)]
    rows = rig.script("reclaim", keys, [GROUP, "me", 10, 1, 1, rig.now_ms() + 1_000, LEASE_MS])
    assert [row[1].decode() for row in rows] == [entry.entry]


def test_a_counter_rises_by_one_at_each_death(rig: Rig) -> None:
    (entry,) = own(rig, "w1", "a")
    for owner, following, count in (("w1", "w2", 2), ("w2", "w3", 3), ("w3", "w4", 4)):
        lease(rig, owner, -1)
        assert reclaim(rig, me=following) == [Taken(1, entry.entry, count, owner)]


def test_a_clock_that_is_beyond_what_the_caller_expects_buries_nobody(rig: Rig) -> None:
    (entry,) = own(rig, "alive", "a")
    (given,) = own(rig, "other", "b")
    give_back(rig, given)
    # Its lease has ten seconds left, and then the clock jumps over them.
    lease(rig, "alive", 10_000 - 60_000)
    assert reclaim(rig, until_ms=1_500 - 60_000) == [Taken(1, given.entry, 1, "returned")]
    assert rig.pending(WIDE, "alive") == {entry.entry: 1}
    assert rig.client.zscore(rig.keys.leases, "alive") > 0
