"""Serializers of snapshots: exact, and never led by the text to code that nobody named."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.context import BaseSerializer, JsonSerializer, PickleSerializer
from stepfleet.context.serializers import JsonPickleSerializer
from stepfleet.context.snapshot import UnserializableKeyWarning
from stepfleet.errors import ContextSerdeError


class Inner(BaseModel):
    n: int


class Item(Event):
    inner: Inner
    anything: Any = None


class Colour(Enum):
    RED = 1


@dataclass
class Point:
    x: int


class Flow(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


VALUES: list[Any] = [
    *(None, True, 1, 1.5, "text", [1, "x", None], {"a": [1]}, (1, 2), {1, 2}, b"x"),
    *(datetime(2020, 1, 1, tzinfo=UTC), {1: "int key"}, Colour.RED, Point(3), Inner(n=1)),
    *(
        Item(inner=Inner(n=1)),
        Item.model_validate({"inner": Inner(n=1), "extra": 2}),
        StopEvent(result=Inner(n=3)),
    ),
    *([Item(inner=Inner(n=1))], {"__is_pydantic": True, "qualified_name": "os.system"}),
    Item(inner=Inner(n=1), anything=[Inner(n=2), {"k": Inner(n=3)}]),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    serializer = JsonSerializer(allowed_types=[Inner, Item, Colour, Point])
    text = serializer.serialize(value)
    json.loads(text)
    back = JsonSerializer(allowed_types=[Inner, Item, Colour, Point]).deserialize(text)
    assert (back, type(back)) == (value, type(value))


def test_models_stand_in_the_text_as_the_model_writes_them() -> None:
    text = JsonSerializer().serialize(Inner(n=1))
    assert json.loads(text) == {
        "__is_pydantic": True,
        "value": {"n": 1},
        "qualified_name": f"{__name__}.Inner",
    }


def test_a_class_that_nobody_named_is_not_found_and_not_imported() -> None:
    text = json.dumps({"__is_pydantic": True, "value": {}, "qualified_name": "antigravity.Thing"})
    with pytest.raises(
        ValueError, match="Class antigravity.Thing is not in the serializer's allowed"
    ):
        JsonSerializer().deserialize(text)
    assert "antigravity" not in sys.modules


def test_a_live_object_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^Failed to serialize value: <class 'object'>"):
        JsonSerializer().serialize(object())


@pytest.mark.parametrize("serializer", [PickleSerializer, JsonPickleSerializer])
def test_pickles_are_refused_with_the_reason(serializer: type[BaseSerializer]) -> None:
    with pytest.raises(ContextSerdeError, match="chooses the code that runs when it is read"):
        serializer()


async def test_a_state_value_that_cannot_be_written_is_named() -> None:
    ctx = Context(Flow())
    await ctx.store.set("o", object())
    with pytest.raises(ValueError, match="^Failed to serialize state value for key o: Failed to"):
        ctx.to_dict()


async def test_memory_is_left_out_with_a_warning() -> None:
    ctx = Context(Flow())
    await ctx.store.set("memory", object())
    await ctx.store.set("n", 1)
    with pytest.warns(UnserializableKeyWarning, match="known unserializable key: memory"):
        data = ctx.to_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "memory" not in Context.from_dict(Flow(), data).initial_values


class Shouting(BaseSerializer):
    def serialize(self, value: Any) -> str:
        return json.dumps(value).upper()

    def deserialize(self, value: str) -> Any:
        return json.loads(value.lower())


async def test_a_serializer_of_ones_own_writes_and_reads_the_state() -> None:
    for flow, chosen in ((Flow(), Shouting()), (Flow(serializer=Shouting()), None)):
        ctx = Context(flow)
        await ctx.store.set("k", "word")
        data = ctx.to_dict(chosen)
        assert data["state"]["state_data"]["_data"] == {"k": '"WORD"'}
        assert await Context.from_dict(flow, data, chosen).store.get("k") == "word"


def test_another_process_finds_the_classes_of_the_workflow_alone() -> None:
    text = JsonSerializer().serialize(Inner(n=4))
    code = (
        "import sys; from stepfleet.context import JsonSerializer\n"
        "try: JsonSerializer().deserialize(sys.argv[1])\n"
        "except ValueError as e: print(e)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, text], capture_output=True, text=True, check=True, timeout=60
    )
    assert f"Class {__name__}.Inner is not in the serializer's allowed types" in found.stdout


def test_classes_that_are_not_among_the_allowed_ones_are_refused_although_seen_before() -> None:
    text = JsonSerializer().serialize(Inner(n=4))
    with pytest.raises(ValueError, match="not in the serializer's allowed types"):
        JsonSerializer(allowed_types=[Item]).deserialize(text)
    assert JsonSerializer(allowed_types=[Item]).with_types(Inner).deserialize(text) == Inner(n=4)
    assert JsonSerializer(allowed_types=[f"{__name__}.Inner"]).deserialize(text) == Inner(n=4)


@pytest.mark.parametrize("entry", [list[int], 3, Any])
def test_what_is_no_class_cannot_be_allowed(entry: Any) -> None:
    with pytest.raises(TypeError, match="allowed_types takes concrete classes"):
        JsonSerializer(allowed_types=[entry])


def test_two_classes_of_one_name_cannot_be_told_apart() -> None:
    other: Any = type("Inner", (), {"__module__": __name__})
    with pytest.raises(ValueError, match=r"Two classes claim the serialized name .*Inner"):
        JsonSerializer(allowed_types=[Inner, other])


class Component:
    def __init__(self, size: int) -> None:
        self.size = size

    @classmethod
    def class_name(cls) -> str:
        return "component"

    def to_dict(self) -> dict[str, Any]:
        return {"size": self.size}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Component:
        return cls(**data)


def test_components_go_by_their_own_dictionary() -> None:
    text = JsonSerializer().serialize([Component(3)])
    assert json.loads(text) == [
        {
            "__is_component": True,
            "value": {"size": 3},
            "qualified_name": f"{__name__}.Component",
        }
    ]
    assert JsonSerializer(allowed_types=[Component]).deserialize(text)[0].size == 3
