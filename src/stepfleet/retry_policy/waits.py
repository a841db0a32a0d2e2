"""Waits of a retry policy: how long to back off. Pure: chance comes from a given seed."""

# The names are those of the programming model, and a strategy's class docstring describes its call.
# ruff: noqa: A002, D102, N801

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import timedelta
from numbers import Real
from random import Random
from typing import Final, Protocol, cast

#: Seconds, as users write them.
Seconds = int | float | timedelta

#: Seconds that no wait and no time-out reaches: in ms, Redis and its scripts count them exactly.
LONGEST: Final = 1e12


class WaitStrategy(Protocol):
    """Gives the seconds to back off: a function, or one of the classes here.

    `attempts` is the index of the retry, from 0.
    """

    def __call__(self, attempts: int, *, seed: int | None = None) -> float: ...


class Wait(ABC):
    """A strategy that is added to others by `+` and `sum()`."""

    @abstractmethod
    def __call__(self, attempts: int, *, seed: int | None = None) -> float: ...

    def __add__(self, other: WaitStrategy) -> Wait:
        return wait_combine(self, other)

    def __radd__(self, other: int | WaitStrategy) -> Wait:
        # `sum()` begins with the integer 0.
        return self if isinstance(other, int) else wait_combine(other, self)


@dataclass(frozen=True)
class wait_fixed(Wait):
    """Waits the same time before every retry."""

    wait: Seconds

    def __call__(self, attempts: int, *, seed: int | None = None) -> float:
        return seconds_of(self.wait)


@dataclass(frozen=True)
class wait_none(Wait):
    """Retries at once."""

    def __call__(self, attempts: int, *, seed: int | None = None) -> float:
        return 0.0


@dataclass(frozen=True)
class wait_exponential(Wait):
    """Waits `multiplier * exp_base ** index`, within `min` and `max`."""

    multiplier: float = 1
    exp_base: float = 2
    max: Seconds = 60
    min: Seconds = 0

    def __call__(self, attempts: int, *, seed: int | None = None) -> float:
        wait = _power(self.multiplier, self.exp_base, attempts)
        return max(0.0, seconds_of(self.min), min(wait, seconds_of(self.max)))


@dataclass(frozen=True)
class wait_incrementing(Wait):
    """Waits `start`, and `increment` longer before each further retry, at most `max`."""

    start: Seconds = 0
    increment: Seconds = 100
    max: Seconds = float("inf")

    def __call__(self, attempts: int, *, seed: int | None = None) -> float:
        wait = seconds_of(self.start) + seconds_of(self.increment) * attempts
        return max(0.0, min(wait, seconds_of(self.max)))


@dataclass(frozen=True)
class wait_random(Wait):
    """Waits a random time between `min` and `max`."""

    min: Seconds = 0
    max: Seconds = 1

    def __call__(self, attempts: int, *, seed: int | None = None) -> float:
        return _chance(attempts, seed).uniform(seconds_of(self.min), seconds_of(self.max))


@dataclass(frozen=True)
class wait_exponential_jitter(Wait):
    """Waits `initial * exp_base ** index` plus a random time up to `jitter`, at most `max`."""

    initial: Seconds = 1
    exp_base: float = 2
    max: Seconds = 60
    jitter: Seconds = 1

    def __call__(self, attempts: int, *, seed: int | None = None) -> float:
        wait = _power(seconds_of(self.initial), self.exp_base, attempts)
        wait += _chance(attempts, seed).uniform(0, seconds_of(self.jitter))
        return max(0.0, min(wait, seconds_of(self.max)))


class wait_random_exponential(wait_exponential):
    """Waits a random time between `min` and what `wait_exponential` would wait."""

    def __call__(self, attempts: int, *, seed: int | None = None) -> float:
        return _chance(attempts, seed).uniform(seconds_of(self.min), super().__call__(attempts))


def wait_full_jitter(
    multiplier: float = 1, exp_base: float = 2, max: Seconds = 60, min: Seconds = 0
) -> wait_random_exponential:
    """Return `wait_random_exponential` under the name that the literature uses."""
    return wait_random_exponential(multiplier, exp_base, max, min)


@dataclass(frozen=True, init=False)
class wait_chain(Wait):
    """Waits by the first strategy before the first retry, and so on; the last one repeats.

    Raises:
        ValueError: when no strategy is given.
    """

    strategies: tuple[WaitStrategy, ...]

    def __init__(self, *strategies: WaitStrategy) -> None:
        if not strategies:
            raise ValueError("wait_chain requires at least one strategy")
        object.__setattr__(self, "strategies", strategies)

    def __call__(self, attempts: int, *, seed: int | None = None) -> float:
        strategy = self.strategies[min(attempts, len(self.strategies) - 1)]
        return strategy(attempts, seed=seed)


@dataclass(frozen=True, init=False)
class wait_combine(Wait):
    """Waits as long as all the strategies together."""

    strategies: tuple[WaitStrategy, ...]

    def __init__(self, *strategies: WaitStrategy) -> None:
        object.__setattr__(self, "strategies", strategies)

    def __call__(self, attempts: int, *, seed: int | None = None) -> float:
        return sum(strategy(attempts, seed=seed) for strategy in self.strategies)


def _chance(attempts: int, seed: int | None) -> Random:
    # Without a seed the delay still depends on the arguments only, so that a policy stays pure.
    return Random(attempts if seed is None else seed)  # noqa: S311 - jitter keeps no secret


def is_time(value: object) -> bool:
    """Tell whether a value is a number of seconds that can be waited for."""
    return isinstance(value, Real) and -LONGEST < cast(float, value) < LONGEST


def seconds_of(value: Seconds) -> float:
    """Return a time as a number of seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


def _power(factor: float, base: float, exponent: int) -> float:
    try:
        return float(factor * base**exponent)
    except OverflowError:
        return float("inf")
