"""What events carry and what opens Redis is in no log line, figure, span or report of the tools."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import redis
from click.testing import CliRunner

from stepfleet import Client
from stepfleet.cli.operator import commands
from stepfleet.events import HumanResponseEvent
from tests.support.programs import PATIENCE, WORKER, Program
from tests.support.servers import RedisServer, available_binaries, free_port
from tests.support.wait import wait_until

BINARY = next(iter(available_binaries().values()))
#: Two words that stand nowhere else.
PASSWORD, CONTENT = "pw-kq7zv1", "content-x93jd"

PROJECT = f"""
from typing import Any
from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.events import HumanResponseEvent
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed

SECRET = "{CONTENT}"

class Note(Event):
    text: str
    more: Any = None

class Count(Event):
    number: int

class Good(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Note | None:
        await ctx.store.set("kept", ev.text)
        for _ in range(3):
            ctx.send_event(Note(text=ev.text))

    @step
    async def join(self, ctx: Context, ev: Note) -> StopEvent | None:
        notes = ctx.collect_events(ev, [Note] * 3)
        if notes is None:
            return None
        answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=ev)
        return StopEvent(result=answer.text)

class Fails(Workflow):
    @step(retry_policy=retry_policy(wait=wait_fixed(0), stop=stop_after_attempt(2)))
    async def fall(self, ev: StartEvent) -> StopEvent:
        raise ValueError("no details")

class Unpacked(Workflow):
    '''Emits what cannot travel.'''
    @step
    async def emit(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result={{"kept": [object(), ev.text]}})

class Invalid(Workflow):
    '''Makes an event of what it does not take.'''
    @step
    async def count(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=Count(number=ev.text))

class Large(Workflow):
    @step
    async def emit(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.text * 200_000)

FLOWS = {{flow.__name__: flow(timeout=None) for flow in (Good, Fails, Unpacked, Invalid, Large)}}
"""
#: How the run of each workflow ends.
FLOWS = {
    "Good": "completed",
    "Fails": "failed",
    "Unpacked": "failed",
    "Invalid": "failed",
    "Large": "failed",
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(BINARY, tmp_path / "redis", password=PASSWORD)
    server.start()
    yield server
    server.kill()


def test_no_secret_and_no_content_is_in_what_is_told(server: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "project.py").write_text(PROJECT)
    url, port = server.url, free_port()
    arguments = ("project:FLOWS", "--redis-url", url, "--metrics-port", port)
    program = Program(WORKER, *arguments, folder=tmp_path)
    told: list[str] = []
    try:
        program.says("worker is ready")
        asyncio.run(_run_all(url))
        with redis.Redis(port=server.port, password=PASSWORD) as raw:
            # An entry that no code can read, and one whose type nobody knows.
            fields: Any = {"r": "Good", "i": "d", "d": b"\x93" + CONTENT.encode()}
            raw.xadd("{default:0}:s:Good:StartEvent:begin", fields)
            wait_until(lambda: raw.xlen("{default:0}:dead") >= 1, PATIENCE)
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            told.append(answer.read().decode())
        runner = CliRunner()
        lines = ["doctor", "workers", "queues --all", "runs list", "dead list"]
        lines += [f"why {name}" for name in FLOWS]
        for line in lines:
            shown = runner.invoke(commands, [*line.split(), "--json", "--redis-url", url])
            told.append(shown.output + shown.stderr + str(shown.exception or ""))
        server.kill()
        program.says("redis is away")
        program.send()
        assert program.code() == 0
    finally:
        program.end()
    told += [program.out, program.err]

    lines = [json.loads(line) for line in program.out.splitlines()]
    failed = {line["run_id"] for line in lines if "the step failed" in line["msg"]}
    assert failed == {name for name, end in FLOWS.items() if end == "failed"}
    for text in told:
        assert PASSWORD not in text
        assert CONTENT not in text, _around(text)


def _around(text: str) -> str:
    place = text.index(CONTENT)
    return text[max(0, place - 600) : place + 200]


async def _run_all(url: str) -> None:
    async with Client(url) as client, asyncio.timeout(PATIENCE):
        for name, expected in FLOWS.items():
            handler = await client.start(name, run_id=name, text=CONTENT)
            if name == "Good":
                async for _ in handler.stream_events():
                    break
                handler.ctx.send_event(HumanResponseEvent(text=CONTENT))
            with suppress(Exception):
                assert await handler == CONTENT
            assert (await handler.status()).status == expected
