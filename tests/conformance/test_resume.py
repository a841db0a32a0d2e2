"""Runs that were cancelled or given up go on as a new run: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

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
from stepfleet.core.decide import decide
from stepfleet.core.delivery import Delivery
from stepfleet.core.outcome import Lost
from stepfleet.errors import (
    DeadLettered,
    RunNotFound,
    WorkflowCancelledByUser,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)
from stepfleet.handler import WorkflowHandler
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from stepfleet.storage.keys import GROUP
from stepfleet.storage.run_store import RunStore
from stepfleet.wire import decode_record
from tests.conformance.place import Place
from tests.support.wait import eventually


class Item(Event):
    n: int


class Done(Event):
    n: int


class Answer(HumanResponseEvent):
    text: str


class Question(InputRequiredEvent):
    text: str


class Gate:
    """Closed until a test opens it; counts who came."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.came: list[int] = []

    async def pass_(self, n: int) -> None:
        self.came.append(n)
        await self.open.wait()

    async def reached(self, count: int) -> None:
        async def so_many() -> bool:
            return len(self.came) >= count

        await eventually(so_many, 20.0)


class Fan(Workflow):
    """Sends nine events to a step with two slots, and joins them."""

    gate: Gate

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
        await ctx.store.set("who", "me")
        for n in range(9):
            ctx.send_event(Item(n=n))
        return None

    @step(num_workers=2)
    async def work(self, ctx: Context, ev: Item) -> Done:
        if ev.n > 2:
            await self.gate.pass_(ev.n)
        return Done(n=ev.n)

    @step
    async def join(self, ctx: Context, ev: Done) -> StopEvent | None:
        events = ctx.collect_events(ev, [Done] * 9)
        if events is None:
            return None
        return StopEvent(result=[await ctx.store.get("who"), sorted(one.n for one in events)])


def fan() -> type[Fan]:
    """Returns the workflow with a gate of its own."""
    return type("Fan", (Fan,), {"gate": Gate()})


async def cancelled(handler: WorkflowHandler) -> None:
    await handler.cancel_run()
    with pytest.raises(WorkflowCancelledByUser):
        await handler


async def test_a_cancelled_run_goes_on_with_its_context(place: Place) -> None:
    flow_class = fan()
    flow = await place.serve(flow_class)
    handler = flow.run(run_id="fan")
    await flow_class.gate.reached(2)
    await cancelled(handler)
    flow_class.gate.open.set()
    again = flow.run(ctx=handler.ctx)
    assert again.run_id == "fan~1"
    assert await again == ["me", list(range(9))]
    assert set(flow_class.gate.came) == set(range(3, 9))


async def test_both_runs_name_each_other(place: Place) -> None:
    flow_class = fan()
    flow = await place.serve(flow_class)
    handler = flow.run()
    await flow_class.gate.reached(2)
    await cancelled(handler)
    flow_class.gate.open.set()
    again = await handler.resume()
    await again
    assert (await handler.status()).continued_by == again.run_id
    assert (await again.status()).continues == handler.run_id
    assert (await handler.status()).status == "cancelled"


async def test_however_often_a_run_is_resumed_there_is_one_continuation(place: Place) -> None:
    flow_class = fan()
    flow = await place.serve(flow_class)
    handler = flow.run()
    await flow_class.gate.reached(2)
    await cancelled(handler)
    flow_class.gate.open.set()
    several = await asyncio.gather(*[handler.resume() for _ in range(5)])
    assert {one.run_id for one in several} == {f"{handler.run_id}~1"}
    assert await several[0] == await several[-1] == ["me", list(range(9))]
    assert (await handler.resume()).run_id == f"{handler.run_id}~1"
    assert len(flow_class.gate.came) == 2 + 6


async def test_a_continuation_is_cancelled_and_resumed_as_well(place: Place) -> None:
    flow_class = fan()
    flow = await place.serve(flow_class)
    handler = first = flow.run()
    for count in (2, 4, 6):
        await flow_class.gate.reached(count)
        await cancelled(handler)
        handler = flow.run(ctx=handler.ctx)
    flow_class.gate.open.set()
    assert handler.run_id == f"{first.run_id}~3"
    assert await handler == ["me", list(range(9))]


async def test_a_handler_of_a_continuation_resumes_it_as_well(place: Place) -> None:
    flow_class = fan()
    flow = await place.serve(flow_class)
    handler = flow.run(run_id="fan")
    for count in (2, 4, 6):
        await flow_class.gate.reached(count)
        await cancelled(handler)
        handler = await handler.resume()
    flow_class.gate.open.set()
    assert handler.run_id == "fan~3"
    assert await handler == ["me", list(range(9))]


async def test_a_run_that_was_not_cancelled_leaves_nothing_to_resume(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            if ev.get("fails"):
                raise ValueError("no")
            return StopEvent(result=1)

    flow = await place.serve(Flow)
    handler = flow.run()
    await handler
    with pytest.raises(WorkflowRuntimeError, match=r"cannot be resumed: it is completed, and only"):
        await handler.resume()
    failed = flow.run(fails=True)
    with pytest.raises(ValueError, match="no"):
        await failed
    with pytest.raises(WorkflowRuntimeError, match="cannot be resumed: it is failed"):
        await failed.resume()
    with pytest.raises(RunNotFound):
        await place.client.resume("nobody", workflow=Flow)


async def test_a_run_that_goes_on_cannot_be_resumed(place: Place) -> None:
    flow_class = fan()
    flow = await place.serve(flow_class)
    handler = flow.run()
    await flow_class.gate.reached(2)
    with pytest.raises(WorkflowRuntimeError, match="it goes on still; cancel it first"):
        await handler.resume()
    flow_class.gate.open.set()
    await handler


class Asks(Workflow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Item(n=0))
        try:
            one = await ctx.wait_for_event(
                Answer, waiter_event=Question(text="one?"), timeout=ev.get("patience", 60.0)
            )
        except TimeoutError:
            return StopEvent(result="nobody")
        two = await ctx.wait_for_event(Answer, waiter_event=Question(text="two?"), waiter_id="two")
        return StopEvent(result=[one.text, two.text])


async def asked(handler: WorkflowHandler, text: str) -> None:
    async with aclosing(handler.stream_events()) as events:
        async for event in events:
            if isinstance(event, Question) and event.text == text:
                return


async def test_a_wait_goes_on_and_earlier_answers_stay(place: Place) -> None:
    flow = await place.serve(Asks)
    handler = flow.run()
    await asked(handler, "one?")
    handler.ctx.send_event(Answer(text="1"))
    await asked(handler, "two?")
    await cancelled(handler)
    again = flow.run(ctx=handler.ctx)
    await again.send_event(Answer(text="2"))
    assert await again == ["1", "2"]


async def test_a_wait_that_goes_on_ends_in_its_time_out(place: Place) -> None:
    flow = await place.serve(Asks)
    handler = flow.run(patience=0.3)
    await asked(handler, "one?")
    await cancelled(handler)
    # Its time-out passes while nobody goes on: it begins anew with the continuation.
    await asyncio.sleep(0.5)
    again = flow.run(ctx=handler.ctx)
    assert await again == "nobody"
    status = await again.status()
    assert status.ended is not None
    assert (status.ended - status.started).total_seconds() >= 0.3


async def test_a_continuation_that_only_waits_has_a_deadline(place: Place) -> None:
    flow = await place.serve(Asks, timeout=60)
    handler = flow.run()
    await asked(handler, "one?")
    await cancelled(handler)
    again = (await place.serve(Asks, timeout=0.5)).run(ctx=handler.ctx)
    with pytest.raises(WorkflowTimeoutError, match="step ask waits for an event of type Answer"):
        await again


async def test_the_budget_of_a_continuation_is_its_own(place: Place) -> None:
    class Slow(Workflow):
        gate = Gate()

        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            await self.gate.pass_(0)
            return StopEvent()

    flow = await place.serve(Slow, timeout=60)
    handler = flow.run()
    assert await place.budget(handler.run_id) >= 60
    await Slow.gate.reached(1)
    await asyncio.sleep(0.1)  # it has used up some of its budget
    await cancelled(handler)
    again = flow.run(ctx=handler.ctx)
    await Slow.gate.reached(2)
    assert await place.budget(again.run_id) >= 60
    Slow.gate.open.set()
    await again


async def test_a_back_off_goes_on(place: Place) -> None:
    attempts: list[int] = []

    class Flow(Workflow):
        @step(retry_policy=retry_policy(wait=wait_fixed(0.3), stop=stop_after_attempt(3)))
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            attempts.append(ctx.idempotency_key)  # type: ignore[arg-type]
            if len(attempts) < 3:
                raise ValueError("again")
            return StopEvent(result=len(attempts))

    flow = await place.serve(Flow)
    handler = flow.run()

    async def backs_off() -> bool:
        return bool(await place.call("ZCARD", place.keys.timers))

    await eventually(backs_off, 20.0)
    await cancelled(handler)
    again = flow.run(ctx=handler.ctx)
    assert await again == 3
    assert len(set(attempts)) == 1, "outside effects are recognised in a continuation as well"


async def test_what_was_sent_before_is_not_sent_again_and_what_was_published_is(
    place: Place,
) -> None:
    class Flow(Workflow):
        gate = Gate()

        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            ctx.write_event_to_stream(Done(n=7))
            for n in range(3):
                ctx.send_event(Item(n=n))
            await self.gate.pass_(0)
            return Item(n=3)

        @step
        async def work(self, ev: Item) -> Done:
            return Done(n=ev.n)

        @step
        async def join(self, ctx: Context, ev: Done) -> StopEvent | None:
            async with ctx.store.edit_state() as state:
                state["seen"] = [*state.get("seen", []), ev.n]
            return StopEvent(result=ev.n) if ev.n == 3 else None

    flow = await place.serve(Flow)
    handler = flow.run()

    async def three_arrived() -> bool:
        seen = await handler.ctx.store.get("seen", default=[])
        return len(seen) == 3 and (await handler.status()).pending == 1

    await eventually(three_arrived, 20.0)
    await cancelled(handler)
    Flow.gate.open.set()
    again = flow.run(ctx=handler.ctx)
    published = [event async for event in again.stream_events()]
    assert await again == 3
    assert sorted(await again.ctx.store.get("seen")) == [0, 1, 2, 3]
    assert published == [Done(n=7), StopEvent(result=3)]
    assert Flow.gate.came == [0, 0]


async def test_lists_and_their_joins_go_on(place: Place) -> None:
    class Lists(Workflow):
        gate = Gate()

        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(7)]

        @step(num_workers=2)
        async def work(self, ev: Item) -> Done | None:
            if ev.n > 2:
                await self.gate.pass_(ev.n)
            return Done(n=ev.n) if ev.n % 2 else None

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=sorted(ev.n for ev in evs))

    flow = await place.serve(Lists)
    handler = flow.run()
    await Lists.gate.reached(2)
    data = handler.ctx.to_dict()
    await cancelled(handler)
    Lists.gate.open.set()
    again = flow.run(ctx=handler.ctx)
    assert await again == [1, 3, 5]
    assert await flow.run(ctx=Context.from_dict(flow, data)) == [1, 3, 5]


async def test_a_collecting_step_goes_on_with_its_list(place: Place) -> None:
    class Lists(Workflow):
        gate = Gate()

        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(3)]

        @step
        async def work(self, ev: Item) -> Done:
            return Done(n=ev.n)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            await self.gate.pass_(len(evs))
            return StopEvent(result=sorted(ev.n for ev in evs))

    flow = await place.serve(Lists)
    handler = flow.run()
    await Lists.gate.reached(1)
    data = handler.ctx.to_dict()
    await cancelled(handler)
    Lists.gate.open.set()
    again = flow.run(ctx=handler.ctx)
    assert await again == [0, 1, 2]
    # Its list goes with it, under the new run's name.
    lists = await place.call("KEYS", f"{place.keys.run(again.run_id)}:scope:*")
    assert lists == []
    assert await flow.run(ctx=Context.from_dict(flow, data)) == [0, 1, 2]


async def test_the_store_of_the_cancelled_run_can_still_be_read(place: Place) -> None:
    flow_class = fan()
    flow = await place.serve(flow_class)
    handler = flow.run()
    await flow_class.gate.reached(2)
    await cancelled(handler)
    flow_class.gate.open.set()
    again = flow.run(ctx=handler.ctx)
    await again
    assert (
        await place.new_client().handler(handler.run_id, workflow=flow_class).ctx.store.get("who")
        == "me"
    )


async def test_another_process_resumes_by_the_run_id_alone(fleet: Place) -> None:
    flow_class = fan()
    flow = await fleet.serve(flow_class)
    handler = flow.run()
    await flow_class.gate.reached(2)
    await cancelled(handler)
    flow_class.gate.open.set()
    again = await fleet.new_client().resume(handler.run_id)
    assert await again == ["me", list(range(9))]


async def test_work_for_a_step_that_is_gone_is_kept_and_named(place: Place) -> None:
    class Old(Workflow):
        gate = Gate()

        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item(n=1)

        @step
        async def gone(self, ev: Item) -> StopEvent:
            await self.gate.pass_(ev.n)
            return StopEvent(result="done")

    class New(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    old = await place.serve(Old, workflow_name="old")
    handler = old.run()
    await Old.gate.reached(1)
    await cancelled(handler)
    new = await place.serve(New, workflow_name="new")
    with pytest.raises(WorkflowRuntimeError, match="work is left for step 'gone', which the work"):
        await new.run(ctx=handler.ctx)
    Old.gate.open.set()
    assert await (await handler.resume()) == "done"


async def test_an_event_that_was_given_up_is_requeued(fleet: Place) -> None:
    """The letter stands for what lost workers leave; the step is not to blame any more."""
    flow_class = fan()
    flow = await fleet.serve(flow_class)
    handler = flow.run()
    await flow_class.gate.reached(2)
    rows = await fleet.client.connection().reader.pending(handler.run_id)
    name, entry = next(
        (name, where.split(" ")[1]) for name, where in rows.items() if where.endswith("Item:work")
    )
    plan = fleet.client.connection().target(flow_class).plan
    assert plan is not None
    route = next(route for route in plan.routes if route.step == "work")
    stream = fleet.keys.stream(route.workflow, route.type, route.step)
    ((_, fields),) = await fleet.call("XRANGE", stream, entry, entry)
    ((_, owner, _, _),) = await fleet.call("XPENDING", stream, GROUP, entry, entry, 1)
    delivery = Delivery(
        handler.run_id, name, route, entry, decode_record(fields[5]), deliveries=4, fresh=False
    )
    commit = decide(delivery, Lost(), plan, now_ms=0)
    link = fleet.client.connection().reader.link
    store = RunStore(link, fleet.keys, consumer=owner.decode(), bounds=fleet.new_fleet().bounds)
    (answer,) = await store.commit([commit])
    assert answer.word == "applied"
    with pytest.raises(DeadLettered, match="step 'work' was given up: its worker died 3 times"):
        await handler
    ((letter, _),) = await fleet.call("XRANGE", fleet.keys.dead, "-", "+")
    flow_class.gate.open.set()
    again = await fleet.new_client().requeue(letter.decode(), workflow=flow_class)
    assert await again == ["me", list(range(9))]
    assert (await handler.status()).continued_by == again.run_id
    assert await fleet.call("XLEN", fleet.keys.dead) == 0
    with pytest.raises(RunNotFound, match="there is no dead letter"):
        await fleet.client.requeue(letter.decode())
