"""What a peer has to offer to be measured: it starts work of some kinds, and its results can be awaited.

The kinds, the same for all peers (the result of each is checked):

    one    one step that gives back its number
    chain  three steps in a row that hand the number on
    fan    one step, as many as the number says, one that counts them
    io     one step that sleeps 20 ms
    cpu    one step that uses 5 ms of processor time
    echo   one step that gives back the bytes (as text) that it was given

Only the standard library is imported here: this runs in the environment of every peer.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

IO_SECONDS = 0.020
CPU_SECONDS = 0.005
KINDS = frozenset({"one", "chain", "fan", "io", "cpu", "echo"})

#: Starts of clients without a call for many at once that are under way at the same time.
AT_ONCE = 100

Waiting = Awaitable[Any]


@dataclass(frozen=True, kw_only=True)
class About:
    """What the report says of a peer, and what the runner needs to know before it is imported."""

    packages: tuple[str, ...]
    settings: str
    has_workers: bool = True
    kinds: frozenset[str] = KINDS


class Peer(ABC):
    """One queue or workflow library, seen from a producer."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def open(self) -> None:
        """Connect."""

    async def close(self) -> None:
        """Disconnect."""

    @abstractmethod
    async def start(self, kind: str, value: Any) -> Waiting:
        """Start one; what is returned waits for its result."""

    async def start_many(self, kind: str, values: Sequence[Any]) -> Waiting:
        """Start many in the fastest way that the peer has; what is returned waits for all results."""
        started = await bounded((lambda v=value: self.start(kind, v)) for value in values)
        return gathered(started)


async def bounded(
    calls: Iterable[Callable[[], Awaitable[Any]]], at_once: int = AT_ONCE
) -> list[Any]:
    """Return the results of the calls in their order, so many of them at a time."""
    results: list[Any] = []
    remaining = enumerate(calls)

    async def one_after_the_other() -> None:
        for index, call in remaining:
            results.extend([None] * (index + 1 - len(results)))
            results[index] = await call()

    await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))
    return results


async def gathered(waiting: Iterable[Waiting]) -> list[Any]:
    return list(await asyncio.gather(*waiting))


async def sent(value: Any) -> Any:
    """A result that is known already."""
    return value


def burn() -> None:
    """Use 5 ms of processor time."""
    end = time.thread_time() + CPU_SECONDS
    while time.thread_time() < end:
        pass
