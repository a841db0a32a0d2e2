"""Retry policies: from (attempts, error, elapsed seconds) to a delay in seconds, or to "give up".

A policy is composed of three values: a *condition* says which errors are worth another attempt, a
*wait* how long to back off, a *stop* when to give up. All are pure: jitter comes from a given seed.

The wait gets the index of the retry, from 0; condition and stop count failures, from 1.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, runtime_checkable

from stepfleet.errors import WorkflowRuntimeError
from stepfleet.retry_policy.conditions import (
    RetryCondition,
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
    retry_unless_exception_type,
)
from stepfleet.retry_policy.stops import (
    StopCondition,
    stop_after_attempt,
    stop_after_delay,
    stop_all,
    stop_any,
    stop_before_delay,
    stop_never,
)
from stepfleet.retry_policy.waits import (
    LONGEST,
    WaitStrategy,
    is_time,
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

__all__ = [
    "ConstantDelayRetryPolicy",
    "ExponentialBackoffRetryPolicy",
    "RetryCondition",
    "RetryInfo",
    "RetryPolicy",
    "StopCondition",
    "WaitStrategy",
    "next_delay",
    "retry_all",
    "retry_always",
    "retry_any",
    "retry_if_exception",
    "retry_if_exception_cause_type",
    "retry_if_exception_message",
    "retry_if_exception_type",
    "retry_if_not_exception_message",
    "retry_if_not_exception_type",
    "retry_never",
    "retry_policy",
    "retry_unless_exception_type",
    "stop_after_attempt",
    "stop_after_delay",
    "stop_all",
    "stop_any",
    "stop_before_delay",
    "stop_never",
    "wait_chain",
    "wait_combine",
    "wait_exponential",
    "wait_exponential_jitter",
    "wait_fixed",
    "wait_full_jitter",
    "wait_incrementing",
    "wait_none",
    "wait_random",
    "wait_random_exponential",
]


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
    retry: RetryCondition | None = None,
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
    """Return the policy's verdict, also of a policy whose `next` takes no seed.

    Raises:
        WorkflowRuntimeError: it is no time.
    """
    if "seed" in inspect.signature(policy.next).parameters:
        delay = policy.next(elapsed, attempts, error, seed=seed)
    else:
        delay = policy.next(elapsed, attempts, error)
    if delay is not None and not is_time(delay):
        raise WorkflowRuntimeError(
            f"a retry policy gives {str(delay)[:40]!r} behind attempt {attempts}: it has to give "
            f"seconds, less than {LONGEST:g}, or None"
        )
    return delay


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
        """Return the next delay (with jitter, a random part of it), or None."""
        if attempts >= self.maximum_attempts:
            return None
        kind = wait_random_exponential if self.jitter else wait_exponential
        wait = kind(self.initial_delay, self.multiplier, self.max_delay)
        return wait(max(attempts - 1, 0), seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ComposedPolicy:
    retry: RetryCondition
    wait: WaitStrategy
    stop: StopCondition

    def next(
        self, elapsed_time: float, attempts: int, error: Exception, *, seed: int | None = None
    ) -> float | None:
        if not self.retry(error):
            return None
        delay = self.wait(max(attempts - 1, 0), seed=seed)
        return None if self.stop(attempts, elapsed_time, upcoming_sleep=delay) else delay


def _warn_deprecated(policy: object) -> None:
    name = type(policy).__name__
    # Three frames up: this function, __post_init__ and the generated __init__.
    warnings.warn(
        f"{name} is deprecated: use retry_policy(retry=..., wait=..., stop=...) instead.",
        DeprecationWarning,
        stacklevel=4,
    )
