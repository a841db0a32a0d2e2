"""Stops of a retry policy: when to give up. Pure."""

# The names are those of the programming model, and a condition's class docstring describes its call.
# ruff: noqa: D102, N801

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from stepfleet.retry_policy.waits import Seconds, seconds_of


class StopCondition(Protocol):
    """Says whether to give up: a function, or one of the classes here.

    By the failures so far (from 1), the seconds since the first attempt began, and those until the
    next one.
    """

    def __call__(
        self, attempts: int, elapsed_time: float, *, upcoming_sleep: float = 0.0
    ) -> bool: ...


class Stop(ABC):
    """A condition that combines with others by `&` and `|`."""

    @abstractmethod
    def __call__(
        self, attempts: int, elapsed_time: float, *, upcoming_sleep: float = 0.0
    ) -> bool: ...

    def __and__(self, other: StopCondition) -> Stop:
        return stop_all(self, other)

    def __rand__(self, other: StopCondition) -> Stop:
        return stop_all(other, self)

    def __or__(self, other: StopCondition) -> Stop:
        return stop_any(self, other)

    def __ror__(self, other: StopCondition) -> Stop:
        return stop_any(other, self)


@dataclass(frozen=True)
class stop_after_attempt(Stop):
    """Gives up after this many attempts."""

    max_attempt_number: int

    def __call__(self, attempts: int, elapsed_time: float, *, upcoming_sleep: float = 0.0) -> bool:
        return attempts >= self.max_attempt_number


@dataclass(frozen=True)
class stop_after_delay(Stop):
    """Gives up when this time has passed since the first attempt began."""

    max_delay: Seconds

    def __call__(self, attempts: int, elapsed_time: float, *, upcoming_sleep: float = 0.0) -> bool:
        return elapsed_time >= seconds_of(self.max_delay)


@dataclass(frozen=True)
class stop_before_delay(Stop):
    """Gives up when the next attempt would begin later than this after the first one."""

    max_delay: Seconds

    def __call__(self, attempts: int, elapsed_time: float, *, upcoming_sleep: float = 0.0) -> bool:
        return elapsed_time + upcoming_sleep >= seconds_of(self.max_delay)


@dataclass(frozen=True, init=False)
class stop_any(Stop):
    """Gives up when at least one of the conditions does."""

    stops: tuple[StopCondition, ...]

    def __init__(self, *stops: StopCondition) -> None:
        object.__setattr__(self, "stops", stops)

    def __call__(self, attempts: int, elapsed_time: float, *, upcoming_sleep: float = 0.0) -> bool:
        return any(
            stop(attempts, elapsed_time, upcoming_sleep=upcoming_sleep) for stop in self.stops
        )


@dataclass(frozen=True, init=False)
class stop_all(Stop):
    """Gives up when all of the conditions do."""

    stops: tuple[StopCondition, ...]

    def __init__(self, *stops: StopCondition) -> None:
        object.__setattr__(self, "stops", stops)

    def __call__(self, attempts: int, elapsed_time: float, *, upcoming_sleep: float = 0.0) -> bool:
        return all(
            stop(attempts, elapsed_time, upcoming_sleep=upcoming_sleep) for stop in self.stops
        )


@dataclass(frozen=True)
class stop_never(Stop):
    """Never gives up."""

    def __call__(self, attempts: int, elapsed_time: float, *, upcoming_sleep: float = 0.0) -> bool:
        return False
