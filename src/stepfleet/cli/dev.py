"""`stepfleet dev`: this folder's server and some workers, in the foreground, until Ctrl-C.

The workers are processes of their own, as on a fleet. They also hold the server, so that it stays
until the last one has drained, and they watch this process: none outlives it. Layer: cli.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from stepfleet import __version__
from stepfleet.cli.exits import CONFIG, HANDED_BACK, OK, USAGE, forced_by
from stepfleet.embedded.server import DIRECTORY, embedded_server

#: Seconds before a worker that died starts again: the first time, and at most.
RESTART_S: Final = (0.5, 10.0)
#: Seconds that a worker has to live so that its next restart is not delayed further.
STEADY_S: Final = 10.0
#: Seconds between two looks whether the first worker is ready.
LOOK_S: Final = 0.05
#: Bytes of the longest line that is shown.
LINE_LIMIT: Final = 16 * 1024 * 1024

#: A worker that ends so would end so again.
_HOPELESS: Final = (USAGE, CONFIG)
_COLOURS: Final = ("cyan", "yellow", "green", "magenta", "blue")


@click.command("dev", short_help="Run a server and workers for this folder.")
@click.argument("targets", nargs=-1, metavar="TARGET...")
@click.option("--workers", type=click.IntRange(1, 32), default=2, show_default=True)
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning, error or critical.")
def dev(targets: tuple[str, ...], workers: int, log_level: str | None) -> int:
    """Run a server and workers for this folder, in the foreground, until Ctrl-C.

    TARGET is module:object as for workflow-worker. The server keeps its data in .stepfleet/ and is
    found by every program that is started in this folder.
    """
    options = () if log_level is None else ("--log-level", log_level)
    with embedded_server(Path.cwd()) as url:
        click.echo(_banner(targets, workers, url))
        return asyncio.run(_run([*targets, *options], workers))


def _banner(targets: Sequence[str], workers: int, url: str) -> str:
    what = " ".join(targets) or "the workflows of pyproject.toml"
    return (
        f"stepfleet {__version__}: {_count(workers)} of {what}\n"
        f"  server   {url} (data in {DIRECTORY}/)\n"
        f"  connect  export STEPFLEET_REDIS_URL={url}\n"
        "  stop     Ctrl-C"
    )


def _count(workers: int) -> str:
    return f"{workers} worker" if workers == 1 else f"{workers} workers"


async def _run(arguments: Sequence[str], workers: int) -> int:
    crew = _Crew(arguments, workers)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, crew.stop, number)
    return await crew.run()


class _Crew:
    """The workers of one `stepfleet dev`."""

    def __init__(self, arguments: Sequence[str], workers: int) -> None:
        command = [sys.executable, "-m", "stepfleet.cli.worker", *arguments, "--embedded"]
        command += ["--log-format", "console", "--parent", str(os.getpid())]
        width = len(str(workers))
        self._members = [
            _Member(f"worker-{number:0{width}}", command, _COLOURS[number % len(_COLOURS)])
            for number in range(1, workers + 1)
        ]
        self._stopping = asyncio.Event()
        self._signals = 0
        self._hopeless = OK

    async def run(self) -> int:
        """Keep every worker running until `stop`, or until one cannot work at all; return the exit code."""
        first, *others = self._members
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep(first))
            # What is wrong with the target is so said once, not by every worker.
            while not (first.is_ready() or self._stopping.is_set()):  # noqa: ASYNC110 - it is a file
                await asyncio.sleep(LOOK_S)
            if not self._stopping.is_set():
                for member in others:
                    group.create_task(self._keep(member))
        if self._hopeless:
            return self._hopeless
        if self._signals > 1:
            return forced_by(signal.SIGINT)
        handed_back = any(member.code == HANDED_BACK for member in self._members)
        return HANDED_BACK if handed_back else OK

    def stop(self, number: int) -> None:
        """Drain all; the second time hand back what still runs, the third time kill."""
        self._signals += 1
        self._stopping.set()
        for member in self._members:
            member.signal(signal.SIGTERM if self._signals <= 2 else signal.SIGKILL)
        if self._signals == 1:
            click.echo("stopping: the workers finish their steps; Ctrl-C again hands them back")

    async def _keep(self, member: _Member) -> None:
        delay = RESTART_S[0]
        while not self._stopping.is_set():
            seconds = await member.live(self._stopping)
            if self._stopping.is_set():
                return
            if member.code in _HOPELESS:
                self._give_up(member.code)
                return
            delay = RESTART_S[0] if seconds > STEADY_S else min(delay * 2, RESTART_S[1])
            member.say(f"ended ({_ending(member.code)}), starts again in {delay:g} s")
            try:
                async with asyncio.timeout(delay):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    def _give_up(self, code: int) -> None:
        self._hopeless = code
        self._stopping.set()
        for member in self._members:
            member.signal(signal.SIGTERM)


class _Member:
    """One worker process and its successors."""

    def __init__(self, name: str, command: Sequence[str], colour: str) -> None:
        self._prefix = click.style(f"{name} |", fg=colour)
        # In the private folder, by a name of this process: a second `dev` may run here.
        self._health = Path(DIRECTORY, f"dev-{os.getpid()}-{name}").absolute()
        self._command = [*command, "--health-file", os.fspath(self._health)]
        self._process: asyncio.subprocess.Process | None = None
        self.code = OK

    def is_ready(self) -> bool:
        """Whether it has begun to read."""
        return self._health.exists()

    def say(self, text: str) -> None:
        """Print a line under its name."""
        click.echo(f"{self._prefix} {text}")

    def signal(self, number: int) -> None:
        """Send a signal if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def live(self, stopping: asyncio.Event) -> float:
        """Start the process, show what it prints, and return its age in seconds when it has ended."""
        clock = asyncio.get_running_loop().time
        began = clock()
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A group of its own: Ctrl-C reaches this process only, which then drains the workers.
            process_group=0,
            limit=LINE_LIMIT,
        )
        if stopping.is_set():  # meanwhile, when there was nothing to signal yet
            self.signal(signal.SIGTERM)
        await self._show(process)
        self.code = await process.wait()
        return clock() - began

    async def _show(self, process: asyncio.subprocess.Process) -> None:
        output = process.stdout
        while output is not None:
            try:
                line = await output.readline()
            except ValueError:
                line = b"(a line that is too long to show)\n"
            if not line:
                return
            self.say(line.decode(errors="replace").rstrip("\n"))


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
