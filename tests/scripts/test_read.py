"""read.lua: no more deliveries than can start, however many streams there are."""

from __future__ import annotations

import pytest

from stepfleet.storage.keys import GROUP
from tests.scripts.rig import NARROW, WIDE, Rig, emit


def read(rig: Rig, most: int, me: str = "me") -> dict[int, list[str]]:
    """Returns what is read, by stream: the records' names, in order."""
    rows = rig.script("read", [rig.stream(WIDE), rig.stream(NARROW)], [GROUP, me, most])
    return {
        index: [fields[5].decode().removeprefix("record of ") for _, fields in entries]
        for index, entries in rows
    }


def test_one_of_each_stream_is_read_before_a_second_of_any(rig: Rig) -> None:
    rig.start(emit(WIDE, *"abcd"), emit(NARROW, "x"))
    assert read(rig, 3) == {1: ["a", "b"], 2: ["x"]}
    assert read(rig, 3) == {1: ["c", "d"]}
    assert read(rig, 3) == {}


@pytest.mark.parametrize("most", [0, 1, 2, 3, 4, 5])
def test_no_more_is_read_than_was_asked_for(rig: Rig, most: int) -> None:
    rig.start(emit(WIDE, *"abc"), emit(NARROW, "x"))
    assert sum(map(len, read(rig, most).values())) == min(most, 4)


def test_what_is_read_is_mine_and_was_delivered_once(rig: Rig) -> None:
    rig.start(emit(WIDE, "a"))
    assert read(rig, 5, me="you") == {1: ["a"]}
    assert read(rig, 5) == {}
    assert list(rig.pending(WIDE, "you").values()) == [1]


def test_without_its_group_a_stream_is_an_error_as_in_a_plain_read(rig: Rig) -> None:
    keys = [rig.stream(WIDE), rig.keys.stream("Flow", "Gone", "step")]
    with pytest.raises(Exception, match="NOGROUP|XGROUP"):
        rig.script("read", keys, [GROUP, "me", 1])
