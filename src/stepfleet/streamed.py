"""The events of a run in the hands of one reader: what is recorded, then what comes, until its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from stepfleet.codec import Codec
from stepfleet.errors import DecodeError, WorkflowRuntimeError
from stepfleet.events import Event, InternalDispatchEvent, RetractedEvent, StopEvent, StreamGapEvent
from stepfleet.narration import Item, Narration
from stepfleet.storage.reader import Ended, PublicRow, RunReader, public_row
from stepfleet.storage.watcher import Watcher

#: Public events that may wait for a slow reader before it reads from Redis again.
BACKLOG: Final = 5_000


class Streamed:
    """Knows how far it has read, so that the next who asks goes on there."""

    def __init__(self, reader: RunReader, watcher: Watcher, run_id: str, codec: Codec) -> None:
        self._reader = reader
        self._watcher = watcher
        self._run_id = run_id
        self._codec = codec
        #: Sequence of the last public event that was given.
        self.last_sequence = 0
        self._narration: Narration | None = None

    async def events(
        self, end: asyncio.Task[Ended], after: int | None, *, expose_internal: bool
    ) -> AsyncGenerator[Event]:
        """Give public events behind `after`, up to the first StopEvent; None: behind the last that was given.

        Raises:
            WorkflowRuntimeError: the run has ended, and there are no more.
        """
        if after is not None:
            self.last_sequence = after
        sources = (self._recorded, self._followed)
        if expose_internal:
            if self._narration is None or after is not None:
                self._narration = Narration(self._reader, self._run_id, self.last_sequence)
            sources = (partial(self._narrated, self._narration),)
        while True:
            for source in sources:
                async with aclosing(source(end)) as told:
                    async for event, is_terminal in told:
                        yield event
                        # A reader without its class sees the last event as a generic one.
                        if is_terminal or isinstance(event, StopEvent):
                            return

    def everything(self, end: asyncio.Task[Ended]) -> AsyncGenerator[Item]:
        """Give what happens in the run, from its beginning, until it has ended."""
        return self._items(Narration(self._reader, self._run_id, 0), end)

    async def _recorded(self, end: asyncio.Task[Ended]) -> AsyncGenerator[tuple[Event, bool]]:
        """Give what stands in the stream, then, if the run has ended without one, its last event."""
        is_over = end.done()
        while rows := await self._reader.public(self._run_id, self.last_sequence):
            for gap in self._gap(rows[0].seq):
                yield gap, False
            for row in rows:
                yield self._shown(row)
        if is_over:
            for event in self._terminal(end.result()):
                yield event

    def _terminal(self, ended: Ended) -> list[tuple[Event, bool]]:
        """Return the last event of a run that has ended without a public stream."""
        last = ended.seq or 1
        if ended.entry is None or last <= self.last_sequence:
            raise WorkflowRuntimeError("All the streamed events have already been consumed.")
        gap: list[tuple[Event, bool]] = [(event, False) for event in self._gap(last)]
        return [*gap, self._shown(PublicRow(last, ended.entry, ()))]

    async def _followed(self, end: asyncio.Task[Ended]) -> AsyncGenerator[tuple[Event, bool]]:
        """Give what comes into the stream, until the run ends or a slow reader falls too far behind."""
        key, watcher = self._reader.keys.events(self._run_id), self._watcher
        position = watcher.position(key)
        if position is not None and int(position.partition("-")[0]) > self.last_sequence:
            return  # others have read further: what they read has to be read from Redis
        rows: asyncio.Queue[Any] = asyncio.Queue()

        def told(entries: list[Any]) -> None:
            for entry in entries or (None,):
                rows.put_nowait(entry)

        end.add_done_callback(lambda _: rows.put_nowait(None))
        watcher.follow(key, f"{self.last_sequence}-0", told)
        try:
            while rows.qsize() < BACKLOG and (entry := await rows.get()) is not None:
                try:
                    row = public_row(entry)
                except DecodeError:
                    return  # whoever reads it from Redis says what is wrong with it
                if row.seq > self.last_sequence:
                    yield self._shown(row)
        finally:
            watcher.unfollow(key, told)

    async def _narrated(
        self, narration: Narration, end: asyncio.Task[Ended]
    ) -> AsyncGenerator[tuple[Event, bool]]:
        """Give internal events too, each where it belongs among the public ones."""
        async with aclosing(self._items(narration, end)) as items:
            async for item in items:
                if isinstance(item, InternalDispatchEvent):
                    yield item, False
                elif isinstance(item, PublicRow):
                    for gap in self._gap(item.seq):
                        yield gap, False
                    yield self._shown(item)
        for event in self._terminal(end.result()):
            yield event

    async def _items(self, narration: Narration, end: asyncio.Task[Ended]) -> AsyncGenerator[Item]:
        """Give what comes into the public stream and the history, until the run has ended."""
        keys, watcher = self._reader.keys, self._watcher
        changed = asyncio.Event()

        def told(_: object) -> None:
            changed.set()

        end.add_done_callback(told)
        followed = {
            keys.events(self._run_id): f"{self.last_sequence}-0",
            keys.history(self._run_id): narration.position,
        }
        for key, position in followed.items():
            watcher.follow(key, position, told)
        try:
            ended = False
            while not ended:
                changed.clear()
                ended = end.done()
                await narration.read()
                while (item := narration.next()) is not None:
                    yield item
                if not ended:
                    await changed.wait()
        finally:
            for key in followed:
                watcher.unfollow(key, told)

    def _gap(self, seq: int) -> list[StreamGapEvent]:
        first = self.last_sequence + 1
        if seq == first:
            return []
        self.last_sequence = seq - 1
        return [StreamGapEvent(first=first, last=seq - 1)]

    def _shown(self, row: PublicRow) -> tuple[Event, bool]:
        self.last_sequence = row.seq
        entry = row.entry
        if entry.kind == "mark":
            return RetractedEvent(sequences=list(row.stale), step=entry.step), False
        return self._codec.decode_event(entry.type_id, entry.payload), entry.kind == "end"
