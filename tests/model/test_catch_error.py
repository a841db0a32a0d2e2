"""Sections 1.2 and 1.5: `@catch_error`, and what a step knows of its attempts."""

from __future__ import annotations

from datetime import datetime

import pytest

from stepfleet import Context, Workflow, catch_error, step
from stepfleet.errors import WorkflowTimeoutError, WorkflowValidationError
from stepfleet.events import Event, StartEvent, StepFailedEvent, StopEvent
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_none


class Part(Event):
    n: int = 0


class Caught(Workflow):
    @step
    async def breaks(self, ev: StartEvent) -> StopEvent:
        raise ValueError("trouble")

    @catch_error
    async def rescue(self, ev: StepFailedEvent) -> StopEvent:
        assert isinstance(ev.failed_at, datetime)
        assert ev.elapsed_seconds >= 0
        error = f"{type(ev.exception).__name__} {ev.exception}"
        return StopEvent(result=[ev.step_name, error, ev.attempts, ev.input_event.n])


@pytest.mark.feature("1.2: catch_error")
async def test_a_step_may_handle_the_failures_of_the_others() -> None:
    assert await Caught().run(n=3) == ["breaks", "ValueError trouble", 1, 3]


class CaughtAfterRetries(Workflow):
    @step(retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(3)))
    async def breaks(self, ev: StartEvent) -> StopEvent:
        raise ValueError("trouble")

    @catch_error
    async def rescue(self, ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result=ev.attempts)


@pytest.mark.feature("1.2: catch_error")
async def test_a_failure_is_handled_after_the_last_attempt() -> None:
    assert await CaughtAfterRetries().run() == 3


class Scoped(Workflow):
    @step
    async def first(self, ev: StartEvent) -> Part:
        raise ValueError("first")

    @step
    async def second(self, ev: Part) -> StopEvent:
        raise KeyError("second")

    @catch_error(for_steps=["first"])
    async def of_first(self, ev: StepFailedEvent) -> Part:
        return Part(n=1)

    @catch_error
    async def of_others(self, ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result=f"{ev.step_name} {ev.input_event.n}")


@pytest.mark.feature("1.2: catch_error with for_steps")
async def test_a_handler_may_be_for_some_steps() -> None:
    assert await Scoped().run() == "second 1"


class Budget(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Part:
        return Part()

    @step
    async def breaks(self, ev: Part) -> StopEvent:
        raise ValueError(f"failure {ev.n}")

    @catch_error(for_steps=["breaks"], max_recoveries=2)
    async def rescue(self, ev: StepFailedEvent) -> Part:
        return Part(n=ev.input_event.n + 1)


@pytest.mark.feature("1.2: catch_error with max_recoveries")
async def test_a_handler_helps_a_line_of_events_so_often() -> None:
    with pytest.raises(ValueError, match="failure 2"):
        await Budget().run()


class HandlerBreaks(Workflow):
    @step
    async def breaks(self, ev: StartEvent) -> StopEvent:
        raise ValueError("trouble")

    @catch_error
    async def rescue(self, ev: StepFailedEvent) -> StopEvent:
        raise KeyError("worse")


@pytest.mark.feature("1.2: catch_error")
async def test_an_error_of_the_handler_fails_the_run() -> None:
    with pytest.raises(KeyError, match="worse"):
        await HandlerBreaks().run()


class Sends(Workflow):
    @step
    async def breaks(self, ev: StartEvent) -> StopEvent:
        raise ValueError("trouble")

    @catch_error
    async def rescue(self, ctx: Context, ev: StepFailedEvent) -> Part | None:
        ctx.send_event(Part(n=7))

    @step
    async def end(self, ev: Part) -> StopEvent:
        return StopEvent(result=ev.n)


@pytest.mark.feature("1.2: catch_error")
async def test_a_handler_may_send_the_run_back_into_the_graph() -> None:
    assert await Sends().run() == 7


class NotForTimeouts(Workflow):
    @step
    async def waits(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.wait_for_event(Part, timeout=None)
        return StopEvent()

    @catch_error
    async def rescue(self, ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result="rescued")


@pytest.mark.feature("1.2: catch_error")
async def test_a_time_out_of_the_run_is_no_failure_of_a_step() -> None:
    with pytest.raises(WorkflowTimeoutError):
        await NotForTimeouts(timeout=0.3).run()


@pytest.mark.feature("1.2: wrong catch_error steps")
def test_a_handler_accepts_a_failure() -> None:
    with pytest.raises(
        WorkflowValidationError,
        match="@catch_error handler 'h' must accept StepFailedEvent as its event parameter.",
    ):

        class Wrong(Workflow):
            @catch_error
            async def h(self, ev: Part) -> StopEvent:
                return StopEvent()


@pytest.mark.feature("1.2: wrong catch_error steps")
def test_one_handler_is_for_all_steps() -> None:
    class Two(Caught):
        @catch_error
        async def other(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

    with pytest.raises(
        WorkflowValidationError,
        match="Only one wildcard @catch_error handler is allowed per workflow, found 2: ",
    ):
        Two().validate()


@pytest.mark.feature("1.2: wrong catch_error steps")
def test_a_handler_names_steps_that_exist() -> None:
    class Unknown(Workflow):
        @step
        async def s(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

        @catch_error(for_steps=["x"])
        async def h(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

    with pytest.raises(WorkflowValidationError, match="lists unknown step 'x' in for_steps"):
        Unknown().validate()


@pytest.mark.feature("1.2: wrong catch_error steps")
def test_a_step_has_one_handler() -> None:
    class Twice(Workflow):
        @step
        async def s(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

        @catch_error(for_steps=["s"])
        async def h(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

        @catch_error(for_steps=["s"])
        async def i(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

    with pytest.raises(
        WorkflowValidationError, match="Step 's' is claimed by two @catch_error handlers"
    ):
        Twice().validate()


@pytest.mark.feature("1.2: wrong catch_error steps")
def test_a_handler_handles_no_handler() -> None:
    class Circle(Workflow):
        @step
        async def s(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

        @catch_error(for_steps=["s"])
        async def h(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

        @catch_error(for_steps=["h"])
        async def i(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

    with pytest.raises(WorkflowValidationError, match="cannot cover another handler step"):
        Circle().validate()


# -- attempts ------------------------------------------------------------------------------------------


class Knows(Workflow):
    @step(retry_policy=retry_policy(wait=wait_none(), stop=stop_after_attempt(3)))
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        info = ctx.retry_info()
        if info.retry_number < 2:
            raise ValueError(f"failure {info.retry_number}")
        assert info.elapsed_seconds >= 0
        assert isinstance(info.last_failed_at, datetime)
        error = info.last_exception
        return StopEvent(result=[info.retry_number, type(error).__name__, str(error)])


@pytest.mark.feature("1.5: retry_info()")
async def test_a_step_knows_its_attempt_and_the_last_error() -> None:
    assert await Knows().run() == [2, "ValueError", "failure 1"]


class KnowsNothing(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        info = ctx.retry_info()
        return StopEvent(result=[info.retry_number, info.last_exception, info.last_failed_at])


@pytest.mark.feature("1.5: retry_info()")
async def test_a_first_attempt_knows_of_no_error() -> None:
    assert await KnowsNothing().run() == [0, None, None]
