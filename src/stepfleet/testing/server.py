"""A real server and real worker processes, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from stepfleet.connect import Client
from stepfleet.embedded import supervisor
from stepfleet.embedded.server import find_server_binary
from stepfleet.errors import WorkflowRuntimeError

#: Seconds for a server or a worker to be there, on a machine that is busy.
START_S: Final = 60.0
#: Seconds for a worker to drain.
LEAVE_S: Final = 40.0
#: Seconds between two looks.
POLL_S: Final = 0.02


@contextmanager
def start_server(folder: Path) -> Generator[str]:
    """Start a server that keeps nothing, on a socket in `folder`, and give its URL.

    Raises:
        SettingsError: this machine has no server. WorkflowRuntimeError: it does not start.
    """
    socket = folder / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
    log = folder / "server.log"
    process = _started([str(find_server_binary()), *options], log, folder, {}, ends_with_us=True)
    try:
        _wait(process, log, lambda: socket.exists() and supervisor.ping(socket))
        yield f"unix://{socket}"
    finally:
        process.kill()
        process.wait()


class TestWorker:
    """One `workflow-worker` process."""

    __test__ = False

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def log(self) -> str:
        """Return what it logged so far."""
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """End it as a crash does: what it ran is taken over when its lease runs out."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Let it drain, and return its exit code."""
        self._process.terminate()
        return self._process.wait(LEAVE_S)


class ServerForTests:
    """A namespace on a real server, and the workers that a test starts there. A context manager."""

    def __init__(self, url: str, namespace: str, *, logs: Path, folder: Path) -> None:
        #: URL of the server.
        self.url = url
        #: The fleet on it that belongs to this test.
        self.namespace = namespace
        self._logs = logs
        self._folder = folder
        self._workers: list[TestWorker] = []

    def client(self, *, types: tuple[type, ...] = ()) -> Client:
        """Return a client of this fleet, for `async with`."""
        return Client(self.url, namespace=self.namespace, types=types)

    def start_worker(self, *targets: str, lease: str = "1s", sweep: str = "500ms") -> TestWorker:
        """Start a worker for `module:object` targets and return it when it reads.

        The folder that pytest was started for is on its path. With the short lease, another worker
        takes the work of a killed one over within two seconds.

        Raises:
            WorkflowRuntimeError: it ended; the message has its log.
        """
        number = len(self._workers)
        log, health = self._logs / f"worker-{number}.log", self._logs / f"worker-{number}.healthy"
        command = [sys.executable, "-m", "stepfleet.cli.worker", *targets]
        command += ["--redis-url", self.url, "--namespace", self.namespace]
        command += ["--lease", lease, "--health-file", str(health), "--log-format", "console"]
        command += ["--parent", str(os.getpid())]
        process = _started(command, log, self._folder, {"STEPFLEET_SWEEP": sweep})
        worker = TestWorker(process, log)
        self._workers.append(worker)
        _wait(process, log, health.exists)
        return worker

    def kill_worker(self, worker: TestWorker | None = None) -> None:
        """End a worker as a crash does: this one, or the one that was started last."""
        (worker or self._workers[-1]).kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()


def _started(
    command: list[str],
    log: Path,
    folder: Path,
    more: dict[str, str],
    *,
    ends_with_us: bool = False,
) -> subprocess.Popen[bytes]:
    # Settings of whoever runs the tests are not meant for them.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("STEPFLEET_") or name == "STEPFLEET_REDIS_SERVER"
    }
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**inherited, **more},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=supervisor.die_with_parent() if ends_with_us else None,  # noqa: PLW1509 - it calls one system function
        )


def _wait(process: subprocess.Popen[bytes], log: Path, is_there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not is_there():
        if process.poll() is not None:
            raise WorkflowRuntimeError(
                f"{process.args} ended with {process.returncode}:\n{log.read_text(errors='replace')}"
            )
        if time.monotonic() > deadline:
            raise WorkflowRuntimeError(
                f"{process.args} is not ready after {START_S:g} s:\n"
                f"{log.read_text(errors='replace')}"
            )
        time.sleep(POLL_S)
