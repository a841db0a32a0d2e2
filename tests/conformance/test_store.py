"""`ctx.store`: state that all steps of a run share, on whatever host they run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel, Field

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.errors import ContextStateError, EncodeError
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_none
from tests.conformance.place import Place


class Item(Event):
    n: int


class Edited(Event):
    pass


class State(BaseModel):
    count: int = 0
    names: list[str] = Field(default_factory=list)
    nested: dict[str, Any] = Field(default_factory=dict)


class Required(BaseModel):
    name: str
    count: int = 0


async def test_a_value_set_in_one_step_is_read_in_another(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item:
            await ctx.store.set("a", {"b": [1, {"c": "deep"}]})
            await ctx.store.set("a.x.y", 5)
            await ctx.store.set("a.b.0", 2)
            return Item(n=1)

        @step
        async def end(self, ctx: Context, ev: Item) -> StopEvent:
            get = ctx.store.get
            return StopEvent(
                result=[
                    await get("a.b.1.c"),
                    await get("a.x"),
                    await get("a.b.0"),
                    await get("nope", default=None),
                    await get("a.nope.deeper", default="d"),
                ]
            )

    flow = await place.serve(Flow)
    assert await flow.run() == ["deep", {"y": 5}, 2, None, "d"]


async def test_wrong_paths_are_errors_that_name_them(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            messages: list[str] = []
            for attempt in (
                lambda: ctx.store.get("nope"),
                lambda: ctx.store.get(""),
                lambda: ctx.store.set("", 1),
                lambda: ctx.store.set(".".join("a" * 1001), 1),
            ):
                try:
                    await attempt()
                except ValueError as error:
                    messages.append(str(error))
            return StopEvent(result=messages)

    flow = await place.serve(Flow)
    assert await flow.run() == [
        "Path 'nope' not found in state",
        "Path cannot be empty",
        "Path cannot be empty",
        "Path length exceeds 1000 segments",
    ]


async def test_what_was_read_shares_nothing_with_what_is_stored(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.store.set("values", [1])
            (await ctx.store.get("values")).append(99)
            state = await ctx.store.get_state()
            state["values"].append(7)
            return StopEvent(result=await ctx.store.get("values"))

    flow = await place.serve(Flow)
    assert await flow.run() == [1]


async def test_a_value_that_cannot_travel_is_an_error_that_names_its_key(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            try:
                await ctx.store.set("callback", print)
            except EncodeError as error:
                return StopEvent(result=str(error))
            return StopEvent()

    flow = await place.serve(Flow)
    assert "state key 'callback'" in await flow.run()


async def test_nested_sets_at_the_same_moment_are_all_kept(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(20):
                ctx.send_event(Item(n=n))

        @step(num_workers=20)
        async def work(self, ctx: Context, ev: Item) -> StopEvent | None:
            await ctx.store.set(f"found.{ev.n}", ev.n)
            if ctx.collect_events(ev, [Item] * 20):
                return StopEvent(result=await ctx.store.get("found"))
            return None

    flow = await place.serve(Flow)
    assert await flow.run() == {str(n): n for n in range(20)}


async def test_edits_of_many_hosts_follow_each_other(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context[State], ev: StartEvent) -> Item | None:
            for n in range(20):
                ctx.send_event(Item(n=n))

        @step(num_workers=20)
        async def work(self, ctx: Context[State], ev: Item) -> Edited:
            async with ctx.store.edit_state() as state:
                before = state.count
                await asyncio.sleep(0.001)
                state.count = before + 1
            return Edited()

        @step
        async def join(self, ctx: Context[State], ev: Edited) -> StopEvent | None:
            if ctx.collect_events(ev, [Edited] * 20):
                return StopEvent(result=await ctx.store.get("count"))
            return None

    flow = await place.serve(Flow)
    assert await flow.run() == 20


async def test_an_edit_is_stored_at_its_end_and_not_at_all_after_an_error(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context[State], ev: StartEvent) -> StopEvent:
            async with ctx.store.edit_state() as state:
                state.count = 1
                state.names.append("a")
                inside = await ctx.store.get("count")
            try:
                async with ctx.store.edit_state() as state:
                    state.count = 2
                    raise KeyError("x")
            except KeyError:
                pass
            kept = await ctx.store.get_state()
            return StopEvent(result=[inside, kept.count, kept.names])

    flow = await place.serve(Flow)
    assert await flow.run() == [0, 1, ["a"]]


async def test_a_write_inside_an_edit_is_refused(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context[State], ev: StartEvent) -> StopEvent:
            messages: set[str] = set()
            async with ctx.store.edit_state() as state:
                for write in (
                    lambda: ctx.store.set("count", 5),
                    lambda: ctx.store.set_state(State()),
                    lambda: ctx.store.clear(),
                    lambda: ctx.store.edit_state().__aenter__(),
                ):
                    try:
                        await write()
                    except RuntimeError as error:
                        messages.add(str(error))
                state.count = 7
            return StopEvent(result=[sorted(messages), await ctx.store.get("count")])

    flow = await place.serve(Flow)
    assert await flow.run() == [
        ["writer called inside edit_state: mutate the yielded state instead"],
        7,
    ]


async def test_a_write_elsewhere_waits_for_the_end_of_an_edit(place: Place) -> None:
    editing, written = asyncio.Event(), asyncio.Event()

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            ctx.send_event(Item(n=0))
            ctx.send_event(Item(n=1))

        @step
        async def work(self, ctx: Context, ev: Item) -> Edited:
            if ev.n == 0:
                async with ctx.store.edit_state() as state:
                    editing.set()
                    state.value = "edited"
                    await asyncio.sleep(0.05)
                    assert not written.is_set()
            else:
                async with asyncio.timeout(20):
                    await editing.wait()
                await ctx.store.set("value", "set")
                written.set()
            return Edited()

        @step
        async def join(self, ctx: Context, ev: Edited) -> StopEvent | None:
            if ctx.collect_events(ev, [Edited] * 2):
                return StopEvent(result=await ctx.store.get("value"))
            return None

    flow = await place.serve(Flow)
    assert await flow.run() == "set"


async def test_tasks_of_one_step_wait_for_each_others_edits(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context[State], ev: StartEvent) -> StopEvent:
            async def add() -> None:
                async with ctx.store.edit_state() as state:
                    before = state.count
                    await asyncio.sleep(0)
                    state.count = before + 1

            await asyncio.gather(*[add() for _ in range(5)], ctx.store.set("nested.a", 1))
            return StopEvent(result=(await ctx.store.get_state()).model_dump())

    flow = await place.serve(Flow)
    assert await flow.run() == {"count": 5, "names": [], "nested": {"a": 1}}


async def test_writes_of_a_failed_attempt_stay(place: Place) -> None:
    class Flow(Workflow):
        @step(retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(3)))
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            attempts = await ctx.store.get("attempts", 0) + 1
            await ctx.store.set("attempts", attempts)
            if attempts < 3:
                raise ValueError("again")
            return StopEvent(result=attempts)

    flow = await place.serve(Flow)
    assert await flow.run() == 3


async def test_a_typed_state_has_its_defaults_and_refuses_unknown_fields(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context[State], ev: StartEvent) -> StopEvent:
            state = await ctx.store.get_state()
            assert type(state) is State
            await ctx.store.set("nested.a.b", 1)
            try:
                await ctx.store.set("nope", 1)
            except ValueError as error:
                return StopEvent(result=[state.count, await ctx.store.get("nested"), str(error)])
            return StopEvent()

    flow = await place.serve(Flow)
    assert await flow.run() == [0, {"a": {"b": 1}}, '"State" object has no field "nope"']


async def test_a_state_without_defaults_is_filled_by_its_first_edit(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context[Required], ev: StartEvent) -> StopEvent:
            async with ctx.store.edit_state() as state:
                state.name = "ada"
            filled = await ctx.store.get_state()
            try:
                await ctx.store.clear()
            except ValueError as error:
                return StopEvent(
                    result=[type(filled).__name__, filled.name, filled.count, str(error)]
                )
            return StopEvent()

    flow = await place.serve(Flow)
    assert await flow.run() == ["Required", "ada", 0, "State must have defaults for all fields"]


async def test_clear_and_set_state_replace_everything(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context[State], ev: StartEvent) -> StopEvent:
            await ctx.store.set_state(State(count=3, names=["a"]))
            first = (await ctx.store.get_state()).model_dump()
            await ctx.store.clear()
            return StopEvent(result=[first, (await ctx.store.get_state()).model_dump()])

    flow = await place.serve(Flow)
    assert await flow.run() == [
        {"count": 3, "names": ["a"], "nested": {}},
        {"count": 0, "names": [], "nested": {}},
    ]


async def test_models_in_the_store_keep_their_types_and_are_reached_by_paths(place: Place) -> None:
    class Person(BaseModel):
        name: str

    class Flow(Workflow, types=[Person]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.store.set("person", Person(name="ada"))
            await ctx.store.set("person.name", "grace")
            person = await ctx.store.get("person")
            assert isinstance(person, Person)
            return StopEvent(result=[person.name, await ctx.store.get("person.name")])

    flow = await place.serve(Flow)
    assert await flow.run() == ["grace", "grace"]


class Counting(Workflow):
    @step
    async def begin(self, ctx: Context[State], ev: StartEvent) -> StopEvent:
        async with ctx.store.edit_state() as state:
            state.count += 1
            return StopEvent(result=state.count)


async def test_a_context_carries_its_state_into_a_run_and_from_run_to_run(place: Place) -> None:
    flow = await place.serve(Counting)
    ctx = Context(flow)
    await ctx.store.set("count", 10)
    assert await ctx.store.get("count") == 10
    assert await flow.run(ctx=ctx) == 11
    assert await flow.run(ctx=ctx) == 12
    assert await ctx.store.get("count") == 12
    assert await flow.run() == 1, "a run without it begins anew"


async def test_a_context_of_a_live_run_starts_no_second_one(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> None: ...

        @step
        async def end(self, ev: Item) -> StopEvent:
            return StopEvent()

    flow = await place.serve(Flow, disable_validation=True)
    ctx = Context(flow)
    handler = flow.run(ctx=ctx)
    with pytest.raises(ContextStateError, match="already running"):
        flow.run(ctx=ctx)
    await handler.send_event(Item(n=1))
    await handler
    assert handler.ctx is ctx


async def test_the_caller_reads_and_writes_the_state_of_a_run(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> None:
            await ctx.store.set("asked", True)

        @step
        async def end(self, ctx: Context, ev: Item) -> StopEvent:
            return StopEvent(result=await ctx.store.get("given.by"))

    flow = await place.serve(Flow, disable_validation=True)
    handler = flow.run()
    await handler.ctx.store.set("given.by", "caller")
    async with handler.ctx.store.edit_state() as state:
        state.more = 1
    await handler.send_event(Item(n=1))
    assert await handler == "caller"
    assert await handler.ctx.store.get("more") == 1


async def test_the_store_of_an_ended_run_may_be_changed_for_the_next_run_of_its_context(
    place: Place,
) -> None:
    class Flow(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            late = await ctx.store.get("late", default=None)
            return StopEvent(result=(late, await ctx.store.get("edited", default=None)))

    flow = await place.serve(Flow)
    context = Context[Any](flow)
    assert await flow.run(ctx=context) == (None, None)
    await context.store.set("late.by", "caller")
    async with context.store.edit_state() as state:
        state.edited = True
    assert await context.store.get("late.by") == "caller"
    assert await flow.run(ctx=context) == ({"by": "caller"}, True)


async def test_runs_share_no_state(place: Place) -> None:
    flow = await place.serve(Counting)
    assert await asyncio.gather(*[flow.run() for _ in range(10)]) == [1] * 10
