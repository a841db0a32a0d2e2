"""Steps that fail, retry, take too long or are cancelled: what their caller gets to know."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import Any

import pytest

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.errors import WorkflowCancelledByUser, WorkflowRuntimeError, WorkflowTimeoutError
from stepfleet.events import (
    UnreconstructedException,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed, wait_none
from tests.conformance.place import Place
from tests.support.wait import eventually


class OwnError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Item(Event):
    n: int


async def test_an_error_reaches_the_caller_as_its_own_class_with_its_content(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            if ev.kind == "builtin":
                raise KeyError("missing")
            raise OwnError(7)

    flow = await place.serve(Flow)
    with pytest.raises(KeyError, match="missing"):
        await flow.run(kind="builtin")
    handler = flow.run(kind="own")
    with pytest.raises(OwnError) as caught:
        await handler
    assert caught.value.code == 7
    with pytest.raises(OwnError):
        await handler
    assert handler.is_done()
    assert handler.get_stop_event() is None


async def test_an_error_carries_the_traceback_of_its_step_and_its_cause(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            try:
                raise ValueError("inner")
            except ValueError as error:
                raise RuntimeError("outer") from error

    flow = await place.serve(Flow)
    with pytest.raises(RuntimeError, match="outer") as caught:
        await flow.run()
    notes = "".join(caught.value.__notes__)
    assert "Remote traceback" in notes
    assert "in begin" in notes
    assert isinstance(caught.value.__cause__, ValueError)
    assert str(caught.value.__cause__) == "inner"


async def test_an_error_that_cannot_be_rebuilt_names_its_type(place: Place) -> None:
    def fail() -> None:
        class Hidden(Exception):
            def __init__(self, one: int, two: int) -> None:
                super().__init__(f"{one} and {two}")

        raise Hidden(1, 2)

    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            fail()
            return StopEvent()

    flow = await place.serve(Flow)
    with pytest.raises(UnreconstructedException, match="1 and 2") as caught:
        await flow.run()
    assert str(caught.value.original_type).endswith("Hidden")


async def test_errors_raise_the_builtin_ways_too(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            if ev.kind == "cancelled":
                raise asyncio.CancelledError
            raise BaseExceptionGroup("group", [ValueError("x")])

    flow = await place.serve(Flow, timeout=5)
    handler = flow.run(kind="cancelled")
    shown = [event async for event in handler.stream_events()]
    assert [type(event) for event in shown] == [WorkflowFailedEvent]
    with pytest.raises(UnreconstructedException):
        await handler
    with pytest.raises(Exception, match="group"):
        await flow.run(kind="group")


async def test_a_step_without_a_policy_is_tried_once(place: Place) -> None:
    tries: list[int] = []

    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            tries.append(1)
            raise ValueError("no")

    flow = await place.serve(Flow)
    with pytest.raises(ValueError, match="no"):
        await flow.run()
    assert len(tries) == 1


async def test_a_step_with_a_policy_is_tried_again_after_its_delay(place: Place) -> None:
    tries: list[float] = []

    class Flow(Workflow):
        @step(retry_policy=retry_policy(wait=wait_fixed(0.2), stop=stop_after_attempt(3)))
        async def begin(self, ev: StartEvent) -> StopEvent:
            tries.append(time.monotonic())
            if len(tries) < 2:
                raise ValueError("again")
            return StopEvent(result=len(tries))

    flow = await place.serve(Flow)
    assert await flow.run() == 2
    assert tries[1] - tries[0] >= 0.2


async def test_when_attempts_are_used_up_the_last_error_is_raised(place: Place) -> None:
    tries: list[int] = []

    class Flow(Workflow):
        @step(retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(3)))
        async def begin(self, ev: StartEvent) -> StopEvent:
            tries.append(1)
            raise ValueError(f"try {len(tries)}")

    flow = await place.serve(Flow)
    handler = flow.run()
    with pytest.raises(ValueError, match="try 3"):
        await handler
    assert len(tries) == 3
    failure = [event async for event in handler.stream_events()][-1]
    assert isinstance(failure, WorkflowFailedEvent)
    assert failure.attempts == 3
    status = await handler.status()
    assert (status.status, status.failed_step) == ("failed", "begin")
    assert "try 3" in (status.error or "")


async def test_a_policy_that_fails_itself_ends_the_run_with_its_error(place: Place) -> None:
    class Wrong:
        def next(self, elapsed_time: float, attempts: int, error: Exception) -> float | None:
            raise TypeError("policy")

    class Flow(Workflow):
        @step(retry_policy=Wrong())  # type: ignore[arg-type]
        async def begin(self, ev: StartEvent) -> StopEvent:
            raise ValueError("step")

    flow = await place.serve(Flow)
    with pytest.raises(TypeError, match="policy") as caught:
        await flow.run()
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("delay", [float("nan"), float("inf"), "soon", 10**400])
async def test_a_policy_that_gives_no_time_ends_the_run_by_its_name(
    place: Place, delay: Any
) -> None:
    class Wrong:
        def next(self, elapsed_time: float, attempts: int, error: Exception) -> float | None:
            return delay

    class Flow(Workflow):
        @step(retry_policy=Wrong())  # type: ignore[arg-type]
        async def begin(self, ev: StartEvent) -> StopEvent:
            raise ValueError("step")

    flow = await place.serve(Flow)
    with pytest.raises(
        WorkflowRuntimeError, match="a retry policy gives .* behind attempt 1"
    ) as caught:
        async with asyncio.timeout(5):
            await flow.run()
    assert isinstance(caught.value.__cause__, ValueError)


async def test_the_idempotency_key_is_the_same_in_every_attempt(place: Place) -> None:
    keys: list[str] = []

    class Flow(Workflow):
        @step(retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(3)))
        async def begin(self, ctx: Context, ev: StartEvent) -> Item:
            keys.append(ctx.idempotency_key)
            if len(keys) < 3:
                raise ValueError("again")
            return Item(n=1)

        @step
        async def end(self, ctx: Context, ev: Item) -> StopEvent:
            keys.append(ctx.idempotency_key)
            return StopEvent()

    flow = await place.serve(Flow)
    handler = flow.run()
    await handler
    assert len(set(keys[:3])) == 1
    assert keys[3] != keys[0]
    assert handler.run_id in keys[0]


async def test_a_failing_step_cancels_the_others_of_its_run(place: Place) -> None:
    cancelled = asyncio.Event()
    running = asyncio.Event()

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            ctx.send_event(Item(n=0))
            ctx.send_event(Item(n=1))

        @step
        async def work(self, ev: Item) -> StopEvent:
            if ev.n:
                await running.wait()
                raise ValueError("one fails")
            running.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return StopEvent()

    flow = await place.serve(Flow)
    with pytest.raises(ValueError, match="one fails"):
        await flow.run()
    async with asyncio.timeout(20):
        await cancelled.wait()


async def test_the_first_stop_event_wins(place: Place) -> None:
    late = asyncio.Event()

    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            ctx.send_event(Item(n=0))
            ctx.send_event(Item(n=1))

        @step
        async def work(self, ev: Item) -> StopEvent:
            if ev.n:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    late.set()
            return StopEvent(result=ev.n)

    flow = await place.serve(Flow)
    handler = flow.run()
    assert await handler == 0
    async with asyncio.timeout(20):
        await late.wait()
    shown = [event async for event in handler.stream_events()]
    assert [event.result for event in shown] == [0]


async def test_a_step_that_takes_longer_than_its_timeout_fails(place: Place) -> None:
    class Flow(Workflow):
        @step(timeout=0.05)
        async def slow(self, ev: StartEvent) -> StopEvent:
            await asyncio.sleep(60)
            return StopEvent()

    flow = await place.serve(Flow)
    with pytest.raises(TimeoutError, match=r"Step 'slow' timed out after 0\.05 seconds"):
        await flow.run()


async def test_a_run_that_takes_longer_than_its_timeout_names_its_steps(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def slow(self, ev: StartEvent) -> StopEvent:
            await asyncio.sleep(60)
            return StopEvent()

    flow = await place.serve(Flow, timeout=0.3)
    handler = flow.run()
    with pytest.raises(
        WorkflowTimeoutError,
        match=r"^Operation timed out after 0\.3 seconds\. Currently active steps: slow$",
    ):
        await handler
    shown = [event async for event in handler.stream_events()]
    assert [type(event) for event in shown] == [WorkflowTimedOutEvent]
    assert shown[0].active_steps == ["slow"]
    assert (await handler.status()).status == "timed_out"


async def test_a_run_that_idles_times_out_without_active_steps(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent | None:
            return None

    flow = await place.serve(Flow, timeout=0.3)
    with pytest.raises(WorkflowTimeoutError, match=r"0\.3 seconds\. No steps active$"):
        await flow.run()


async def test_every_run_of_a_reused_context_has_its_whole_budget(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await gates[ctx.run_id].wait()
            return StopEvent()

    gates: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
    flow = await place.serve(Flow, timeout=60)
    ctx = Context(flow)
    for _ in range(4):
        handler = flow.run(ctx=ctx)
        assert await place.budget(handler.run_id) >= 60
        gates[handler.run_id].set()
        await handler


async def test_after_a_time_out_the_next_run_of_the_context_does_not_repeat_old_work(
    place: Place,
) -> None:
    begun: list[str] = []

    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            begun.append(ev.name)
            if ev.name == "slow":
                await asyncio.sleep(60)
            return StopEvent(result=ev.name)

    flow = await place.serve(Flow, timeout=2.0)
    ctx = Context(flow)
    with pytest.raises(WorkflowTimeoutError):
        await flow.run(ctx=ctx, name="slow")
    assert await flow.run(ctx=ctx, name="fast") == "fast"
    assert begun == ["slow", "fast"]


class Slow(Workflow):
    """Runs until it is told to end."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Item(n=0))
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            STOPPED.append(ctx.run_id)
            raise
        return StopEvent()

    @step
    async def other(self, ev: Item) -> StopEvent:
        return StopEvent()


#: Runs whose step saw its cancellation.
STOPPED: list[str] = []


async def test_a_cancelled_run_says_so_to_everyone(place: Place) -> None:
    flow = await place.serve(Slow, disable_validation=True)
    handler = flow.run()
    shown: list[Any] = []
    async for event in handler.stream_events():
        shown.append(type(event))
        if isinstance(event, Item):
            await handler.cancel_run()
    assert shown == [Item, WorkflowCancelledEvent]
    for _ in range(2):
        with pytest.raises(WorkflowCancelledByUser):
            await handler
    assert isinstance(handler.get_stop_event(), WorkflowCancelledEvent)
    assert (await handler.status()).status == "cancelled"
    await eventually(lambda: handler.run_id in STOPPED, 20.0)
    await handler.cancel_run()


async def test_cancelling_a_run_that_has_ended_changes_nothing(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=1)

    flow = await place.serve(Flow)
    handler = flow.run()
    assert await handler == 1
    await handler.cancel_run()
    assert await handler == 1
    assert (await handler.status()).status == "completed"


async def test_a_cancelled_run_has_ended_when_the_cancel_returns(place: Place) -> None:
    flow = await place.serve(Slow, disable_validation=True)
    handler = flow.run()
    async for event in handler.stream_events():
        if isinstance(event, Item):
            break
    await handler.cancel_run()
    assert handler.is_done()
    assert isinstance(handler.get_stop_event(), WorkflowCancelledEvent)
    with pytest.raises(WorkflowCancelledByUser):
        await handler


async def test_the_forms_of_a_future_are_deprecated_and_work(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            if ev.fail:
                raise ValueError("no")
            return StopEvent(result=1)

    flow = await place.serve(Flow)
    good, bad = flow.run(fail=False), flow.run(fail=True)
    with pytest.warns(DeprecationWarning, match=r"use is_done\(\)"):
        assert not good.done()
    await good
    with pytest.raises(ValueError, match="no"):
        await bad
    with pytest.warns(DeprecationWarning, match="done is deprecated"):
        assert good.done()
    with pytest.warns(DeprecationWarning, match="await the handler, which raises it"):
        assert good.exception() is None
    with pytest.warns(DeprecationWarning, match="exception is deprecated"):
        assert isinstance(bad.exception(), ValueError)
    with pytest.warns(DeprecationWarning, match="cancelled is deprecated"):
        assert not bad.cancelled()
    assert str(good) == (
        f"WorkflowHandler(workflow={flow.workflow_name}, run_id={good.run_id}, result=1)"
    )


async def test_the_deprecated_cancel_cancels(place: Place) -> None:
    flow = await place.serve(Slow, disable_validation=True)
    handler = flow.run()
    async for event in handler.stream_events():
        if isinstance(event, Item):
            with pytest.warns(DeprecationWarning, match="cancel_run"):
                handler.cancel()
    with pytest.raises(WorkflowCancelledByUser):
        await handler
    with pytest.warns(DeprecationWarning, match="cancelled is deprecated"):
        assert handler.cancelled()


async def test_a_run_is_cancelled_from_another_process(place: Place) -> None:
    flow = await place.serve(Slow, disable_validation=True)
    handler = flow.run()
    await anext(aiter(handler.stream_events()))
    await place.new_client().handler(handler.run_id).cancel_run()
    with pytest.raises(WorkflowCancelledByUser):
        await handler


async def test_a_plain_function_of_an_ended_run_is_refused_its_context(place: Place) -> None:
    import threading

    ended = threading.Event()
    refused: list[BaseException] = []

    class Flow(Workflow):
        @step
        def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Item(n=1))
            ended.wait(20)
            try:
                # Its worker looks at ended runs now and then.
                for _ in range(2_000):
                    ctx.send_event(Item(n=2))
                    time.sleep(0.01)
            except Exception as error:
                refused.append(error)
                raise
            return StopEvent()

        @step
        async def take(self, ev: Item) -> None: ...

    flow = await place.serve(Flow, disable_validation=True)
    handler = flow.run()
    await anext(aiter(handler.stream_events()))
    await handler.cancel_run()
    with pytest.raises(WorkflowCancelledByUser):
        await handler

    ended.set()
    await eventually(lambda: refused, 20.0)
    assert "has no effect any more" in str(refused[0])


async def test_a_wrong_start_fails_where_the_handler_is_awaited_or_at_once(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    flow = await place.serve(Flow)
    with pytest.raises(ValueError, match="must be an instance of 'StartEvent'"):
        flow.run(start_event=Item(n=1))  # type: ignore[arg-type]
    handler = flow.run(bad=print)
    with pytest.raises(ValueError, match="bad"):
        await handler
    assert handler.is_done()
    with pytest.raises(WorkflowRuntimeError, match="nowhere"):
        await place.client.handler("x", workflow=flow).send_event(Item(n=1), step="nowhere")
