"""The context store in Redis: one hash field per top-level key, each with a version. Layer: storage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any, Final, Protocol

from stepfleet.codec import Codec
from stepfleet.core.commit import (
    Answer,
    Expectation,
    Free,
    Lock,
    Locked,
    Stored,
    Unlock,
    Unwrite,
    Word,
    Write,
)
from stepfleet.errors import ConnectionLost, DecodeError, StaleExecution, WorkflowRuntimeError
from stepfleet.storage.keys import Keys
from stepfleet.storage.reader import damage
from stepfleet.storage.together import Together
from stepfleet.store import Edit, lost_lock
from stepfleet.store import Stored as StoredValue

#: Seconds between tries while Redis is away: from, to.
OUTAGE: Final = (0.1, 0.5)

#: A token that no edit has.
NOBODY: Final = "-"


class Apply(Protocol):
    """Commits words for one run in the name of whoever writes, once however often it is sent."""

    def __call__(self, words: Sequence[Word], expects: Sequence[Expectation]) -> Awaitable[Answer]:
        """Return the answer to a commit of these words."""
        ...


class RedisPort:
    """The port of a `StateStore` whose values are in Redis."""

    def __init__(
        self,
        reads: Together,
        keys: Keys,
        run_id: str,
        codec: Codec,
        apply: Apply,
        *,
        token: Callable[[], str],
        lock_ms: int,
        turn: asyncio.Lock,
        on_lock: Callable[[str], None],
        random: Random,
        patient: bool = False,
    ) -> None:
        self._reads = reads
        #: Reads wait for a Redis that is away, as the commits of a step do.
        self._patient = patient
        self._key = keys.store(run_id)
        self._run_id = run_id
        self._codec = codec
        self._apply = apply
        self._token = token
        self._lock_ms = lock_ms
        #: One contender per process: the others wait here instead of asking Redis.
        self._turn = turn
        self._on_lock = on_lock
        self._random = random

    async def read(self, fields: Sequence[str] | None) -> dict[str, StoredValue]:
        """Return values with their versions."""
        if fields is None:
            rows = await self._ask("HGETALL")
            found = zip(rows[::2], rows[1::2], strict=True)
            return {name.decode(): self._stored(name.decode(), data) for name, data in found}
        if not fields:
            return {}
        values = await self._ask("HMGET", *fields)
        return {
            name: self._stored(name, data)
            for name, data in zip(fields, values, strict=True)
            if data is not None
        }

    async def _ask(self, command: str, *fields: str) -> Any:
        while True:
            try:
                return await self._reads.call(command, self._key, *fields)
            except ConnectionLost:
                if not self._patient:
                    raise
            await asyncio.sleep(self._random.uniform(*OUTAGE))

    async def write(
        self,
        changed: Mapping[str, Any],
        removed: Sequence[str] = (),
        *,
        expected: Mapping[str, int] | None = None,
    ) -> bool:
        """Write at once.

        Raises:
            EncodeError: a value cannot travel.
            StaleExecution, WorkflowRuntimeError: the writer may not write any more.
        """
        expects = [Stored(name, version) for name, version in (expected or {}).items()]
        words = [*self._words(changed), *(Unwrite(name) for name in removed)]
        while True:
            # Writers wait while somebody edits: the edit writes back what it has read.
            answer = await self._apply(words, [Free(NOBODY), *expects])
            if answer.word != "conflict":
                self._check(answer)
                return True
            if expects and answer.length <= 0:
                return False  # a value moved, not the lock
            await self._pause()

    @asynccontextmanager
    async def edit(self) -> AsyncGenerator[Edit]:
        """Give the run's edit lock; it is freed at the end, by the commit of the step, or by its lease."""
        async with self._turn:
            token = self._token()
            # Known before it is taken: when the wait for it is cancelled, it is freed as well.
            self._on_lock(token)
            edit = _Edit(self, token)
            try:
                await self._lock(token)
                yield edit
            finally:
                self._on_lock("")
                if not edit.saved:
                    await self._apply([Unlock(token)], [])

    async def save(self, token: str, changed: Mapping[str, Any], removed: Sequence[str]) -> None:
        """Write all changes of an edit and free its lock."""
        words = [*self._words(changed), *(Unwrite(name) for name in removed), Unlock(token)]
        answer = await self._apply(words, [Locked(token)])
        if answer.word == "conflict":
            raise lost_lock()
        self._check(answer)

    def same(self, one: Any, other: Any) -> bool:
        """Tell whether two values have the same bytes."""
        return self._codec.encode_value(one, where="state") == self._codec.encode_value(
            other, where="state"
        )

    def copy(self, value: Any) -> Any:
        """Return a value that shares nothing with this one."""
        return self._codec.decode_value(self._codec.encode_value(value, where="state"))

    async def _lock(self, token: str) -> None:
        while True:
            answer = await self._apply([Lock(token, self._lock_ms)], [Free(token)])
            if answer.word != "conflict":
                self._check(answer)
                return
            # Held elsewhere: its edits take milliseconds, its lease bounds the wait after a crash.
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(self._random.uniform(0.001, 0.006))

    def _words(self, changed: Mapping[str, Any]) -> list[Word]:
        return [
            Write(name, self._codec.encode_value(value, where=f"state key {name!r}"))
            for name, value in changed.items()
        ]

    def _stored(self, name: str, data: bytes) -> StoredValue:
        version, separator, value = data.partition(b":")
        if not separator or not version.isdigit():
            raise DecodeError(f"state key {name!r} of run {self._run_id} has no version", data)
        return StoredValue(int(version), self._codec.decode_value(value))

    def _check(self, answer: Answer) -> None:
        if answer.word == "gone":
            raise StaleExecution(
                "the store refuses this write: the delivery belongs to another worker"
            )
        if answer.word in ("over", "unknown-run"):
            raise WorkflowRuntimeError(
                f"the store of run {self._run_id} is closed: the run has ended"
            )
        if answer.word == "broken":
            raise WorkflowRuntimeError(
                f"the store of run {self._run_id} is not written: a key of run {self._run_id} is "
                f"damaged: {damage(self._run_id)}"
            )
        if answer.word != "applied":
            raise WorkflowRuntimeError(
                f"the store of run {self._run_id} answers {answer.word} {answer.detail}"
            )


class _Edit:
    def __init__(self, port: RedisPort, token: str) -> None:
        self._port = port
        self._token = token
        self.saved = False

    async def save(self, changed: Mapping[str, Any], removed: Sequence[str]) -> None:
        await self._port.save(self._token, changed, removed)
        self.saved = True
