"""Runs one step and says what became of it. User code runs here, and nothing here knows Redis."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import contextvars
from concurrent.futures import Executor
from functools import partial
from typing import Any, Final

from stepfleet import dispatched
from stepfleet.clock import Clock
from stepfleet.context import Context
from stepfleet.context.old_forms import data_of
from stepfleet.core.outcome import Failed, Outcome, Returned, Suspended, Unreadable
from stepfleet.errors import DecodeError
from stepfleet.resource import resolved
from stepfleet.stepwise import Stepwise
from stepfleet.worker.execution import Execution, Suspend
from stepfleet.workflow import resource_manager_of, stepwise_of

#: Files whose frames stand between the worker and a step.
_OUR_FILES: Final = (__file__, concurrent.futures.thread.__file__)


async def run_step(
    execution: Execution, instance: Any, *, executor: Executor, clock: Clock
) -> Outcome:
    """Run the step of an execution and return its outcome; must be awaited in a task of its own.

    Raises:
        asyncio.CancelledError: the worker cancelled the task (the run ended, or the worker drains).
    """
    try:
        events = execution.events()
    except DecodeError as error:
        return Unreadable(error=error)
    started = clock.steady()

    def age_ms() -> int:
        return int((clock.steady() - started) * 1000)

    try:
        gate = stepwise_of(instance)
        if gate is None:
            returned = await _called(execution, instance, events, executor)
        else:
            returned = await _gated(gate, execution, instance, events, executor)
        event, members = execution.returned(returned)
    except Suspend as wait:
        return _suspended(execution, wait, age_ms())
    except asyncio.CancelledError as error:
        if _is_cancelled():
            raise
        # The step raised it by itself: a failure like any other, or the delivery would never end.
        return Failed(error=error, traces=execution.traces(age_ms=age_ms()))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever user code raises is its outcome
        return Failed(error=_users_part(error), traces=execution.traces(age_ms=age_ms()))
    return Returned(
        event=event,
        members=members,
        collected=tuple(execution.collected),
        traces=execution.traces(age_ms=age_ms()),
    )


async def _gated(
    gate: Stepwise, execution: Execution, instance: Any, events: dict[str, Any], executor: Executor
) -> Any:
    await gate.enter()
    returned = None
    try:
        returned = await _called(execution, instance, events, executor)
        return returned
    finally:
        gate.leave(returned)


async def _called(
    execution: Execution, instance: Any, events: dict[str, Any], executor: Executor
) -> Any:
    spec = execution.spec
    context: Context[Any] = Context.of_step(execution)
    context.enter_step()
    arguments = events
    if spec.context_param is not None:
        arguments[spec.context_param] = context
    if spec.timeout is None:
        plain = spec.is_async and spec.is_method and not (spec.resources or spec.pass_context)
        if plain and not dispatched.is_used():
            return await spec.function(instance, **arguments)
        return await _finished(execution, instance, arguments, executor)
    limit = asyncio.timeout(spec.timeout)
    try:
        async with limit:
            return await _finished(execution, instance, arguments, executor)
    except TimeoutError:
        if limit.expired():
            raise TimeoutError(
                f"Step '{spec.name}' timed out after {spec.timeout:g} seconds"
            ) from None
        raise


async def _finished(
    execution: Execution, instance: Any, arguments: dict[str, Any], executor: Executor
) -> Any:
    spec = execution.spec
    if spec.resources:
        arguments |= await resolved(resource_manager_of(instance), spec.resources)
    function = (
        partial(spec.function, instance, **arguments)
        if spec.is_method
        else partial(spec.function, **arguments)
    )
    call = _with_data if spec.pass_context else _awaited
    if not dispatched.is_used():
        return await call(function, spec.is_async, executor)
    delivery = execution.delivery
    with dispatched.StepSpan(
        delivery.record.headers, delivery.run_id, spec.name, instance, spec.function, arguments
    ) as span:
        returned = await call(function, spec.is_async, executor)
        span.returned(returned)
        return returned


async def _with_data(function: partial[Any], is_async: bool, executor: Executor) -> Any:
    async with data_of(Context.get_step_context()):
        return await _awaited(function, is_async, executor)


async def _awaited(function: partial[Any], is_async: bool, executor: Executor) -> Any:
    if is_async:
        return await function()
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(
        executor, partial(context.run, function)
    )


def _suspended(execution: Execution, wait: Suspend, age_ms: int) -> Outcome:
    try:
        return Suspended(
            event_type=wait.event_type,
            waiter_id=wait.waiter_id,
            requirements=execution.plan.codec.encode_value(
                wait.requirements, where="wait_for_event requirements"
            ),
            timeout=wait.timeout,
            request=execution.encoded(wait.request) if wait.request is not None else None,
            journal=execution.journal_so_far(),
            collected=tuple(execution.collected),
            inbox_seen=execution.known.inbox_seen,
            subclasses=execution.spec.accept_event_subclasses,
            traces=execution.traces(age_ms=age_ms),
        )
    except Exception as error:  # noqa: BLE001 - whatever cannot be encoded is the step's failure
        return Failed(error=error, traces=execution.traces(age_ms=age_ms))


def _users_part(error: BaseException) -> BaseException:
    """Leave our own frames, which say nothing to the step's author, out of the traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in _OUR_FILES:
        trace = trace.tb_next
    return error if trace is None else error.with_traceback(trace)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
