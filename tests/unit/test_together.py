"""Reads that are asked for while one is under way go together, and each asker gets its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from stepfleet.errors import ConnectionLost, StoreRefused
from stepfleet.storage.link import Arg, Link, pack
from stepfleet.storage.together import MOST, Together


class SlowLink:
    """Answers each command with itself, when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[Arg, ...]]] = []
        self.go_on = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def calls(self, commands: Sequence[tuple[Arg, ...]]) -> list[Any]:
        self.batches.append(list(commands))
        for command in commands:
            pack(command)
        await self.go_on.acquire()
        if self.error is not None:
            raise self.error
        return [
            StoreRefused("WRONGTYPE") if command[0] == "BAD" else command for command in commands
        ]


@pytest.fixture
async def link() -> SlowLink:
    return SlowLink()


@pytest.fixture
async def together(link: SlowLink) -> Together:
    return Together(cast(Link, link))


async def asked(together: Together, *commands: tuple[Arg, ...]) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(together.call(*command)) for command in commands]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def test_what_is_asked_during_a_call_goes_in_the_next_one(
    link: SlowLink, together: Together
) -> None:
    first = await asked(together, ("GET", "a"))
    rest = await asked(together, *[("GET", number) for number in range(MOST + 1)])
    for _ in range(3):
        link.go_on.release()
    assert await asyncio.gather(*first) == [("GET", "a")]
    assert await asyncio.gather(*rest) == [("GET", number) for number in range(MOST + 1)]
    assert [len(batch) for batch in link.batches] == [1, MOST, 1]


async def test_one_asker_may_have_several_questions_and_a_refusal_is_its_own(
    link: SlowLink, together: Together
) -> None:
    several = asyncio.create_task(together.calls([("GET", "a"), ("BAD", "b")]))
    bad, good = await asked(together, ("BAD", "c"), ("GET", "d"))
    link.go_on.release()
    link.go_on.release()
    one, refused = await several
    assert one == ("GET", "a")
    assert isinstance(refused, StoreRefused)
    with pytest.raises(StoreRefused, match="WRONGTYPE"):
        await bad
    assert await good == ("GET", "d")


async def test_a_lost_connection_reaches_everybody_who_asked_and_the_next_ones_are_asked_anew(
    link: SlowLink, together: Together
) -> None:
    lost = await asked(together, ("GET", "a"), ("GET", "b"))
    link.error = ConnectionLost("away")
    link.go_on.release()
    link.go_on.release()
    for one in lost:
        with pytest.raises(ConnectionLost, match="away"):
            await one
    link.error = None
    link.go_on.release()
    assert await together.call("GET", "c") == ("GET", "c")


async def test_whoever_is_cancelled_meanwhile_disturbs_nobody(
    link: SlowLink, together: Together
) -> None:
    leaves, stays = await asked(together, ("GET", "a"), ("GET", "b"))
    leaves.cancel()
    link.go_on.release()
    link.go_on.release()
    assert await stays == ("GET", "b")
    with pytest.raises(asyncio.CancelledError):
        await leaves


async def test_a_question_that_cannot_be_sent_fails_alone(
    link: SlowLink, together: Together
) -> None:
    first, bad, last = await asked(together, ("GET", "a"), ("GET", "\ud800"), ("GET", "b"))
    for _ in range(2):
        link.go_on.release()
    with pytest.raises(UnicodeEncodeError):
        await bad
    assert [await first, await last] == [("GET", "a"), ("GET", "b")]
