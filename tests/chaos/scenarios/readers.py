"""F18, F24: readers that are slow, and callers that give up."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from stepfleet import Client
from stepfleet.errors import RunError, WorkflowCancelledByUser
from tests.chaos.scenarios.scenario import PATIENCE, Figures, dice, scenario
from tests.support.fleet import TestFleet
from tests.support.flows import Chain, Sleep, Streaming
from tests.support.programs import Program
from tests.support.servers import free_port
from tests.support.wait import eventually

#: Public events of the run that is read slowly.
EVENTS = 30_000
#: By how much a service may grow for a reader that takes nothing, in MB.
GROWTH_MB = 20.0


# -- F18 ---------------------------------------------------------------------------------------------


@scenario(
    "F18",
    fault="a browser reads a run's events at 100 bytes a second, while 30,000 are published",
    seen="that browser gets the events at its own pace, and goes on behind `Last-Event-ID`",
    lost="nothing up to `stream_limit`, behind it an explicit gap",
)
async def a_reader_is_slow(directory: Path) -> Figures:
    with TestFleet(directory, stream_limit=2 * EVENTS) as fleet:
        fleet.start()
        port = free_port()
        service = Program(
            "uvicorn",
            *("tests.chaos.service:app", "--port", port, "--log-level", "warning"),
            folder=directory,
            STEPFLEET_REDIS_URL=fleet.url,
        )
        try:
            async with Client(fleet.url) as client, asyncio.timeout(4 * PATIENCE):
                await eventually(lambda: _accepts(port), PATIENCE)
                handler = await client.start(Streaming, count=EVENTS)
                path = f"/{handler.run_id}"
                before = _megabytes(service.pid)
                async with _asked(port, path, "0") as slow:
                    await slow.readuntil(b"\r\n\r\n")
                    seen = b""
                    until = time.monotonic() + 5.0
                    while time.monotonic() < until:
                        seen += await slow.readexactly(100)
                        await asyncio.sleep(1.0)  # the pace that this is about
                    assert await handler == EVENTS
                    grown = _megabytes(service.pid) - before
                last = max([int(number) for number in re.findall(rb"id: (\d+)\n", seen)], default=0)
                began = time.monotonic()
                async with _asked(port, path, str(last)) as fast:
                    numbers = re.findall(rb"id: (\d+)\n", await fast.read())
                took = time.monotonic() - began
        finally:
            service.end()
    assert list(map(int, numbers)) == list(range(last + 1, EVENTS + 2))
    assert grown < GROWTH_MB
    return Figures(
        recovery=(),
        counted=f"the service grew by {grown:.1f} MB; the same browser then read {len(numbers)} events in "
        f"{took:.1f} s, none twice and none missing",
    )


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


def _megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024


@asynccontextmanager
async def _asked(port: int, path: str, last_seen: str) -> AsyncIterator[asyncio.StreamReader]:
    """Asks for events over a connection whose buffers are small."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=plain, limit=4096)
    writer.write(
        f"GET {path} HTTP/1.0\r\nHost: here\r\nLast-Event-ID: {last_seen}\r\n\r\n".encode()
    )
    try:
        yield reader
    finally:
        writer.close()


# -- F24 ---------------------------------------------------------------------------------------------


@scenario(
    "F24",
    fault="10,000 calls of one client are cancelled at random moments, and 200 runs within their steps",
    seen="what was not cancelled gets its own answer",
    lost="nothing",
)
async def calls_are_cancelled(directory: Path, *, calls: int = 10_000) -> Figures:
    chance = dice()
    with TestFleet(directory) as fleet:
        fleet.start(2)
        async with Client(fleet.url) as client, asyncio.timeout(4 * PATIENCE):
            handlers = await client.start_many(Chain, [{"number": n} for n in range(100)])
            assert await asyncio.gather(*handlers) == [n + 2 for n in range(100)]
            runs = [handler.run_id for handler in handlers]
            storm = [_storm(client, runs, calls // 50, chance) for _ in range(50)]
            counts = await asyncio.gather(*storm, _cancelled_runs(client, chance))
            with fleet.redis() as redis:
                names = [one["name"] for one in redis.client_list()]
            again = [await client.handler(run_id, workflow=Chain) for run_id in runs]
            assert again == [n + 2 for n in range(100)]
        fleet.wait_until_tidy(runs)
    connections = sum(name.startswith("stepfleet-client") for name in names)
    assert connections <= 4
    answered = sum(counts[:-1])
    assert 0 < answered < calls
    return Figures(
        recovery=(),
        counted=f"{calls - answered} calls cancelled, {answered} answered, 0 with the answer of another one; "
        f"{counts[-1]} runs cancelled; {connections} connections of the client at the end",
    )


async def _storm(client: Client, runs: list[str], calls: int, chance: random.Random) -> int:
    """Returns how many calls were answered before they were cancelled."""
    answered = 0
    for _ in range(calls):
        number = chance.randrange(len(runs))
        calling = asyncio.ensure_future(_call(client, runs[number], number, chance))
        await asyncio.sleep(chance.uniform(0.0, 0.05))
        calling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            answered += await calling
    return answered


async def _call(client: Client, run_id: str, number: int, chance: random.Random) -> int:
    handler = client.handler(run_id, workflow=Chain)
    match chance.randrange(3):
        case 0:
            status = await handler.status()
            assert (status.run_id, status.status) == (run_id, "completed")
        case 1:
            assert await handler == number + 2
        case _:
            assert await (await client.start(Chain, run_id=run_id, number=number)) == number + 2
    return 1


async def _cancelled_runs(client: Client, chance: random.Random, count: int = 200) -> int:
    """Cancels runs while their steps are somewhere, and returns how many ended so."""

    async def one() -> int:
        handler = await client.start(Sleep, seconds=chance.uniform(0.0, 2.0))
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        with contextlib.suppress(RunError):
            await handler.cancel_run()
        try:
            await handler
        except WorkflowCancelledByUser:
            return 1
        return 0

    return sum(await asyncio.gather(*(one() for _ in range(count))))
