"""Races that were lost once. Each test holds one side where it matters and lets the other one pass."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.core import decide
from stepfleet.core.commit import Commit
from stepfleet.errors import DeadLettered, DecodeError, NewerVersionError, StoreError, StoreRefused
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from stepfleet.storage import consumer as consumer_module
from stepfleet.storage.beat import beat_caller
from stepfleet.storage.committer import Committer
from stepfleet.storage.link import Link, connector
from stepfleet.storage.reader import RunReader, Waits
from stepfleet.storage.scripts import script
from stepfleet.wire import Expiry, Waiter, decode_record, encode_timer
from stepfleet.worker import strays
from stepfleet.worker.heartbeat import Heartbeat
from stepfleet.worker.timers import Timers
from tests.conformance.place import Place
from tests.support.servers import RedisServer, available_binaries
from tests.support.wait import eventually

#: Seconds until a test gives up on something that should happen.
SOON = 20.0


class Ask(Event):
    pass


class Reply(Event):
    v: int


class Item(Event):
    n: int


class Other(Event):
    n: int


class Stranger(Event):
    v: int


class MyStop(StopEvent):
    v: int


async def open_waits(place: Place, run_id: str) -> list[Waiter]:
    return (await place.client.connection().reader.waits(run_id)).open


async def waits_as(place: Place, run_id: str, waiter_id: str) -> bool:
    return [waiter.waiter_id for waiter in await open_waits(place, run_id)] == [waiter_id]


async def until_it_waits(place: Place, run_id: str, waiter_id: str) -> None:
    async def it_waits() -> bool:
        return await waits_as(place, run_id, waiter_id)

    await eventually(it_waits, SOON)


async def until_calls_give(place: Place, expected: object, *command: Any) -> None:
    async def given() -> bool:
        return await place.call(*command) == expected

    await eventually(given, SOON)


# -- timers ------------------------------------------------------------------------------------------


async def test_a_worker_that_fires_a_timer_late_does_not_fire_the_next_one(
    fleet: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    late: list[str] = []
    fire = Timers._fire  # pyright: ignore[reportPrivateUsage]

    class Flow(Workflow):
        @step(retry_policy=retry_policy(wait=wait_fixed(0.3), stop=stop_after_attempt(3)))
        async def work(self, ev: StartEvent) -> StopEvent:
            ran.append(len(ran) + 1)
            raise ValueError(f"attempt {len(ran)}")

    async def next_timer_is_set() -> bool:
        return len(ran) == 2 and await fleet.call("ZCARD", fleet.keys.timers) == 1

    async def held(self: Timers, member: str, data: bytes) -> None:
        if not late:
            late.append(member)
            await eventually(next_timer_is_set, SOON)
        await fire(self, member, data)

    monkeypatch.setattr(Timers, "_fire", held)
    flow = await fleet.serve(Flow)
    with pytest.raises(ValueError, match="attempt 3"):
        await flow.run()
    assert late
    assert ran == [1, 2, 3]


async def test_the_expiry_of_a_wait_does_not_end_the_next_wait_of_the_step(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, answered, fired = asyncio.Event(), asyncio.Event(), asyncio.Event()
    waiter, fire = RunReader.waiter, Timers._fire  # pyright: ignore[reportPrivateUsage]

    class Flow(Workflow, types=[Reply]):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            got: list[Any] = []
            for name, timeout in (("a", 0.1), ("b", 60)):
                try:
                    reply = await ctx.wait_for_event(Reply, waiter_id=name, timeout=timeout)
                    got.append(reply.v)
                except TimeoutError:
                    got.append("time-out")
            return StopEvent(result=got)

    async def held(self: RunReader, run_id: str, name: str) -> Waiter | None:
        found = await waiter(self, run_id, name)
        # Any worker may fire the timer, so whoever has read it is held.
        if not answered.is_set():
            read.set()
            await answered.wait()
        return found

    async def watched(self: Timers, member: str, data: bytes) -> None:
        await fire(self, member, data)
        fired.set()

    monkeypatch.setattr(RunReader, "waiter", held)
    monkeypatch.setattr(Timers, "_fire", watched)
    flow = await place.serve(Flow)
    handler = flow.run()
    async with asyncio.timeout(SOON):
        await read.wait()
        handler.ctx.send_event(Reply(v=7))
        await until_it_waits(place, handler.run_id, "b")
        fired.clear()
        answered.set()
        await fired.wait()
    handler.ctx.send_event(Reply(v=8))
    assert await handler == [7, 8]


async def test_a_timer_that_cannot_be_read_stops_no_other_timer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Counter[str]()
    waiter = RunReader.waiter

    class Flow(Workflow):
        @step(retry_policy=retry_policy(wait=wait_fixed(0.3), stop=stop_after_attempt(2)))
        async def work(self, ev: StartEvent) -> StopEvent:
            tries.append(1)
            if len(tries) == 1:
                raise ValueError
            return StopEvent(result="done")

    async def counted(self: RunReader, run_id: str, name: str) -> Waiter | None:
        looks[run_id] += 1
        return await waiter(self, run_id, name)

    monkeypatch.setattr(RunReader, "waiter", counted)
    tries: list[int] = []
    flow = await place.serve(Flow)
    newer, keys = place.keys.wait("newer"), place.keys
    await place.call("HSET", newer, "w", b"\x91\x7f")  # a record of version 127
    await place.call("HSET", keys.timer_data, "newer/w/wait", encode_timer(Expiry("w")))
    await place.call("ZADD", keys.timers, 1, "newer/w/wait")
    try:
        assert await flow.run() == "done"
        assert looks["newer"] < 100, "it was looked at without a pause"
    finally:
        await place.call("DEL", newer)
        await place.call("ZREM", keys.timers, "newer/w/wait")
        await place.call("HDEL", keys.timer_data, "newer/w/wait")


async def test_work_in_back_off_is_kept_when_its_run_is_cancelled(fleet: Place) -> None:
    class Flow(Workflow):
        @step(retry_policy=retry_policy(wait=wait_fixed(0.2), stop=stop_after_attempt(3)))
        async def work(self, ev: StartEvent) -> StopEvent:
            raise ValueError

    flow = await fleet.serve(Flow)
    handler = flow.run()
    await until_calls_give(fleet, 1, "ZCARD", fleet.keys.timers)
    await handler.cancel_run()
    await until_calls_give(fleet, 0, "ZCARD", fleet.keys.timers)
    (kept,) = await fleet.call("HVALS", fleet.keys.parked(handler.run_id))
    label, _, record = kept.partition(b"\n")
    assert label == b"StartEvent:work"
    assert decode_record(record).attempt == 2


# -- waits and their answers -------------------------------------------------------------------------


def hold_waits(
    monkeypatch: pytest.MonkeyPatch, turn: int, until: asyncio.Event, reached: asyncio.Event
) -> None:
    """Holds the `turn`-th reader of the open waits between its look and what it does with it."""
    waits, turns = RunReader.waits, Counter[str]()

    async def held(self: RunReader, run_id: str) -> Waits:
        found = await waits(self, run_id)
        turns[run_id] += 1
        if turns[run_id] == turn:
            reached.set()
            await until.wait()
        return found

    monkeypatch.setattr(RunReader, "waits", held)


async def waits_directly(place: Place, run_id: str, count: int) -> None:
    """Waits until so many executions wait, without the reader's method that a test holds."""
    await until_calls_give(place, count, "HLEN", place.keys.wait(run_id))


async def test_an_answer_that_saw_the_first_wait_goes_to_the_second_when_it_comes_late(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, reached = asyncio.Event(), asyncio.Event()

    class Flow(Workflow, types=[Reply]):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            one = await ctx.wait_for_event(Reply, waiter_id="a")
            two = await ctx.wait_for_event(Reply, waiter_id="b")
            return StopEvent(result=[one.v, two.v])

    flow = await place.serve(Flow)
    handler = flow.run()
    await waits_directly(place, handler.run_id, 1)
    hold_waits(monkeypatch, 1, go_on, reached)
    handler.ctx.send_event(Reply(v=2))
    async with asyncio.timeout(SOON):
        await reached.wait()
    handler.ctx.send_event(Reply(v=1))
    await until_calls_give(place, b"2", "HGET", place.keys.run(handler.run_id), "waits")
    go_on.set()
    assert await handler == [1, 2]


async def test_an_answer_that_saw_no_wait_is_found_by_the_one_that_begins_meanwhile(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, reached = asyncio.Event(), asyncio.Event()

    class Flow(Workflow, types=[Reply, Ask]):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Ask())
            await reached.wait()
            return StopEvent(result=(await ctx.wait_for_event(Reply, waiter_id="a")).v)

    hold_waits(monkeypatch, 1, go_on, reached)
    flow = await place.serve(Flow)
    handler = flow.run()
    async for event in handler.stream_events():
        if isinstance(event, Ask):
            handler.ctx.send_event(Reply(v=1))
            await waits_directly(place, handler.run_id, 1)
            go_on.set()
    assert await handler == 1


async def test_one_event_from_before_the_wait_answers_one_wait(place: Place) -> None:
    kept = asyncio.Event()

    class Flow(Workflow, types=[Reply, Ask]):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Ask())
            await kept.wait()
            one = await ctx.wait_for_event(Reply, waiter_id="a")
            two = await ctx.wait_for_event(Reply, waiter_id="b")
            return StopEvent(result=[one.v, two.v])

    flow = await place.serve(Flow)
    handler = flow.run()
    async for event in handler.stream_events():
        if isinstance(event, Ask):
            handler.ctx.send_event(Reply(v=1))
            await until_calls_give(place, 1, "LLEN", place.keys.inbox(handler.run_id))
            kept.set()
            await until_it_waits(place, handler.run_id, "b")
            handler.ctx.send_event(Reply(v=2))
    assert await handler == [1, 2]


async def test_events_for_nobody_do_not_keep_a_step_from_its_wait(place: Place) -> None:
    bodies: list[int] = []

    class Flow(Workflow, types=[Reply, Item]):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            bodies.append(1)
            if len(bodies) < 20:
                inbox = place.keys.inbox(ctx.run_id)
                before = await place.call("LLEN", inbox)
                await handlers[0].send_event(Item(n=len(bodies)))
                await until_calls_give(place, before + 1, "LLEN", inbox)
            return StopEvent(result=(await ctx.wait_for_event(Reply, waiter_id="a")).v)

    flow = await place.serve(Flow)
    handlers = [flow.run()]
    await waits_directly(place, handlers[0].run_id, 1)
    assert len(bodies) == 1
    await handlers[0].send_event(Reply(v=1))
    assert await handlers[0] == 1


async def test_a_targeted_event_reaches_its_step_only_though_its_type_is_awaited(
    place: Place,
) -> None:
    seen = Counter[str]()

    class Flow(Workflow):
        @step
        async def wait(self, ctx: Context, ev: StartEvent) -> Item | StopEvent:
            await ctx.wait_for_event(Item, requirements={"n": 99})
            return StopEvent(result=dict(seen))

        @step
        async def first(self, ev: Item) -> None:
            seen[f"first {ev.n}"] += 1

        @step
        async def second(self, ev: Item) -> None:
            seen[f"second {ev.n}"] += 1

    flow = await place.serve(Flow)
    handler = flow.run()
    await waits_directly(place, handler.run_id, 1)
    handler.ctx.send_event(Item(n=1), step="second")
    await eventually(lambda: seen["second 1"], SOON)
    handler.ctx.send_event(Item(n=99), step="second")
    await handler
    assert set(seen) <= {"second 1", "second 99"}


@pytest.mark.parametrize("failures", [1, 2])
async def test_an_answer_that_cannot_be_read_waits_for_other_code_then_goes_to_the_inbox(
    place: Place, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    waits, failed = RunReader.waits, Counter[str]()

    class Flow(Workflow, types=[Reply]):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=(await ctx.wait_for_event(Reply, waiter_id="a")).v)

    async def newer(self: RunReader, run_id: str) -> Waits:
        if failed[run_id] < failures:
            failed[run_id] += 1
            raise DecodeError("written by newer code")
        return await waits(self, run_id)

    monkeypatch.setattr(decide, "UNREADABLE_DELAY_MS", 10)
    monkeypatch.setattr(decide, "UNREADABLE_TRIES", 1)
    flow = await place.serve(Flow)
    handler = flow.run()
    await waits_directly(place, handler.run_id, 1)
    monkeypatch.setattr(RunReader, "waits", newer)
    await handler.send_event(Reply(v=1))
    if failures > 1:
        await until_calls_give(place, 1, "LLEN", place.keys.inbox(handler.run_id))
        await handler.send_event(Reply(v=2))
    assert await handler == failures


async def test_an_event_whose_type_no_worker_knows_ends_in_the_inbox(
    fleet: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Flow(Workflow, types=[Reply]):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=(await ctx.wait_for_event(Reply, waiter_id="a")).v)

    monkeypatch.setattr(decide, "UNREADABLE_DELAY_MS", 10)
    monkeypatch.setattr(decide, "UNREADABLE_TRIES", 2)
    flow = await fleet.serve(Flow)
    handler = flow.run()
    await waits_directly(fleet, handler.run_id, 1)
    stranger = fleet.new_client(types=[Stranger]).handler(handler.run_id, workflow=flow.__class__)
    await stranger.send_event(Stranger(v=1))
    await until_calls_give(fleet, 1, "LLEN", fleet.keys.inbox(handler.run_id))
    await handler.send_event(Reply(v=3))
    assert await handler == 3


# -- joins and fan-outs ------------------------------------------------------------------------------


async def test_one_execution_fills_a_buffer_by_several_collects(place: Place) -> None:
    class Flow(Workflow, types=[Item]):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent | None:
            got = None
            for n in range(3):
                got = ctx.collect_events(Item(n=n), [Item] * 3)
            return StopEvent(result=[one.n for one in got]) if got else None

    flow = await place.serve(Flow)
    assert await flow.run() == [0, 1, 2]


async def test_two_wide_fan_outs_to_one_step_arrive_once_each(fleet: Place) -> None:
    seen, begun = Counter[tuple[str, int]](), Counter[str]()
    width = 501  # just more than goes in one commit

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | Other | None:
            begun["begin"] += 1
            for n in range(width):
                ctx.send_event(Item(n=n))
            for n in range(width):
                ctx.send_event(Other(n=n))

        @step(num_workers=100)
        async def work(self, ev: Item | Other) -> StopEvent | None:
            seen[type(ev).__name__, ev.n] += 1

    async def nothing_is_left() -> bool:
        reader = fleet.client.connection().reader
        return len(seen) >= 2 * width and not await reader.pending(handler.run_id)

    flow = await fleet.serve(Flow)
    handler = flow.run()
    await eventually(nothing_is_left, 60.0)
    await handler.cancel_run()
    assert begun == {"begin": 1}
    assert set(seen.values()) == {1}
    assert len(seen) == 2 * width


# -- ends, ids that come again, what is tidied up ----------------------------------------------------


async def test_a_live_run_goes_on_where_its_id_is_remembered_as_ended(fleet: Place) -> None:
    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result="done")

    worker = await fleet.add_worker(Flow())
    worker.processor.runs_ended({"nightly"})
    assert await Flow(runtime=fleet.runtime).run(run_id="nightly") == "done"


async def test_tidying_leaves_the_keys_of_a_live_run_and_comes_to_an_end(fleet: Place) -> None:
    stored, go_on = asyncio.Event(), asyncio.Event()

    class Flow(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.store.set("x", 1)
            stored.set()
            await go_on.wait()
            return StopEvent(result=await ctx.store.get("x"))

    worker = await fleet.add_worker(Flow())
    handler = Flow(runtime=fleet.runtime).run(run_id="again")
    async with asyncio.timeout(SOON):
        await stored.wait()
    gone = [f"gone{n}" for n in range(1_200)]
    await fleet.call("RPUSH", fleet.keys.tidy, "again", *gone)
    await worker.tidy()
    assert await fleet.call("LLEN", fleet.keys.tidy) == 0
    assert await fleet.call("PTTL", fleet.keys.store("again")) == -1
    go_on.set()
    assert await handler == 1


async def test_a_reader_without_classes_sees_the_end_of_a_run(place: Place) -> None:
    class Flow(Workflow, types=[Item]):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> MyStop:
            ctx.write_event_to_stream(Item(n=1))
            return MyStop(v=1)

    flow = await place.serve(Flow)
    handler = flow.run()
    await handler
    stream = place.new_client().handler(handler.run_id).stream_events()
    async with asyncio.timeout(SOON):
        assert len([event async for event in stream]) == 2


# -- what a step may do wrong ------------------------------------------------------------------------


@pytest.mark.parametrize("attached", [False, True])
async def test_an_error_that_is_too_large_to_travel_ends_the_run(
    place: Place, attached: bool
) -> None:
    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            error = ValueError("small" if attached else "x" * 2_000_000)
            if attached:
                error.response = b"y" * 2_000_000  # type: ignore[attr-defined]
            raise error

    flow = await place.serve(Flow)
    with pytest.raises(ValueError, match="small" if attached else "xxx"):
        async with asyncio.timeout(4 * SOON):
            await flow.run()


async def test_a_wait_without_an_end_may_be_asked_for_as_infinity(place: Place) -> None:
    class Flow(Workflow, types=[Reply]):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=(await ctx.wait_for_event(Reply, timeout=math.inf)).v)

    flow = await place.serve(Flow)
    handler = flow.run()
    await waits_directly(place, handler.run_id, 1)
    handler.ctx.send_event(Reply(v=1))
    assert await handler == 1


async def test_what_makes_no_commit_fails_its_own_run_only(place: Place) -> None:
    go_on = asyncio.Event()

    class Flow(Workflow, types=[Reply]):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            match ev.get("how"):
                case "store":
                    await ctx.store.set("f\udcff", 1)
                case "wait":
                    await ctx.wait_for_event(Reply, waiter_id="f\udcff")
                case _:
                    await go_on.wait()
            return StopEvent(result="done")

    flow = await place.serve(Flow)
    fine = flow.run()
    for how in ("store", "wait"):
        with pytest.raises(UnicodeEncodeError):
            async with asyncio.timeout(SOON):
                await flow.run(how=how)
    go_on.set()
    assert await fine == "done"


async def test_an_edit_whose_wait_for_the_lock_is_cancelled_leaves_it_free(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            async def edit() -> None:
                async with ctx.store.edit_state() as state:
                    state.x = 1

            for turns in range(1, 8):
                task = asyncio.create_task(edit())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            async with ctx.store.edit_state() as state:
                state.x = 2
            return StopEvent(result=await ctx.store.get("x"))

    flow = await place.serve(Flow)
    async with asyncio.timeout(10.0):  # less than the lease of a lock
        assert await flow.run() == 2


# -- other versions, lost leases, another master -----------------------------------------------------


async def test_a_delivery_of_newer_code_is_put_back_until_somebody_can_read_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[bytes] = []
    decoded = decode_record

    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result="done")

    def newer(data: bytes) -> Any:
        if not refused:
            refused.append(data)
            raise NewerVersionError("a delivery has version 2", data)
        return decoded(data)

    monkeypatch.setattr(strays, "UNREADABLE_DELAY_MS", 10)
    monkeypatch.setattr(consumer_module, "decode_record", newer)
    flow = await place.serve(Flow)
    assert await flow.run() == "done"
    assert refused
    assert not await place.call("EXISTS", place.keys.dead)


async def test_a_buried_worker_rises_though_its_first_beat_fails(
    fleet: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, failed = Heartbeat.start, list[str]()

    class Flow(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result="done")

    async def fails_once(self: Heartbeat) -> None:
        if not failed:
            failed.append(self.consumer)
            raise StoreError("one lost packet")
        await start(self)

    worker = await fleet.add_worker(Flow(), lease=timedelta(seconds=1))
    buried = worker.consumer
    monkeypatch.setattr(Heartbeat, "start", fails_once)
    await fleet.call("ZADD", fleet.keys.leases, -int(time.time() * 1000), buried)
    await eventually(lambda: failed and worker.consumer not in (buried, ""), SOON)
    async with asyncio.timeout(SOON):
        assert await Flow(runtime=fleet.runtime).run() == "done"
    assert not worker.crashed


async def test_a_connection_to_a_demoted_master_is_left(tmp_path: Path) -> None:
    server = RedisServer(next(iter(available_binaries().values())), tmp_path, appendonly=False)
    server.start()
    link = Link(connector(server.url))
    beat = beat_caller(server.url, timeout=20.0)

    async def clients() -> int:
        return int(await link.call("CLIENT", "ID"))

    def beats() -> None:
        beat(script("beat"), ["leases", "workers"], ["me", 1000, b""])

    try:
        await asyncio.to_thread(beats)
        before = await clients()
        await link.call("REPLICAOF", "127.0.0.1", server.port)  # of itself: never in sync
        assert isinstance((await link.calls([("SET", "x", "1")]))[0], StoreRefused)
        assert await clients() > before
        with pytest.raises(StoreRefused):
            await link.call("SET", "x", "1")
        with pytest.raises(StoreRefused):
            await asyncio.to_thread(beats)
        rows = (await link.call("CLIENT", "LIST")).decode().splitlines()
        assert len([row for row in rows if " cmd=client" not in row and "flags=N" in row]) == 0
    finally:
        await link.close()
        server.kill()


async def test_a_connection_to_a_master_without_its_replicas_is_left(tmp_path: Path) -> None:
    options = ("--min-replicas-to-write", "1")
    binary = next(iter(available_binaries().values()))
    server = RedisServer(binary, tmp_path, appendonly=False, options=options)
    server.start()
    link = Link(connector(server.url))
    beat = beat_caller(server.url, timeout=20.0)

    def beats() -> None:
        beat(script("beat"), ["leases", "workers"], ["me", 1000, b""])

    async def client_id() -> int:
        return int(await link.call("CLIENT", "ID"))

    try:
        before = await client_id()
        with pytest.raises(StoreRefused, match="NOREPLICAS"):
            await link.call("SET", "x", "1")
        between = await client_id()
        assert isinstance((await link.calls([("SET", "x", "1")]))[0], StoreRefused)
        assert before < between < await client_id()
        with pytest.raises(StoreRefused, match="NOREPLICAS"):
            await asyncio.to_thread(beats)
    finally:
        await link.close()
        server.kill()


async def test_a_connection_that_redis_closed_while_it_was_idle_fails_no_call(
    tmp_path: Path,
) -> None:
    server = RedisServer(next(iter(available_binaries().values())), tmp_path, appendonly=False)
    server.start()
    link = Link(connector(server.url))
    try:
        await link.call("PING")
        await asyncio.to_thread(server.restart)
        assert await link.call("PING") == b"PONG"
    finally:
        await link.close()
        server.kill()


async def test_a_worker_that_dies_while_it_buries_an_entry_leaves_no_run_behind(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Flow(Workflow, types=[Reply]):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=(await ctx.wait_for_event(Reply, waiter_id="a")).v)

    flow = await place.serve(Flow)
    handler = flow.run()
    await until_it_waits(place, handler.run_id, "a")
    put, let_through = Committer.put, list[Commit]()

    def dies(self: Committer, commit: Commit, *done: Any) -> None:
        if commit.run_id == handler.run_id and not let_through:
            let_through.append(commit)
            put(self, commit, *done)

    monkeypatch.setattr(Committer, "put", dies)
    (stream,) = await place.call("KEYS", f"{place.keys.tag}:s:*:StartEvent:ask")
    await place.call("XADD", stream, "*", "r", handler.run_id, "i", "torn", "d", b"\x93\x01")
    async with asyncio.timeout(SOON):
        with pytest.raises(DeadLettered, match="cannot be read"):
            await handler
    monkeypatch.setattr(Committer, "put", put)
    assert let_through


# -- Redis that came back with an older state ----------------------------------------------------------


@pytest.mark.parametrize("lost", ["published", "stored"])
@pytest.mark.parametrize("later", ["", "published", "stored"])
async def test_a_step_of_whose_confirmed_effects_redis_has_lost_one_runs_again(
    place: Place, lost: str, later: str
) -> None:
    ran: list[str] = []

    class Flow(Workflow, types=[Reply]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item:
            run_id, _, delivery = ctx.idempotency_key.partition(":")
            ran.append(delivery)
            before = await place.call("HGETALL", place.keys.open(run_id))
            await take_effect(ctx, lost, 1)
            await until_confirmed(run_id, delivery, before)
            if len(ran) == 1:
                await go_back(run_id, delivery, before)
            if later:
                before = await place.call("HGETALL", place.keys.open(run_id))
                await take_effect(ctx, later, 2)
                await until_confirmed(run_id, delivery, before)
            return Item(n=1)

        @step
        async def end(self, ctx: Context, ev: Item) -> StopEvent:
            return StopEvent(result=[await ctx.store.get(f"v{v}", default="no") for v in (1, 2)])

    async def take_effect(ctx: Context, what: str, v: int) -> None:
        if what == "published":
            ctx.write_event_to_stream(Reply(v=v))
        else:
            await ctx.store.set(f"v{v}", "yes")

    async def until_confirmed(run_id: str, delivery: str, before: list[bytes]) -> None:
        async def is_confirmed() -> bool:
            return await place.call("HGETALL", place.keys.open(run_id)) != before

        await eventually(is_confirmed, SOON)

    async def go_back(run_id: str, delivery: str, before: list[bytes]) -> None:
        known = place.keys.open(run_id)
        await place.call("DEL", known, place.keys.sent(run_id, delivery), place.keys.store(run_id))
        await place.call("HSET", known, *before)

    flow = await place.serve(Flow)
    handler = flow.run()
    expected = ["yes" if what == "stored" else "no" for what in (lost, later)]
    assert await handler == expected
    assert len(ran) == 2
    assert len(set(ran)) == 1
