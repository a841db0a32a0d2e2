"""Section 1.7: the state store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel, Field

from stepfleet import Context, Workflow, step
from stepfleet.events import Event, StartEvent, StopEvent


class Go(Event):
    n: int = 0


class Paths(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Go:
        await ctx.store.set("a", 1)
        await ctx.store.set("d", {"x": {"y": [10, 20, {"z": 30}]}})
        await ctx.store.set("new.deep.path", "made")
        return Go()

    @step
    async def end(self, ctx: Context, ev: Go) -> StopEvent:
        store = ctx.store
        return StopEvent(
            result=[
                await store.get("a"),
                await store.get("d.x.y.1"),
                await store.get("d.x.y.2.z"),
                await store.get("new.deep.path"),
                await store.get("new"),
                await store.get("missing", default=7),
                await store.get("missing", default=None),
                await store.get("d.nope.deeper", default="none"),
            ]
        )


@pytest.mark.feature("1.7: get and set")
async def test_values_are_reached_by_dotted_paths() -> None:
    expected = [1, 20, 30, "made", {"deep": {"path": "made"}}, 7, None, "none"]
    assert await Paths().run() == expected


class Missing(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        messages = []
        for path in ("nope", "a.b"):
            try:
                await ctx.store.get(path)
            except ValueError as error:
                messages.append(str(error))
        try:
            await ctx.store.set("", 1)
        except ValueError as error:
            messages.append(str(error))
        return StopEvent(result=messages)


@pytest.mark.feature("1.7: get and set")
async def test_a_path_that_leads_nowhere_is_named() -> None:
    assert await Missing().run() == [
        "Path 'nope' not found in state",
        "Path 'a.b' not found in state",
        "Path cannot be empty",
    ]


class TooDeep(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        try:
            await ctx.store.set(".".join(["a"] * 1001), 1)
        except ValueError:
            return StopEvent(result="refused")
        return StopEvent(result="set")


@pytest.mark.feature("1.7: get and set")
async def test_a_path_has_at_most_a_thousand_segments() -> None:
    assert await TooDeep().run() == "refused"


class Edits(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Go | None:
        await ctx.store.set("count", 0)
        for n in range(10):
            ctx.send_event(Go(n=n))

    @step
    async def add(self, ctx: Context, ev: Go) -> StopEvent | None:
        async with ctx.store.edit_state() as state:
            state.count += 1
            last = state.count == 10
        return StopEvent(result=await ctx.store.get("count")) if last else None


@pytest.mark.feature("1.7: edit_state")
async def test_edits_do_not_lose_each_other() -> None:
    assert await Edits().run() == 10


class EditFails(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.store.set("a", 1)
        try:
            async with ctx.store.edit_state() as state:
                state.a = 2
                state.b = 3
                raise KeyError("stop")
        except KeyError:
            pass
        return StopEvent(
            result=[await ctx.store.get("a"), await ctx.store.get("b", default="none")]
        )


@pytest.mark.feature("1.7: edit_state")
async def test_an_edit_that_raises_stores_nothing() -> None:
    assert await EditFails().run() == [1, "none"]


class EditReads(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.store.set("a", 1)
        async with ctx.store.edit_state() as state:
            state.a = 2
            inside = await ctx.store.get("a")
        return StopEvent(result=[inside, await ctx.store.get("a")])


@pytest.mark.feature("1.7: edit_state")
async def test_reads_during_an_edit_see_what_was_before() -> None:
    assert await EditReads().run() == [1, 2]


class WritesInside(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        async with ctx.store.edit_state():
            try:
                await ctx.store.set("a", 1)
            except RuntimeError as error:
                return StopEvent(result=str(error))
        return StopEvent(result="written")


@pytest.mark.feature("1.7: edit_state")
async def test_a_write_inside_of_an_edit_is_refused() -> None:
    assert await WritesInside().run() == (
        "writer called inside edit_state: mutate the yielded state instead"
    )


class DictLike(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        async with ctx.store.edit_state() as state:
            state["a"] = 1
            state.b = [2]
        state = await ctx.store.get_state()
        found = [state.a, state["b"], state.get("c", 3), "a" in state, sorted(state.keys())]
        await ctx.store.clear()
        return StopEvent(result=[*found, await ctx.store.get("a", default=None)])


@pytest.mark.feature("1.7: get_state, set_state and clear")
async def test_a_state_without_a_type_is_like_a_dict() -> None:
    assert await DictLike().run() == [1, [2], 3, True, ["a", "b"], None]


# -- typed ---------------------------------------------------------------------------------------------


class Inner(BaseModel):
    name: str = "inner"


class Counter(BaseModel):
    n: int = 0
    tags: list[str] = Field(default_factory=list)
    inner: Inner = Field(default_factory=Inner)


class Typed(Workflow):
    @step
    async def begin(self, ctx: Context[Counter], ev: StartEvent) -> Go:
        async with ctx.store.edit_state() as state:
            state.n += 5
            state.tags.append("a")
        await ctx.store.set("inner.name", "changed")
        return Go()

    @step
    async def end(self, ctx: Context[Counter], ev: Go) -> StopEvent:
        state = await ctx.store.get_state()
        kinds = [type(state).__name__, type(state.inner).__name__]
        return StopEvent(result=[*kinds, state.n, state.tags, await ctx.store.get("inner.name")])


@pytest.mark.feature("1.7: typed state")
async def test_a_state_may_be_a_model() -> None:
    assert await Typed().run() == ["Counter", "Inner", 5, ["a"], "changed"]


class TypedMistakes(Workflow):
    @step
    async def only(self, ctx: Context[Counter], ev: StartEvent) -> StopEvent:
        try:
            await ctx.store.set("nope", 1)
        except ValueError as error:
            return StopEvent(result=str(error))
        return StopEvent(result="set")


@pytest.mark.feature("1.7: typed state")
async def test_a_typed_state_has_no_other_fields() -> None:
    assert await TypedMistakes().run() == '"Counter" object has no field "nope"'


class TypedClear(Workflow):
    @step
    async def only(self, ctx: Context[Counter], ev: StartEvent) -> StopEvent:
        await ctx.store.set("n", 9)
        await ctx.store.clear()
        return StopEvent(result=(await ctx.store.get_state()).n)


@pytest.mark.feature("1.7: get_state, set_state and clear")
async def test_clear_brings_the_defaults_back() -> None:
    assert await TypedClear().run() == 0


class TypedSet(Workflow):
    @step
    async def only(self, ctx: Context[Counter], ev: StartEvent) -> StopEvent:
        await ctx.store.set_state(Counter(n=4, tags=["x"]))
        state = await ctx.store.get_state()
        return StopEvent(result=[state.n, state.tags])


@pytest.mark.feature("1.7: get_state, set_state and clear")
async def test_the_whole_state_may_be_set() -> None:
    assert await TypedSet().run() == [4, ["x"]]


class NoDefaults(BaseModel):
    name: str
    n: int = 1


class Lazy(Workflow):
    @step
    async def only(self, ctx: Context[NoDefaults], ev: StartEvent) -> StopEvent:
        await ctx.store.set("name", "given")
        state = await ctx.store.get_state()
        return StopEvent(result=[state.name, state.n])


@pytest.mark.feature("1.7: typed state")
@pytest.mark.differs("there every field of a state needs a default, or run() raises")
async def test_fields_of_a_state_may_have_no_default() -> None:
    assert await Lazy().run() == ["given", 1]


class Base(BaseModel):
    a: int = 1


class More(Base):
    b: int = 2


class Inherits(Workflow):
    @step
    async def begin(self, ctx: Context[Base], ev: StartEvent) -> Go:
        async with ctx.store.edit_state() as state:
            state.a = 10
        return Go()

    @step
    async def end(self, ctx: Context[More], ev: Go) -> StopEvent:
        state = await ctx.store.get_state()
        return StopEvent(result=[type(state).__name__, state.a, state.b])


@pytest.mark.feature("1.7: state with inheritance")
async def test_the_most_derived_state_type_holds_for_all_steps() -> None:
    assert await Inherits().run() == ["More", 10, 2]


class MergesParent(Workflow):
    @step
    async def begin(self, ctx: Context[More], ev: StartEvent) -> Go:
        await ctx.store.set_state(More(a=5, b=6))
        return Go()

    @step
    async def end(self, ctx: Context[Base], ev: Go) -> StopEvent:
        await ctx.store.set_state(Base(a=7))
        state: Any = await ctx.store.get_state()
        return StopEvent(result=[state.a, state.b])


@pytest.mark.feature("1.7: state with inheritance")
async def test_a_state_of_the_parent_type_is_merged() -> None:
    assert await MergesParent().run() == [7, 6]


class Other(BaseModel):
    c: int = 3


@pytest.mark.feature("1.7: state with inheritance")
async def test_state_types_that_do_not_extend_each_other_are_refused() -> None:
    class Mixed(Workflow):
        @step
        async def begin(self, ctx: Context[Base], ev: StartEvent) -> Go:
            return Go()

        @step
        async def end(self, ctx: Context[Other], ev: Go) -> StopEvent:
            return StopEvent()

    workflow = Mixed()
    with pytest.raises(
        ValueError, match="Multiple state types are not in a compatible inheritance hierarchy"
    ):
        await workflow.run()


# -- outside of steps ----------------------------------------------------------------------------------


class ReadsSeed(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        seed = await ctx.store.get("seed")
        await ctx.store.set("answer", seed * 2)
        return StopEvent(result=seed)


@pytest.mark.feature("1.7: the store outside of steps")
async def test_a_store_may_be_filled_before_the_run_and_read_after_it() -> None:
    workflow = ReadsSeed()
    ctx: Context = Context(workflow)
    await ctx.store.set("seed", 21)
    assert await ctx.store.get("seed") == 21
    handler = workflow.run(ctx=ctx)
    assert await handler == 21
    assert await handler.ctx.store.get("answer") == 42
    assert await ctx.store.get("answer") == 42


class FailsOnce(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.store.set("written", True)
        raise ValueError("after the write")


@pytest.mark.feature("1.7: writes of a failed step")
async def test_what_a_failing_step_wrote_stays() -> None:
    handler = FailsOnce().run()
    with pytest.raises(ValueError, match="after the write"):
        await handler
    assert await handler.ctx.store.get("written") is True


class Values(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Go:
        await ctx.store.set("model", Inner(name="kept"))
        await ctx.store.set("list", [1, "a", None, 2.5])
        return Go()

    @step
    async def end(self, ctx: Context, ev: Go) -> StopEvent:
        model = await ctx.store.get("model")
        name = await ctx.store.get("model.name")
        return StopEvent(result=[type(model).__name__, name, await ctx.store.get("list")])


@pytest.mark.feature("1.7: get and set")
async def test_models_keep_their_type_in_the_store() -> None:
    assert await Values().run() == ["Inner", "kept", [1, "a", None, 2.5]]


@pytest.mark.feature("1.7: the store outside of steps")
async def test_edits_before_the_run_are_exclusive_and_stored_as_a_whole() -> None:
    ctx: Context = Context(ReadsSeed())
    await ctx.store.set("n", 0)
    await ctx.store.set("list", [1])

    async def add() -> None:
        async with ctx.store.edit_state() as state:
            n = state.n
            await asyncio.sleep(0)
            state.n = n + 1

    await asyncio.gather(*(add() for _ in range(10)))
    assert await ctx.store.get("n") == 10

    async def fail() -> None:
        async with ctx.store.edit_state() as state:
            state.list.append(2)
            raise KeyError("stop")

    with pytest.raises(KeyError):
        await fail()
    assert await ctx.store.get("list") == [1]
