"""What a link does about scripts that Redis does not have."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import NoScriptError

from stepfleet.errors import StoreRefused
from stepfleet.storage.link import LOADS, Arg, Link
from stepfleet.storage.scripts import script


class Forgetful(Link):
    """Talks to a Redis that loses its scripts so many times, each time behind their load."""

    def __init__(self, losses: int) -> None:
        super().__init__(_nobody)
        self.losses = losses
        self.asked: list[Arg] = []

    async def call(self, *command: Arg, timeout: float = 1.0) -> Any:
        self.asked.append(command[0])
        if command[0] != "EVALSHA":
            return b"OK"
        if self.losses:
            self.losses -= 1
            raise StoreRefused("No matching script") from NoScriptError("No matching script")
        return b"done"


def _nobody() -> Any:
    raise AssertionError("nothing is connected here")


async def test_a_script_that_is_lost_again_behind_its_load_is_loaded_again() -> None:
    link = Forgetful(2)
    assert await link.script(script("beat"), [], []) == b"done"
    assert link.asked == ["EVALSHA", "SCRIPT", "EVALSHA", "SCRIPT", "EVALSHA"]


async def test_a_server_that_never_keeps_a_script_is_not_asked_for_ever() -> None:
    link = Forgetful(1000)
    with pytest.raises(StoreRefused, match="No matching script"):
        await link.script(script("beat"), [], [])
    assert link.asked.count("SCRIPT") == LOADS
