"""Own one Redis server for a project folder and end it when nobody uses it any more.

Runs as a script in an isolated interpreter, and so imports nothing but the standard library: it
starts fast, and nothing that a user installs or edits can break it. The files in `.stepfleet`:

    supervisor.lock   locked by the starter of a supervisor, which inherits it: there is only one
    server.lock       locked by the supervisor, and its server inherits it: no data has two servers
    users.lock        shared by the processes that use the server; the supervisor waits for nobody
    url               exists from the server's first PONG to its end
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from urllib.parse import quote

SUPERVISOR_LOCK = "supervisor.lock"
SERVER_LOCK = "server.lock"
USERS_LOCK = "users.lock"
URL_FILE = "url"
LOG_FILE = "server.log"
SOCKET = "redis.sock"
#: of the temporary directory for the socket of a folder with a long path
PRIVATE_PREFIX = "stepfleet-"

#: bytes; the kernel's limit for a unix socket is 104 on macOS, 108 on Linux, with a closing zero
SOCKET_PATH_LIMIT = 103
#: seconds between two looks at a lock or a server that starts: well below what a person notices
POLL_S = 0.01
#: seconds between two looks at the users: rare enough for a laptop's battery
WATCH_S = 0.2
#: seconds; a server that answers takes far less, one that does not would block every user
PING_TIMEOUT_S = 1.0
#: seconds for the server to load its data, and for the previous server of the folder to be gone
START_TIMEOUT_S = 30.0
#: seconds for the server to end by itself; then it is killed, which loses nothing acknowledged
STOP_TIMEOUT_S = 10.0

#: Linux' prctl option: send a signal to this process when its parent dies
PR_SET_PDEATHSIG = 1


def try_lock(fd: int, operation: int) -> bool:
    """Locks an open file at once, or answers False when another process holds it."""
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_within(fd: int, operation: int, *, seconds: float) -> bool:
    """Locks an open file, waiting for other processes; answers False when they keep it too long."""
    deadline = time.monotonic() + seconds
    while not try_lock(fd, operation):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def open_lock(path: Path) -> int:
    """Opens a file that exists to be locked; closing it frees the lock."""
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def ping(socket_path: Path) -> bool:
    """Tells whether a server answers on a unix socket and has loaded its data."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PING_TIMEOUT_S)
        try:
            connection.connect(os.fspath(socket_path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def die_with_parent() -> Callable[[], None]:
    """Makes a function for a new child process that ties its life to this thread; Linux only.

    Elsewhere it does nothing: there an orphaned server is shut down by the next attach.
    """
    if sys.platform != "linux":
        return lambda: None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def in_child() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have died before the line above, and then no signal comes.
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return in_child


def supervise(directory: Path, binary: Path, linger_s: float) -> None:
    """Runs a server until nobody has used it for `linger_s` seconds, it dies, or SIGTERM comes.

    Raises:
        TimeoutError: the previous server does not end, or the new one does not answer.
    """
    server_lock = open_lock(directory / SERVER_LOCK)
    if not lock_within(server_lock, fcntl.LOCK_EX, seconds=START_TIMEOUT_S):
        raise TimeoutError("the previous server of this folder does not end")
    users = open_lock(directory / USERS_LOCK)
    socket_path = _place_socket(directory)
    server = _start_server(directory, binary, socket_path, server_lock)
    try:
        _wait_until_ready(server, socket_path)
        _write_url(directory, socket_path)
        _watch(server, users, linger_s)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (directory / URL_FILE).unlink(missing_ok=True)
        _stop_server(server)
        remove_socket(directory, socket_path)


def remove_socket(directory: Path, socket_path: Path) -> None:
    """Removes a server's socket, and the private directory that was made for it."""
    socket_path.unlink(missing_ok=True)
    if socket_path.parent != directory:
        socket_path.parent.rmdir()


def _place_socket(directory: Path) -> Path:
    usual = directory / SOCKET
    if len(os.fsencode(usual)) <= SOCKET_PATH_LIMIT:
        return usual
    # 32 bytes hold the prefix, mkdtemp's random letters and the socket's name.
    roomy = len(os.fsencode(tempfile.gettempdir())) <= SOCKET_PATH_LIMIT - 32
    private = tempfile.mkdtemp(prefix=PRIVATE_PREFIX, dir=None if roomy else "/tmp")  # noqa: S108 - mkdtemp makes it private
    return Path(private) / SOCKET


def _start_server(
    directory: Path, binary: Path, socket_path: Path, server_lock: int
) -> subprocess.Popen[bytes]:
    options = {
        "port": "0",
        "unixsocket": os.fspath(socket_path),
        "unixsocketperm": "700",
        "dir": os.fspath(directory),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    # preexec_fn is safe here: this process has a single thread.
    return subprocess.Popen(
        [binary, *arguments],
        stdin=subprocess.DEVNULL,
        pass_fds=(server_lock,),
        preexec_fn=die_with_parent(),  # noqa: PLW1509 - see above
    )


def _wait_until_ready(server: subprocess.Popen[bytes], socket_path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ping(socket_path):
        if server.poll() is not None:
            raise SystemExit(f"{server.args} ended with code {server.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError("the server does not answer")
        time.sleep(POLL_S)


def _write_url(directory: Path, socket_path: Path) -> None:
    unfinished = directory / f"{URL_FILE}.new"
    unfinished.write_text(f"unix://{quote(os.fspath(socket_path))}\n", encoding="utf-8")
    unfinished.replace(directory / URL_FILE)


def _watch(server: subprocess.Popen[bytes], users: int, linger_s: float) -> None:
    idle_since: float | None = None
    while server.poll() is None:
        if try_lock(users, fcntl.LOCK_EX):
            now = time.monotonic()
            idle_since = now if idle_since is None else idle_since
            if now - idle_since >= linger_s:
                # The lock stays: a newcomer waits until this process is gone, then starts another.
                return
            fcntl.flock(users, fcntl.LOCK_UN)
        else:
            idle_since = None
        time.sleep(min(WATCH_S, max(linger_s, POLL_S)))


def _stop_server(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _stop_on_signal(_signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def main(arguments: list[str]) -> None:
    """Detaches from its starter, then supervises; arguments: DIRECTORY BINARY LINGER_SECONDS."""
    directory, binary, linger_s = Path(arguments[0]), Path(arguments[1]), float(arguments[2])
    # The starter waits for the first process, so it never has a zombie; the second leads no session
    # and so can never get a terminal.
    if os.fork():
        os._exit(0)
    os.chdir(directory)
    os.umask(0o077)
    signal.signal(signal.SIGTERM, _stop_on_signal)
    (directory / SUPERVISOR_LOCK).write_text(f"{os.getpid()}\n", encoding="utf-8")
    supervise(directory, binary, linger_s)


if __name__ == "__main__":
    main(sys.argv[1:])
