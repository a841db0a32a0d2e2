"""The mutants of the simulation are still mutants: each of them changes the code as it is now."""

from __future__ import annotations

import pytest

from stepfleet.storage.scripts import PARTS, script
from tests.simulation.mutants import MUTANTS, Mutant, Outdated, mutated
from tests.simulation.simulation import simulate


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_what_a_mutant_replaces_is_there(mutant: Mutant) -> None:
    before = {name: script(name).sha for name in PARTS}
    with mutated(mutant):
        during = {name: script(name).sha for name in PARTS}
        assert (during != before) == bool(mutant.lua)
    assert {name: script(name).sha for name in PARTS} == before


def test_a_mutant_of_code_that_has_changed_is_refused() -> None:
    mutant = Mutant("of other code", lua=[("commit", "no such text", "")])
    with pytest.raises(Outdated, match="no such text"), mutated(mutant):
        raise AssertionError("it was put in")


def test_a_mutant_is_caught_and_the_code_is_right_again() -> None:
    (mutant,) = [one for one in MUTANTS if one.name == "a slot is not returned"]
    with mutated(mutant):
        assert simulate(0).violations
    assert simulate(0).violations == []
