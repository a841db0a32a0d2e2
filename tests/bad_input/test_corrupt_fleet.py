"""An entry that nobody of ours wrote, in what all runs share, disturbs no run, no worker and no client."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from stepfleet import StartEvent, StopEvent, Workflow, step
from stepfleet.storage.keys import SYSTEM, Keys
from tests.conformance.conftest import FLEETS, place_url
from tests.conformance.place import Place
from tests.support.wait import eventually

#: No msgpack, no UTF-8 and no number.
GARBAGE = b"\x93\x01\xc1\xff"


class Add(Workflow):
    @step
    async def add(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.get("n") + 1)


@pytest_asyncio.fixture(params=FLEETS)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    place = Place(place_url(request), f"f{id(request):x}")
    yield place
    await place.close()


def system(keys: Keys) -> str:
    return keys.stream("Add", SYSTEM, "")


Commands = Callable[[Keys], list[tuple[Any, ...]]]

STRANGE: dict[str, Commands] = {
    "an end without fields": lambda keys: [("XADD", keys.ends, "*", "x", GARBAGE)],
    "an end of garbage": lambda keys: [("XADD", keys.ends, "*", "r", GARBAGE, "s", GARBAGE)],
    "an end without a number": lambda keys: [
        ("XADD", keys.ends, "*", "r", "one", "s", "completed", "q", "x", "e", "y")
    ],
    "a timer": lambda keys: [
        ("ZADD", keys.timers, 0, GARBAGE),
        ("HSET", keys.timer_data, GARBAGE, GARBAGE),
    ],
    "a timer without data": lambda keys: [("ZADD", keys.timers, 0, "run/delivery/back-off/1")],
    "a live run": lambda keys: [("ZADD", keys.live, 0, GARBAGE)],
    "a live run without a record": lambda keys: [("ZADD", keys.live, 0, "ghost")],
    "a run with a deadline of garbage": lambda keys: [
        ("HSET", keys.run("odd"), "status", "running", "timeout", "x", "workflow", GARBAGE),
        ("HSET", keys.open("odd"), GARBAGE, GARBAGE, "d", "waiting"),
        ("ZADD", keys.live, 0, "odd"),
    ],
    "a run to tidy": lambda keys: [("RPUSH", keys.tidy, GARBAGE, "ghost")],
    "a child of garbage": lambda keys: [
        ("SADD", keys.further("odd"), keys.children("odd")),
        ("SADD", keys.children("odd"), GARBAGE),
        ("RPUSH", keys.tidy, "odd"),
    ],
    "a worker": lambda keys: [("HSET", keys.workers, GARBAGE, GARBAGE)],
    "a lease": lambda keys: [("ZADD", keys.leases, 5, GARBAGE, -5, "buried", "inf", "ever")],
    "a definition": lambda keys: [("HSET", keys.workflow("Add"), "digest", GARBAGE)],
    "an alarm": lambda keys: [("XADD", system(keys), "*", "w", GARBAGE)],
    "an alarm of nobody": lambda keys: [("XADD", system(keys), "*", "r", "ghost", "w", "nothing")],
    "a dead letter": lambda keys: [("XADD", keys.dead, "*", GARBAGE, GARBAGE)],
}


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)
async def test_an_entry_that_nobody_of_ours_wrote_disturbs_nobody(
    place: Place, caplog: pytest.LogCaptureFixture, strange: Commands
) -> None:
    await place.serve(Add)
    assert await (await place.client.start(Add, n=0)) == 1
    for command in strange(place.keys):
        await place.call(*command)
    # Another entry behind it, which everybody comes to.
    await place.call("RPUSH", place.keys.tidy, "last")
    await place.call("ZADD", place.keys.timers, 1, "last/d/back-off/1")
    await eventually(partial(_is_empty, place, place.keys.tidy), 20.0)
    await eventually(partial(_is_empty, place, place.keys.timers), 20.0)
    for n in range(3):
        assert await (await place.client.start("Add", n=n)) == n + 1
    assert await (await place.new_client().start(Add, n=1)) == 2
    assert all(not task.done() for _, task in place.workers)
    assert [one for one in caplog.records if one.levelno >= logging.CRITICAL] == []


async def _is_empty(place: Place, key: str) -> bool:
    return not await place.call("EXISTS", key)
