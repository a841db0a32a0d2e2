"""Section 1.9: retries."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from stepfleet import Context, Workflow, step
from stepfleet.events import Event, StartEvent, StopEvent, WorkflowFailedEvent
from stepfleet.retry_policy import (
    ConstantDelayRetryPolicy,
    ExponentialBackoffRetryPolicy,
    retry_all,
    retry_always,
    retry_any,
    retry_if_exception,
    retry_if_exception_cause_type,
    retry_if_exception_message,
    retry_if_exception_type,
    retry_if_not_exception_message,
    retry_if_not_exception_type,
    retry_never,
    retry_policy,
    retry_unless_exception_type,
    stop_after_attempt,
    stop_after_delay,
    stop_all,
    stop_any,
    stop_before_delay,
    stop_never,
    wait_chain,
    wait_combine,
    wait_exponential,
    wait_exponential_jitter,
    wait_fixed,
    wait_full_jitter,
    wait_incrementing,
    wait_none,
    wait_random,
    wait_random_exponential,
)


def delays(policy: Any, failures: int, error: Exception | None = None) -> list[float | None]:
    """Returns what the policy says after each failure, with ten seconds between them."""
    return [
        policy.next((n - 1) * 10.0, n, error or ValueError("x")) for n in range(1, failures + 1)
    ]


def decides(condition: Any, error: Exception) -> bool:
    return retry_policy(retry=condition, wait=wait_none()).next(0, 1, error) is not None


# -- policies ------------------------------------------------------------------------------------------


@pytest.mark.feature("1.9: retry_policy()")
def test_the_default_is_three_attempts_with_five_seconds_between() -> None:
    assert delays(retry_policy(), 4) == [5.0, 5.0, None, None]


@pytest.mark.feature("1.9: waits")
@pytest.mark.parametrize(
    ("wait", "expected"),
    [
        (wait_fixed(2), [2, 2, 2, 2]),
        (wait_fixed(timedelta(seconds=1.5)), [1.5, 1.5, 1.5, 1.5]),
        (wait_none(), [0, 0, 0, 0]),
        (wait_exponential(), [1, 2, 4, 8]),
        (wait_exponential(multiplier=3, exp_base=3, max=20), [3, 9, 20, 20]),
        (wait_exponential(multiplier=1, min=3), [3, 3, 4, 8]),
        (wait_incrementing(), [0, 100, 200, 300]),
        (wait_incrementing(start=1, increment=2, max=4), [1, 3, 4, 4]),
        (wait_chain(wait_fixed(1), wait_fixed(3)), [1, 3, 3, 3]),
        (wait_combine(wait_fixed(1), wait_exponential()), [2, 3, 5, 9]),
        (wait_fixed(1) + wait_fixed(2), [3, 3, 3, 3]),
        (sum([wait_fixed(1), wait_fixed(2)]), [3, 3, 3, 3]),
    ],
)
def test_waits_grow_as_they_say(wait: Any, expected: list[float]) -> None:
    policy = retry_policy(wait=wait, stop=stop_never())
    assert delays(policy, 4) == pytest.approx(expected)


@pytest.mark.feature("1.9: waits")
@pytest.mark.parametrize(
    ("wait", "low", "high"),
    [
        (wait_random(), 0, 1),
        (wait_random(2, 3), 2, 3),
        (wait_exponential_jitter(), 1, 9),
        (wait_random_exponential(), 0, 8),
        (wait_full_jitter(), 0, 8),
    ],
)
def test_random_waits_stay_within_their_bounds(wait: Any, low: float, high: float) -> None:
    policy = retry_policy(wait=wait, stop=stop_never())
    for _ in range(20):
        assert all(low <= delay <= high for delay in delays(policy, 4) if delay is not None)


@pytest.mark.feature("1.9: waits")
def test_a_seed_makes_random_waits_repeatable() -> None:
    policy = retry_policy(wait=wait_random(0, 100), stop=stop_never())
    one = policy.next(0, 1, ValueError(), seed=5)
    assert one == policy.next(0, 1, ValueError(), seed=5)
    assert one != policy.next(0, 1, ValueError(), seed=6)


@pytest.mark.feature("1.9: waits")
def test_a_chain_needs_a_wait() -> None:
    with pytest.raises(ValueError, match="."):
        wait_chain()


@pytest.mark.feature("1.9: stops")
@pytest.mark.parametrize(
    ("stop", "attempts"),
    [
        (stop_after_attempt(1), 1),
        (stop_after_attempt(4), 4),
        (stop_after_delay(15), 3),
        (stop_after_delay(timedelta(seconds=20)), 3),
        (stop_before_delay(15), 2),
        (stop_any(stop_after_attempt(2), stop_after_delay(100)), 2),
        (stop_all(stop_after_attempt(2), stop_after_delay(25)), 4),
        (stop_after_attempt(2) | stop_after_delay(100), 2),
        (stop_after_attempt(2) & stop_after_delay(25), 4),
    ],
)
def test_stops_end_the_attempts(stop: Any, attempts: int) -> None:
    found = delays(retry_policy(wait=wait_fixed(10), stop=stop), 8)
    assert found.index(None) + 1 == attempts


@pytest.mark.feature("1.9: stops")
def test_without_a_stop_attempts_go_on() -> None:
    assert None not in delays(retry_policy(wait=wait_none(), stop=stop_never()), 50)


class Caused(Exception):
    pass


def caused_by(error: Exception) -> Exception:
    try:
        try:
            raise error
        except Exception as cause:
            raise Caused("outer") from cause
    except Caused as outer:
        return outer


@pytest.mark.feature("1.9: conditions")
@pytest.mark.parametrize(
    ("condition", "error", "expected"),
    [
        (retry_always(), ValueError(), True),
        (retry_never(), ValueError(), False),
        (retry_if_exception_type(ValueError), ValueError(), True),
        (retry_if_exception_type((KeyError, ValueError)), ValueError(), True),
        (retry_if_exception_type(KeyError), ValueError(), False),
        (retry_if_exception_type(), ValueError(), True),
        (retry_if_not_exception_type(ValueError), ValueError(), False),
        (retry_if_not_exception_type(KeyError), ValueError(), True),
        (retry_unless_exception_type(ValueError), ValueError(), False),
        (retry_if_exception(lambda e: "busy" in str(e)), ValueError("busy now"), True),
        (retry_if_exception(lambda e: "busy" in str(e)), ValueError("wrong"), False),
        (retry_if_exception_message(message="busy"), ValueError("busy"), True),
        (retry_if_exception_message(message="busy"), ValueError("very busy"), False),
        (retry_if_exception_message(match="b.sy"), ValueError("busy"), True),
        (retry_if_exception_message(match="b.sy"), ValueError("x"), False),
        (retry_if_not_exception_message(message="busy"), ValueError("busy"), False),
        (retry_if_not_exception_message(match="b.*"), ValueError("x"), True),
        (retry_if_exception_cause_type(KeyError), caused_by(KeyError()), True),
        (retry_if_exception_cause_type(KeyError), caused_by(ValueError()), False),
        (retry_if_exception_cause_type(KeyError), KeyError(), False),
        (retry_any(retry_never(), retry_always()), ValueError(), True),
        (retry_all(retry_never(), retry_always()), ValueError(), False),
        (retry_never() | retry_always(), ValueError(), True),
        (retry_never() & retry_always(), ValueError(), False),
    ],
)
def test_conditions_choose_the_errors(condition: Any, error: Exception, expected: bool) -> None:
    assert decides(condition, error) is expected


@pytest.mark.feature("1.9: conditions")
def test_a_condition_on_the_message_takes_one_of_two() -> None:
    with pytest.raises(TypeError):
        retry_if_exception_message()
    with pytest.raises(TypeError):
        retry_if_exception_message(message="a", match="b")


@pytest.mark.feature("1.9: deprecated policies")
def test_the_old_policies_work_and_warn() -> None:
    with pytest.warns(DeprecationWarning, match="deprecated"):
        constant = ConstantDelayRetryPolicy(maximum_attempts=3, delay=2)
    assert delays(constant, 3) == [2, 2, None]
    with pytest.warns(DeprecationWarning, match="deprecated"):
        exponential = ExponentialBackoffRetryPolicy(
            maximum_attempts=4, initial_delay=1, multiplier=3, max_delay=5, jitter=False
        )
    assert delays(exponential, 4) == [1, 3, 5, None]


# -- at work -------------------------------------------------------------------------------------------


QUICK = retry_policy(wait=wait_none(), stop=stop_after_attempt(3))


class Told(Event):
    n: int


class Recovers(Workflow):
    @step(retry_policy=QUICK)
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        n = await ctx.store.get("n", default=0) + 1
        await ctx.store.set("n", n)
        if n < 3:
            raise ValueError(f"failure {n}")
        return StopEvent(result=n)


@pytest.mark.feature("1.9: retries of a step")
async def test_a_step_runs_again_until_it_succeeds() -> None:
    assert await Recovers().run() == 3


class NeverWell(Workflow):
    @step(retry_policy=QUICK)
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        n = await ctx.store.get("n", default=0) + 1
        await ctx.store.set("n", n)
        raise ValueError(f"failure {n}")


@pytest.mark.feature("1.9: retries of a step")
async def test_after_the_last_attempt_the_run_fails_with_the_last_error() -> None:
    handler = NeverWell().run()
    events = [event async for event in handler.stream_events()]
    assert [type(event) for event in events] == [WorkflowFailedEvent]
    assert events[0].attempts == 3
    with pytest.raises(ValueError, match="failure 3"):
        await handler


class Picky(Workflow):
    @step(
        retry_policy=retry_policy(
            retry=retry_if_exception_type(KeyError), wait=wait_none(), stop=stop_after_attempt(5)
        )
    )
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        n = await ctx.store.get("n", default=0) + 1
        await ctx.store.set("n", n)
        raise KeyError("again") if n == 1 else ValueError(f"failure {n}")


@pytest.mark.feature("1.9: retries of a step")
async def test_an_error_that_the_policy_does_not_choose_fails_at_once() -> None:
    with pytest.raises(ValueError, match="failure 2"):
        await Picky().run()


class PublishesAndFails(Workflow):
    @step(retry_policy=QUICK)
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        n = await ctx.store.get("n", default=0) + 1
        await ctx.store.set("n", n)
        ctx.write_event_to_stream(Told(n=n))
        if n < 3:
            raise ValueError(f"failure {n}")
        return StopEvent(result=n)


@pytest.mark.feature("1.9: effects of attempts")
async def test_each_attempt_publishes() -> None:
    handler = PublishesAndFails().run()
    told = [event.n async for event in handler.stream_events() if isinstance(event, Told)]
    assert told == [1, 2, 3]


class Item(Event):
    n: int


class SendsAndFails(Workflow):
    @step(retry_policy=QUICK)
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
        n = await ctx.store.get("n", default=0)
        await ctx.store.set("n", n + 1)
        ctx.send_event(Item(n=n))
        if n < 2:
            raise ValueError(f"failure {n}")

    @step
    async def end(self, ctx: Context, ev: Item) -> StopEvent | None:
        found = ctx.collect_events(ev, [Item] * 3)
        return None if found is None else StopEvent(result=sorted(e.n for e in found))


@pytest.mark.feature("1.9: effects of attempts")
async def test_each_attempt_sends() -> None:
    assert await SendsAndFails().run() == [0, 1, 2]


class Own:
    def next(self, elapsed_time: float, attempts: int, error: Exception) -> float | None:
        return 0 if attempts < 2 and isinstance(error, ValueError) else None


class OwnPolicy(Workflow):
    @step(retry_policy=Own())
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        n = await ctx.store.get("n", default=0) + 1
        await ctx.store.set("n", n)
        raise ValueError(f"failure {n}")


@pytest.mark.feature("1.9: own policies")
async def test_any_object_with_next_is_a_policy() -> None:
    with pytest.raises(ValueError, match="failure 2"):
        await OwnPolicy().run()


class BrokenPolicy:
    def next(self, elapsed_time: float, attempts: int, error: Exception) -> float | None:
        raise LookupError("no policy")


class PolicyRaises(Workflow):
    @step(retry_policy=BrokenPolicy())
    async def only(self, ev: StartEvent) -> StopEvent:
        raise ValueError("first")


@pytest.mark.feature("1.9: own policies")
async def test_a_policy_that_raises_fails_the_run_with_its_error() -> None:
    with pytest.raises(LookupError, match="no policy"):
        await PolicyRaises().run()
