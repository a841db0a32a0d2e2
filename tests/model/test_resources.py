"""Section 1.10: resources of steps."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel

from stepfleet import Workflow, step
from stepfleet.errors import WorkflowValidationError
from stepfleet.events import Event, StartEvent, StopEvent
from stepfleet.resource import Resource, ResourceConfig, ResourceManager


class Next(Event):
    ids: list[int]


class Tool:
    """Something that does not travel."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.number = type(self).made


def make_tool() -> Tool:
    return Tool()


async def make_slow_tool() -> Tool:
    await asyncio.sleep(0)
    return Tool()


class SharedTool(Workflow):
    @step
    async def begin(self, ev: StartEvent, tool: Annotated[Tool, Resource(make_tool)]) -> Next:
        return Next(ids=[id(tool)])

    @step
    async def end(self, ev: Next, other: Annotated[Tool, Resource(make_tool)]) -> StopEvent:
        return StopEvent(result=[*ev.ids, id(other)])


@pytest.mark.feature("1.10: Resource")
@pytest.mark.one_process("each worker process makes its own")
async def test_a_resource_is_made_once_for_an_instance() -> None:
    workflow = SharedTool()
    one, other = await workflow.run()
    assert one == other
    assert await workflow.run() == [one, one]


class FreshTool(Workflow):
    @step
    async def begin(
        self, ev: StartEvent, tool: Annotated[Tool, Resource(make_slow_tool, cache=False)]
    ) -> Next:
        return Next(ids=[tool.number])

    @step
    async def end(
        self, ev: Next, tool: Annotated[Tool, Resource(make_slow_tool, cache=False)]
    ) -> StopEvent:
        return StopEvent(result=[*ev.ids, tool.number])


@pytest.mark.feature("1.10: Resource with cache=False")
@pytest.mark.one_process("the numbers are those of one process")
async def test_without_a_cache_each_execution_gets_a_new_one() -> None:
    one, other = await FreshTool().run()
    assert other == one + 1


class HasTool(Workflow):
    @step
    async def only(
        self, ev: StartEvent, tool: Annotated[Tool, Resource(make_slow_tool)]
    ) -> StopEvent:
        return StopEvent(result=type(tool).__name__)


@pytest.mark.feature("1.10: Resource")
async def test_a_step_gets_what_a_factory_made() -> None:
    assert await HasTool().run() == "Tool"


def base() -> int:
    return 2


def tenfold(number: Annotated[int, Resource(base)]) -> int:
    return number * 10


class Depends(Workflow):
    @step
    async def only(self, ev: StartEvent, n: Annotated[int, Resource(tenfold)]) -> StopEvent:
        return StopEvent(result=n)


@pytest.mark.feature("1.10: resources of resources")
async def test_a_factory_may_need_another_resource() -> None:
    assert await Depends().run() == 20


@pytest.mark.feature("1.10: ResourceManager")
async def test_a_manager_keeps_named_resources() -> None:
    manager = ResourceManager()
    await manager.set("a", 1)
    assert manager.get_all() == {"a": 1}


class Limits(BaseModel):
    size: int
    name: str = "small"


CONFIG = str(Path(__file__).parent / "limits.json")


class FromFile(Workflow):
    @step
    async def only(
        self,
        ev: StartEvent,
        all_of_it: Annotated[Limits, ResourceConfig(config_file=CONFIG)],
        part: Annotated[Limits, ResourceConfig(config_file=CONFIG, path_selector="deep.inner")],
    ) -> StopEvent:
        return StopEvent(result=[all_of_it.size, all_of_it.name, part.size])


@pytest.mark.feature("1.10: ResourceConfig")
async def test_a_resource_may_come_from_a_file() -> None:
    assert await FromFile().run() == [3, "small", 5]


@pytest.mark.feature("1.10: ResourceConfig")
def test_a_file_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="Only JSON files"):
        ResourceConfig(config_file="limits.yaml")


@pytest.mark.feature("1.10: ResourceConfig")
def test_a_missing_file_is_named_with_the_step_that_needs_it() -> None:
    class NoFile(Workflow):
        @step
        async def s(
            self, ev: StartEvent, c: Annotated[Limits, ResourceConfig(config_file="nope.json")]
        ) -> StopEvent:
            return StopEvent()

    with pytest.raises(
        WorkflowValidationError,
        match="Resource config validation failed:\n  - In step 's', parameter 'c': .*nope.json",
    ):
        NoFile().validate()
    assert NoFile().validate(validate_resource_configs=False) is False
