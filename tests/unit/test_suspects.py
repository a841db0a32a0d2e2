"""Which deliveries that were lost with a worker run beside each other."""

from __future__ import annotations

import asyncio

from stepfleet.core.commit import Route
from stepfleet.core.delivery import Delivery
from stepfleet.wire import Record
from stepfleet.worker.held import Held
from stepfleet.worker.suspects import Suspects


def held(deliveries: int) -> Held:
    route = Route("Flow", "StartEvent", "work")
    record = Record(type_id="StartEvent", payload=b"", parent="")
    return Held(Delivery("r", f"{deliveries}", route, "1-1", record, deliveries, False), 0.0)


async def may_run(suspects: Suspects, one: Held) -> bool:
    """Tells whether it runs now; it runs then."""
    try:
        async with asyncio.timeout(0):
            await suspects.turn(one)
    except TimeoutError:
        return False
    return True


async def test_a_suspect_runs_when_no_other_that_was_lost_does() -> None:
    left: list[str] = []
    suspects = Suspects(lambda: left.append("may come"))
    once, also_once, suspect, other = held(2), held(2), held(3), held(4)
    for one in (once, also_once, suspect, other):
        suspects.add(one)
    assert [await may_run(suspects, one) for one in (suspect, once, also_once)] == [
        False,
        True,
        True,
    ]
    suspects.remove(once)
    assert not await may_run(suspects, suspect)
    suspects.remove(also_once)
    assert await may_run(suspects, suspect)
    assert not await may_run(suspects, other)
    assert left == []
    suspects.remove(suspect)
    assert await may_run(suspects, other)
    suspects.remove(other)
    assert left == ["may come"]


async def test_what_was_lost_once_and_comes_back_waits_while_a_suspect_runs() -> None:
    suspects = Suspects(lambda: None)
    suspect, back = held(3), held(2)
    suspects.add(suspect)
    assert not suspects.takes_lost_once
    assert not suspects.takes_suspect
    assert await may_run(suspects, suspect)
    suspects.add(back)
    assert not await may_run(suspects, back)
    suspects.remove(suspect)
    assert await may_run(suspects, back)
    assert suspects.takes_lost_once
    assert not suspects.takes_suspect


async def test_a_suspect_that_waits_lets_those_lost_once_go_first() -> None:
    suspects = Suspects(lambda: None)
    suspect, back = held(3), held(2)
    suspects.add(suspect)
    suspects.add(back)
    assert not await may_run(suspects, suspect)
    assert await may_run(suspects, back)
    suspects.remove(back)
    assert await may_run(suspects, suspect)


async def test_a_suspect_that_has_left_while_it_stood_in_the_queue_keeps_nothing_from_running() -> (
    None
):
    suspects = Suspects(lambda: None)
    first, left, once = held(3), held(3), held(2)
    suspects.add(first)
    assert await may_run(suspects, first)
    suspects.add(left)
    waiting = asyncio.create_task(suspects.turn(left))
    await asyncio.sleep(0)
    suspects.remove(left)  # another part of its step waits for a run
    suspects.remove(first)
    await waiting
    suspects.add(once)
    assert await may_run(suspects, once)


async def test_those_lost_once_may_come_as_soon_as_the_last_suspect_has_left() -> None:
    left: list[str] = []
    suspects = Suspects(lambda: left.append("may come"))
    suspect, back = held(3), held(2)
    suspects.add(suspect)
    suspects.add(back)
    suspects.remove(suspect)
    assert left == ["may come"]
