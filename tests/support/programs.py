"""The command lines as processes: started as an operator starts them, watched from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stepfleet.embedded.supervisor import die_with_parent
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]
WORKER = "stepfleet.cli.worker"
OPERATOR = "stepfleet"
#: seconds for anything to happen on a loaded machine
PATIENCE = 60.0

#: The kernel ties a child's life to the *thread* that started it: this one ends with the process.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="program-starter")


class Program:
    """One running program; `folder` is its working directory and gets its output."""

    _started = 0

    def __init__(self, module: str, *arguments: object, folder: Path, **settings: object) -> None:
        Program._started += 1
        self._out = folder / f"out-{Program._started}.txt"
        self._err = folder / f"err-{Program._started}.txt"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = _STARTER.submit(
                lambda: subprocess.Popen(
                    [sys.executable, "-m", module, *map(str, arguments)],
                    cwd=folder,
                    env=_environment(settings),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    process_group=0,  # as a shell does it
                    preexec_fn=die_with_parent(),
                )
            ).result()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def out(self) -> str:
        """What it wrote to stdout until now."""
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        """What it wrote to stderr until now."""
        return self._err.read_text(errors="replace")

    def says(self, text: str, *, times: int = 1) -> None:
        """Waits until stdout holds a text.

        Raises:
            AssertionError: it ends, or some seconds pass, without it.
        """

        def said_or_ended() -> bool:
            return self.out.count(text) >= times or self.process.poll() is not None

        wait_until(said_or_ended, PATIENCE)
        assert self.out.count(text) >= times, f"{text!r} is not in:\n{self.out}\n{self.err}"

    def send(self, number: int = signal.SIGTERM) -> None:
        """Sends it a signal."""
        self.process.send_signal(number)

    def press_ctrl_c(self) -> None:
        """Sends SIGINT to its process group, as a terminal does."""
        os.killpg(self.pid, signal.SIGINT)

    def code(self, timeout: float = PATIENCE) -> int:
        """Waits for its end and returns its exit code."""
        return self.process.wait(timeout)

    def end(self) -> None:
        """Ends it as a crash does."""
        self.process.kill()
        self.process.wait()


def _environment(settings: dict[str, object]) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("STEPFLEET_") and name not in {"REDIS_URL", "COLUMNS"}
    }
    path = os.pathsep.join(filter(None, [os.fspath(ROOT), os.environ.get("PYTHONPATH")]))
    given = {name: str(value) for name, value in settings.items()}
    return inherited | {"PYTHONPATH": path} | given
