"""Conditions of a retry policy: which errors are worth another attempt. Pure."""

# The names are those of the programming model, and a condition's class docstring describes its call.
# ruff: noqa: D102, N801

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

ErrorTypes = type[BaseException] | tuple[type[BaseException], ...]


class RetryCondition(Protocol):
    """Says whether an error is worth another attempt: a function, or one of the classes here."""

    def __call__(self, error: Exception, /) -> bool: ...


class Condition(ABC):
    """A condition that combines with others by `&` and `|`."""

    @abstractmethod
    def __call__(self, error: Exception, /) -> bool: ...

    def __and__(self, other: RetryCondition) -> Condition:
        return retry_all(self, other)

    def __rand__(self, other: RetryCondition) -> Condition:
        return retry_all(other, self)

    def __or__(self, other: RetryCondition) -> Condition:
        return retry_any(self, other)

    def __ror__(self, other: RetryCondition) -> Condition:
        return retry_any(other, self)


@dataclass(frozen=True)
class retry_if_exception(Condition):
    """Retries errors for which the predicate is true."""

    predicate: Callable[[Exception], bool]

    def __call__(self, error: Exception, /) -> bool:
        return bool(self.predicate(error))


@dataclass(frozen=True)
class retry_if_exception_type(Condition):
    """Retries errors of these types."""

    exception_types: ErrorTypes = Exception

    def __call__(self, error: Exception, /) -> bool:
        return isinstance(error, self.exception_types)


@dataclass(frozen=True)
class retry_if_not_exception_type(Condition):
    """Retries errors of any but these types."""

    exception_types: ErrorTypes = Exception

    def __call__(self, error: Exception, /) -> bool:
        return not isinstance(error, self.exception_types)


class retry_unless_exception_type(retry_if_not_exception_type):
    """Retries until an error of one of these types is raised."""


@dataclass(frozen=True)
class retry_if_exception_message(Condition):
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
class retry_if_exception_cause_type(Condition):
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
class retry_any(Condition):
    """Retries errors that at least one of the conditions wants retried."""

    retries: tuple[RetryCondition, ...]

    def __init__(self, *retries: RetryCondition) -> None:
        object.__setattr__(self, "retries", retries)

    def __call__(self, error: Exception, /) -> bool:
        return any(condition(error) for condition in self.retries)


@dataclass(frozen=True, init=False)
class retry_all(Condition):
    """Retries errors that all of the conditions want retried."""

    retries: tuple[RetryCondition, ...]

    def __init__(self, *retries: RetryCondition) -> None:
        object.__setattr__(self, "retries", retries)

    def __call__(self, error: Exception, /) -> bool:
        return all(condition(error) for condition in self.retries)


@dataclass(frozen=True)
class retry_always(Condition):
    """Retries every error."""

    def __call__(self, error: Exception, /) -> bool:
        return True


@dataclass(frozen=True)
class retry_never(Condition):
    """Retries no error."""

    def __call__(self, error: Exception, /) -> bool:
        return False
