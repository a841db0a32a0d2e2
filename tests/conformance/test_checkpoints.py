"""`WorkflowCheckpointer`: what each step took and gave is kept, and a run begins anew from there."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.checkpointer import Checkpoint, WorkflowCheckpointer
from stepfleet.errors import WorkflowStepDoesNotExistError
from tests.conformance.place import Place


class Topic(StartEvent):
    text: str


class Joke(Event):
    text: str


class Review(Event):
    text: str


class Jokes(Workflow):
    ran: Counter[str]

    @step
    async def write(self, ctx: Context, ev: Topic) -> Joke:
        self.ran["write"] += 1
        await ctx.store.set("topic", ev.text)
        return Joke(text=f"joke on {ev.text}")

    @step
    async def review(self, ctx: Context, ev: Joke) -> Review:
        self.ran["review"] += 1
        await ctx.store.set("reviews", await ctx.store.get("reviews", default=0) + 1)
        return Review(text=f"review of a {ev.text}")

    @step
    async def finish(self, ctx: Context, ev: Review) -> StopEvent:
        self.ran["finish"] += 1
        return StopEvent(result=[ev.text, await ctx.store.get("reviews")])


def jokes() -> type[Jokes]:
    return type("Jokes", (Jokes,), {"ran": Counter()})


RESULT = ["review of a joke on ships", 1]


async def test_each_completed_step_keeps_what_it_took_and_gave(place: Place) -> None:
    flow = await place.serve(jokes())
    checkpointer = WorkflowCheckpointer(flow)
    handler = checkpointer.run(text="ships")
    assert await handler == RESULT
    kept = checkpointer.checkpoints[handler.run_id]
    assert [one.last_completed_step for one in kept] == ["write", "review", "finish"]
    assert [type(one.input_event) for one in kept] == [Topic, Joke, Review]
    assert [type(one.output_event) for one in kept] == [Joke, Review, StopEvent]
    assert len({one.id_ for one in kept}) == 3
    json.dumps([one.ctx_state for one in kept])


async def test_a_run_begins_anew_at_a_checkpoint(place: Place) -> None:
    cls = jokes()
    flow = await place.serve(cls)
    checkpointer = WorkflowCheckpointer(flow)
    first = checkpointer.run(text="ships")
    await first
    written, reviewed, finished = checkpointer.checkpoints[first.run_id]
    for checkpoint, ran in (
        (written, {"review": 1, "finish": 1}),
        (reviewed, {"finish": 1}),
        (finished, {}),
    ):
        cls.ran.clear()
        again = checkpointer.run_from(checkpoint)
        assert await again == RESULT
        assert again.run_id != first.run_id
        assert cls.ran == ran
        steps = [one.last_completed_step for one in checkpointer.checkpoints[again.run_id]]
        assert steps == [name for name in ("review", "finish") if name in ran]


async def test_a_checkpoint_travels_as_json(place: Place) -> None:
    flow = await place.serve(jokes())
    checkpointer = WorkflowCheckpointer(flow)
    await checkpointer.run(text="ships")
    (kept,) = checkpointer.filter_checkpoints(last_completed_step="review")
    text = json.dumps(kept.ctx_state)
    copy = Checkpoint(
        id_=kept.id_,
        last_completed_step="review",
        input_event=None,
        output_event=kept.output_event,
        ctx_state=json.loads(text),
    )
    assert await WorkflowCheckpointer(flow).run_from(copy) == RESULT


async def test_steps_can_be_left_out(place: Place) -> None:
    flow = await place.serve(jokes())
    checkpointer = WorkflowCheckpointer(flow, disabled_steps=["review"])
    handler = checkpointer.run(text="ships")
    await handler
    steps = [one.last_completed_step for one in checkpointer.checkpoints[handler.run_id]]
    assert steps == ["write", "finish"]
    checkpointer.enable_checkpoint("review")
    checkpointer.disable_checkpoint("write")
    assert checkpointer.enabled_checkpoints == {"review", "finish"}
    other = checkpointer.run(text="ships")
    await other
    steps = [one.last_completed_step for one in checkpointer.checkpoints[other.run_id]]
    assert steps == ["review", "finish"]
    for change in (checkpointer.enable_checkpoint, checkpointer.disable_checkpoint):
        with pytest.raises(WorkflowStepDoesNotExistError, match="has no step 'nobody'"):
            change("nobody")


async def test_checkpoints_are_found_by_what_they_are_of(place: Place) -> None:
    flow = await place.serve(jokes())
    checkpointer = WorkflowCheckpointer(flow)
    handlers = [checkpointer.run(text="ships") for _ in range(2)]
    for handler in handlers:
        await handler

    def found(**filters: Any) -> int:
        return len(checkpointer.filter_checkpoints(**filters))

    run_id = handlers[0].run_id
    assert (found(run_id=run_id), found(last_completed_step="write")) == (3, 2)
    assert (found(input_event_type=Joke), found(output_event_type=StopEvent)) == (2, 2)
    assert found(run_id=run_id, output_event_type=Review) == 1
    with pytest.raises(ValueError, match=r"^Please specify a filter\.$"):
        checkpointer.filter_checkpoints()


async def test_runs_without_a_checkpointer_keep_none(place: Place) -> None:
    flow = await place.serve(jokes())
    handler = flow.run(text="ships")
    await handler
    assert not await place.call("EXISTS", place.keys.checkpoints(handler.run_id))


class Item(Event):
    n: int


class Fan(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
        for n in range(60):
            ctx.send_event(Item(n=n))
        return None

    @step(num_workers=2)
    async def work(self, ctx: Context, ev: Item) -> StopEvent | None:
        events = ctx.collect_events(ev, [Item] * 60)
        return StopEvent(result=sum(one.n for one in events)) if events else None


async def test_what_runs_beside_is_in_every_checkpoint(place: Place) -> None:
    flow = await place.serve(Fan)
    checkpointer = WorkflowCheckpointer(flow)
    handler = checkpointer.run()
    assert await handler == sum(range(60))
    kept = checkpointer.checkpoints[handler.run_id]
    assert len(kept) == 61
    for checkpoint in (kept[0], kept[20], kept[45]):
        assert await checkpointer.run_from(checkpoint) == sum(range(60))
    await asyncio.sleep(0)
