"""Wakes whoever waits for the end of a run or for its public events: one connection for all. Layer: storage."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from stepfleet.errors import ConnectionLost, StoreError, StoreRefused
from stepfleet.storage.keys import Keys
from stepfleet.storage.link import Link
from stepfleet.storage.reader import Announcement, RunReader, announcement

logger = logging.getLogger("stepfleet.client")

#: Seconds after which every awaited run is looked at, whether or not its end was announced.
RECHECK = 5.0
#: Entries of one stream read at once.
COUNT = 500

OnEntries = Callable[[list[Any]], None]


class Watcher:
    """Reads the stream of ended runs and the public streams that somebody follows."""

    def __init__(
        self,
        link: Link,
        reader: RunReader,
        keys: Keys,
        *,
        on_end: Callable[[list[Announcement]], None],
    ) -> None:
        self._link = link
        self._reader = reader
        self._keys = keys
        self._on_end = on_end
        self._last_end = ""
        self._positions: dict[str, str] = {}
        self._followers: dict[str, set[OnEntries]] = {}
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether every end from now on will be announced."""
        return self._ready.is_set()

    async def ready(self) -> None:
        """Return when every end from now on will be announced."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="stepfleet-watcher")
        await self._ready.wait()

    def position(self, key: str) -> str | None:
        """Return the entry of a public stream up to which followers were told, None if nobody follows."""
        return self._positions.get(key)

    def follow(self, key: str, after: str, on_entries: OnEntries) -> None:
        """Tell of entries behind `after`, which is not behind `position`.

        No entries: the key is no stream any more, and is not followed from now on.
        """
        self._positions.setdefault(key, after)
        self._followers.setdefault(key, set()).add(on_entries)
        self._link.interrupt()

    def unfollow(self, key: str, on_entries: OnEntries) -> None:
        """Stop telling."""
        followers = self._followers.get(key, set())
        followers.discard(on_entries)
        if not followers:
            self._followers.pop(key, None)
            self._positions.pop(key, None)

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._link.close()

    async def _run(self) -> None:
        lost = False
        while True:
            try:
                if not self._last_end:
                    self._last_end = await self._reader.last_end()
                    self._ready.set()
                await self._read()
                lost = False
            except (ConnectionLost, StoreRefused) as error:
                if "WRONGTYPE" in str(error) and await self._left_damaged():
                    continue
                if not lost:
                    logger.warning("redis does not answer, waiting for it: error=%s", error)
                lost = True
                await asyncio.sleep(0.2)

    async def _left_damaged(self) -> bool:
        """Stop following what is no stream, for which Redis refuses every read; tell whether there was one."""
        keys = list(self._positions)
        types: list[Any] = []
        with suppress(StoreError):
            types = await self._reader.link.calls([("TYPE", key) for key in keys])
        rows = zip(keys, types, strict=bool(types))
        damaged = [
            key
            for key, kind in rows
            if isinstance(kind, bytes) and kind not in (b"stream", b"none")
        ]
        for key in damaged:
            self._positions.pop(key, None)
            for on_entries in self._followers.pop(key, ()):
                on_entries([])
        return bool(damaged)

    async def _read(self) -> None:
        streams = {self._keys.ends: self._last_end, **self._positions}
        reply = await self._link.read(
            ("XREAD", "COUNT", COUNT), ("STREAMS", *streams.keys(), *streams.values())
        )
        for name, rows in reply or ():
            key = name.decode()
            if key == self._keys.ends:
                told = [announcement(row) for row in rows]
                self._last_end = told[-1].id
                self._on_end(told)
                # Whoever waited goes on before the next read is sent: 0.04 ms of their time.
                await asyncio.sleep(0)
            elif key in self._positions:
                self._positions[key] = rows[-1][0].decode()
                for on_entries in tuple(self._followers.get(key, ())):
                    on_entries(rows)
