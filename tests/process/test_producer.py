"""Whoever starts a run may leave: any process reads its events and its result, from the first on."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from stepfleet import Client, StopEvent
from stepfleet.errors import RunNotFound
from stepfleet.events import RetractedEvent
from tests.chaos.proxy import Exchange, Order
from tests.chaos.scenarios.scenario import through_a_proxy
from tests.support.fleet import ROOT, TestFleet
from tests.support.flows import Sleep, Streaming, Token

COUNT = 40
PATIENCE = 60.0

PRODUCER = """
import asyncio, sys
from stepfleet import Client
from tests.support.flows import Streaming

async def main():
    async with Client(sys.argv[1]) as client:
        handler = await client.start(Streaming, count=int(sys.argv[2]), seconds=0.02)
        print(handler.run_id)

asyncio.run(main())
"""


async def test_another_process_reads_all_events_and_the_result_of_a_producer_that_is_gone(
    tmp_path: Path,
) -> None:
    with TestFleet(tmp_path) as fleet:
        fleet.start(2)
        command = [sys.executable, "-c", PRODUCER, fleet.url, str(COUNT)]
        producer = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE)
        output, _ = await producer.communicate()
        assert producer.returncode == 0
        run_id = output.decode().strip()
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            handler = client.handler(run_id, workflow=Streaming)
            texts = [event.text async for event in handler.stream_events() if _is_token(event)]
            assert texts == [f"token {number}" for number in range(COUNT)]
            assert await handler == COUNT
            # And once more, when everything is over.
            late = client.handler(run_id, workflow=Streaming)
            events = [event async for event in late.stream_events()]
            assert [event.text for event in events[:-1]] == texts
            assert isinstance(events[-1], StopEvent)
            assert await late == COUNT
            with pytest.raises(RunNotFound):
                await client.handler("nobody-started-this", workflow=Streaming)
        fleet.wait_until_tidy([run_id])


async def test_a_reader_that_breaks_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with TestFleet(tmp_path) as fleet:
        fleet.start(2)
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            run_id = (await client.start(Streaming, count=COUNT, seconds=0.02)).run_id
        texts: list[str] = []
        position, readers = 0, 0
        async with asyncio.timeout(PATIENCE):
            while position <= COUNT:
                readers += 1
                async with Client(fleet.url) as client:
                    handler = client.handler(run_id, workflow=Streaming)
                    stream = handler.stream_events(after=position)
                    async for event in stream:
                        position = handler.last_sequence
                        if _is_token(event):
                            texts.append(event.text)
                        if position % 7 == 0:
                            break
                    await stream.aclose()  # pyright: ignore[reportAttributeAccessIssue]
        assert texts == [f"token {number}" for number in range(COUNT)]
        assert readers == 1 + COUNT // 7


@pytest.mark.parametrize("random", [False, True])
async def test_a_killed_streaming_step_shows_every_event_once_or_says_what_to_retract(
    tmp_path: Path, random: bool
) -> None:
    with TestFleet(tmp_path) as fleet:
        fleet.start(2)
        async with Client(fleet.url) as client, asyncio.timeout(PATIENCE):
            handler = await client.start(Streaming, count=COUNT, seconds=0.08, random=random)
            shown: dict[int, Token] = {}
            retracted: list[int] = []
            async for event in handler.stream_events():
                if isinstance(event, Token):
                    shown[handler.last_sequence] = event
                elif isinstance(event, RetractedEvent):
                    retracted += event.sequences
                if len(shown) == COUNT // 4 and not fleet.deaths():
                    (execution,) = fleet.ledger.executions("speak")
                    next(w for w in fleet.live if w.pid == execution.pid).kill()
            assert await handler == COUNT
        assert len(fleet.deaths()) == 1
        assert len(fleet.ledger.executions("speak")) == 2
        published = len(shown)
        for sequence in retracted:
            del shown[sequence]  # a KeyError: retracted twice, or something that was never shown
        assert [token.number for token in shown.values()] == list(range(COUNT))
        if random:
            assert COUNT // 4 <= len(retracted) < COUNT
            assert published == COUNT + len(retracted)
        else:
            assert not retracted
        fleet.wait_until_tidy([handler.run_id])
        assert fleet.record().check_settled(fleet.ledger, [handler.run_id]) == 1


def _is_token(event: object) -> bool:
    return isinstance(event, Token)


async def test_a_store_of_an_ended_run_is_edited_once_when_the_answer_is_lost(
    tmp_path: Path,
) -> None:
    with TestFleet(tmp_path) as fleet, through_a_proxy(fleet) as proxy:
        fleet.start()
        lost: list[bytes] = []

        def lose(exchange: Exchange) -> Order:
            # the answer to what saves the edit; what takes the lock comes before
            arguments = exchange.arguments
            if b"amend" not in arguments or b"locked" not in arguments or lost:
                return "forward"
            lost.append(exchange.words[0])
            return "close"

        async with Client(proxy.url) as client, asyncio.timeout(PATIENCE):
            handler = await client.start(Sleep, seconds=0.0)
            await handler
            await handler.ctx.store.set("counter", 1)
            proxy.reply = lose
            async with handler.ctx.store.edit_state() as state:
                state.counter += 1
            assert lost
            assert await handler.ctx.store.get("counter") == 2
        fleet.wait_until_tidy([handler.run_id])
