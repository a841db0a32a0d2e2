"""A store by itself, its checkpoints and patches, and the functions on paths."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from stepfleet import Context, StartEvent, StopEvent, Workflow, step
from stepfleet.context import JsonSerializer
from stepfleet.context.state_store import (
    MAX_DEPTH,
    DictState,
    InMemoryStateStore,
    StateCheckpoint,
    UnserializableKeyWarning,
    apply_state_patch,
    copy_state_for_edit,
    create_cleared_state,
    decode_state,
    get_by_path,
    merge_state,
    set_by_path,
    set_by_path_copy,
)
from stepfleet.store import fields_of


class Json:
    def serialize(self, value: Any) -> str:
        return json.dumps(value)

    def deserialize(self, value: str) -> Any:
        return json.loads(value)


class Typed(BaseModel):
    number: int = 1
    parts: dict[str, int] = {}
    items: list[int] = [1, 2]


async def test_a_store_by_itself_is_read_and_written() -> None:
    store = InMemoryStateStore(DictState(a={"b": [1, {"c": 2}]}))
    assert await store.get("a.b.1.c") == 2
    await store.set("a.b.0", 5)
    async with store.edit_state() as state:
        state.more = True
    assert await store.get("a.b.0") == 5
    assert await store.get("more") is True


async def test_a_checkpoint_does_not_change_with_the_store() -> None:
    store = InMemoryStateStore(Typed())
    before = store.checkpoint()
    await store.set("parts.a", 2)
    assert before.state.model_dump()["parts"] == {}


@pytest.mark.parametrize("state", [DictState(number=1, items=[1, 2], parts={}), Typed()])
async def test_a_patch_makes_the_later_state_of_the_earlier_one(state: Any) -> None:
    store = InMemoryStateStore(state)
    before = store.checkpoint()
    await store.set("parts", {"a/b": 1, "c~d": 2})
    await store.set("items.0", 9)
    await store.set("number", 2)
    after = store.checkpoint()
    assert apply_state_patch(before.to_dict(), after.diff(before)) == after.to_dict()
    assert apply_state_patch(after.to_dict(), before.diff(after)) == before.to_dict()
    assert after.diff(after) == []


def test_a_patch_inserts_into_lists_and_refuses_other_operations() -> None:
    tree = {"items": [1, 3]}
    patch = [
        {"op": "add", "path": "/items/1", "value": 2},
        {"op": "add", "path": "/items/-", "value": 4},
        {"op": "remove", "path": "/items/0"},
    ]
    assert apply_state_patch(tree, patch) == {"items": [2, 3, 4]}
    assert tree == {"items": [1, 3]}
    with pytest.raises(ValueError, match="'move' is none of it"):
        apply_state_patch(tree, [{"op": "move", "path": "/items/0"}])


@pytest.mark.parametrize(
    ("earlier", "later", "operations"),
    [
        ([1, 2], [1, 2, 3], [("add", "/2")]),
        ([1, 2], [0, 1, 2], [("add", "/0")]),
        ([1, 2, 3], [1, 3], [("remove", "/1")]),
        ([1, 2, 3], [1, 9, 3], [("replace", "/1")]),
        ([1, 2], [3, 4, 5], [("remove", "/0")] * 2 + [("add", f"/{n}") for n in range(3)]),
    ],
)
def test_a_patch_of_a_list_names_only_what_changed(
    earlier: list[int], later: list[int], operations: list[tuple[str, str]]
) -> None:
    def checkpoint(items: list[int]) -> StateCheckpoint:
        return StateCheckpoint(DictState(list=items), JsonSerializer())

    before, after = checkpoint(earlier), checkpoint(later)
    patch = after.diff(before)
    assert [(one["op"], one["path"]) for one in patch] == [
        (kind, f"/state_data/_data/list{path}") for kind, path in operations
    ]
    assert apply_state_patch(before.to_dict(), patch) == after.to_dict()


@pytest.mark.parametrize("state", [DictState(number=1, text="a", parts=[Typed()]), Typed()])
def test_the_tree_of_a_checkpoint_is_read_again(state: Any) -> None:
    tree = StateCheckpoint(state, JsonSerializer()).to_dict()
    assert InMemoryStateStore.from_dict(tree, JsonSerializer()).checkpoint().to_dict() == tree
    snapshot = {"version": 2, "state": tree}
    assert Context.from_dict(Flow(), snapshot).initial_values == fields_of(state)


class Flow(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent()


async def test_a_store_travels_as_a_dict() -> None:
    data = InMemoryStateStore(DictState(x=1, keys=["a"])).to_dict(Json())
    assert data["state_data"] == {"_data": {"x": "1", "keys": '["a"]'}}
    again = InMemoryStateStore.from_dict(data, Json())
    assert (await again.get("x"), await again.get("keys")) == (1, ["a"])


def test_a_value_that_cannot_be_serialized_is_named() -> None:
    with pytest.raises(ValueError, match="Failed to serialize state value for key o"):
        InMemoryStateStore(DictState(o=object())).to_dict(Json())
    with pytest.raises(ValueError, match="Unrecognized state payload of type tuple"):
        decode_state((), Json())


def test_paths_are_read_with_a_default_or_an_error() -> None:
    state = DictState(a={"b": [1, {"c": 2}]}, items=3)
    assert get_by_path(state, "a.b.1.c") == 2
    assert get_by_path(state, "items") == 3
    assert get_by_path(state, "nope", default=None) is None
    with pytest.raises(ValueError, match="Path 'nope' not found in state"):
        get_by_path(state, "nope")
    with pytest.raises(ValueError, match=f"exceeds {MAX_DEPTH}"):
        get_by_path(state, ".".join(["a"] * (MAX_DEPTH + 1)))


def test_paths_are_written_in_place_or_in_a_copy() -> None:
    state = DictState()
    set_by_path(state, "a.b.c", 1)
    copied = set_by_path_copy(state, "a.b.c", 2)
    assert (get_by_path(state, "a.b.c"), get_by_path(copied, "a.b.c")) == (1, 2)
    with pytest.raises(ValueError, match="Path cannot be empty"):
        set_by_path(state, "", 1)
    with pytest.raises(ValueError, match='"Typed" object has no field "nope"'):
        set_by_path(Typed(), "nope", 1)


def test_a_copy_shares_what_cannot_be_copied() -> None:
    lock = __import__("threading").Lock()
    copied = copy_state_for_edit(DictState(lock=lock, items=[1]))
    assert copied.lock is lock


def test_states_are_merged_and_cleared() -> None:
    class Child(Typed):
        more: int = 0

    assert merge_state(Child(more=5), Typed(number=3)).model_dump() == {
        "number": 3,
        "parts": {},
        "items": [1, 2],
        "more": 5,
    }

    class Required(BaseModel):
        name: str

    assert create_cleared_state(Typed).number == 1
    with pytest.raises(ValueError, match="State must have defaults for all fields"):
        create_cleared_state(Required)


async def test_a_key_of_live_objects_is_left_out_with_a_warning() -> None:
    store = InMemoryStateStore(DictState(memory=object(), n=1))
    with pytest.warns(UnserializableKeyWarning, match="known unserializable key: memory"):
        assert store.to_dict(Json())["state_data"]["_data"] == {"n": "1"}


async def test_a_value_of_another_type_is_kept_as_it_was_set() -> None:
    store = InMemoryStateStore(Typed())
    await store.set("number", "x")
    assert (await store.get_state()).number == "x"


class Uncopied:
    def __copy__(self) -> Uncopied:
        raise TypeError("a live client")

    def __deepcopy__(self, memo: dict[int, Any]) -> Uncopied:
        raise TypeError("a live client")


class Chat(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    messages: list[str] = Field(default_factory=list)
    client: Any = None
    tokenizer: Any = Field(default=None, exclude=True)
    _lock: Any = PrivateAttr(default=None)


def test_a_copy_for_an_edit_shares_only_what_cannot_be_copied_or_is_no_data() -> None:
    client, tokenizer = Uncopied(), [1]
    chat = Chat(messages=["a"], client=client, tokenizer=tokenizer)
    chat._lock = client  # pyright: ignore[reportPrivateUsage]
    state = DictState(chat=chat, again=chat, parts=[client, ["b"]])
    copied = copy_state_for_edit(state)
    assert copied.chat is copied.again is not chat
    assert (copied.chat.client, copied.chat._lock, copied.parts[0]) == (client, client, client)
    assert copied.chat.tokenizer is tokenizer
    copied.chat.messages.append("c")
    copied.parts[1].append("d")
    assert (chat.messages, state.parts[1]) == (["a"], ["b"])


async def test_setting_a_path_copies_what_is_on_it_and_shares_the_rest() -> None:
    kept, client = {"kept": 1}, Uncopied()
    state = DictState(a={"b": {"c": 0}, "kept": kept}, client=client)
    changed = set_by_path_copy(state, "a.b.c", 1)
    assert (changed.a["b"], state.a["b"]) == ({"c": 1}, {"c": 0})
    assert changed.a["kept"] is kept
    store = InMemoryStateStore(state)
    before = await store.get("a")
    await store.set("a.b.c", 2)
    assert (before["b"]["c"], (await store.get("a"))["kept"]) == (0, kept)
    await store.set("client.slot", 7)
    assert (await store.get("client")).slot == 7
