"""Counts what processes send to Redis: round trips, and the commands in them.

Redis' own statistics do not tell a command from one inside of a script. So each process writes down
what it sends: a line for each round trip, with the names of its commands.
"""

from __future__ import annotations

import atexit
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import redis

from stepfleet.storage.link import Link
from stepfleet.storage.scripts import PARTS, script

#: The environment variable that tells a worker where to write down what it sends.
SENT = "FLEET_SENT"


#: What a worker sends now and then, whether or not there is work: how often within a round is a matter
#: of how long the round takes.
PERIODIC: Final = frozenset(
    {
        *("XREAD", "due", "beat", "reclaim", "audit", "janitor"),
        *("XPENDING", "LRANGE", "SMEMBERS", "PTTL", "LREM", "PEXPIRE"),
    }
)


def _name(command: Sequence[Any]) -> str:
    """Returns the name of a script, else that of the command; XREAD has two, as it waits or looks."""
    if command[0] == "EVALSHA":
        return _SCRIPTS[command[1]]
    return "XREAD-BLOCK" if command[0] == "XREAD" and "BLOCK" in command else str(command[0])


_SCRIPTS: Final = {script(name).sha: name for name in PARTS}


@contextmanager
def written_down(path: Path) -> Iterator[None]:
    """Writes down every round trip that this process makes meanwhile."""
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    call, calls = Link.call, Link.calls

    async def counted_call(self: Link, *command: Any, **more: Any) -> Any:
        os.write(log, f"{_name(command)}\n".encode())
        return await call(self, *command, **more)

    async def counted_calls(self: Link, commands: Any, **more: Any) -> Any:
        if commands:
            os.write(log, (" ".join(map(_name, commands)) + "\n").encode())
        return await calls(self, commands, **more)

    with patch.object(Link, "call", counted_call), patch.object(Link, "calls", counted_calls):
        yield
    os.close(log)


def write_down_all(path: Path) -> None:
    """Writes down every round trip of this process, which is a worker: those of its lease thread too."""
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    execute = redis.Redis.execute_command

    def counted(self: Any, *command: Any, **more: Any) -> Any:
        os.write(log, f"{_name(command)}\n".encode())
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

    def since(self) -> tuple[int, int, Counter[str]]:
        """Returns round trips, those of them that are not periodic, and commands, since the last time."""
        with self.path.open() as log:
            log.seek(self._offset)
            lines = log.read().splitlines()
            self._offset = log.tell()
        for_work = [line for line in lines if not PERIODIC.issuperset(line.split())]
        return len(lines), len(for_work), Counter(name for line in lines for name in line.split())
