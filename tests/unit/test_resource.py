"""Resources are made once, in order, without circles; configuration files are checked before a run."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from stepfleet import StartEvent, StopEvent, Workflow, step
from stepfleet.drawing import draw_all_possible_flows_mermaid
from stepfleet.errors import WorkflowValidationError
from stepfleet.representation import (
    WorkflowResourceConfigNode,
    WorkflowResourceNode,
    get_workflow_representation,
)
from stepfleet.resource import (
    Resource,
    ResourceConfig,
    ResourceDescriptor,
    ResourceManager,
)


class Limits(BaseModel):
    top: int


class Names(BaseModel):
    names: list[str]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"top": 3, "names": ["a"], "inner": {"deep": {"top": 7}}}))
    return path


# -- factories -------------------------------------------------------------------------------------


async def test_a_cached_resource_is_made_once() -> None:
    made: list[int] = []
    resource = Resource(lambda: made.append(1) or len(made))
    manager = ResourceManager()
    assert await manager.get(resource) == await manager.get(resource) == 1


async def test_one_that_is_not_cached_is_made_once_for_what_is_asked_for_together() -> None:
    made: list[int] = []
    resource = Resource(lambda: made.append(1) or len(made), cache=False)
    manager = ResourceManager()
    with manager.resolution_scope():
        assert (await manager.get(resource), await manager.get(resource)) == (1, 1)
    assert await manager.get(resource) == 2


async def test_two_lambdas_of_one_scope_are_two_resources() -> None:
    # Same qualified name: the model gives (1, 1).
    one, two = Resource(lambda: 1), Resource(lambda: 2)
    manager = ResourceManager()
    assert (await manager.get(one), await manager.get(two)) == (1, 2)


async def test_two_notes_on_one_function_are_one_resource() -> None:
    def make() -> object:
        return object()

    manager = ResourceManager()
    assert await manager.get(Resource(make)) is await manager.get(Resource(make))


async def test_the_method_of_an_object_is_one_resource() -> None:
    class Pool:
        def make(self) -> object:
            return object()

    pool, manager = Pool(), ResourceManager()
    assert await manager.get(Resource(pool.make)) is await manager.get(Resource(pool.make))
    assert await manager.get(Resource(Pool().make)) is not await manager.get(Resource(pool.make))


async def test_steps_that_ask_at_once_get_the_same_slow_resource() -> None:
    # The model takes the second request for a circle.
    asked, go = asyncio.Event(), asyncio.Event()

    async def slow() -> object:
        asked.set()
        await go.wait()
        return object()

    resource, manager = Resource(slow), ResourceManager()
    first = asyncio.create_task(manager.get(resource))
    await asked.wait()
    second = asyncio.create_task(manager.get(resource))
    await asyncio.sleep(0)
    go.set()
    assert await first is await second


async def test_a_factory_that_failed_is_called_again() -> None:
    calls: list[int] = []

    def flaky() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("not yet")
        return "ready"

    resource, manager = Resource(flaky), ResourceManager()
    with pytest.raises(ConnectionError):
        await manager.get(resource)
    assert await manager.get(resource) == "ready"


def test_a_manager_serves_one_event_loop_after_another() -> None:
    manager = ResourceManager()

    async def slow() -> object:
        await asyncio.sleep(0)
        return object()

    async def both(resource: Any) -> None:
        one, two = await asyncio.gather(manager.get(resource), manager.get(resource))
        assert one is two

    asyncio.run(both(Resource(slow)))
    asyncio.run(both(Resource(slow, cache=True)))


def base() -> str:
    return "base"


async def middle(below: Annotated[str, Resource(base)], more: int = 1) -> str:
    return f"{below}>middle{more}"


def top(below: Annotated[str, Resource(middle)], *args: Any, **kwargs: Any) -> Any:
    return below, args, kwargs


async def test_a_factory_gets_the_resources_that_its_parameters_ask_for() -> None:
    manager = ResourceManager()
    assert await manager.get(Resource(top)) == ("base>middle1", (), {})
    assert sorted(manager.get_all()) == ["base", "middle", "top"]


async def test_names_around_the_step_serve_the_annotations_of_a_factory_too() -> None:
    def inner() -> int:
        return 4

    def outer(below: Annotated[int, Resource(inner)]) -> int:
        return below * 2

    class Flow(Workflow):
        @step
        async def only(self, ev: StartEvent, it: Annotated[int, Resource(outer)]) -> StopEvent:
            return StopEvent(result=it)

    assert await Flow().run() == 8


def left(other: Annotated[str, Resource(lambda: "")]) -> str:
    return other


def right(other: Annotated[str, Resource(left)]) -> str:
    return other


async def test_a_circle_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(left.__annotations__, "other", Annotated[str, Resource(right)])
    with pytest.raises(
        ValueError, match="Circular resource dependency detected: left -> right -> left"
    ):
        await ResourceManager().get(Resource(left))


async def test_a_value_given_by_name_wins_over_its_factory() -> None:
    def client() -> str:
        raise AssertionError("not in a test")

    manager = ResourceManager()
    await manager.set(Resource(client).name, "fake")
    assert await manager.get(Resource(client)) == "fake"
    assert list(manager.get_all().values()) == ["fake"]


async def test_any_class_with_the_right_methods_is_a_resource() -> None:
    class Constant:
        name, cache = "constant", False

        async def resolve(self, manager: ResourceManager) -> int:
            return 5

        def set_type_annotation(self, type_annotation: Any) -> None: ...
        def set_localns(self, localns: dict[str, Any] | None) -> None: ...
        def get_dependencies(self) -> list[Any]:
            return []

    assert isinstance(Constant(), ResourceDescriptor)
    assert await ResourceManager().get(Constant()) == 5


# -- configuration files ---------------------------------------------------------------------------


async def test_one_file_may_be_read_into_two_models(config: Path) -> None:
    both = ResourceConfig("config.json")

    class Flow(Workflow):
        @step
        async def s(
            self, ev: StartEvent, one: Annotated[Limits, both], two: Annotated[Names, both]
        ) -> StopEvent:
            return StopEvent(result=(one.top, two.names))

    assert await Flow().run() == (3, ["a"])


def test_a_file_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="Only JSON files can be used"):
        ResourceConfig("config.yaml")


class Configured(Workflow):
    @step
    async def s(
        self,
        ev: StartEvent,
        gone: Annotated[Limits, ResourceConfig("nope.json")],
        deep: Annotated[Limits, ResourceConfig("config.json", "inner.missing")],
        made: Annotated[str, Resource(right)],
    ) -> StopEvent:
        return StopEvent()


async def test_what_is_wrong_with_files_is_told_before_the_run(config: Path) -> None:
    with pytest.raises(WorkflowValidationError) as refused:
        Configured().run()
    assert str(refused.value) == (
        "Resource config validation failed:\n"
        "  - In step 's', parameter 'gone': No such file: nope.json\n"
        "  - In step 's', parameter 'deep': Expected dictionary for configuration from "
        f"{config} at path inner.missing, got: <class 'NoneType'>"
    )
    assert Configured().validate(validate_resource_configs=False) is False


def test_a_file_that_a_factory_needs_is_checked_and_the_way_to_it_shown(config: Path) -> None:
    config.write_text("{}")

    def make(limits: Annotated[Limits, ResourceConfig("config.json")]) -> int:
        return limits.top

    class Flow(Workflow):
        @step
        async def s(self, ev: StartEvent, made: Annotated[int, Resource(make)]) -> StopEvent:
            return StopEvent()

    with pytest.raises(
        WorkflowValidationError, match=r"parameter 'made' \(.*make -> config.json\)"
    ):
        Flow().validate()


def test_a_config_without_a_model_says_so(config: Path) -> None:
    class Flow(Workflow):
        @step
        async def s(
            self, ev: StartEvent, one: Annotated[dict[str, Any], ResourceConfig("config.json")]
        ) -> StopEvent:
            return StopEvent()

    with pytest.raises(WorkflowValidationError, match="needs a pydantic model"):
        Flow().validate()


# -- validation ------------------------------------------------------------------------------------


def broken() -> str:
    raise RuntimeError("no server")


class Factories(Workflow):
    @step
    async def s(self, ev: StartEvent, one: Annotated[str, Resource(broken)]) -> StopEvent:
        return StopEvent()


async def test_factories_are_called_by_validate_only_when_asked_for() -> None:
    assert Factories().validate() is False
    # In the model this fails inside a running event loop.
    with pytest.raises(WorkflowValidationError) as refused:
        Factories().validate(validate_resources=True)
    assert str(refused.value) == (
        "Resource validation failed:\n  - In step 's', parameter 'one': no server"
    )


async def test_a_value_given_by_name_also_counts_for_validation() -> None:
    manager = ResourceManager()
    await manager.set("broken", "fake")
    assert Factories(resource_manager=manager).validate(validate_resources=True) is False


# -- shown -----------------------------------------------------------------------------------------


def make_client(limits: Annotated[Limits, ResourceConfig("config.json", label="limits")]) -> int:
    """Talks to the server."""
    return limits.top


class Shown(Workflow):
    @step
    async def first(
        self, ev: StartEvent, client: Annotated[int, Resource(make_client)]
    ) -> StopEvent:
        return StopEvent()


def test_a_representation_shows_resources_and_what_they_are_made_of(config: Path) -> None:
    graph = get_workflow_representation(Shown)
    (client,) = [node for node in graph.nodes if isinstance(node, WorkflowResourceNode)]
    (limits,) = [node for node in graph.nodes if isinstance(node, WorkflowResourceConfigNode)]
    assert (client.type_name, client.getter_name) == ("int", "make_client")
    assert (client.description, client.source_file) == ("Talks to the server.", __file__)
    assert (limits.label, limits.config_file) == ("limits", str(config))
    assert limits.config_value is not None
    assert limits.config_value["top"] == 3
    edges = {(edge.source, edge.target, edge.label) for edge in graph.edges if edge.label}
    assert edges == {("first", client.id, "client"), (client.id, limits.id, "limits")}


def test_a_drawing_shows_a_file_that_is_not_there(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert '["limits"]:::resource_config' in draw_all_possible_flows_mermaid(Shown)
