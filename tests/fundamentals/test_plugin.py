"""The fixtures that stepfleet gives to pytest: one idea per test. More of them: examples/testing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from stepfleet import StartEvent, StopEvent, Workflow, step
from stepfleet.embedded.memory import MemoryRuntime
from stepfleet.errors import RunNotFound, WorkflowRuntimeError
from stepfleet.testing.server import ServerForTests


class Hello(Workflow):
    @step
    async def greet(self, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(ev.get("seconds", 0))
        return StopEvent("hello")


async def test_a_test_may_have_a_memory_for_itself(stepfleet_memory: MemoryRuntime) -> None:
    """Nothing of it is seen by the default runtime of the same event loop."""
    run = Hello(runtime=stepfleet_memory).run(run_id="one")
    other = Hello().run(run_id="one")

    assert (await run, await other) == ("hello", "hello")
    await stepfleet_memory.close()


def test_virtual_time_is_a_fixture_too(stepfleet_virtual_time: Callable[[Any], Any]) -> None:
    """A day passes at once."""

    async def scenario() -> str:
        return await Hello(timeout=None).run(seconds=86_400)

    assert stepfleet_virtual_time(scenario()) == "hello"


async def test_a_server_is_real_and_its_namespace_is_the_test_s_own(
    stepfleet_server: ServerForTests,
) -> None:
    """What another test started there is not found."""
    worker = stepfleet_server.start_worker("examples.hello.workflow:JokeFlow")

    async with stepfleet_server.client() as client:
        handler = await client.start("JokeFlow", run_id="mine", topic="ducks")
        await handler

    assert "worker is ready" in worker.log()
    assert worker.stop() == 0


async def test_the_next_test_has_another_namespace(stepfleet_server: ServerForTests) -> None:
    """The run of the test before is not there."""
    async with stepfleet_server.client() as client:
        with pytest.raises(RunNotFound):
            await client.handler("mine").status()


def test_a_worker_that_does_not_start_says_why(stepfleet_server: ServerForTests) -> None:
    """The error has its log."""
    with pytest.raises(WorkflowRuntimeError, match="has no JokeFlw; did you mean"):
        stepfleet_server.start_worker("examples.hello.workflow:JokeFlw")
