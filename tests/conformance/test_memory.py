"""What only `memory://` does: it lives and dies with an event loop, and keeps instances apart."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from typing import Any

import pytest

from stepfleet import Client, Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.embedded.memory import MemoryRuntime
from stepfleet.errors import SettingsError
from tests.support.wait import eventually


class Item(Event):
    n: int


class Named(Workflow):
    """Its result shows which instance ran its steps."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(**options)
        self.name = name

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
        for n in range(5):
            ctx.send_event(Item(n=n))

    @step
    async def join(self, ctx: Context, ev: Item) -> StopEvent | None:
        await asyncio.sleep(0)
        five = ctx.collect_events(ev, [Item] * 5)
        return StopEvent(result=f"{self.name} {len(five)}") if five else None


async def test_a_workflow_runs_without_any_server_or_setting() -> None:
    assert await Named("ada").run() == "ada 5"


async def test_two_instances_of_a_class_run_at_once_each_with_its_own_attributes() -> None:
    one, two = Named("one"), Named("two")
    handlers = [flow.run() for _ in range(5) for flow in (one, two)]
    assert await asyncio.gather(*handlers) == ["one 5", "two 5"] * 5


def test_every_event_loop_of_a_process_has_its_own_memory() -> None:
    flow = Named("again")

    async def run() -> str:
        return await flow.run(run_id="same")

    assert [asyncio.run(run()) for _ in range(2)] == ["again 5"] * 2


def test_loops_in_two_threads_do_not_disturb_each_other() -> None:
    results: list[Any] = []

    async def run(name: str) -> None:
        flow = Named(name)
        results.extend(await asyncio.gather(*[flow.run() for _ in range(10)]))

    threads = [
        threading.Thread(target=lambda name=name: asyncio.run(run(name))) for name in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(results) == ["a 5"] * 10 + ["b 5"] * 10


def test_without_a_running_loop_the_error_says_so() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        Named("x").run()


def test_no_client_connects_to_the_memory_of_a_loop() -> None:
    with pytest.raises(SettingsError, match="no client can connect to it"):
        Client("memory://")


async def test_an_instance_leaves_no_streams_and_no_tasks_behind() -> None:
    runtime = MemoryRuntime()
    flow = Named("x", runtime=runtime)
    handler = flow.run()
    assert await handler == "x 5"

    async def only_runs_are_left() -> bool:
        link = runtime.client.connection().reader.link
        names = [name.decode() for name in await link.call("KEYS", "*")]
        shared = (":leases", ":workers", ":ended", ":ends")
        return all(":run:" in name or name.endswith(shared) for name in names)

    await eventually(only_runs_are_left, 20.0)
    assert await handler.status()
    await runtime.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_is_kept_does_not_grow_with_the_number_of_instances() -> None:
    runtime = MemoryRuntime()
    for n in range(10):
        assert await Named(str(n), runtime=runtime).run() == f"{n} 5"
    named = {name for name in Named._graphs if name.startswith("Named.")}
    assert len(named) <= 3
    await runtime.close()


async def test_a_run_that_was_started_again_after_a_pause_finds_a_worker() -> None:
    flow = Named("x")
    for _ in range(3):
        assert await flow.run() == "x 5"
        await asyncio.sleep(0.01)


#: A program that ends with runs in every state: finished, waiting, publishing, forgotten.
PROGRAM = """
import asyncio
from stepfleet import Context, Event, HumanResponseEvent, StartEvent, StopEvent, Workflow, step

class Item(Event):
    n: int

class Flow(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Item(n=1))
        if ev.kind == "wait":
            await ctx.wait_for_event(HumanResponseEvent)
        if ev.kind == "sleep":
            await asyncio.sleep(60)
        if ev.kind == "fail":
            raise ValueError("never seen")
        return StopEvent(result=ev.kind)

async def main():
    flow = Flow()
    print(await flow.run(kind="finish"))
    handlers = [flow.run(kind=kind) for kind in ("wait", "sleep", "fail", "finish")]
    async for event in handlers[0].stream_events():
        break
    await handlers[3]
    flow.run(kind="finish")

asyncio.run(main())
print("closed")
"""


def test_a_program_may_end_with_runs_in_any_state_and_nothing_complains() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.split() == ["finish", "closed"]
    complaints = [
        line
        for line in done.stderr.splitlines()
        if "Warning" in line or "never retrieved" in line or "destroyed" in line
    ]
    assert (done.returncode, complaints) == (0, [])


async def test_a_timer_that_a_step_leaves_behind_keeps_no_workflow_alive() -> None:
    timers: list[asyncio.TimerHandle] = []

    class Flow(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            assert Context.get_step_context()
            timers.append(asyncio.get_running_loop().call_later(3600, str))
            return StopEvent()

    flow = Flow()
    kept = weakref.ref(flow)
    await flow.run()
    del flow
    try:
        await eventually(lambda: gc.collect() and kept() is None, 20.0)
    finally:
        timers[0].cancel()


async def test_a_workflow_is_forgotten_when_its_last_run_has_ended() -> None:
    class Flow(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    kept: list[weakref.ref[Workflow]] = []
    for _ in range(5):
        flow = Flow()
        kept.append(weakref.ref(flow))
        await flow.run()
        del flow
    for _ in range(10):
        gc.collect()
        await asyncio.sleep(0)
    assert [ref() for ref in kept] == [None] * 5
