"""Scopes: what is pending in them is counted, and what they have to emit is emitted once."""

from __future__ import annotations

import random

import pytest

from stepfleet.core.commit import (
    Commit,
    Consume,
    ControlFence,
    Gather,
    Open,
    Stage,
    Staged,
    Tally,
    Unstage,
    Unwait,
    Wait,
    Within,
    Word,
)
from tests.scripts.rig import NARROW, SYS, WIDE, Entry, Rig, Route, did, effect, emit, settle

#: Two steps that collect, one of them with a single slot.
JOIN = Route("Flow", "List", "join", 4, 0, ("List",))
FIRST = Route("Flow", "List", "first", 1, 0, ("List",))


def opened(*inside: Word, scope: str = "s", releases: tuple[Route, ...] = (JOIN,)) -> list[Word]:
    """Returns the words that open a scope with something inside."""
    told = tuple((route, did(f"{route.step} {scope}"), b"release") for route in releases)
    return [Open(scope, told), Within(), *inside, Tally(scope, 0, releases)]


def leave(*inside: Word, scope: str = "s", releases: tuple[Route, ...] = (JOIN,)) -> list[Word]:
    """Returns the words of a delivery that is done, with what follows from it inside the scope."""
    return [Within(), *inside, Tally(scope, -1, releases)]


def gather(
    *names: object, scope: str = "s", route: Route = JOIN, quota: int = 0, also: bool = False
) -> Gather:
    events = tuple((did(name), f"record of {name}".encode()) for name in names)
    return Gather(scope, route, "A", events, quota, also=also)


def gathered(rig: Rig, run_id: str, route: Route = JOIN, scope: str = "s") -> list[str]:
    rows = rig.client.lrange(rig.keys.gathered(run_id, scope, route.step), 0, -1)
    return [row[:22].decode().rstrip(".") for row in rows]


def pending_in(rig: Rig, run_id: str, scope: str = "s") -> int | None:
    count = rig.client.hget(rig.keys.scope(run_id, scope), "open")
    return None if count is None else int(count)


def members(rig: Rig, *names: object, releases: tuple[Route, ...] = (JOIN,)) -> list[Entry]:
    """Starts a run whose first delivery opens a scope with these members, and reads them."""
    rig.stream(SYS)
    rig.start(emit(NARROW, "first"))
    rig.apply(settle(rig.take(NARROW), *opened(emit(WIDE, *names), releases=releases)))
    return rig.read(WIDE)


def test_a_scope_releases_once_when_its_last_member_is_done(rig: Rig) -> None:
    a, b, c = members(rig, *"abc")
    for entry in (b, c):
        rig.apply(settle(entry, *leave(gather(entry.id.rstrip(".")))))
        assert rig.queued(JOIN) == []
    rig.apply(settle(a, *leave(gather("a"))))
    assert rig.queued(JOIN) == ["join s"]
    assert gathered(rig, a.run_id) == ["b", "c", "a"]
    assert pending_in(rig, a.run_id) is None


def test_applying_a_commit_again_counts_nothing_twice(rig: Rig) -> None:
    a, b = members(rig, *"ab")
    commit = settle(a, *leave(gather("a")))
    assert rig.words(commit, commit) == ["applied", "gone"]
    assert pending_in(rig, a.run_id) == 1
    last = settle(b, *leave(gather("b")))
    assert rig.words(last, last, commit) == ["applied", "gone", "gone"]
    assert rig.queued(JOIN) == ["join s"]
    assert gathered(rig, a.run_id) == ["a", "b"]


def test_an_owner_that_lost_its_delivery_moves_no_scope(rig: Rig) -> None:
    (a,) = members(rig, "a")
    rig.claim(a, "other")
    before = rig.everything()
    assert rig.words(settle(a, *leave(gather("a")))) == ["gone"]
    assert rig.everything() == before
    assert rig.commit(settle(a, *leave(gather("a"))), "other").word == "applied"
    assert rig.queued(JOIN) == ["join s"]


def test_what_follows_from_a_member_keeps_the_scope_open(rig: Rig) -> None:
    (a,) = members(rig, "a")
    rig.apply(settle(a, *leave(emit(WIDE, "b", "c"))))
    assert pending_in(rig, a.run_id) == 2
    b, c = rig.read(WIDE)
    assert rig.words(settle(b, *leave()), settle(c, *leave())) == ["applied"] * 2
    assert (rig.queued(JOIN), gathered(rig, a.run_id)) == (["join s"], [])


def test_what_is_emitted_before_does_not_belong_to_the_scope(rig: Rig) -> None:
    (a,) = members(rig, "a")
    rig.apply(settle(a, emit(WIDE, "sent"), *leave()))
    assert rig.queued(WIDE) == ["sent"]
    assert rig.queued(JOIN) == ["join s"]


def test_an_empty_scope_ends_at_once(rig: Rig) -> None:
    members(rig)
    assert rig.queued(JOIN) == ["join s"]


def test_members_that_are_gathered_at_once_need_no_delivery(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, "first"))
    rig.apply(settle(rig.take(NARROW), *opened(gather(*"abc"))))
    assert (rig.queued(JOIN), gathered(rig, run_id)) == (["join s"], ["a", "b", "c"])


def test_every_stream_of_a_scope_is_told(rig: Rig) -> None:
    (a,) = members(rig, "a", releases=(JOIN, FIRST))
    rig.apply(settle(a, *leave(gather("a"), releases=(JOIN, FIRST))))
    assert (rig.queued(JOIN), rig.queued(FIRST)) == (["join s"], ["first s"])
    assert (gathered(rig, a.run_id), gathered(rig, a.run_id, FIRST)) == (["a"], [])


def test_a_quota_releases_at_its_last_event_and_drops_the_others(rig: Rig) -> None:
    a, b, c = members(rig, *"abc", releases=(FIRST,))
    for entry in (a, b, c):
        taken = gather(entry.id.rstrip("."), route=FIRST, quota=2)
        rig.apply(settle(entry, *leave(taken, releases=(FIRST,))))
        assert rig.queued(FIRST) == ([] if entry is a else ["first s"])
    assert gathered(rig, a.run_id, FIRST) == ["a", "b"]
    assert pending_in(rig, a.run_id) is None


def test_a_quota_that_is_not_reached_releases_with_fewer(rig: Rig) -> None:
    (a,) = members(rig, "a", releases=(FIRST,))
    rig.apply(settle(a, *leave(gather("a", route=FIRST, quota=2), releases=(FIRST,))))
    assert (rig.queued(FIRST), gathered(rig, a.run_id, FIRST)) == (["first s"], ["a"])


def test_a_quota_within_one_commit_takes_no_more(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, "first"))
    taken = gather(*"abc", route=FIRST, quota=2)
    late = gather(*"de", route=FIRST, quota=2)
    rig.apply(settle(rig.take(NARROW), *opened(taken, late, releases=(FIRST,))))
    assert (rig.queued(FIRST), gathered(rig, run_id, FIRST)) == (["first s"], ["a", "b"])


def test_what_was_collected_goes_with_the_delivery_that_takes_it(rig: Rig) -> None:
    (a,) = members(rig, "a")
    rig.apply(settle(a, *leave(gather("a"))))
    further = rig.client.smembers(rig.keys.further(a.run_id))
    assert rig.keys.gathered(a.run_id, "s", "join").encode() in further
    rig.apply(settle(rig.take(JOIN), Consume("s", JOIN)))
    assert not [key for key in rig.keys_of(a.run_id) if ":scope:" in key]
    assert not [key for key in rig.client.smembers(rig.keys.further(a.run_id)) if b":scope:" in key]


def test_a_release_waits_for_a_slot_like_any_delivery(rig: Rig) -> None:
    run_id = rig.start(emit(FIRST, "busy"), emit(NARROW, "n"))
    rig.apply(settle(rig.take(NARROW), *opened(releases=(FIRST,))))
    assert (rig.queued(FIRST), rig.held(run_id, "first")) == (["busy"], ["first s"])
    rig.apply(settle(rig.take(FIRST)))
    assert rig.queued(FIRST) == ["first s"]


def test_a_scope_inside_a_scope_is_counted_there_by_what_it_will_release(rig: Rig) -> None:
    a, b = members(rig, *"ab")
    inner = opened(emit(WIDE, "x"), scope="t", releases=(FIRST,))
    rig.apply(settle(a, *inner, Tally("s", 0, (JOIN,))))
    assert (pending_in(rig, a.run_id), pending_in(rig, a.run_id, "t")) == (2, 1)
    rig.apply(settle(b, *leave()))
    x = rig.take(WIDE)
    rig.apply(settle(x, *leave(scope="t", releases=(FIRST,))))
    assert (rig.queued(FIRST), rig.queued(JOIN), pending_in(rig, a.run_id)) == (["first t"], [], 1)
    rig.apply(settle(rig.take(FIRST), Consume("t", FIRST), *leave(gather("part"))))
    assert (rig.queued(JOIN), gathered(rig, a.run_id)) == (["join s"], ["part"])


def test_a_scope_inside_that_nobody_collects_leaves_it(rig: Rig) -> None:
    (a,) = members(rig, "a")
    inner = opened(emit(WIDE, "x"), scope="t", releases=())
    rig.apply(settle(a, *inner, Tally("s", -1, (JOIN,))))
    assert rig.queued(JOIN) == ["join s"]
    rig.apply(settle(rig.take(WIDE), *leave(scope="t", releases=())))
    assert pending_in(rig, a.run_id, "t") is None


def test_an_awaited_event_keeps_the_scope_open_on_its_way_to_the_waiters(rig: Rig) -> None:
    (a,) = members(rig, "a")
    rig.apply(Commit(a.run_id, ControlFence(), [Wait("w", "A", b"")]))
    rig.apply(settle(a, *leave(gather("e"), gather("e", route=FIRST, also=True))))
    assert (rig.queued(SYS), gathered(rig, a.run_id), pending_in(rig, a.run_id)) == (["e"], [], 1)
    entry = rig.take(SYS)
    rig.apply(settle(entry, Unwait("w", "A"), *leave(gather("e"))))
    assert (rig.queued(JOIN), gathered(rig, a.run_id)) == (["join s"], ["e"])


def test_staged_members_are_counted(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "first"))
    first = rig.take(WIDE)
    staged = tuple((did(f"m{n}"), b"member") for n in range(5))
    rig.apply(effect(first, Stage("d", NARROW, True, staged)))
    words = opened(Unstage("d", NARROW, 5))
    rig.apply(settle(first, *words, expects=[Staged("d", NARROW, 5)]))
    assert pending_in(rig, run_id) == 5
    while entries := rig.read(NARROW):
        for entry in entries:
            assert rig.queued(JOIN) == []
            rig.apply(settle(entry, *leave(gather(entry.id.rstrip(".")))))
    assert (rig.queued(JOIN), len(gathered(rig, run_id))) == (["join s"], 5)


def test_a_key_of_a_wrong_type_is_found_before_anything_is_written(rig: Rig) -> None:
    a, b, c = members(rig, *"abc")
    damaged = [rig.keys.scope(a.run_id, "s"), rig.keys.gathered(a.run_id, "s", "join")]
    for key, entry in zip(damaged, (a, b), strict=True):
        kept = rig.client.dump(key)
        rig.client.set(key, "no hash and no list")
        before = rig.everything()
        assert rig.words(settle(entry, *leave(gather("x")))) == ["broken"]
        assert rig.everything() == before
        rig.client.delete(key)
        if kept:
            rig.client.restore(key, 0, kept)
    assert rig.words(settle(c, *leave(gather("c")))) == ["applied"]


def test_a_scope_that_is_not_there_is_not_made_up(rig: Rig) -> None:
    (a,) = members(rig, "a")
    rig.client.delete(rig.keys.scope(a.run_id, "s"))
    rig.apply(settle(a, *leave(gather("a"))))
    assert not rig.client.exists(rig.keys.scope(a.run_id, "s"))
    assert rig.queued(JOIN) == []


def test_the_keys_of_a_scope_go_with_the_run(rig: Rig) -> None:
    a, _ = members(rig, *"ab")
    rig.apply(settle(a, *leave(gather("a"))))
    further = {key.decode() for key in rig.client.smembers(rig.keys.further(a.run_id))}
    assert {key for key in rig.keys_of(a.run_id) if ":scope:" in key} <= further


@pytest.mark.parametrize("seed", range(5))
def test_members_that_end_in_any_order_on_several_workers_release_once(rig: Rig, seed: int) -> None:
    """Every commit is sent twice, some by an owner that lost the delivery meanwhile."""
    chance = random.Random(seed)
    entries = members(rig, *(f"m{n}" for n in range(6)), releases=(JOIN, FIRST))
    run_id, born, expected = entries[0].run_id, 0, set[str]()
    while entries:
        entry = entries.pop(chance.randrange(len(entries)))
        inside: list[Word] = []
        for _ in range(chance.randrange(3) if born < 20 else 0):
            born += 1
            if chance.random() < 0.5:
                inside.append(emit(WIDE, f"n{born}"))
            else:
                inside.append(gather(f"g{born}"))
                inside.append(gather(f"g{born}", route=FIRST, quota=2))
                expected.add(f"g{born}")
        commit = settle(entry, *leave(*inside, releases=(JOIN, FIRST)))
        if chance.random() < 0.3:
            rig.claim(entry, "other")
            assert rig.words(commit) == ["gone"]
            assert rig.words(commit, commit, consumer="other") == ["applied", "gone"]
        else:
            assert rig.words(commit, commit) == ["applied", "gone"]
        assert len(rig.queued(JOIN)) == (0 if pending_in(rig, run_id) else 1)
        entries += rig.read(WIDE)
    assert (rig.queued(JOIN), rig.queued(FIRST)) == (["join s"], ["first s"])
    assert set(gathered(rig, run_id)) == expected
    assert len(gathered(rig, run_id, FIRST)) == min(2, len(expected))
    assert pending_in(rig, run_id) is None
