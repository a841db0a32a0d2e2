"""What many runs leave behind when their retention has passed: nothing, neither keys nor memory."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from stepfleet import Client, Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.client import Start
from stepfleet.errors import WorkflowCancelledByUser
from stepfleet.events import HumanResponseEvent
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from tests.support.fleet import TestFleet
from tests.support.wait import wait_until

RETENTION_S = 5
#: Runs that are started together.
BATCH = 500
#: One run in so many has everything that makes keys.
RICH = 20
#: Bytes that Redis may have more than before: its allocator does not give back every page.
TOLERANCE = 1_000_000


class Begin(StartEvent):
    number: int


class Part(Event):
    number: int


class Listed(Event):
    number: int


class Told(Event):
    number: int


class Small(Workflow):
    """One step."""

    @step
    async def only(self, ev: Begin) -> StopEvent:
        return StopEvent(result=ev.number)


class Rich(Workflow):
    """Everything that makes keys: sends, collects, lists, the store, waits, retries, public events."""

    @step
    async def split(self, ctx: Context, ev: Begin) -> list[Listed] | Part:
        await ctx.store.set("number", ev.number)
        for number in range(3):
            ctx.send_event(Part(number=number))
        ctx.write_event_to_stream(Told(number=ev.number))
        return [Listed(number=number) for number in range(2)]

    @step(
        num_workers=1, retry_policy=retry_policy(wait=wait_fixed(0.01), stop=stop_after_attempt(3))
    )
    async def collect(self, ctx: Context, ev: Part) -> Told | None:
        async with ctx.store.edit_state() as state:
            state["parts"] = [*state.get("parts", []), ev.number]
        if ctx.retry_info().retry_number == 0:
            raise ValueError("once more")
        return Told(number=0) if ctx.collect_events(ev, [Part] * 3) else None

    @step(max_concurrency=50)
    async def gather(self, ctx: Context, evs: list[Listed]) -> Told:
        with suppress(TimeoutError):
            await ctx.wait_for_event(HumanResponseEvent, timeout=0.05)
        return Told(number=1)

    @step
    async def end(self, ctx: Context, ev: Told) -> StopEvent | None:
        if ctx.collect_events(ev, [Told] * 2) is None:
            return None
        return StopEvent(result=await ctx.store.get("number"))


class Cancelled(Workflow):
    """Waits until it is cancelled."""

    @step
    async def wait(self, ctx: Context, ev: Begin) -> StopEvent:
        # The timer of a wait stays until it is due.
        await ctx.wait_for_event(HumanResponseEvent, timeout=2 * RETENTION_S)
        return StopEvent()


FLOWS = {cls.__name__: cls(timeout=600.0) for cls in (Small, Rich, Cancelled)}


@pytest.mark.parametrize("runs", [500, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.timeout(3000)
async def test_when_runs_and_their_retention_are_over_redis_is_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runs: int
) -> None:
    # The client too: it is what ends the runs that it cancels.
    monkeypatch.setenv("STEPFLEET_RETENTION", f"{RETENTION_S}s")
    settings = {"retention": f"{RETENTION_S}s", "lease": "5s"}
    with TestFleet(tmp_path, target="tests.process.test_bounded:FLOWS", **settings) as fleet:
        (worker,) = fleet.start()
        async with Client(fleet.url) as client:
            await _run(client, 500)
            keys = await asyncio.to_thread(_at_rest, fleet)
            memory = await asyncio.to_thread(_memory, fleet)
            resident = _resident(worker.pid)
            await _run(client, runs)
            assert await asyncio.to_thread(_at_rest, fleet) == keys
            grown = await asyncio.to_thread(_memory, fleet) - memory
            sys.stdout.write(
                f"{runs} runs: {len(keys)} keys as before; Redis {memory} bytes, {grown:+} since; "
                f"worker {resident} KiB, {_resident(worker.pid) - resident:+} since\n"
            )
            assert grown < TOLERANCE


async def _run(client: Client, count: int) -> None:
    for first in range(0, count, BATCH):
        numbers = range(first, first + BATCH)
        rich = [Start(Begin(number=number)) for number in numbers if number % RICH == 0]
        small = [Start(Begin(number=number)) for number in numbers if number % RICH]
        handlers = await client.start_many(Rich, rich) + await client.start_many(Small, small)
        cancelled = await client.start(Cancelled, number=first)
        assert sorted(await asyncio.gather(*handlers)) == list(numbers)
        await cancelled.cancel_run()
        with pytest.raises(WorkflowCancelledByUser):
            await cancelled


def _at_rest(fleet: TestFleet) -> list[str]:
    """Waits until nothing of a run is left, and returns the keys that there are."""

    def keys() -> list[str]:
        with fleet.redis() as redis:
            return sorted(key.decode() for key in redis.scan_iter(count=10_000))

    def left() -> list[str]:
        with fleet.redis() as redis:
            lists = [key for key in keys() if key.endswith(("}:ended", "}:live", "}:timers"))]
            return [key for key in keys() if ":run:" in key or key.endswith("}:tidy")] + [
                key for key in lists if redis.zcard(key)
            ]

    with suppress(AssertionError):
        wait_until(lambda: not left(), RETENTION_S + 60.0)
    assert left() == []
    return keys()


def _memory(fleet: TestFleet) -> int:
    """Returns the bytes that Redis uses, without the stream of ends, which has a bound of its own."""
    with fleet.redis() as redis:
        redis.memory_purge()
        ends: Any = [redis.memory_usage(key, samples=0) for key in redis.scan_iter("*}:ends")]
        return int(redis.info("memory")["used_memory"]) - sum(ends)


def _resident(pid: int) -> int:
    """Returns the resident memory of a process in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])
