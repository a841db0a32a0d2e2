"""`to_dict` and `from_dict`: a context as JSON, at any moment, and a run that goes on from it."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any

import pytest
from pydantic import BaseModel

from stepfleet import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from stepfleet.errors import ContextSerdeError, ContextStateError, WorkflowCancelledByUser
from stepfleet.handler import WorkflowHandler
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from tests.conformance.place import Place
from tests.support.wait import eventually


class Item(Event):
    n: int


class Done(Event):
    n: int


class Question(InputRequiredEvent):
    text: str


class Answer(HumanResponseEvent):
    text: str


class Counter(Workflow):
    @step
    async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
        n = await ctx.store.get("n", default=0)
        await ctx.store.set("n", n + 1)
        return StopEvent(result=n)


def as_json(data: dict[str, Any]) -> dict[str, Any]:
    """What another process gets."""
    return json.loads(json.dumps(data))


async def asked(handler: WorkflowHandler) -> None:
    async with aclosing(handler.stream_events()) as events:
        async for event in events:
            if isinstance(event, Question):
                return


async def test_state_is_carried_from_run_to_run_and_through_a_dictionary(place: Place) -> None:
    flow = await place.serve(Counter)
    ctx = Context(flow)
    assert [await flow.run(ctx=ctx) for _ in range(3)] == [0, 1, 2]
    data = as_json(ctx.to_dict())
    assert data["is_running"] is False
    again = Context.from_dict(flow, data)
    assert not again.is_running
    assert await again.store.get("n") == 3
    assert [await flow.run(ctx=again) for _ in range(2)] == [3, 4]
    assert await ctx.store.get("n") == 3, "a dictionary is a copy"


async def test_values_set_before_a_run_are_in_its_dictionary_and_in_the_run(place: Place) -> None:
    flow = await place.serve(Counter)
    ctx = Context(flow)
    await ctx.store.set("n", 40)
    data = ctx.to_dict()
    assert data["is_running"] is False
    assert set(data["workers"]) == {"count"}
    assert await flow.run(ctx=Context.from_dict(flow, data)) == 40
    assert await flow.run(ctx=ctx) == 40
    assert ctx.to_dict(include_state=False)["state"] == {}


async def test_a_dictionary_without_the_state_begins_with_none(place: Place) -> None:
    flow = await place.serve(Counter)
    ctx = Context(flow)
    await flow.run(ctx=ctx)
    assert await flow.run(ctx=Context.from_dict(flow, ctx.to_dict(include_state=False))) == 0


class Tags(BaseModel):
    names: set[str] = set()


class Typed(Workflow):
    @step
    async def only(self, ctx: Context[Tags], ev: StartEvent) -> StopEvent:
        async with ctx.store.edit_state() as state:
            state.names = {*state.names, f"t{len(state.names)}"}
            names = sorted(state.names)
        return StopEvent(result=names)


async def test_typed_state_keeps_its_type(place: Place) -> None:
    flow = await place.serve(Typed)
    ctx = Context(flow)
    await flow.run(ctx=ctx)
    data = as_json(ctx.to_dict())
    assert data["state"]["state_type"] == "Tags"
    again = Context.from_dict(flow, data)
    assert await again.store.get_state() == Tags(names={"t0"})
    assert await flow.run(ctx=again) == ["t0", "t1"]


class Everything(Workflow):
    """At one moment: a wait, a back-off, a running step, two held events and a half-filled join."""

    running: asyncio.Event
    release: asyncio.Event

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
        await ctx.store.set("begun", True)
        for n in range(7):
            ctx.send_event(Item(n=n))
        return None

    @step(num_workers=3, retry_policy=retry_policy(wait=wait_fixed(30), stop=stop_after_attempt(2)))
    async def work(self, ctx: Context, ev: Item) -> Done:
        if ev.n == 1:
            answer = await ctx.wait_for_event(Answer, waiter_event=Question(text="?"))
            return Done(n=len(answer.text))
        if ev.n == 2 and ctx.retry_info().retry_number == 0:
            raise ValueError("once")
        if ev.n in (3, 4, 5):
            self.running.set()
            await self.release.wait()
        return Done(n=ev.n)

    @step
    async def join(self, ctx: Context, ev: Done) -> StopEvent | None:
        events = ctx.collect_events(ev, [Done] * 6)
        return StopEvent(result=sorted(one.n for one in events)) if events else None


def everything() -> type[Everything]:
    return type(
        "Everything", (Everything,), {"running": asyncio.Event(), "release": asyncio.Event()}
    )


async def settled(place: Place, handler: WorkflowHandler) -> None:
    async def still() -> bool:
        cut = await place.client.connection().reader.cut(handler.run_id)
        kinds = sorted(where.split(" ")[0] for where in cut.open.values())
        full = [buffer.counts for buffer in cut.buffers.values()]
        return kinds == ["stream", "stream", "stream", "timer", "waiting"] and full == [{"Done": 1}]

    await eventually(still, 20.0)


async def test_a_cut_through_a_running_run_has_all_of_its_work_and_changes_nothing(
    place: Place,
) -> None:
    flow_class = everything()
    flow = await place.serve(flow_class, timeout=None)
    handler = flow.run()
    await settled(place, handler)
    data = as_json(handler.ctx.to_dict())
    assert data["is_running"] is True
    work = data["workers"]["work"]
    assert len(work["in_progress"]) == 3
    assert len(work["queue"]) == 1
    assert [one["waiting_for_event"] for one in work["collected_waiters"]] == ["Answer"]
    assert json.loads(work["queue"][0]["event"])["value"] == {"n": 6}
    assert len(data["workers"]["join"]["collected_events"]["default"]) == 1
    flow_class.release.set()
    await handler.send_event(Answer(text="four"))
    assert await handler == [0, 3, 4, 4, 5, 6]


async def test_a_run_goes_on_from_a_dictionary_wherever_it_was(place: Place) -> None:
    flow_class = everything()
    flow = await place.serve(flow_class, timeout=None)
    handler = flow.run()
    await settled(place, handler)
    data = as_json(handler.ctx.to_dict())
    await handler.cancel_run()
    with pytest.raises(WorkflowCancelledByUser):
        await handler
    ctx = Context.from_dict(flow, data)
    assert ctx.is_running
    flow_class.release.set()
    again = flow.run(ctx=ctx)
    assert again.run_id != handler.run_id
    await again.send_event(Answer(text="four"))
    assert await again == [0, 3, 4, 4, 5, 6]
    assert await again.ctx.store.get("begun") is True
    assert again.ctx.to_dict()["is_running"] is False


async def test_one_dictionary_starts_as_many_runs_as_are_wanted(place: Place) -> None:
    flow_class = everything()
    flow = await place.serve(flow_class, timeout=None)
    handler = flow.run()
    await settled(place, handler)
    data = handler.ctx.to_dict()
    flow_class.release.set()
    runs = [handler, *(flow.run(ctx=Context.from_dict(flow, data)) for _ in range(2))]
    for run in runs:
        await run.send_event(Answer(text="four"))
        assert await run == [0, 3, 4, 4, 5, 6]


class Version(StartEvent):
    number: int


class Release(Workflow):
    @step
    async def ask(self, ctx: Context, ev: Version) -> StopEvent:
        await ctx.store.set("asked", True)
        answer = await ctx.wait_for_event(
            Answer, waiter_event=Question(text="?"), requirements={"text": "yes"}
        )
        return StopEvent(result=answer.text)


async def test_a_human_answers_days_later_in_another_process(place: Place) -> None:
    flow = await place.serve(Release)
    handler = flow.run(number=1)
    await asked(handler)
    data = as_json(handler.ctx.to_dict())
    await handler.cancel_run()
    # Requirements and time-out stand in the dictionary.
    again = flow.run(ctx=Context.from_dict(flow, data))
    await again.send_event(Answer(text="no"))
    await again.send_event(Answer(text="yes"))
    assert await again == "yes"


async def test_the_dictionary_of_a_cancelled_run_goes_on_as_well(place: Place) -> None:
    flow = await place.serve(Release)
    handler = flow.run(number=1)
    await asked(handler)
    await handler.cancel_run()
    data = as_json(handler.ctx.to_dict())
    assert (data["is_running"], handler.ctx.is_running) == (True, False)
    again = flow.run(ctx=Context.from_dict(flow, data))
    await again.send_event(Answer(text="yes"))
    assert await again == "yes"


async def test_a_context_that_is_used_takes_no_second_run(place: Place) -> None:
    flow = await place.serve(Release)
    ctx = Context(flow)
    handler = flow.run(ctx=ctx, number=1)
    with pytest.raises(
        ContextStateError,
        match="^Cannot start a new run while context is already running. Wait for completion or use",
    ):
        flow.run(ctx=ctx, number=2)
    await asked(handler)
    await handler.send_event(Answer(text="yes"))
    await handler


async def test_a_step_has_no_dictionary_of_its_run(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            try:
                ctx.to_dict()
            except ContextStateError as error:
                return StopEvent(result=str(error))
            return StopEvent()

    flow = await place.serve(Flow)
    text = "to_dict is only available from handler code, not from within steps."
    assert await flow.run() == text


async def test_what_a_failed_run_left_is_not_taken_into_the_next(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | StopEvent:
            n = await ctx.store.get("n", default=0)
            await ctx.store.set("n", n + 1)
            if n == 0:
                ctx.send_event(Item(n=0))
                await asyncio.sleep(0.1)
                raise ValueError("no")
            return StopEvent(result=n)

        @step
        async def work(self, ctx: Context, ev: Item) -> StopEvent:
            await asyncio.sleep(60)
            return StopEvent(result="left over")

    flow = await place.serve(Flow)
    ctx = Context(flow)
    with pytest.raises(ValueError, match="no"):
        await flow.run(ctx=ctx)
    assert ctx.to_dict()["is_running"] is False
    assert await flow.run(ctx=ctx) == 1


# -- what the model wrote --


def event(name: str, **value: Any) -> str:
    module = __name__
    return json.dumps({"__is_pydantic": True, "value": value, "qualified_name": f"{module}.{name}"})


class Adds(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item(n=1)

    @step
    async def work(self, ctx: Context, ev: Item) -> Done:
        return Done(n=ev.n + await ctx.store.get("base"))

    @step
    async def join(self, ctx: Context, ev: Done) -> StopEvent | None:
        events = ctx.collect_events(ev, [Done] * 4)
        return StopEvent(result=sorted(one.n for one in events)) if events else None


STATE = {
    "store_type": "in_memory",
    "state_type": "DictState",
    "state_data": {"_data": {"base": "10"}},
}


@pytest.mark.parametrize("version", [1, 2])
async def test_work_that_the_model_wrote_goes_on(place: Place, version: int) -> None:
    item: dict[str, Any] = {"event": event("Item", n=1), "attempts": 0}
    waiter = {"waiter_id": "w", "event": event("Item", n=3), "waiting_for_event": "m.Answer"}
    data = {
        "version": version,
        "state": STATE,
        "is_running": True,
        "workers": {
            "work": {
                "queue": [item],
                "in_progress": [{**item, "event": event("Item", n=2)}],
                "collected_events": {},
                "collected_waiters": [waiter],
            },
            "join": {
                "queue": [],
                "in_progress": [],
                "collected_events": {"default": [event("Done", n=0)]},
            },
        },
    }
    flow = await place.serve(Adds)
    assert await flow.run(ctx=Context.from_dict(flow, as_json(data))) == [0, 11, 12, 13]


async def test_the_oldest_form_goes_on_too(place: Place) -> None:
    data = {
        "state": STATE,
        "queues": {"work": json.dumps([event("Item", n=n) for n in (1, 2)]), "unknown": "[]"},
        "in_progress": {"work": [event("Item", n=3), event("Item", n=4)]},
        "is_running": True,
    }
    flow = await place.serve(Adds)
    assert await flow.run(ctx=Context.from_dict(flow, data)) == [11, 12, 13, 14]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([], "it is a list"),
        ({"version": 3}, "version=3; this library supports up to version 2"),
        ({"version": "x"}, "version='x'"),
        ({"version": 2, "state": {"store_type": "sql"}}, "in the durable state store 'sql'"),
        ({"version": 2, "is_running": True, "streams": {"s": {}}}, "open fan-outs"),
        ({"is_running": True, "event_buffers": {"b": {"t": ["e"]}}}, "collected events"),
        (
            {
                "version": 2,
                "is_running": True,
                "workers": {"gone": {"queue": [{"event": event("Item", n=1)}]}},
            },
            "steps that the workflow does not have: gone",
        ),
        (
            {
                "version": 2,
                "is_running": True,
                "workers": {"work": {"queue": [{"event": event("Nobody")}]}},
            },
            "Nobody is not in the serializer's allowed types",
        ),
        (
            {"version": 2, "is_running": True, "stepfleet": {"format": 9}},
            "newer version of stepfleet",
        ),
    ],
)
def test_what_cannot_be_read_says_why(data: Any, text: str) -> None:
    with pytest.raises(ContextSerdeError, match=text):
        Context.from_dict(Adds(), data)


async def test_a_damaged_dictionary_ends_in_an_error_that_says_so(place: Place) -> None:
    flow = await place.serve(Adds)
    data = {
        "version": 2,
        "is_running": True,
        "stepfleet": {"format": 1, "pending": [["a", "b", "!"]]},
    }
    with pytest.raises(ContextSerdeError, match="what stands under 'stepfleet' is damaged"):
        await flow.run(ctx=Context.from_dict(flow, data))
