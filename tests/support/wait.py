"""Wait for something to become true, with a deadline: the tests' only way to wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, TypeVar

T = TypeVar("T")

#: seconds between two looks
POLL_S = 0.01


def wait_until(predicate: Callable[[], T], timeout: float) -> T:
    """Returns the predicate's first true value.

    Raises:
        AssertionError: it stays false for `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(_complaint(predicate, value, timeout))
        time.sleep(POLL_S)
    return value


async def eventually(predicate: Callable[[], Awaitable[Any] | Any], timeout: float) -> Any:
    """Returns the first true value of a predicate, which may be a coroutine function.

    Raises:
        AssertionError: it stays false for `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = predicate()
        value = await answer if isawaitable(answer) else answer
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(_complaint(predicate, value, timeout))
        await asyncio.sleep(POLL_S)


def _complaint(predicate: Callable[[], Any], value: object, timeout: float) -> str:
    name = getattr(predicate, "__qualname__", repr(predicate))
    return f"{name} is still {value!r} after {timeout} s"
