"""A commit that goes alone may bring the next delivery with its answer."""

from __future__ import annotations

from typing import Any

from stepfleet.core.commit import Commit, Route
from stepfleet.storage.packing import Packing
from stepfleet.storage.words import write
from tests.scripts.rig import NARROW, WIDE, Rig, cancel, emit, settle


def taking(rig: Rig, commit: Commit, route: Route, consumer: str = "me") -> tuple[str, list[Any]]:
    """Applies a commit, and returns its word and what came behind it."""
    packing = Packing(rig.keys, consumer, rig.bounds)
    write(packing, commit)
    packing.taken_from = packing.stream(route)
    answer, *taken = rig.script("commit", *rig.arguments(packing))
    return answer.decode(), taken


def names(taken: list[Any]) -> list[str]:
    """Returns the names of deliveries that came with an answer."""
    return [fields[fields.index(b"i") + 1].decode().rstrip(".") for _, fields in taken]


def test_what_a_commit_emits_comes_with_its_answer_and_is_as_if_it_had_been_read(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    first = rig.take(WIDE)
    word, taken = taking(rig, settle(first, emit(WIDE, "b")), WIDE)
    assert (word, names(taken)) == ("applied", ["b"])
    assert rig.pending(WIDE, "me") == {taken[0][0].decode(): 1}
    assert rig.open(run_id) == {"b": "stream"}
    assert rig.read(WIDE) == []


def test_only_one_comes_and_the_oldest_first(rig: Rig) -> None:
    rig.start(emit(WIDE, "a", "b", "c"))
    first = rig.take(WIDE)
    word, taken = taking(rig, settle(first, emit(WIDE, "d")), WIDE)
    assert (word, names(taken)) == ("applied", ["b"])
    assert [entry.id.rstrip(".") for entry in rig.read(WIDE, "other")] == ["c", "d"]


def test_nothing_comes_where_the_event_is_held(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, "a", "b"), emit(WIDE, "w"))
    rig.read(NARROW)
    worked = rig.take(WIDE)
    word, taken = taking(rig, settle(worked, emit(NARROW, "c")), NARROW)
    assert (word, taken) == ("applied", [])
    assert rig.held(run_id, "narrow") == ["c"]


def test_a_commit_that_is_not_applied_takes_nothing(rig: Rig) -> None:
    """Sent again after a lost answer it must not take a second delivery."""
    run_id = rig.start(emit(WIDE, "a", "b", "c"))
    first, second = rig.take(WIDE), rig.take(WIDE)
    settled = settle(first, emit(WIDE, "d"))
    assert taking(rig, settled, WIDE)[0] == "applied"
    assert taking(rig, settled, WIDE) == ("gone", [])
    assert taking(rig, settle(second), WIDE, consumer="other") == ("gone", [])
    rig.apply(cancel(run_id))
    assert taking(rig, settle(second), WIDE)[1] == []


def test_a_stream_without_its_group_costs_no_answer(rig: Rig) -> None:
    rig.start(emit(WIDE, "a"))
    first = rig.take(WIDE)
    nowhere = Route("flow", "Nowhere", "nobody")
    assert taking(rig, settle(first), nowhere) == ("applied", [])
