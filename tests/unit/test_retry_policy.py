"""A retry policy turns (elapsed seconds, attempts, error) into a delay, or into giving up."""

from __future__ import annotations

import re
import warnings
from datetime import timedelta

import pytest

from stepfleet.retry_policy import (
    ConstantDelayRetryPolicy,
    ExponentialBackoffRetryPolicy,
    RetryPolicy,
    WaitStrategy,
    next_delay,
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

ERROR = ValueError("bad request")


def waits(strategy: WaitStrategy, count: int = 4, seed: int = 1) -> list[float]:
    return [strategy(index, seed=seed) for index in range(count)]


# -- the policy


def test_by_default_three_attempts_are_made_five_seconds_apart() -> None:
    policy = retry_policy()
    assert [policy.next(0, attempts, ERROR) for attempts in (1, 2, 3)] == [5, 5, None]


def test_a_composed_policy_is_a_retry_policy() -> None:
    assert isinstance(retry_policy(), RetryPolicy)


def test_an_error_that_the_condition_refuses_is_not_retried() -> None:
    policy = retry_policy(retry=retry_if_exception_type(KeyError))
    assert policy.next(0, 1, ERROR) is None
    assert policy.next(0, 1, KeyError()) == 5


def test_any_predicate_is_a_condition() -> None:
    policy = retry_policy(retry=lambda error: "bad" in str(error))
    assert policy.next(0, 1, ERROR) == 5
    assert policy.next(0, 1, ValueError("good")) is None


def test_no_wait_means_an_immediate_retry_not_giving_up() -> None:
    assert retry_policy(wait=wait_none()).next(0, 1, ERROR) == 0


def test_the_first_retry_waits_the_first_delay() -> None:
    policy = retry_policy(wait=wait_exponential(), stop=stop_never())
    assert [policy.next(0, attempts, ERROR) for attempts in (1, 2, 3)] == [1, 2, 4]


def test_stop_before_delay_counts_the_delay_to_come() -> None:
    policy = retry_policy(wait=wait_fixed(5), stop=stop_before_delay(10))
    assert policy.next(4, 1, ERROR) == 5
    assert policy.next(5, 1, ERROR) is None


def test_the_same_seed_gives_the_same_jitter() -> None:
    policy = retry_policy(wait=wait_random(0, 100))
    assert policy.next(0, 1, ERROR, seed=7) == policy.next(0, 1, ERROR, seed=7)
    assert policy.next(0, 1, ERROR, seed=7) != policy.next(0, 1, ERROR, seed=8)


def test_without_a_seed_the_delay_depends_on_the_arguments_only() -> None:
    policy = retry_policy(wait=wait_random(0, 100))
    assert policy.next(0, 1, ERROR) == policy.next(0, 1, ERROR)
    assert policy.next(0, 1, ERROR) != policy.next(0, 2, ERROR)


def test_next_delay_hands_the_seed_to_policies_that_take_one() -> None:
    class Seeded:
        def next(
            self, elapsed_time: float, attempts: int, error: Exception, *, seed: int | None = None
        ) -> float | None:
            return seed

    class Seedless:
        def next(self, elapsed_time: float, attempts: int, error: Exception) -> float | None:
            return elapsed_time + attempts

    seedless: RetryPolicy = Seedless()  # pyright: ignore[reportAssignmentType]
    assert next_delay(Seeded(), elapsed=1, attempts=2, error=ERROR, seed=9) == 9
    assert next_delay(seedless, elapsed=1, attempts=2, error=ERROR, seed=9) == 3


# -- conditions


def test_always_and_never() -> None:
    assert retry_always()(ERROR)
    assert not retry_never()(ERROR)


def test_conditions_by_type() -> None:
    assert retry_if_exception_type()(ERROR)
    assert retry_if_exception_type((KeyError, ValueError))(ERROR)
    assert not retry_if_exception_type(KeyError)(ERROR)
    assert retry_if_not_exception_type(KeyError)(ERROR)
    assert not retry_if_not_exception_type(ValueError)(ERROR)
    assert retry_unless_exception_type(KeyError)(ERROR)
    assert not retry_unless_exception_type(ValueError)(ERROR)


def test_conditions_by_message() -> None:
    assert retry_if_exception_message(message="bad request")(ERROR)
    assert not retry_if_exception_message(message="bad")(ERROR)
    assert retry_if_exception_message(match="bad")(ERROR)
    assert retry_if_exception_message(match=re.compile("BAD", re.IGNORECASE))(ERROR)
    assert retry_if_exception_message(match="request")(ERROR)
    assert not retry_if_exception_message(match="^request")(ERROR)
    assert not retry_if_not_exception_message(message="bad request")(ERROR)
    assert not retry_if_not_exception_message(match="request")(ERROR)


@pytest.mark.parametrize("kind", [retry_if_exception_message, retry_if_not_exception_message])
def test_a_message_condition_takes_exactly_one_of_message_and_match(
    kind: type[retry_if_exception_message],
) -> None:
    with pytest.raises(TypeError, match="missing 1 required argument"):
        kind()
    with pytest.raises(TypeError, match="takes either 'message' or 'match'"):
        kind(message="a", match="a")


def test_the_cause_condition_walks_the_chain_of_causes_only() -> None:
    inner, middle, outer = OSError("disk"), RuntimeError("read"), ValueError("parse")
    middle.__cause__, outer.__cause__ = inner, middle
    assert retry_if_exception_cause_type(OSError)(outer)
    assert not retry_if_exception_cause_type(ValueError)(outer)
    context_only = ValueError("parse")
    context_only.__context__ = inner
    assert not retry_if_exception_cause_type(OSError)(context_only)


def test_a_circle_of_causes_ends() -> None:
    one, two = ValueError(), KeyError()
    one.__cause__, two.__cause__ = two, one
    assert not retry_if_exception_cause_type(OSError)(one)


def test_conditions_combine() -> None:
    is_value, is_key = retry_if_exception_type(ValueError), retry_if_exception_type(KeyError)
    assert (is_value | is_key)(ERROR)
    assert not (is_value & is_key)(ERROR)
    assert retry_any(is_key, is_value)(ERROR)
    assert not retry_all(is_key, is_value)(ERROR)
    assert (is_value & retry_if_exception(lambda error: "bad" in str(error)))(ERROR)


def test_conditions_combine_with_plain_predicates_on_either_side() -> None:
    def is_bad(error: Exception) -> bool:
        return "bad" in str(error)

    is_key = retry_if_exception_type(KeyError)
    assert (is_bad | is_key)(ERROR)
    assert (is_key | is_bad)(ERROR)
    assert not (is_bad & is_key)(ERROR)


# -- waits


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (wait_fixed(2), [2, 2, 2, 2]),
        (wait_fixed(timedelta(milliseconds=500)), [0.5, 0.5, 0.5, 0.5]),
        (wait_none(), [0, 0, 0, 0]),
        (wait_exponential(), [1, 2, 4, 8]),
        (wait_exponential(multiplier=3, exp_base=10, max=100), [3, 30, 100, 100]),
        (wait_exponential(min=3), [3, 3, 4, 8]),
        (wait_incrementing(), [0, 100, 200, 300]),
        (wait_incrementing(start=1, increment=2, max=timedelta(seconds=4)), [1, 3, 4, 4]),
        (wait_incrementing(start=1, increment=-1), [1, 0, 0, 0]),
        (wait_chain(wait_fixed(1), wait_fixed(5)), [1, 5, 5, 5]),
        (wait_combine(wait_fixed(1), wait_exponential()), [2, 3, 5, 9]),
        (wait_fixed(1) + wait_fixed(2), [3, 3, 3, 3]),
        (sum([wait_fixed(1), wait_fixed(2), wait_fixed(3)]), [6, 6, 6, 6]),
    ],
)
def test_waits_without_chance(strategy: WaitStrategy, expected: list[float]) -> None:
    assert waits(strategy) == expected


@pytest.mark.parametrize(
    ("strategy", "low", "high"),
    [
        (wait_random(), 0, 1),
        (wait_random(2, timedelta(seconds=3)), 2, 3),
        (wait_exponential_jitter(initial=4, exp_base=1, jitter=2), 4, 6),
        (wait_exponential_jitter(initial=4, exp_base=1, max=5, jitter=2), 4, 5),
        (wait_random_exponential(multiplier=8, exp_base=1), 0, 8),
        (wait_full_jitter(multiplier=8, exp_base=1, min=2), 2, 8),
    ],
)
def test_waits_by_chance_stay_within_bounds(
    strategy: WaitStrategy, low: float, high: float
) -> None:
    drawn = [strategy(0, seed=seed) for seed in range(200)]
    assert low <= min(drawn) < max(drawn) <= high


def test_a_huge_exponent_waits_the_maximum() -> None:
    assert wait_exponential()(100_000) == 60


def test_a_chain_needs_a_strategy() -> None:
    with pytest.raises(ValueError, match="at least one"):
        wait_chain()


# -- stops


def test_stops() -> None:
    assert [stop_after_attempt(2)(attempts, 0) for attempts in (1, 2)] == [False, True]
    assert [stop_after_delay(10)(1, elapsed) for elapsed in (9, 10)] == [False, True]
    assert [stop_before_delay(10)(1, elapsed, upcoming_sleep=1) for elapsed in (8, 9)] == [
        False,
        True,
    ]
    assert stop_after_delay(timedelta(minutes=1))(1, 60)
    assert not stop_never()(10**6, 10**6)


def test_stops_combine() -> None:
    often, long = stop_after_attempt(3), stop_after_delay(10)
    for either in (often | long, stop_any(often, long)):
        assert [either(3, 0), either(1, 10), either(1, 0)] == [True, True, False]
    for both in (often & long, stop_all(often, long)):
        assert [both(3, 10), both(3, 0), both(1, 10)] == [True, False, False]


def test_functions_are_waits_and_stops_too() -> None:
    def squared(attempts: int, *, seed: int | None = None) -> float:
        return attempts**2

    def late(attempts: int, elapsed_time: float, *, upcoming_sleep: float = 0.0) -> bool:
        return elapsed_time > 9

    policy = retry_policy(wait=squared + wait_fixed(1), stop=late | stop_after_attempt(4))
    delays = [policy.next(0, attempts, ERROR) for attempts in (1, 2, 3, 4)]
    assert delays == [1, 2, 5, None]
    assert policy.next(10, 1, ERROR) is None
    assert retry_policy(wait=squared, stop=late).next(0, 3, ERROR) == 4


# -- the deprecated policies


def test_the_constant_policy_warns_and_works() -> None:
    with pytest.warns(DeprecationWarning, match="ConstantDelayRetryPolicy is deprecated") as caught:
        policy = ConstantDelayRetryPolicy()
    assert caught[0].filename == __file__
    assert [policy.next(0, attempts, ERROR) for attempts in (1, 2, 3)] == [5, 5, None]


def test_the_exponential_policy_warns_and_works() -> None:
    with pytest.warns(DeprecationWarning, match="ExponentialBackoffRetryPolicy is deprecated"):
        policy = ExponentialBackoffRetryPolicy(max_delay=3, jitter=False)
    assert [policy.next(0, n, ERROR) for n in range(1, 6)] == [1, 2, 3, 3, None]


def test_the_exponential_policy_jitters_up_to_the_whole_delay() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        policy = ExponentialBackoffRetryPolicy(initial_delay=8)
    drawn = [policy.next(0, 1, ERROR, seed=seed) or 0 for seed in range(100)]
    assert 0 <= min(drawn) < 4 < max(drawn) <= 8
