"""Counts what processes send to Redis: round trips, and the commands in them.

Redis' own statistics do not tell a command from one inside of a script. So each process writes down
what it sends: a line for each round trip, with the names of its commands.
"""

from __future__ import annotations

import atexit
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import redis

from stepfleet.storage.link import Link

#: The environment variable that tells a worker where to write down what it sends.
SENT = "FLEET_SENT"


@contextmanager
def written_down(path: Path) -> Iterator[None]:
    """Writes down every round trip that this process makes meanwhile."""
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    call, calls = Link.call, Link.calls

    async def counted_call(self: Link, *command: Any, **more: Any) -> Any:
        os.write(log, f"{command[0]}\n".encode())
        return await call(self, *command, **more)

    async def counted_calls(self: Link, commands: Any, **more: Any) -> Any:
        if commands:
            os.write(log, (" ".join(command[0] for command in commands) + "\n").encode())
        return await calls(self, commands, **more)

    with patch.object(Link, "call", counted_call), patch.object(Link, "calls", counted_calls):
        yield
    os.close(log)


def write_down_all(path: Path) -> None:
    """Writes down every round trip of this process, which is a worker: those of its lease thread too."""
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    execute = redis.Redis.execute_command

    def counted(self: Any, *command: Any, **more: Any) -> Any:
        os.write(log, f"{command[0]}\n".encode())
        return execute(self, *command, **more)

    redis.Redis.execute_command = counted  # type: ignore[method-assign]
    for_life = written_down(path)
    for_life.__enter__()
    atexit.register(for_life.__exit__, None, None, None)


class Sent:
    """What was written down since the last look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        path.touch()

    def since(self) -> tuple[int, Counter[str]]:
        """Returns round trips and commands since the last time."""
        with self.path.open() as log:
            log.seek(self._offset)
            lines = log.read().splitlines()
            self._offset = log.tell()
        return len(lines), Counter(name for line in lines for name in line.split())
