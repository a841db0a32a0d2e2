"""A context has three faces, and says which one a method needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from stepfleet.context import BaseSerializer, Context
from stepfleet.deprecation import warn_always_running
from stepfleet.errors import ContextStateError, WorkflowRuntimeError
from stepfleet.events import Event, StopEvent
from stepfleet.retry_policy import RetryInfo
from stepfleet.store import LocalPort, StateStore


class Item(Event):
    n: int = 0


class Run:
    """A run as its caller sees it."""

    def __init__(self, *, done: bool = False) -> None:
        self.run_id = "r1"
        self.store: StateStore[Any] = StateStore(LocalPort({"where": "run"}))
        self.sent: list[tuple[Event, str | None]] = []
        self.done = done

    def send_soon(self, event: Event, step: str | None) -> None:
        self.sent.append((event, step))

    def is_done(self) -> bool:
        return self.done

    @property
    def was_cancelled(self) -> bool:
        return False

    @property
    def is_recorded(self) -> bool:
        return True

    def to_dict(self, serializer: BaseSerializer, *, include_state: bool) -> dict[str, Any]:
        return {"serializer": serializer, "include_state": include_state}

    async def running_steps(self) -> list[str]:
        return ["s"]

    async def all_events(self) -> AsyncGenerator[Event]:
        yield Item(n=7)

    def ended_with(self) -> StopEvent | None:
        return StopEvent(result="result") if self.done else None


class Step:
    """A step that is running."""

    def __init__(self) -> None:
        self.run_id = "r1"
        self.idempotency_key = "r1:d1"
        self.store: StateStore[Any] = StateStore(LocalPort({"where": "step"}))
        self.calls: list[tuple[Any, ...]] = []

    def retry_info(self) -> RetryInfo:
        return RetryInfo(
            retry_number=1, elapsed_seconds=2.0, last_exception=None, last_failed_at=None
        )

    def send(self, event: Event, step: str | None) -> None:
        self.calls.append(("send", event, step))

    def publish(self, event: Event) -> None:
        self.calls.append(("publish", event))

    def collect(self, event: Event, expected: Any, buffer_id: str | None) -> list[Event] | None:
        self.calls.append(("collect", event, expected, buffer_id))
        return [event]

    async def wait(self, event_type: type[Event], **options: Any) -> Event:
        self.calls.append(("wait", event_type, options))
        return Item()


async def test_before_a_run_there_are_only_values() -> None:
    ctx = Context()
    await ctx.store.set("a", 1)
    assert ctx.initial_values == {"a": 1}
    assert not ctx.is_running
    with pytest.raises(ContextStateError, match=r"^run_id requires a running workflow\. Call"):
        ctx.run_id  # noqa: B018
    with pytest.raises(ContextStateError, match=r"^send_event\(\) called before workflow started"):
        ctx.send_event(Item())
    with pytest.raises(ContextStateError, match=r"^collect_events requires a running workflow"):
        ctx.collect_events(Item(), [Item])
    with pytest.raises(ContextStateError, match=r"^wait_for_event requires a running workflow"):
        await ctx.wait_for_event(Item)


async def test_a_caller_sends_and_reads_but_does_nothing_that_belongs_to_steps() -> None:
    ctx, run = Context(), Run()
    ctx.attach(run)
    ctx.send_event(Item(n=1), step="s")
    assert run.sent == [(Item(n=1), "s")]
    assert (ctx.run_id, ctx.is_running, await ctx.store.get("where")) == ("r1", True, "run")
    for name, call in (
        ("write_event_to_stream", lambda: ctx.write_event_to_stream(Item())),
        ("collect_events", lambda: ctx.collect_events(Item(), [Item])),
        ("idempotency_key", lambda: ctx.idempotency_key),
        ("retry_info", ctx.retry_info),
    ):
        with pytest.raises(ContextStateError, match=f"^{name} is only available from within step"):
            call()
    assert await ctx.running_steps() == ["s"]
    with pytest.warns(DeprecationWarning, match="use handler.stream_events"):
        assert [event async for event in ctx.stream_events()] == [Item(n=7)]
    with (
        pytest.warns(DeprecationWarning, match="await the handler"),
        pytest.raises(WorkflowRuntimeError, match="run_id r1 is not complete"),
    ):
        ctx.get_result()
    run.done = True
    assert not ctx.is_running
    with pytest.warns(DeprecationWarning, match="await the handler"):
        assert ctx.get_result() == "result"


async def test_a_context_takes_one_run_after_the_other() -> None:
    ctx, run = Context(), Run()
    ctx.refuse_if_running()
    ctx.attach(run)
    with pytest.raises(ContextStateError, match="^Cannot start a new run while context is already"):
        ctx.refuse_if_running()
    run.done = True
    ctx.refuse_if_running()
    assert ctx.previous_run is run


async def test_in_a_step_everything_goes_to_the_worker() -> None:
    face = Step()
    ctx = Context.of_step(face)
    ctx.send_event(Item(n=1))
    ctx.write_event_to_stream(Item(n=2))
    ctx.write_event_to_stream(None)
    assert ctx.collect_events(Item(n=3), [Item], buffer_id="b") == [Item(n=3)]
    await ctx.wait_for_event(Item, requirements={"n": 4}, waiter_id="w", timeout=None)
    assert face.calls == [
        ("send", Item(n=1), None),
        ("publish", Item(n=2)),
        ("collect", Item(n=3), [Item], "b"),
        (
            "wait",
            Item,
            {"request": None, "waiter_id": "w", "requirements": {"n": 4}, "timeout": None},
        ),
    ]
    assert (ctx.run_id, ctx.idempotency_key) == ("r1", "r1:d1")
    warn_always_running.cache_clear()
    with pytest.warns(DeprecationWarning, match="is_running called from within a step"):
        assert ctx.is_running
    assert await ctx.store.get("where") == "step"
    assert ctx.retry_info().retry_number == 1
    with pytest.raises(
        ContextStateError, match="^running_steps is only available from handler code"
    ):
        await ctx.running_steps()


async def test_a_wait_lasts_two_thousand_seconds_unless_told_otherwise() -> None:
    face = Step()
    await Context.of_step(face).wait_for_event(Item)
    assert face.calls[0][2]["timeout"] == 2000


async def test_each_task_finds_the_context_of_its_own_step() -> None:
    async def run_step() -> bool:
        ctx = Context.of_step(Step())
        ctx.enter_step()
        await asyncio.sleep(0)
        return Context.get_step_context() is ctx

    assert await asyncio.gather(*[asyncio.create_task(run_step()) for _ in range(3)]) == [True] * 3
    with pytest.raises(WorkflowRuntimeError, match="may only be called from within a step"):
        Context.get_step_context()
