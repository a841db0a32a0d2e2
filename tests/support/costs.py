"""Counts what processes send to Redis: round trips and the commands in them, by kind.

Redis' own statistics cannot tell a command from one inside of a script. So each process writes down
what it sends: one line per round trip, with the commands that it holds, appended to a file.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import redis

from stepfleet.storage.link import Link

#: The environment variable that tells a worker where to write down what it sends.
SENT = "FLEET_SENT"


def write_down(path: str) -> None:
    """Write down every round trip that this process makes from now on."""
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    call, calls, beat = Link.call, Link.calls, redis.Redis.execute_command

    async def counted_call(self: Link, *command: Any, **more: Any) -> Any:
        os.write(log, f"{command[0]}\n".encode())
        return await call(self, *command, **more)

    async def counted_calls(self: Link, commands: Any, **more: Any) -> Any:
        if commands:
            os.write(log, (" ".join(command[0] for command in commands) + "\n").encode())
        return await calls(self, commands, **more)

    def counted_beat(self: Any, *command: Any, **more: Any) -> Any:
        os.write(log, f"{command[0]}\n".encode())
        return beat(self, *command, **more)

    Link.call, Link.calls = counted_call, counted_calls  # type: ignore[method-assign]
    redis.Redis.execute_command = counted_beat  # type: ignore[method-assign]


class Sent:
    """What was written down since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def since(self) -> tuple[int, Counter[str]]:
        """Returns round trips and commands since the last time."""
        with self._path.open() as log:
            log.seek(self._offset)
            lines = log.read().splitlines()
            self._offset = log.tell()
        return len(lines), Counter(name for line in lines for name in line.split())
