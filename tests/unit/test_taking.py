"""When a worker takes what follows from its commit, and when it leaves it to others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from stepfleet.core.commit import Commit, EffectFence, Emit, End, EntryFence, Route, Word
from stepfleet.embedded.memory import memory_fleet
from stepfleet.errors import ConnectionLost
from stepfleet.storage.consumer import Arrival, Consumer
from stepfleet.storage.keys import Keys
from stepfleet.storage.run_store import RunStore
from stepfleet.worker.taking import Taking

MINE, OTHERS = Route("Flow", "Work", "work"), Route("Flow", "Work", "elsewhere")
SYSTEM = Route("Flow", "__sys", "")
FENCE = EntryFence(MINE, "1-0", "parent")


def emit(route: Route, count: int = 1) -> Emit:
    return Emit(route, tuple((f"d{number}", b"") for number in range(count)))


def taking(*, is_idle: bool = True, missed: list[str] | None = None) -> Taking:
    link = cast(Any, None)
    consumer = Consumer(link, link, Keys("test"), [MINE, SYSTEM], consumer="me")

    def took(_: Consumer, arrival: Arrival) -> None:
        raise AssertionError(arrival)

    def miss() -> None:
        if missed is not None:
            missed.append("missed")

    return Taking(consumer, is_idle=lambda: is_idle, took=took, missed=miss)


def test_an_idle_worker_takes_the_one_delivery_that_follows() -> None:
    assert taking().wants(Commit("r", FENCE, [emit(MINE)])) == MINE


@pytest.mark.parametrize(
    "words",
    [(), (End("completed", b""),), (emit(MINE, 2),), (emit(MINE), emit(MINE)), (emit(OTHERS),)],
    ids=["none", "an end", "two at once", "two", "one for a step that it does not run"],
)
def test_it_leaves_anything_else_to_whoever_reads(words: Sequence[Word]) -> None:
    assert taking().wants(Commit("r", FENCE, words)) is None


def test_it_takes_nothing_while_its_step_goes_on() -> None:
    sent = Commit("r", EffectFence(MINE, "1-0"), [emit(MINE)])
    assert taking().wants(sent) is None


def test_events_for_waiters_are_left_alone() -> None:
    assert taking().wants(Commit("r", FENCE, [emit(SYSTEM)])) is None


def test_a_worker_with_other_work_takes_nothing() -> None:
    assert taking(is_idle=False).wants(Commit("r", FENCE, [emit(MINE)])) is None


class Lost:
    """A connection whose answers do not come."""

    unpacks = True

    async def script(self, *_: Any) -> Any:
        raise ConnectionLost("reset")


async def test_it_is_told_when_the_answer_that_may_have_had_a_delivery_did_not_come() -> None:
    missed: list[str] = []
    store = RunStore(
        cast(Any, Lost()),
        Keys("test"),
        consumer="me",
        bounds=memory_fleet().bounds,
        taker=taking(missed=missed),
    )
    for words in ([emit(MINE)], [emit(OTHERS)]):
        with pytest.raises(ConnectionLost):
            await store.commit([Commit("r", FENCE, words)])
    assert missed == ["missed"]
