"""How many deliveries a run had in all: each counted once, and none beyond the limit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stepfleet.core.commit import Answer, Commit, Emit, OperationFence, Stage, Staged, Unstage
from tests.scripts.rig import NARROW, WIDE, Rig, did, effect, emit, end, settle


@pytest.fixture(name="small")
def _small(rig: Rig) -> Rig:
    rig.bounds = replace(rig.bounds, deliveries_limit=5)
    return rig


FULL = Answer("full", detail="deliveries")


def test_every_way_to_add_deliveries_counts_them_once(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, "a", "b", "c"))
    assert rig.run(run_id)["deliveries"] == "3"
    first, second = rig.read(NARROW)
    early = effect(first, emit(WIDE, "d", "e", guard=first.id))
    assert rig.words(early, early) == ["applied", "applied"]
    assert rig.run(run_id)["deliveries"] == "5"
    again = settle(first, emit(WIDE, "d", "f", guard=first.id), emit(WIDE, "g"))
    assert rig.words(again, again) == ["applied", "gone"]
    assert rig.run(run_id)["deliveries"] == "7"
    sent = Commit(run_id, OperationFence("op"), [emit(WIDE, "h")])
    assert rig.words(sent, sent) == ["applied", "applied"]
    assert rig.run(run_id)["deliveries"] == "8"
    pairs = tuple((did(name), b"record") for name in ("i", "j"))
    rig.apply(effect(second, Stage(second.id, WIDE, True, pairs)))
    rig.apply(settle(second, Unstage(second.id, WIDE, 2), expects=[Staged(second.id, WIDE, 2)]))
    assert rig.run(run_id)["deliveries"] == "10"


def test_a_delivery_that_is_emitted_again_is_no_further_one(small: Rig) -> None:
    run_id = small.start(emit(NARROW, *range(5)))
    for _ in range(3):
        entry = small.take(NARROW)
        small.apply(settle(entry, Emit(NARROW, ((entry.id, b"next attempt"),), awaitable=False)))
    assert small.run(run_id)["deliveries"] == "5"


@pytest.mark.parametrize("value", ["x", "-0", "007"])
@pytest.mark.parametrize("counter", ["deliveries", "lent", "s:narrow"])
def test_a_counter_that_is_no_number_is_found_before_the_end_is_written(
    rig: Rig, counter: str, value: str
) -> None:
    run_id = rig.start(emit(NARROW, "a"))
    entry = rig.take(NARROW)
    rig.client.hset(rig.keys.run(run_id), counter, value)
    before = rig.everything()
    assert rig.commit(settle(entry, end())).word == "broken"
    assert rig.everything() == before
    assert list(rig.pending(NARROW, "me")) == [entry.entry]


@pytest.mark.parametrize("value", ["x", "-0", "007"])
@pytest.mark.parametrize("names", [["b"], ["b", "c"]], ids=["plain", "by the interpreter"])
def test_the_counter_of_the_next_step_is_looked_at_before_it_gets_its_deliveries(
    rig: Rig, names: list[str], value: str
) -> None:
    run_id = rig.start(emit(NARROW, "a"))
    entry = rig.take(NARROW)
    rig.client.hset(rig.keys.run(run_id), "s:wide", value)
    before = rig.everything()
    assert rig.commit(settle(entry, emit(WIDE, *names))).word == "broken"
    assert rig.everything() == before


def test_a_step_that_adds_one_more_than_the_limit_is_refused_whole(small: Rig) -> None:
    run_id = small.start(emit(WIDE, "a"))
    entry = small.take(WIDE)
    before = small.everything()
    assert small.commit(settle(entry, emit(WIDE, *range(5)))) == FULL
    assert small.everything() == before
    small.apply(settle(entry, emit(WIDE, *range(4))))
    assert small.run(run_id)["deliveries"] == "5"


def test_a_run_at_its_limit_goes_on_with_what_it_has_and_ends(small: Rig) -> None:
    run_id = small.start(emit(WIDE, *range(5)))
    first, second, third, *_ = small.read(WIDE)
    small.apply(settle(first))
    sent = Commit(run_id, OperationFence("op"), [emit(WIDE, "sent")])
    assert small.commit(sent) == FULL
    # What went out while a step ran is counted; the step itself hears that it was too much.
    small.apply(effect(second, emit(WIDE, "early", guard=second.id)))
    assert small.run(run_id)["deliveries"] == "6"
    assert small.commit(settle(second)) == FULL
    small.apply(settle(third, end("failed")))
    assert small.run(run_id)["status"] == "failed"
