"""audit.lua: what was delivered to me and never arrived is mine again, uncounted."""

from __future__ import annotations

from typing import Any

from stepfleet.storage.keys import GROUP
from tests.scripts.rig import NARROW, WIDE, Rig, emit, settle


def audit(rig: Rig, *rows: tuple[int, str], me: str = "me") -> list[Any]:
    keys = [rig.stream(WIDE), rig.stream(NARROW)]
    return rig.script("audit", keys, [GROUP, me, *(part for row in rows for part in row)])


def test_a_delivery_that_was_never_seen_comes_again_with_its_content(rig: Rig) -> None:
    rig.start(emit(WIDE, "a"), emit(NARROW, "b"))
    seen, lost = rig.take(WIDE), rig.take(NARROW)
    found = audit(rig, (2, lost.entry))
    fields = [b"r", lost.run_id.encode(), b"i", lost.id.encode(), b"d", b"record of b"]
    assert found == [[2, lost.entry.encode(), 1, fields, b"me"]]
    assert rig.pending(NARROW, "me") == {lost.entry: 1}
    assert rig.pending(WIDE, "me") == {seen.entry: 1}


def test_an_audit_never_counts_as_a_loss(rig: Rig) -> None:
    rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    rig.claim(entry, "me")
    for _ in range(3):
        assert [row[2] for row in audit(rig, (1, entry.entry))] == [2]


def test_what_is_not_mine_any_more_stays_with_its_owner(rig: Rig) -> None:
    rig.start(emit(WIDE, "a", "b"))
    taken, settled = rig.read(WIDE)
    rig.claim(taken, "other")
    rig.apply(settle(settled))
    assert audit(rig, (1, taken.entry), (1, settled.entry)) == []
    assert rig.pending(WIDE, "other") == {taken.entry: 2}


def test_a_row_without_an_entry_is_removed(rig: Rig) -> None:
    rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    rig.client.xdel(rig.stream(WIDE), entry.entry)
    assert audit(rig, (1, entry.entry)) == []
    assert rig.pending(WIDE, "me") == {}
