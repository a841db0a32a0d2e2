"""Paths, typed state and edits of the store, over a port in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from stepfleet.store import DictState, LocalPort, StateStore


class Address(BaseModel):
    town: str = "London"


class State(BaseModel):
    count: int = 0
    names: list[str] = Field(default_factory=list)
    address: Address = Field(default_factory=Address)


class Required(BaseModel):
    name: str
    count: int = 3


def untyped(**values: Any) -> StateStore[DictState]:
    return StateStore(LocalPort(values))


def typed(**values: Any) -> StateStore[State]:
    return StateStore(LocalPort(values), State)


class Contended(LocalPort):
    """Somebody else writes between every read and the first writes."""

    def __init__(self, times: int, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.times = times
        self.expected: list[Mapping[str, int] | None] = []

    async def write(
        self,
        changed: Mapping[str, Any],
        removed: Sequence[str] = (),
        *,
        expected: Mapping[str, int] | None = None,
    ) -> bool:
        self.expected.append(expected)
        if expected is not None and self.times:
            self.times -= 1
            self.values["d"] = {**self.values["d"], f"other{self.times}": True}
            return False
        return await super().write(changed, removed, expected=expected)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a", {"b": [1, {"c": 2}]}),
        ("a.b", [1, {"c": 2}]),
        ("a.b.0", 1),
        ("a.b.-1.c", 2),
        ("person.town", "London"),
        ("pair.1", "y"),
    ],
)
async def test_a_path_goes_through_dicts_lists_and_attributes(path: str, found: Any) -> None:
    store = untyped(a={"b": [1, {"c": 2}]}, person=Address(), pair=("x", "y"))
    assert await store.get(path) == found


@pytest.mark.parametrize(
    "path", ["nope", "a.nope", "a.b.7", "a.b.x", "person.nope", "a.b.0.deeper"]
)
async def test_a_path_to_nothing_is_an_error_unless_there_is_a_default(path: str) -> None:
    store = untyped(a={"b": [1]}, person=Address())
    with pytest.raises(ValueError, match=f"^Path '{path}' not found in state$"):
        await store.get(path)
    assert await store.get(path, default=None) is None
    assert await store.get(path, 7) == 7


async def test_a_stored_none_is_a_value() -> None:
    assert await untyped(a=None).get("a", default="default") is None


@pytest.mark.parametrize("path", ["", "a." * 1000 + "a"])
async def test_a_path_has_between_one_and_a_thousand_segments(path: str) -> None:
    store = untyped()
    with pytest.raises(ValueError, match="Path "):
        await store.get(path, default=1)
    with pytest.raises(ValueError, match="Path "):
        await store.set(path, 1)


async def test_set_makes_the_dictionaries_on_its_way() -> None:
    store = untyped()
    await store.set("a.b.c", 1)
    await store.set("a.b.d", 2)
    assert await store.get("a") == {"b": {"c": 1, "d": 2}}


async def test_set_reaches_into_lists_and_models() -> None:
    store = untyped(items=[{"n": 1}], person=Address())
    await store.set("items.0.n", 2)
    await store.set("person.town", "Paris")
    assert await store.get("items.0.n") == 2
    assert await store.get("person.town") == "Paris"


@pytest.mark.parametrize("path", ["items.5", "items.x", "number.part"])
async def test_set_refuses_a_way_that_leads_nowhere(path: str) -> None:
    store = untyped(items=[1], number=5)
    with pytest.raises(ValueError, match=f"Path '{path}'"):
        await store.set(path, 1)


async def test_a_nested_set_is_repeated_until_nobody_came_between() -> None:
    port = Contended(2, {"d": {}})
    await StateStore(port).set("d.mine", 1)
    assert port.values == {"d": {"other1": True, "other0": True, "mine": 1}}
    assert port.expected == [{"d": 1}] * 3


async def test_a_top_level_set_relies_on_nothing() -> None:
    port = Contended(1, {"d": {}})
    await StateStore(port).set("d", 1)
    assert port.expected == [None]
    assert port.values == {"d": 1}


async def test_typed_state_has_defaults_that_runs_do_not_share() -> None:
    store = typed()
    assert await store.get("count") == 0
    await store.set("address.town", "Rome")
    assert await store.get("address.town") == "Rome"
    assert await typed().get("address.town") == "London"
    assert (await store.get_state()) == State(address=Address(town="Rome"))


@pytest.mark.parametrize("path", ["nope", "nope.deeper"])
async def test_typed_state_refuses_fields_that_it_does_not_declare(path: str) -> None:
    with pytest.raises(ValueError, match='"State" object has no field "nope"'):
        await typed().set(path, 1)


class Checked(BaseModel, validate_assignment=True):
    age: int = 30
    tags: list[str] = []


@pytest.mark.parametrize(("path", "value"), [("age", "old"), ("tags", 5), ("tags.0", 5)])
async def test_typed_state_that_checks_assignments_checks_what_is_set(
    path: str, value: Any
) -> None:
    store = StateStore(LocalPort({"tags": ["new"]}), Checked)
    with pytest.raises(ValidationError):
        await store.set(path, value)
    assert await store.get_state() == Checked(age=30, tags=["new"])


async def test_typed_state_that_checks_assignments_stores_what_they_leave() -> None:
    store = StateStore(LocalPort(), Checked)
    await store.set("age", "31")
    assert await store.get("age") == 31


async def test_a_way_through_a_number_is_what_an_assignment_to_it_would_be() -> None:
    with pytest.raises(AttributeError, match="has no parts"):
        await StateStore(LocalPort({"age": 30}), Checked).set("age.years", 30)


async def test_untyped_state_takes_keys_that_are_names_of_methods() -> None:
    store = untyped(keys=1, items=2, model_dump=3)
    state = await store.get_state()
    assert state["keys"] == 1
    assert sorted(state.keys()) == ["items", "keys", "model_dump"]
    async with store.edit_state() as edited:
        edited["items"] = 5
    assert await store.get("items") == 5


async def test_an_edit_stores_its_changes_at_the_end() -> None:
    port = LocalPort({"count": 1})
    store = StateStore(port, State)
    async with store.edit_state() as state:
        state.count += 1
        state.names.append("a")
        assert port.values == {"count": 1}
    assert port.values == {"count": 2, "names": ["a"], "address": Address()}


async def test_an_edit_that_fails_stores_nothing_and_allows_writes_again() -> None:
    store = typed(count=1)

    async def fail() -> None:
        async with store.edit_state() as state:
            state.count = 2
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert await store.get("count") == 1
    await store.set("count", 3)
    assert await store.get("count") == 3


async def test_an_edit_removes_what_was_removed() -> None:
    store = untyped(a=1, b=2)
    async with store.edit_state() as state:
        assert state.__pydantic_extra__ is not None
        del state.__pydantic_extra__["a"]
    assert (await store.get_state()).to_dict() == {"b": 2}


async def test_no_write_works_inside_an_edit() -> None:
    store = typed()
    async with store.edit_state():
        for write in (store.set("count", 1), store.set_state(State()), store.clear()):
            with pytest.raises(RuntimeError, match="^writer called inside edit_state"):
                await write
        with pytest.raises(RuntimeError, match="^writer called inside edit_state"):
            async with store.edit_state():
                pass
        assert await store.get("count") == 0


async def test_a_state_without_defaults_is_filled_field_by_field() -> None:
    store: StateStore[Required] = StateStore(LocalPort(), Required)
    with pytest.raises(ValueError, match="Path 'name' not found"):
        await store.get("name")
    with pytest.raises(ValueError, match="^State must have defaults for all fields$"):
        await store.clear()
    async with store.edit_state() as state:
        assert state.count == 3
        state.name = "ada"
    assert (await store.get_state()) == Required(name="ada")


async def test_clear_and_set_state_leave_nothing_of_what_was() -> None:
    store = untyped(a=1, b=2)
    await store.set_state(DictState(c=3))
    assert (await store.get_state()).to_dict() == {"c": 3}
    await store.clear()
    assert (await store.get_state()).to_dict() == {}


async def test_a_value_that_is_used_before_it_is_read_says_so() -> None:
    reading = StateStore(LocalPort({"n": 1})).get("n")
    with pytest.raises(TypeError, match=r"write `await ctx.store.get\(...\)`"):
        bool(reading)
    with pytest.raises(AttributeError, match=r"write `await ctx.store.get\(...\)`"):
        reading.real  # noqa: B018
    assert await reading == 1


async def test_a_value_may_be_read_in_a_task() -> None:
    store = StateStore(LocalPort({"n": 1}))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(store.get("n"))
    assert task.result() == 1
