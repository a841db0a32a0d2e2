"""The public and the internal events of a run in one order, read from Redis, and as lines for people."""

from __future__ import annotations

import logging
from collections import deque
from typing import NamedTuple

from stepfleet.codec import Codec
from stepfleet.core.history import Unfolding
from stepfleet.events import (
    InternalDispatchEvent,
    StepState,
    StepStateChanged,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)
from stepfleet.storage.reader import HistoryEntry, PublicRow, RunReader
from stepfleet.wire import PublicEntry

logger = logging.getLogger("stepfleet.verbose")

#: Entries read at once.
COUNT = 500


class Added(NamedTuple):
    """An event that was emitted, of a verbose run."""

    type_id: str
    payload: bytes


Item = PublicRow | InternalDispatchEvent | Added


class Narration:
    """Reads on where it stopped; what it was asked to skip, it does not give."""

    def __init__(self, reader: RunReader, run_id: str, after: int) -> None:
        self._reader = reader
        self._run_id = run_id
        self._first = after
        #: The last public entry that was given, and the last row of the history that was read.
        self._seq = after
        self.position = "0-0"
        self._unfolding = Unfolding()
        self._ready: deque[Item] = deque()

    async def read(self) -> None:
        """Read what came since."""
        # In this order: the rows about everything that was published until now are there.
        public = deque(await self._public())
        known = public[-1].seq if public else self._seq
        for entry in await self._history():
            if entry.seq > known:
                break
            self.position = entry.entry
            told = self._unfolding.told(entry.row, entry.opened)
            self._give(public, entry.seq - entry.row.late)
            if entry.seq >= self._first:
                self._ready += told.before
            self._give(public, entry.seq)
            if entry.seq >= self._first:
                self._ready += [Added(*event) for event in entry.row.events]
                self._ready += told.after
        self._give(public, known)

    def next(self) -> Item | None:
        """Return what is next of what was read."""
        return self._ready.popleft() if self._ready else None

    def _give(self, public: deque[PublicRow], until: int) -> None:
        while public and public[0].seq <= until:
            self._seq = public[0].seq
            self._ready.append(public.popleft())

    async def _public(self) -> list[PublicRow]:
        rows: list[PublicRow] = []
        while True:
            after = rows[-1].seq if rows else self._seq
            more = await self._reader.public(self._run_id, after, COUNT)
            rows += more
            if len(more) < COUNT:
                return rows

    async def _history(self) -> list[HistoryEntry]:
        rows: list[HistoryEntry] = []
        while True:
            after = rows[-1].entry if rows else self.position
            more = await self._reader.history(self._run_id, after, COUNT)
            rows += more
            if len(more) < COUNT:
                return rows


class Speaker:
    """Says what a run does, as one line for each thing that happens.

    The lines go to the logger `stepfleet.verbose` where it takes DEBUG or INFO, else to stdout.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._level = next(
            (level for level in (logging.DEBUG, logging.INFO) if logger.isEnabledFor(level)), None
        )
        #: The line about the step that returned last: that with the result of the run goes first.
        self._returned = ""

    def say(self, item: Item) -> None:
        """Say what an item tells."""
        if isinstance(item, PublicRow):
            return
        returned, self._returned = self._returned, ""
        if returned:
            self._line(returned)
        if isinstance(item, Added):
            self._line(f"[tick] add: {self._codec.decode_event(*item)!r}")
        elif isinstance(item, StepStateChanged):
            if item.step_state is StepState.NOT_RUNNING:
                self._returned = _returned(item)
            elif item.step_state is StepState.RUNNING:
                self._line(f"[{item.name}:{item.worker_id}] started from {item.input_event_name}")
            else:
                self._line(f"[{item.name}] enqueued (waiting for capacity)")

    def end(self, entry: PublicEntry | None) -> None:
        """Say how the run ended."""
        event = self._codec.decode_event(entry.type_id, entry.payload) if entry else None
        match event:
            case WorkflowTimedOutEvent(timeout=timeout):
                self._line(f"[tick] timeout: {timeout}s")
            case WorkflowCancelledEvent():
                self._line("[tick] cancelled")
            case None | WorkflowFailedEvent():
                pass
            case _:
                self._line(f"[result] {event!r}")
        if self._returned:
            self._line(self._returned)

    def _line(self, text: str) -> None:
        if self._level is None:
            print(text)  # noqa: T201 - asked for with verbose=True
        else:
            logger.log(self._level, text)


def _returned(event: StepStateChanged) -> str:
    name = (event.output_event_name or "")[8:-2].rpartition(".")[2]
    what = "no result" if name in ("", "NoneType") else name
    return f"[{event.name}:{event.worker_id}] complete with {what}"
