"""`workflow-worker --reload`: a worker with the new code whenever a Python file changes. Layer: cli.

The worker is a process of its own. Its successor starts first; when that reads, the old one drains,
so steps that run finish on the code that they began with. Code that does not start changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from stepfleet.cli.exits import HANDED_BACK, OK, forced_by

logger = logging.getLogger("stepfleet.worker")

#: Seconds between two looks at the files. An editor's save is over when two looks see the same.
LOOK_S: Final = 0.4
#: Folders that hold no code of the project's own, besides those with a dot and virtual environments.
_FOREIGN: Final = frozenset({"__pycache__", "node_modules", "site-packages"})

#: Path -> time of its last change, in ns.
Snapshot = dict[str, int]


def snapshot(folder: Path) -> Snapshot:
    """Return the Python files below a folder, each with the time of its last change."""
    found: Snapshot = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _FOREIGN and name[0] != "."]
        if "pyvenv.cfg" in files:
            folders.clear()
            continue
        for name in files:
            if name.endswith(".py"):
                path = os.path.join(place, name)
                try:
                    found[path] = os.stat(path).st_mtime_ns
                except FileNotFoundError:
                    continue
    return found


async def keep_reloading(arguments: Sequence[str], folder: Path) -> int:
    """Run a worker with these arguments, and its successors, until a signal; return the exit code.

    The code is 75 when a drain handed something back, 130 or 143 after a second signal, else 0.
    """
    with tempfile.TemporaryDirectory(prefix="stepfleet-reload-") as health:
        succession = _Succession(arguments, Path(health))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, succession.stop, number)
        await succession.run(folder)
        return await succession.ended()


class _Worker:
    def __init__(self, process: asyncio.subprocess.Process, health: Path) -> None:
        self.process = process
        self._health = health
        self.gone = asyncio.ensure_future(process.wait())

    def signal(self, number: int) -> None:
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def reads(self) -> bool:
        """Wait until it reads, and return whether it does: it may have ended before."""
        while not self.gone.done() and not self._health.exists():
            await asyncio.wait({self.gone}, timeout=LOOK_S / 8)
        return not self.gone.done()


class _Succession:
    """The worker with the latest code, and earlier ones that still drain."""

    def __init__(self, arguments: Sequence[str], health: Path) -> None:
        self._command = [sys.executable, "-m", "stepfleet.cli.worker", *arguments]
        self._command += ["--parent", str(os.getpid())]
        self._health = health
        self._workers: list[_Worker] = []
        self._stopping = asyncio.Event()
        self._signals: list[int] = []

    async def run(self, folder: Path) -> None:
        """Start a worker, and another one whenever the files have changed, until `stop`."""
        seen = await asyncio.to_thread(snapshot, folder)
        await self._succeed()
        while not await self._stops_within(LOOK_S):
            now = await asyncio.to_thread(snapshot, folder)
            if now == seen:
                continue
            while not await self._stops_within(LOOK_S):
                settled = await asyncio.to_thread(snapshot, folder)
                if settled == now:
                    break
                now = settled
            changed = sorted(dict(now.items() ^ seen.items()))
            seen = now
            if not self._stopping.is_set():
                logger.info("changed, starting the new code: %s", _listed(changed, folder))
                await self._succeed()

    async def _succeed(self) -> None:
        """Start a worker; when it reads, drain those before it."""
        health = self._health / str(len(self._workers))
        process = await asyncio.create_subprocess_exec(
            *self._command,
            "--health-file",
            os.fspath(health),
            stdin=subprocess.DEVNULL,
            # A cached module is known by second and size: an edit within the second would be missed.
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            # A group of its own: Ctrl-C reaches this process only, which then drains the worker.
            process_group=0,
        )
        worker = _Worker(process, health)
        before = [one for one in self._workers if not one.gone.done()]
        self._workers.append(worker)
        if self._stopping.is_set():
            worker.signal(signal.SIGTERM)
        elif await worker.reads():
            for one in before:
                one.signal(signal.SIGTERM)
        elif not self._stopping.is_set():
            code = worker.process.returncode
            goes_on = "the old code goes on" if before else "waiting for a change"
            logger.error("the new code does not start (exit code %s): %s", code, goes_on)

    async def _stops_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    def stop(self, number: int) -> None:
        """Drain all; the second time hand back what still runs, the third time kill."""
        self._signals.append(number)
        self._stopping.set()
        for worker in self._workers:
            worker.signal(signal.SIGTERM if len(self._signals) <= 2 else signal.SIGKILL)

    async def ended(self) -> int:
        """Wait for every worker, and return the code of them all."""
        codes = await asyncio.gather(*(worker.gone for worker in self._workers))
        if len(self._signals) > 1:
            return forced_by(self._signals[-1])
        return HANDED_BACK if HANDED_BACK in codes else OK


def _listed(paths: Sequence[str], folder: Path) -> str:
    shown = [os.path.relpath(path, folder) for path in paths[:3]]
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(shown) + more
