"""What a run's public events tell, and how it is shown: a bar on a terminal, else a line per tenth."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from typing import TextIO

from workflow import FileDone, FilesListed

from stepfleet import Event
from stepfleet.events import RetractedEvent

#: Seconds between two drawings of the bar.
FRAME = 0.05
FULL, EMPTY = "█", "░"


class Board:
    """Who has done what, as told by the public events of the run."""

    def __init__(self) -> None:
        self.total = 0
        #: Sequence in the public stream -> what it said.
        self._done: dict[int, FileDone] = {}

    @property
    def done(self) -> int:
        return len(self._done)

    def add(self, sequence: int, event: Event) -> None:
        match event:
            case FilesListed():
                self.total = event.count
            case FileDone():
                self._done[sequence] = event
            case RetractedEvent():
                # A worker told of a file and died before its commit; another did the file again.
                for stale in event.sequences:
                    self._done.pop(stale, None)
            case _:
                pass

    def files_by_pid(self) -> Counter[int]:
        return Counter(event.pid for event in self._done.values())


class ProgressBar:
    """Shows how far it is."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self._started = time.monotonic()
        self._drawn = 0.0
        self._tenth = 0

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not total:
            return
        if self._is_terminal:
            if done == total or now - self._drawn > FRAME:
                self._drawn = now
                self._out.write(f"\r\x1b[K{self._bar(done, total)}")
                self._out.flush()
        elif done * 10 // total > self._tenth:
            self._tenth = done * 10 // total
            self._print(f"{self._tenth * 10:3d} %  {done:5,d} of {total:,d} files")

    def say(self, text: str) -> None:
        """Shows a line above the bar, with the time since the start."""
        if self._is_terminal:
            self._out.write("\r\x1b[K")
        self._print(text)
        self._drawn = 0.0

    def close(self) -> None:
        if self._is_terminal and self._drawn:
            self._out.write("\n")
            self._out.flush()

    def _print(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:6.1f} s  {text}", file=self._out, flush=True)

    def _bar(self, done: int, total: int) -> str:
        text = f" {done * 100 // total:3d} %  {done:,d} of {total:,d} files"
        width = max(10, min(50, shutil.get_terminal_size().columns - len(text) - 12))
        full = width * done // total
        bar = FULL * full + EMPTY * (width - full)
        return f"{time.monotonic() - self._started:6.1f} s  {bar}{text}"
