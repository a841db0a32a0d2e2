"""How many deliveries a worker takes on, and which ones first."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import pytest

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.core.commit import Answer, Commit, EntryFence, Lend, StrayFence
from stepfleet.errors import StaleExecution, StoreRefused
from stepfleet.handler import WorkflowHandler
from stepfleet.storage.consumer import Consumer
from stepfleet.storage.keys import GROUP
from stepfleet.storage.reader import ENDS, RunReader
from stepfleet.storage.run_store import RunStore
from stepfleet.worker import effects, processor
from stepfleet.worker import worker as worker_module
from stepfleet.worker.hand_back import RETURNED
from stepfleet.worker.pace import Paces
from stepfleet.worker.worker import ROOMY, Worker
from tests.conformance.place import Place
from tests.support.wait import eventually

#: Seconds until a test gives up on something that should happen.
SOON = 20.0

_mark: ContextVar[str] = ContextVar("mark", default="")


async def test_a_step_that_has_returned_gives_its_place_to_the_next_before_it_is_committed(
    fleet: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    reachable = asyncio.Event()
    commit = RunStore.commit

    async def held_up(self: RunStore, commits: Sequence[Commit]) -> Any:
        if any(isinstance(one.fence, EntryFence) for one in commits):
            await reachable.wait()
        return await commit(self, commits)

    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            ran.append(ev.n)
            return StopEvent(result=ev.n)

    worker = await fleet.add_worker(Flow(), concurrency=2)
    monkeypatch.setattr(RunStore, "commit", held_up)
    handlers = await fleet.client.start_many(Flow, [{"n": n} for n in range(20)])

    def nothing_is_read() -> bool:
        return worker.processor.free == 0 and 2 < len(ran) == len(worker.processor.held)

    # More than twice as many wait for Redis as may run. The last read brought two for the free places and
    # two ahead, as its steps are short.
    await eventually(nothing_is_read, SOON)
    assert len(ran) <= 8
    reachable.set()
    assert await asyncio.gather(*handlers) == list(range(20))
    assert sorted(ran) == list(range(20))


async def test_a_worker_reads_ahead_of_short_steps_and_not_of_long_ones(fleet: Place) -> None:
    gate = asyncio.Event()
    waiting = 0

    class Long(Event):
        n: int

    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Long:
            return Long(n=ev.n)

        @step
        async def work(self, ev: Long) -> StopEvent:
            nonlocal waiting
            waiting += 1
            await gate.wait()
            return StopEvent(result=ev.n)

    busy = await fleet.add_worker(Flow(), concurrency=4)
    handlers = await fleet.client.start_many(Flow, [{"n": n} for n in range(12)])
    await eventually(lambda: waiting == 4 and busy.processor.free == 0, SOON)
    # Whoever came behind a step that was short found its place: nothing stands behind the long ones
    # that another worker could start.
    await fleet.add_worker(Flow(), concurrency=8)
    await eventually(lambda: waiting == 12, SOON)
    assert len(busy.processor.held) == 4
    gate.set()
    assert await asyncio.gather(*handlers) == list(range(12))


async def test_what_comes_while_a_worker_is_full_goes_to_one_that_has_a_place(
    fleet: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    ran: list[str] = []

    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            ran.append(ev.name)
            if ev.name == "long":
                await gate.wait()
            return StopEvent()

    monkeypatch.setattr(worker_module, "LATE", 10 * SOON)
    full = await fleet.add_worker(Flow(), concurrency=1)
    await (await fleet.client.start(Flow, name="short"))  # of late its executions were short
    long = await fleet.client.start(Flow, name="long")
    await eventually(lambda: ran == ["short", "long"], SOON)
    await eventually(lambda: not full.processor.capacity.is_set(), SOON)
    await fleet.add_worker(Flow(), concurrency=1)
    async with asyncio.timeout(SOON):
        await asyncio.gather(*await fleet.client.start_many(Flow, [{"name": "next"}] * 3))
    assert full.healthy()
    gate.set()
    await long


async def test_a_delivery_to_the_run_itself_is_let_go_when_its_last_commit_is_under_way(
    fleet: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it runs any more that could be cancelled, and nothing else would end it."""
    held_up, reachable = asyncio.Event(), asyncio.Event()
    commit = RunStore.commit

    class Answered(Event):
        pass

    class Flow(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(Answered)
            return StopEvent()

    async def broken(*_: Any) -> Answer:
        await asyncio.sleep(0)
        return Answer("broken")

    async def slow(self: RunStore, commits: Sequence[Commit]) -> Any:
        if any(isinstance(one.fence, StrayFence) for one in commits):
            held_up.set()
            await reachable.wait()
        return await commit(self, commits)

    monkeypatch.setattr(processor, "settle_system", broken)
    monkeypatch.setattr(RunStore, "commit", slow)
    worker = await fleet.add_worker(Flow())
    handler = await fleet.client.start(Flow)
    await handler.send_event(Answered())
    async with asyncio.timeout(SOON):
        await held_up.wait()
    worker.processor.runs_ended([handler.run_id])
    assert not worker.processor.held
    reachable.set()
    await handler.cancel_run()


async def test_a_step_sees_nothing_that_another_one_has_set_in_its_context(fleet: Place) -> None:
    found: list[str] = []

    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            found.append(_mark.get())
            _mark.set(f"run {ev.n}")
            if ev.n % 2:
                await asyncio.sleep(0)
            return StopEvent(result=_mark.get())

    await fleet.add_worker(Flow(), concurrency=2)
    handlers = await fleet.client.start_many(Flow, [{"n": n} for n in range(20)])
    assert await asyncio.gather(*handlers) == [f"run {n}" for n in range(20)]
    assert found == [""] * 20


async def test_never_more_than_its_concurrency_run_at_once_re_runs_included(fleet: Place) -> None:
    width, active, most = 6, 0, 0

    class Item(Event):
        n: int

    class Flow(Workflow):
        @step
        async def spread(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in range(width):
                ctx.send_event(Item(n=n))

        @step(num_workers=width)
        async def join(self, ctx: Context, ev: Item) -> StopEvent | None:
            nonlocal active, most
            active += 1
            most = max(most, active)
            try:
                for _ in range(20):
                    await asyncio.sleep(0)
                found = ctx.collect_events(ev, [Item] * width)
            finally:
                active -= 1
            return StopEvent(result=len(found)) if found else None

    await fleet.add_worker(Flow(), concurrency=2)
    handlers = await fleet.client.start_many(Flow, [{} for _ in range(12)])
    assert await asyncio.gather(*handlers) == [width] * 12
    assert most == 2


async def test_a_full_worker_takes_lost_work_over_before_it_reads_new_work(fleet: Place) -> None:
    ran: list[str] = []
    go_on = asyncio.Event()

    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            ran.append(ev.name)
            if ev.name in ("long", "handed back") and not go_on.is_set():
                await go_on.wait()
            return StopEvent(result=ev.name)

    full = await fleet.add_worker(Flow(), concurrency=1, sweep=timedelta(seconds=60))
    handlers = [await fleet.client.start(Flow, name="long")]
    await eventually(lambda: ran == ["long"], SOON)
    leaving = await fleet.add_worker(Flow(), concurrency=1, drain_timeout=timedelta(0))
    handlers.append(await fleet.client.start(Flow, name="handed back"))
    await eventually(lambda: ran == ["long", "handed back"], SOON)
    handlers += await fleet.client.start_many(Flow, [{"name": f"new {n}"} for n in range(3)])
    leaving.stop()
    await eventually(lambda: full._sweep.reclaim_is_due, SOON)  # it was told, and has no room
    go_on.set()
    assert await asyncio.gather(*handlers) == ["long", "handed back", "new 0", "new 1", "new 2"]
    assert ran == ["long", "handed back", "handed back", "new 0", "new 1", "new 2"]


def with_a_child(ran: list[str], gates: Mapping[str, asyncio.Event]) -> type[Workflow]:
    """Return a workflow whose run `parent` awaits a run `child`; runs wait at the gates of their names."""

    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            ran.append(ev.name)
            if ev.name == "parent":
                await Flow().run(name="child")
                ran.append("parent goes on")
            elif ev.name in gates:
                await gates[ev.name].wait()
            return StopEvent(result=ev.name)

    return Flow


async def two_suspects(fleet: Place, flow: type[Workflow]) -> list[WorkflowHandler]:
    """Start `parent` and `other`, which two workers lost, and a worker that takes them over."""
    handlers = [await fleet.client.start(flow, name=name) for name in ("parent", "other")]
    await lose_twice(fleet, fleet.keys.stream("Flow", "StartEvent", "work"))
    await fleet.add_worker(flow(), lease=timedelta(seconds=3), sweep=timedelta(seconds=0.1))
    return handlers


async def test_a_suspect_that_waited_for_a_run_goes_on_when_no_other_suspect_runs(
    fleet: Place,
) -> None:
    gates = {"child": asyncio.Event(), "other": asyncio.Event()}
    ran: list[str] = []
    flow = with_a_child(ran, gates)
    parent, other = await two_suspects(fleet, flow)
    await eventually(lambda: sorted(ran) == ["child", "other", "parent"], SOON)
    gates["child"].set()
    for number in range(5):
        await (await fleet.client.start(flow, name=f"{number}"))
    assert "parent goes on" not in ran
    gates["other"].set()
    assert [await parent, await other] == ["parent", "other"]


async def test_a_suspect_that_stops_waiting_for_a_run_goes_on_when_no_other_suspect_runs(
    fleet: Place,
) -> None:
    gates = {name: asyncio.Event() for name in ("child", "other", "stop")}
    ran: list[str] = []

    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            ran.append(ev.name)
            if ev.name == "parent":
                waiting = asyncio.create_task(Flow().run(name="child").stop_event_result())
                await gates["stop"].wait()
                waiting.cancel()
                await asyncio.wait([waiting])
                ran.append("parent goes on")
            elif ev.name in gates:
                await gates[ev.name].wait()
            return StopEvent(result=ev.name)

    parent, other = await two_suspects(fleet, Flow)
    await eventually(lambda: sorted(ran) == ["child", "other", "parent"], SOON)
    for gate in ("child", "stop"):  # it waits for the other one, and then for nothing any more
        gates[gate].set()
        for number in range(5):
            await (await fleet.client.start(Flow, name=f"{number}"))
        assert "parent goes on" not in ran
    gates["other"].set()
    assert [await parent, await other] == ["parent", "other"]


async def test_what_a_step_leaves_behind_that_waits_for_a_run_keeps_no_suspect_from_running(
    fleet: Place,
) -> None:
    left: list[asyncio.Task[Any]] = []
    stream = fleet.keys.stream("Flow", "StartEvent", "work")

    async def is_lent() -> bool:
        rows = await fleet.call("XPENDING", stream, GROUP, "-", "+", 1)
        return rows[0][3] == 2

    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            if ev.name == "child":
                await asyncio.Event().wait()
            if ev.name == "parent":
                left.append(asyncio.create_task(Flow().run(name="child").stop_event_result()))
                await eventually(is_lent, SOON)
            return StopEvent(result=ev.name)

    parent, other = await two_suspects(fleet, Flow)
    async with asyncio.timeout(2 * SOON):
        assert await parent == "parent"
        await asyncio.wait(left)  # the end of its parent has cancelled the child
        assert await other == "other"
    ((worker, _),) = fleet.workers
    await eventually(lambda: not worker.processor.held, SOON)
    assert worker.processor.suspects.takes_suspect


async def test_a_loop_that_ends_does_not_wait_for_a_step_that_waits_for_its_turn(
    fleet: Place,
) -> None:
    gates = {"child": asyncio.Event(), "other": asyncio.Event()}
    ran: list[str] = []

    def waits() -> list[asyncio.Task[Any]]:
        return [one for one in asyncio.all_tasks() if one.get_name() == "stepfleet-count-again"]

    parent, other = await two_suspects(fleet, with_a_child(ran, gates))
    await eventually(lambda: sorted(ran) == ["child", "other", "parent"], SOON)
    gates["child"].set()
    await eventually(waits, SOON)
    ((worker, _),) = fleet.workers
    (of_parent,) = [one for one in worker.processor.running if one.delivery.run_id == parent.run_id]
    assert of_parent.task is not None
    ends = [*waits(), of_parent.task]
    for task in ends:  # as `asyncio.run` does at its end
        task.cancel()
    await asyncio.wait(ends, timeout=SOON)
    assert all(task.cancelled() for task in ends)
    gates["other"].set()
    assert [await parent, await other] == ["parent", "other"]


async def test_what_was_lost_is_handed_back_with_its_count_although_it_waits_for_a_run(
    fleet: Place,
) -> None:
    """Else one that kills its workers would be new whenever one of them is stopped."""
    gates = {"child": asyncio.Event(), "other": asyncio.Event()}
    ran: list[str] = []
    stream = fleet.keys.stream("Flow", "StartEvent", "work")
    flow = with_a_child(ran, gates)

    async def counts() -> list[int]:
        return [row[3] for row in await fleet.call("XPENDING", stream, GROUP, "-", "+", 9)]

    async def is_lent() -> bool:
        return await counts() == [2, 1]  # what a death adds brings it to where it was

    parent = await fleet.client.start(flow, name="parent")
    await lose(fleet, stream, times=2)
    leaving = await fleet.add_worker(
        flow(),
        lease=timedelta(seconds=3),
        sweep=timedelta(seconds=0.1),
        drain_timeout=timedelta(0),
    )
    await eventually(lambda: "child" in ran, SOON)
    await eventually(is_lent, SOON)
    leaving.stop()
    await fleet.has_left(leaving)
    assert await counts() == [3, 1]
    gates["child"].set()
    await fleet.add_worker(flow(), sweep=timedelta(seconds=0.1))
    assert await parent == "parent"


async def test_a_suspect_that_waited_for_a_run_goes_on_behind_one_that_is_on_its_way(
    fleet: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = asyncio.Event()
    ran: list[str] = []
    flow = with_a_child(ran, {"child": child})
    reclaim = Consumer.reclaim

    async def reclaim_late(self: Consumer, *args: Any, **options: Any) -> Any:
        arrivals = await reclaim(self, *args, **options)
        if arrivals and "parent" in ran:
            child.set()
            for number in range(5):  # while it is on its way, other things happen
                await (await fleet.client.start(flow, name=f"{number}"))
        return arrivals

    monkeypatch.setattr(Consumer, "reclaim", reclaim_late)
    parent, other = await two_suspects(fleet, flow)
    assert [await parent, await other] == ["parent", "other"]
    assert ran.index("other") < ran.index("parent goes on")


async def test_what_a_step_makes_of_a_write_that_came_too_late_ends_no_run(
    fleet: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    stream = fleet.keys.stream("Flow", "StartEvent", "work")

    class Flow(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ran.append(ctx.run_id)
            if len(ran) == 1:
                mine = await give_to(b"thief")
                try:
                    await ctx.store.set("v", 1)
                except StaleExecution:
                    await asyncio.shield(asyncio.create_task(give_to(mine)))
                    raise
            return StopEvent(result=len(ran))

    async def give_to(consumer: bytes) -> bytes:
        ((entry, before, *_),) = await fleet.call("XPENDING", stream, GROUP, "-", "+", 1)
        await fleet.call("XCLAIM", stream, GROUP, consumer, 0, entry, "JUSTID")
        return before

    # Else the worker may learn of the thief before the step writes.
    monkeypatch.setattr(effects, "ARM_AFTER", 600.0)
    await fleet.add_worker(Flow(), lease=timedelta(seconds=3), sweep=timedelta(seconds=0.1))
    async with asyncio.timeout(2 * SOON):
        assert await (await fleet.client.start(Flow)) == 2
    assert "another worker took this delivery" in caplog.text
    caplog.clear()  # else it would be a defect


async def test_no_other_suspect_is_taken_over_until_one_that_waits_counts_no_more(
    fleet: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    lent, looks = asyncio.Event(), 0
    commit, reclaim = RunStore.commit, Consumer.reclaim

    async def held_up(self: RunStore, commits: Sequence[Commit]) -> Any:
        if any(isinstance(word, Lend) for one in commits for word in one.words):
            await lent.wait()
        return await commit(self, commits)

    async def counted(self: Consumer, *args: Any, **options: Any) -> Any:
        nonlocal looks
        looks += bool(ran)
        return await reclaim(self, *args, **options)

    monkeypatch.setattr(RunStore, "commit", held_up)
    monkeypatch.setattr(Consumer, "reclaim", counted)
    parent, other = await two_suspects(fleet, with_a_child(ran, {}))
    await eventually(lambda: looks >= 5, SOON)
    assert "other" not in ran
    lent.set()
    assert [await parent, await other] == ["parent", "other"]


async def test_what_was_lost_twice_never_runs_beside_what_was_lost_once(
    fleet: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    looks, reclaim = 0, Consumer.reclaim
    gates = {"once": asyncio.Event(), "twice": asyncio.Event()}
    stream = fleet.keys.stream("Flow", "StartEvent", "work")

    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            ran.append(ev.name)
            if ev.name in gates:
                await gates[ev.name].wait()
            return StopEvent(result=ev.name)

    async def counted(self: Consumer, *args: Any, **options: Any) -> Any:
        nonlocal looks
        looks += 1
        return await reclaim(self, *args, **options)

    async def looked() -> None:
        enough = looks + 3
        await eventually(lambda: looks >= enough, SOON)

    async def owners() -> list[bytes]:
        """What dies with whom."""
        rows = await fleet.call("XPENDING", stream, GROUP, "-", "+", 10)
        return sorted(consumer for _, consumer, *_ in rows)

    def mine(worker: Worker) -> bytes:
        return worker.consumer.encode()

    twice = await fleet.client.start(Flow, name="twice")
    await lose(fleet, stream, times=2)
    once = await fleet.client.start(Flow, name="once")
    await lose(fleet, stream, times=1)
    again = await fleet.client.start(Flow, name="once more")
    await lose(fleet, stream, times=1, consumer="dies later")
    await fleet.call("ZADD", fleet.keys.leases, 10**15, "dies later")
    monkeypatch.setattr(Consumer, "reclaim", counted)
    worker = await fleet.add_worker(
        Flow(), lease=timedelta(seconds=3), sweep=timedelta(seconds=0.1)
    )
    await eventually(lambda: "once" in ran, SOON)
    await looked()
    assert "twice" not in ran
    assert await owners() == [b"dead", b"dies later", mine(worker)]
    gates["once"].set()
    await eventually(lambda: "twice" in ran, SOON)
    await fleet.call("ZADD", fleet.keys.leases, 1, "dies later")
    await looked()
    assert "once more" not in ran
    assert await owners() == [b"dies later", mine(worker)]
    gates["twice"].set()
    assert [await once, await twice, await again] == ["once", "twice", "once more"]


@pytest.mark.parametrize("how", ["gives up", "has read enough", "reads on"])
async def test_what_was_lost_counts_as_lost_again_when_it_waits_for_a_run_no_more(
    fleet: Place, how: str
) -> None:
    """However its wait ends: else a step that kills its worker behind a time-out would do so for ever."""
    gate, at_the_gate = asyncio.Event(), asyncio.Event()
    stream = fleet.keys.stream("Flow", "StartEvent", "work")

    class Told(Event):
        pass

    class Flow(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            if ev.name == "child":
                await eventually(is_lent, SOON)
                ctx.write_event_to_stream(Told())
                await gate.wait()
                return StopEvent()
            child = Flow().run(name="child")
            if how == "gives up":
                awaiting = asyncio.create_task(child.stop_event_result())
                await eventually(is_lent, SOON)
                awaiting.cancel()
                await asyncio.wait([awaiting])
            elif how == "has read enough":
                async for _ in child.stream_events():
                    break
            else:
                async for _ in child.stream_events():
                    at_the_gate.set()
                    await gate.wait()
            at_the_gate.set()
            await gate.wait()
            await child
            return StopEvent(result="done")

    async def times() -> int:
        rows = await fleet.call("XPENDING", stream, GROUP, "-", "+", 1)
        return int(rows[0][3])

    async def is_lent() -> bool:
        return await times() == 1

    run = await fleet.client.start(Flow, name="parent")
    await lose(fleet, stream, times=1)
    await fleet.add_worker(Flow(), lease=timedelta(seconds=3), sweep=timedelta(seconds=0.1))
    await eventually(at_the_gate.is_set, SOON)
    assert await times() == 2
    gate.set()
    assert await run == "done"


async def test_what_waits_until_it_may_run_beside_others_keeps_no_place_from_them(
    fleet: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply that is lost may bring a worker what it would not have taken over together."""
    ran: list[str] = []
    gate, refuted = asyncio.Event(), False
    stream = fleet.keys.stream("Flow", "StartEvent", "work")
    commit = RunStore.commit

    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            ran.append(ev.name)
            await gate.wait()
            return StopEvent(result=ev.name)

    async def refuting(self: RunStore, commits: Sequence[Commit]) -> Any:
        nonlocal refuted
        if not refuted and [one.run_id for one in commits] == [once.run_id] and gate.is_set():
            refuted = True
            return [Answer("rewound")]
        return await commit(self, commits)

    once = await fleet.client.start(Flow, name="once")
    await lose(fleet, stream, times=1)
    twice = await fleet.client.start(Flow, name="twice")
    await lose(fleet, stream, times=2)
    worker = await fleet.add_worker(
        Flow(), concurrency=1, lease=timedelta(seconds=3), sweep=timedelta(seconds=0.1)
    )
    await eventually(lambda: ran == ["once"], SOON)
    ((entry, *_),) = await fleet.call("XPENDING", stream, GROUP, "-", "+", 9, "dead")
    mine = worker.consumer
    await fleet.call("XCLAIM", stream, GROUP, mine, 0, entry, "RETRYCOUNT", 3, "JUSTID")
    await eventually(lambda: len(worker.processor.held) == 2, SOON)
    monkeypatch.setattr(RunStore, "commit", refuting)
    gate.set()
    async with asyncio.timeout(SOON):
        assert [await once, await twice] == ["once", "twice"]
    assert ran == ["once", "once", "twice"]


async def test_a_suspect_that_edits_the_state_goes_on_beside_what_waits_for_that(
    fleet: Place,
) -> None:
    ran: list[str] = []
    child_may_end, stream = asyncio.Event(), fleet.keys.stream("Flow", "Item", "work")

    class Item(Event):
        name: str

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | StopEvent | None:
            if "child" in ev:
                await child_may_end.wait()
                return StopEvent()
            for name in ("edits", "writes"):
                ctx.send_event(Item(name=name))
            return None

        @step
        async def work(self, ctx: Context, ev: Item) -> StopEvent | None:
            ran.append(ev.name)
            if ev.name == "edits":
                async with ctx.store.edit_state() as state:
                    await Flow().run(child=True)
                    state.child = "done"
            else:
                await ctx.store.set("written", True)
            found = ctx.collect_events(ev, [Item, Item])
            return StopEvent(result="done") if found else None

    await fleet.add_worker(Flow(), exclude_steps=frozenset({"work"}))
    run = await fleet.client.start(Flow)

    async def both_are_there() -> bool:
        return await fleet.call("XLEN", stream) == 2

    await eventually(both_are_there, SOON)
    await lose(fleet, stream, times=2)
    await fleet.add_worker(Flow(), lease=timedelta(seconds=3), sweep=timedelta(seconds=0.1))
    await eventually(lambda: ran == ["edits", "writes"], SOON)
    child_may_end.set()
    async with asyncio.timeout(SOON):
        assert await run == "done"


async def lose_twice(fleet: Place, stream: str) -> None:
    await lose(fleet, stream, times=2)


async def lose(fleet: Place, stream: str, *, times: int, consumer: str = "dead") -> None:
    """Let what nobody has read of a stream be that of a worker which died, the last of so many."""
    with suppress(StoreRefused):  # the group is there
        await fleet.call("XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM")
    rows = await fleet.call("XREADGROUP", "GROUP", GROUP, consumer, "STREAMS", stream, ">")
    for entry in rows[0][1] if isinstance(rows, list) else next(iter(rows.values())):
        await fleet.call("XCLAIM", stream, GROUP, consumer, 0, entry[0], "RETRYCOUNT", times)
    await fleet.call("ZADD", fleet.keys.leases, 1, consumer)


async def test_what_a_read_brings_to_a_draining_worker_runs_elsewhere_while_that_drains(
    fleet: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_runs, go_on = asyncio.Event(), asyncio.Event()
    late: list[Any] = []
    read = Consumer.read

    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            if ev.name == "long":
                long_runs.set()
                await go_on.wait()
            return StopEvent(result=ev.name)

    async def read_late(self: Consumer, free: int, **options: Any) -> Any:
        arrivals = await read(self, free, **options)
        if arrivals and long_runs.is_set() and not late:
            late.extend(arrivals)
            worker.stop()
            await eventually(lambda: worker._draining, SOON)
        return arrivals

    monkeypatch.setattr(Consumer, "read", read_late)
    worker = await fleet.add_worker(Flow())
    long = await fleet.client.start(Flow, name="long")
    await eventually(long_runs.is_set, SOON)
    short = await fleet.client.start(Flow, name="short")
    await eventually(lambda: len(late) == 1, SOON)
    await fleet.add_worker(Flow())
    async with asyncio.timeout(SOON):
        assert await short == "short"
    assert not long.is_done()
    go_on.set()
    assert await long == "long"


async def test_a_full_worker_that_reads_ahead_waits_for_a_place_to_take_lost_work_over(
    fleet: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = {"first": asyncio.Event(), "second": asyncio.Event()}
    ran: list[str] = []

    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            ran.append(ev.name)
            await gates[ev.name].wait()
            return StopEvent()

    monkeypatch.setattr(Paces, "soon", lambda _: 1)
    full = await fleet.add_worker(Flow(), concurrency=1, sweep=timedelta(seconds=60))
    handlers = await fleet.client.start_many(Flow, [{"name": name} for name in gates])
    await eventually(lambda: len(full.processor.held) == 2 and len(ran) == 1, SOON)
    full._sweep.reclaim_is_due = True
    gates[ran[0]].set()
    await eventually(lambda: len(ran) == 2, SOON)  # it is full again, and its loop turns
    gates[ran[1]].set()
    await asyncio.gather(*handlers)
    await eventually(lambda: not full._sweep.reclaim_is_due, SOON)


@pytest.mark.parametrize("drains", [False, True])
async def test_what_stands_in_line_behind_a_long_step_goes_to_a_worker_with_a_place(
    fleet: Place, monkeypatch: pytest.MonkeyPatch, *, drains: bool
) -> None:
    gate = asyncio.Event()
    ran: list[str] = []

    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            ran.append(ev.name)
            if len(ran) == 1:
                await gate.wait()
            return StopEvent()

    monkeypatch.setattr(Paces, "soon", lambda _: 1)
    full = await fleet.add_worker(Flow(), concurrency=1)
    handlers = await fleet.client.start_many(Flow, [{"name": name} for name in ("a", "b")])
    await eventually(lambda: len(full.processor.held) == 2 and len(ran) == 1, SOON)
    await fleet.add_worker(Flow(), concurrency=1)
    if drains:
        full.stop()
    else:
        monkeypatch.setattr(worker_module, "LATE", 0.1)
    await eventually(lambda: sorted(ran) == ["a", "b"], SOON)
    assert len(full.processor.held) == 1
    gate.set()
    await asyncio.gather(*handlers)
    assert sorted(ran) == ["a", "b"]


async def test_what_a_read_brings_to_a_draining_worker_goes_back_unrun_and_uncounted(
    fleet: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    read = Consumer.read

    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            ran.append(1)
            return StopEvent()

    brought: list[Any] = []

    async def read_late(self: Consumer, free: int, **options: Any) -> Any:
        arrivals = await read(self, free, **options)
        if arrivals and not brought:
            brought.extend(arrivals)
            worker.stop()
            await eventually(lambda: worker._draining, SOON)
        return arrivals

    monkeypatch.setattr(Consumer, "read", read_late)
    worker = await fleet.add_worker(Flow())
    handler = await fleet.client.start(Flow)
    await eventually(lambda: len(brought) == 1, SOON)
    await fleet.has_left(worker)
    assert ran == []
    (pending,) = await fleet.call(
        "XPENDING", fleet.keys.stream("Flow", "StartEvent", "work"), "workers", "-", "+", 10
    )
    assert (pending[1], pending[3]) == (b"returned", 1)
    await fleet.add_worker(Flow())
    await handler
    assert ran == [1]


async def test_what_a_read_brings_beyond_the_places_goes_to_a_worker_that_has_some(
    fleet: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, running = asyncio.Event(), 0
    read = Consumer.read

    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            nonlocal running
            running += 1
            await gate.wait()
            return StopEvent()

    async def read_much(self: Consumer, free: int, **options: Any) -> Any:
        return await read(self, 10, **options)

    handlers = await fleet.client.start_many(Flow, [{}] * 5)
    monkeypatch.setattr(worker_module, "LATE", 10 * SOON)
    with monkeypatch.context() as patched:
        patched.setattr(Consumer, "read", read_much)
        full = await fleet.add_worker(Flow(), concurrency=2)
        await eventually(lambda: running == 2, SOON)
    await fleet.add_worker(Flow(), concurrency=3)
    await eventually(lambda: running == 5, SOON)
    assert len(full.processor.held) == 2
    gate.set()
    await asyncio.gather(*handlers)


async def test_nothing_goes_back_because_one_of_many_short_steps_took_longer(
    fleet: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Consumer.read
    brought: list[int] = []

    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    async def one_takes_longer(self: Consumer, free: int, **options: Any) -> Any:
        arrivals = await read(self, free, **options)
        if len(arrivals) > free:
            brought.append(len(arrivals))
            worker.processor._paces.of(arrivals[0].route).lasts(0.005)
        return arrivals

    worker = await fleet.add_worker(Flow(), concurrency=10)
    monkeypatch.setattr(Consumer, "read", one_takes_longer)
    for _ in range(10):
        await asyncio.gather(*await fleet.client.start_many(Flow, [{}] * 100))
    assert brought
    told = await fleet.call("XRANGE", fleet.keys.ends, "-", "+")
    assert [fields for _, fields in told if RETURNED.encode() in fields] == []


async def test_work_that_is_handed_back_behind_thousands_of_ends_goes_on_soon(
    fleet: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, ran, looks = RunReader.ends, 0, set[RunReader]()

    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            nonlocal ran
            ran += 1
            if ran == 1:
                await asyncio.Event().wait()
            return StopEvent()

    async def noted(self: RunReader, after: str) -> Any:
        told = await ends(self, after)
        looks.add(self)
        return told

    monkeypatch.setattr(worker_module, "TICK", SOON / 8)
    monkeypatch.setattr(RunReader, "ends", noted)
    leaves = await fleet.add_worker(Flow())
    handler = await fleet.client.start(Flow)
    await eventually(lambda: ran == 1, SOON)
    stays = await fleet.add_worker(Flow(), sweep=timedelta(seconds=60))
    await eventually(lambda: stays._reader in looks, SOON)
    end = ("XADD", fleet.keys.ends, "*", "r", "", "s", "completed")
    await leaves._calls.calls([end] * (12 * ENDS))
    leaves.stop_now()
    async with asyncio.timeout(SOON):
        await handler


@pytest.mark.parametrize("takes", [True, False])
async def test_a_worker_with_few_places_takes_nothing_beside_what_it_reads_for_all_of_them(
    fleet: Place, monkeypatch: pytest.MonkeyPatch, *, takes: bool
) -> None:
    taken, came = Consumer.taken, 0

    class Middle(Event):
        pass

    class Flow(Workflow):
        @step
        async def first(self, ev: StartEvent) -> Middle:
            return Middle()

        @step
        async def second(self, ev: Middle) -> StopEvent:
            return StopEvent()

    def noted(self: Consumer, route: Any, row: Any) -> Any:
        nonlocal came
        came += 1
        return taken(self, route, row)

    monkeypatch.setattr(Consumer, "taken", noted)
    await fleet.add_worker(Flow(), concurrency=ROOMY if takes else ROOMY - 1)
    for _ in range(5):
        await (await fleet.client.start(Flow))
    assert bool(came) == takes
