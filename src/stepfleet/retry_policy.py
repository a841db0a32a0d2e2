"""Retry policies: from (attempts, error, elapsed seconds) to a delay in seconds, or to "give up".

A policy is composed of three values: a *condition* says which errors are worth another attempt, a
*wait* how long to back off, a *stop* when to give up. All are pure: jitter comes from a given seed.

The wait gets the index of the retry, from 0; condition and stop count failures, from 1.
"""

# The names are those of the programming model, and a strategy's class docstring describes its call.
# ruff: noqa: A002, D102, N801

from __future__ import annotations

import inspect
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Protocol, runtime_checkable

#: Seconds, as users write them.
Seconds = int | float | timedelta
ErrorTypes = type[BaseException] | tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryInfo:
    """What a step knows of its attempts before this one (`Context.retry_info`)."""

    #: 0 in the first attempt.
    retry_number: int
    #: Since the first attempt began; 0.0 in the first.
    elapsed_seconds: float
    #: What the last attempt raised.
    last_exception: Exception | None
    #: When it did, in UTC.
    last_failed_at: datetime | None


@runtime_checkable
class RetryPolicy(Protocol):
    """Decides whether and when a failed step runs again."""

    def next(
        self, elapsed_time: float, attempts: int, error: Exception, *, seed: int | None = None
    ) -> float | None:
        """Return the seconds to back off, or None to give up.

        `elapsed_time` counts from the first attempt; `attempts` are the failures so far, from 1.
        """
        ...


def retry_policy(
    retry: RetryCondition | Callable[[Exception], bool] | None = None,
    wait: WaitStrategy | None = None,
    stop: StopCondition | None = None,
) -> RetryPolicy:
    """Return a policy: by default any error is retried after 5 s, up to 3 attempts."""
    return _ComposedPolicy(
        retry=retry or retry_always(),
        wait=wait or wait_fixed(5),
        stop=stop or stop_after_attempt(3),
    )


def next_delay(
    policy: RetryPolicy, *, elapsed: float, attempts: int, error: Exception, seed: int
) -> float | None:
    """Return the policy's verdict, also of a policy whose `next` takes no seed."""
    if "seed" in inspect.signature(policy.next).parameters:
        return policy.next(elapsed, attempts, error, seed=seed)
    return policy.next(elapsed, attempts, error)


# -- conditions: which errors are worth another attempt --------------------------------------------


class RetryCondition(ABC):
    """Says whether an error is worth another attempt; combine with `&` and `|`."""

    @abstractmethod
    def __call__(self, error: Exception, /) -> bool: ...

    def __and__(self, other: Callable[[Exception], bool]) -> RetryCondition:
        return retry_all(self, other)

    def __rand__(self, other: Callable[[Exception], bool]) -> RetryCondition:
        return retry_all(other, self)

    def __or__(self, other: Callable[[Exception], bool]) -> RetryCondition:
        return retry_any(self, other)

    def __ror__(self, other: Callable[[Exception], bool]) -> RetryCondition:
        return retry_any(other, self)


@dataclass(frozen=True)
class retry_if_exception(RetryCondition):
    """Retries errors for which the predicate is true."""

    predicate: Callable[[Exception], bool]

    def __call__(self, error: Exception, /) -> bool:
        return bool(self.predicate(error))


@dataclass(frozen=True)
class retry_if_exception_type(RetryCondition):
    """Retries errors of these types."""

    exception_types: ErrorTypes = Exception

    def __call__(self, error: Exception, /) -> bool:
        return isinstance(error, self.exception_types)


@dataclass(frozen=True)
class retry_if_not_exception_type(RetryCondition):
    """Retries errors of any but these types."""

    exception_types: ErrorTypes = Exception

    def __call__(self, error: Exception, /) -> bool:
        return not isinstance(error, self.exception_types)


class retry_unless_exception_type(retry_if_not_exception_type):
    """Retries until an error of one of these types is raised."""


@dataclass(frozen=True)
class retry_if_exception_message(RetryCondition):
    """Retries errors with exactly this message, or whose message has this pattern in it.

    Raises:
        TypeError: unless exactly one of `message` and `match` is given.
    """

    message: str | None = None
    match: str | re.Pattern[str] | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.message is None and self.match is None:
            raise TypeError(f"{name}() missing 1 required argument 'message' or 'match'")
        if self.message is not None and self.match is not None:
            raise TypeError(f"{name}() takes either 'message' or 'match', not both")

    def __call__(self, error: Exception, /) -> bool:
        if self.match is None:
            return str(error) == self.message
        return re.search(self.match, str(error)) is not None


class retry_if_not_exception_message(retry_if_exception_message):
    """Retries errors with any other message, or whose message does not begin with this pattern."""

    def __call__(self, error: Exception, /) -> bool:
        return not super().__call__(error)


@dataclass(frozen=True)
class retry_if_exception_cause_type(RetryCondition):
    """Retries errors that were raised `from` an error of these types, directly or further back."""

    exception_types: ErrorTypes = Exception

    def __call__(self, error: Exception, /) -> bool:
        seen: set[int] = set()
        cause = error.__cause__
        while cause is not None and id(cause) not in seen:
            if isinstance(cause, self.exception_types):
                return True
            seen.add(id(cause))
            cause = cause.__cause__
        return False


@dataclass(frozen=True, init=False)
class retry_any(RetryCondition):
    """Retries errors that at least one of the conditions wants retried."""

    conditions: tuple[Callable[[Exception], bool], ...]

    def __init__(self, *conditions: Callable[[Exception], bool]) -> None:
        object.__setattr__(self, "conditions", conditions)

    def __call__(self, error: Exception, /) -> bool:
        return any(condition(error) for condition in self.conditions)


@dataclass(frozen=True, init=False)
class retry_all(RetryCondition):
    """Retries errors that all of the conditions want retried."""

    conditions: tuple[Callable[[Exception], bool], ...]

    def __init__(self, *conditions: Callable[[Exception], bool]) -> None:
        object.__setattr__(self, "conditions", conditions)

    def __call__(self, error: Exception, /) -> bool:
        return all(condition(error) for condition in self.conditions)


@dataclass(frozen=True)
class retry_always(RetryCondition):
    """Retries every error."""

    def __call__(self, error: Exception, /) -> bool:
        return True


@dataclass(frozen=True)
class retry_never(RetryCondition):
    """Retries no error."""

    def __call__(self, error: Exception, /) -> bool:
        return False


# -- waits: how long to back off -------------------------------------------------------------------


class WaitStrategy(ABC):
    """Gives the seconds to back off before a retry; add two with `+`, several with `sum()`."""

    @abstractmethod
    def __call__(self, retry_index: int, random: Random, /) -> float: ...

    def __add__(self, other: WaitStrategy) -> WaitStrategy:
        return wait_combine(self, other)

    def __radd__(self, other: int | WaitStrategy) -> WaitStrategy:
        # `sum()` begins with the integer 0.
        return wait_combine(other, self) if isinstance(other, WaitStrategy) else self


@dataclass(frozen=True)
class wait_fixed(WaitStrategy):
    """Waits the same time before every retry."""

    wait: Seconds

    def __call__(self, retry_index: int, random: Random, /) -> float:
        return _seconds(self.wait)


@dataclass(frozen=True)
class wait_none(WaitStrategy):
    """Retries at once."""

    def __call__(self, retry_index: int, random: Random, /) -> float:
        return 0.0


@dataclass(frozen=True)
class wait_exponential(WaitStrategy):
    """Waits `multiplier * exp_base ** index`, within `min` and `max`."""

    multiplier: float = 1
    exp_base: float = 2
    max: Seconds = 60
    min: Seconds = 0

    def __call__(self, retry_index: int, random: Random, /) -> float:
        wait = _power(self.multiplier, self.exp_base, retry_index)
        return max(0.0, _seconds(self.min), min(wait, _seconds(self.max)))


@dataclass(frozen=True)
class wait_incrementing(WaitStrategy):
    """Waits `start`, and `increment` longer before each further retry, at most `max`."""

    start: Seconds = 0
    increment: Seconds = 100
    max: Seconds = float("inf")

    def __call__(self, retry_index: int, random: Random, /) -> float:
        wait = _seconds(self.start) + _seconds(self.increment) * retry_index
        return max(0.0, min(wait, _seconds(self.max)))


@dataclass(frozen=True)
class wait_random(WaitStrategy):
    """Waits a random time between `min` and `max`."""

    min: Seconds = 0
    max: Seconds = 1

    def __call__(self, retry_index: int, random: Random, /) -> float:
        return random.uniform(_seconds(self.min), _seconds(self.max))


@dataclass(frozen=True)
class wait_exponential_jitter(WaitStrategy):
    """Waits `initial * exp_base ** index` plus a random time up to `jitter`, at most `max`."""

    initial: Seconds = 1
    exp_base: float = 2
    max: Seconds = 60
    jitter: Seconds = 1

    def __call__(self, retry_index: int, random: Random, /) -> float:
        wait = _power(_seconds(self.initial), self.exp_base, retry_index)
        wait += random.uniform(0, _seconds(self.jitter))
        return max(0.0, min(wait, _seconds(self.max)))


class wait_random_exponential(wait_exponential):
    """Waits a random time between `min` and what `wait_exponential` would wait."""

    def __call__(self, retry_index: int, random: Random, /) -> float:
        return random.uniform(_seconds(self.min), super().__call__(retry_index, random))


def wait_full_jitter(
    multiplier: float = 1, exp_base: float = 2, max: Seconds = 60, min: Seconds = 0
) -> wait_random_exponential:
    """Return `wait_random_exponential` under the name that the literature uses."""
    return wait_random_exponential(multiplier, exp_base, max, min)


@dataclass(frozen=True, init=False)
class wait_chain(WaitStrategy):
    """Waits by the first strategy before the first retry, and so on; the last one repeats.

    Raises:
        ValueError: when no strategy is given.
    """

    strategies: tuple[WaitStrategy, ...]

    def __init__(self, *strategies: WaitStrategy) -> None:
        if not strategies:
            raise ValueError("wait_chain requires at least one strategy")
        object.__setattr__(self, "strategies", strategies)

    def __call__(self, retry_index: int, random: Random, /) -> float:
        strategy = self.strategies[min(retry_index, len(self.strategies) - 1)]
        return strategy(retry_index, random)


@dataclass(frozen=True, init=False)
class wait_combine(WaitStrategy):
    """Waits as long as all the strategies together."""

    strategies: tuple[WaitStrategy, ...]

    def __init__(self, *strategies: WaitStrategy) -> None:
        object.__setattr__(self, "strategies", strategies)

    def __call__(self, retry_index: int, random: Random, /) -> float:
        return sum(strategy(retry_index, random) for strategy in self.strategies)


# -- stops: when to give up ------------------------------------------------------------------------


class StopCondition(ABC):
    """Says, by failures, elapsed seconds and next delay, whether to give up; has `&` and `|`."""

    @abstractmethod
    def __call__(self, attempts: int, elapsed: float, delay: float, /) -> bool: ...

    def __and__(self, other: StopCondition) -> StopCondition:
        return stop_all(self, other)

    def __or__(self, other: StopCondition) -> StopCondition:
        return stop_any(self, other)


@dataclass(frozen=True)
class stop_after_attempt(StopCondition):
    """Gives up after this many attempts."""

    max_attempt_number: int

    def __call__(self, attempts: int, elapsed: float, delay: float, /) -> bool:
        return attempts >= self.max_attempt_number


@dataclass(frozen=True)
class stop_after_delay(StopCondition):
    """Gives up when this time has passed since the first attempt began."""

    max_delay: Seconds

    def __call__(self, attempts: int, elapsed: float, delay: float, /) -> bool:
        return elapsed >= _seconds(self.max_delay)


@dataclass(frozen=True)
class stop_before_delay(StopCondition):
    """Gives up when the next attempt would begin later than this after the first one."""

    max_delay: Seconds

    def __call__(self, attempts: int, elapsed: float, delay: float, /) -> bool:
        return elapsed + delay >= _seconds(self.max_delay)


@dataclass(frozen=True, init=False)
class stop_any(StopCondition):
    """Gives up when at least one of the conditions does."""

    conditions: tuple[StopCondition, ...]

    def __init__(self, *conditions: StopCondition) -> None:
        object.__setattr__(self, "conditions", conditions)

    def __call__(self, attempts: int, elapsed: float, delay: float, /) -> bool:
        return any(condition(attempts, elapsed, delay) for condition in self.conditions)


@dataclass(frozen=True, init=False)
class stop_all(StopCondition):
    """Gives up when all of the conditions do."""

    conditions: tuple[StopCondition, ...]

    def __init__(self, *conditions: StopCondition) -> None:
        object.__setattr__(self, "conditions", conditions)

    def __call__(self, attempts: int, elapsed: float, delay: float, /) -> bool:
        return all(condition(attempts, elapsed, delay) for condition in self.conditions)


@dataclass(frozen=True)
class stop_never(StopCondition):
    """Never gives up."""

    def __call__(self, attempts: int, elapsed: float, delay: float, /) -> bool:
        return False


# -- the policies that came before composition -----------------------------------------------------


@dataclass(frozen=True)
class ConstantDelayRetryPolicy:
    """Retries any error after the same delay (deprecated: use `retry_policy`)."""

    maximum_attempts: int = 3
    delay: float = 5

    def __post_init__(self) -> None:
        _warn_deprecated(self)

    def next(
        self, elapsed_time: float, attempts: int, error: Exception, *, seed: int | None = None
    ) -> float | None:
        """Return the constant delay, or None once the attempts are used up."""
        return None if attempts >= self.maximum_attempts else self.delay


@dataclass(frozen=True)
class ExponentialBackoffRetryPolicy:
    """Retries any error after delays that grow (deprecated: use `retry_policy`)."""

    maximum_attempts: int = 5
    initial_delay: float = 1
    multiplier: float = 2
    max_delay: float = 60
    jitter: bool = True

    def __post_init__(self) -> None:
        _warn_deprecated(self)

    def next(
        self, elapsed_time: float, attempts: int, error: Exception, *, seed: int | None = None
    ) -> float | None:
        """Return the next delay (with jitter, between half of it and all of it), or None."""
        if attempts >= self.maximum_attempts:
            return None
        delay = min(_power(self.initial_delay, self.multiplier, attempts - 1), self.max_delay)
        return delay * _random(seed, attempts).uniform(0.5, 1) if self.jitter else delay


@dataclass(frozen=True, slots=True, kw_only=True)
class _ComposedPolicy:
    retry: Callable[[Exception], bool]
    wait: WaitStrategy
    stop: StopCondition

    def next(
        self, elapsed_time: float, attempts: int, error: Exception, *, seed: int | None = None
    ) -> float | None:
        if not self.retry(error):
            return None
        delay = self.wait(attempts - 1, _random(seed, attempts))
        return None if self.stop(attempts, elapsed_time, delay) else delay


def _random(seed: int | None, attempts: int) -> Random:
    # Without a seed the delay still depends on the arguments only, so that a policy stays pure.
    return Random(attempts if seed is None else seed)  # noqa: S311 - jitter keeps no secret


def _seconds(value: Seconds) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


def _power(factor: float, base: float, exponent: int) -> float:
    try:
        return float(factor * base**exponent)
    except OverflowError:
        return float("inf")


def _warn_deprecated(policy: object) -> None:
    name = type(policy).__name__
    # Three frames up: this function, __post_init__ and the generated __init__.
    warnings.warn(
        f"{name} is deprecated: use retry_policy(retry=..., wait=..., stop=...) instead.",
        DeprecationWarning,
        stacklevel=4,
    )
