"""The network between simulated processes and Redis, and what goes wrong on it.

A connection keeps the order of its commands, as TCP does; nothing else is in order. Every command
arrives after a delay of its own, and its reply comes back after another one. What is lost on the
way is drawn from the seed: the command, the reply, the connection, or everything from now on
without a word (half-open). A command that was sent may arrive long after its sender gave up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from stepfleet.clock import Clock
from stepfleet.storage.bounds import Bounds
from stepfleet.storage.fleet import Fleet
from stepfleet.storage.keys import Keys
from stepfleet.storage.link import Arg, Link
from tests.simulation.loop import OWNER, Process, SimLoop
from tests.simulation.server import EPOCH, Server
from tests.simulation.workload import LEASE

#: Seconds that a command or a reply is on its way: from, to.
LATENCY = (0.0002, 0.004)


@dataclass(frozen=True, slots=True)
class Weather:
    """How likely it is, per command, that something goes wrong with it."""

    #: The connection is reset before the command arrives.
    lost_command: float = 0.0
    #: The command is carried out, and the connection is reset before the reply arrives.
    lost_reply: float = 0.0
    #: From this command on nothing passes any more in either direction, and nobody is told.
    half_open: float = 0.0
    #: The command is carried out, and from its reply on nothing passes.
    half_closed: float = 0.0
    #: The command or its reply takes `slow_by` seconds at most.
    slow: float = 0.0
    slow_by: float = 7.0


FAIR = Weather()


class Network:
    """Carries commands to the server and replies back, in virtual time."""

    def __init__(
        self, loop: SimLoop, server: Server, random: Random, trace: Callable[..., None]
    ) -> None:
        self.loop = loop
        self.server = server
        self.weather = FAIR
        self.trace = trace
        self._random = random
        self._numbers = 0
        #: Connections as the server knows them, by id.
        self._open: dict[int, SimConnection] = {}
        #: Who waits for entries: connection -> the command without its BLOCK.
        self._blocked: dict[SimConnection, list[bytes]] = {}
        self._partitioned: set[str] = set()
        self._connecting: list[tuple[str, asyncio.Future[Any]]] = []
        self._is_down = False
        #: By how many ms the clock of each host is wrong.
        self.skews_ms: dict[str, int] = {}

    # -- what goes wrong at large ------------------------------------------------------------------

    def partition(self, process: Process) -> None:
        """Holds back all that a process sends and receives; TCP sends it again afterwards."""
        self._partitioned.add(process.name)

    def heal(self, process: Process) -> None:
        """Lets what was held back pass."""
        self._partitioned.discard(process.name)
        for name, healed in self._connecting:
            if name == process.name:
                _set(healed, None)
        self._connecting = [one for one in self._connecting if not one[1].done()]
        for connection in [one for one in self._open.values() if one.process is process]:
            connection.flush()

    @property
    def is_sound(self) -> bool:
        """Whether nothing goes wrong on it now."""
        return self.weather is FAIR and not self._partitioned and not self._is_down

    def go_down(self, *, forget_scripts: bool) -> None:
        """Stops the server: every connection is reset, and none is accepted."""
        self._is_down = True
        if forget_scripts:
            self.server.forget_scripts()
        for connection in list(self._open.values()):
            self.reset(connection)

    def come_up(self) -> None:
        """Starts the server again, with all its data."""
        self._is_down = False

    def vanish(self, process: Process, *, silently: bool) -> None:
        """The host of a killed process closes its connections, or nobody does."""
        for connection in [one for one in self._open.values() if one.process is process]:
            if silently:
                connection.cut = True
            else:
                connection.hang_up()

    def reset(self, connection: SimConnection) -> None:
        """Both ends learn that the connection is gone."""
        self.forget(connection)
        connection.fail("Connection reset by peer")

    # -- the server's end --------------------------------------------------------------------------

    def delay(self) -> float:
        """Returns how long something takes from here to there."""
        weather = self.weather
        if weather.slow and self._random.random() < weather.slow:
            return self._random.uniform(0.01, weather.slow_by)
        return self._random.uniform(*LATENCY)

    def accident(self) -> str:
        """Returns what goes wrong with the next command, '' for nothing."""
        weather = self.weather
        if weather is FAIR:
            return ""
        drawn = self._random.random()
        for name in ("lost_command", "lost_reply", "half_open", "half_closed"):
            drawn -= getattr(weather, name)
            if drawn < 0:
                return name
        return ""

    async def accept(self, connection: SimConnection) -> None:
        """Connects, or refuses."""
        while connection.process.name in self._partitioned:
            healed = self.loop.create_future()
            self._connecting.append((connection.process.name, healed))
            await healed
        await self._elapsed(self.delay() + self.delay())
        if self._is_down:
            raise RedisConnectionError("Connection refused")
        self._numbers += 1
        connection.number = self._numbers
        self._open[self._numbers] = connection

    async def _elapsed(self, delay: float) -> None:
        future = self.loop.create_future()
        self.loop.in_world(delay, _set, future, None)
        await future

    def is_partitioned(self, process: Process) -> bool:
        """Whether nothing passes to and from a process."""
        return process.name in self._partitioned

    def is_open(self, connection: SimConnection) -> bool:
        """Whether the server believes that the connection is there."""
        return self._open.get(connection.number) is connection

    def forget(self, connection: SimConnection) -> None:
        """The server sees that a connection is closed."""
        self._open.pop(connection.number, None)
        self._blocked.pop(connection, None)

    def arrive(self, connection: SimConnection, command: list[bytes], accident: str) -> None:
        """A command reaches the server."""
        if not self.is_open(connection):
            return
        name = command[0].upper()
        if name == b"CLIENT":
            reply = self._about_clients(connection, command)
        elif b"BLOCK" in command[:8]:
            at = command.index(b"BLOCK")
            seconds = int(command[at + 1]) / 1000
            command = [*command[:at], *command[at + 2 :]]
            reply = self._carry_out(connection, command)
            if not reply:
                self._blocked[connection] = command
                self.loop.in_world(seconds, self._give_up, connection, command)
                return
        else:
            reply = self._carry_out(connection, command)
        connection.answer(reply, accident)
        if name in (b"EVALSHA", b"XADD"):
            self._serve_blocked()

    def _carry_out(self, connection: SimConnection, command: list[bytes]) -> Any:
        reply = self.server.execute(command)
        self.trace(connection.process.name, connection.number, command, reply)
        return reply

    def _serve_blocked(self) -> None:
        for connection, command in list(self._blocked.items()):
            if self._blocked.get(connection) is not command:
                continue
            reply = self.server.execute(command)
            if reply:
                del self._blocked[connection]
                self.trace(connection.process.name, connection.number, command, reply)
                connection.answer(reply, "")

    def _give_up(self, connection: SimConnection, command: list[bytes]) -> None:
        if self._blocked.get(connection) is command:
            del self._blocked[connection]
            connection.answer(None, "")

    def _about_clients(self, connection: SimConnection, command: list[bytes]) -> Any:
        match command[1].upper():
            case b"ID":
                return connection.number
            case b"UNBLOCK":
                other = self._open.get(int(command[2]))
                if other is None or other not in self._blocked:
                    return 0
                del self._blocked[other]
                other.answer(None, "")
                return 1
            case _:
                return b"OK"


class SimConnection:
    """One connection, as `Link` uses those of redis-py."""

    def __init__(self, network: Network, process: Process) -> None:
        self._network = network
        self._loop = network.loop
        self.process = process
        self.number = 0
        #: Nothing passes any more, and nobody was told.
        self.cut = False
        self._closed = False
        self._replies: deque[Any] = deque()
        self._error: str | None = None
        self._reader: asyncio.Future[None] | None = None
        #: When the last thing sent arrives: what follows cannot overtake it.
        self._up = 0.0
        self._down = 0.0
        #: What a partition holds back, in order.
        self._held: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    # -- the client's end --------------------------------------------------------------------------

    async def connect(self) -> None:
        """Connects."""
        await self._network.accept(self)

    async def send_command(self, *command: str) -> None:
        """Sends a command."""
        self._send([part.encode() for part in command])

    async def send_packed_command(self, data: bytes, *, check_health: bool = True) -> None:
        """Sends commands that are packed already."""
        for command in _unpacked(data):
            self._send(command)

    async def read_response(self, *, disable_decoding: bool = False) -> Any:
        """Waits for the next reply."""
        while not self._replies:
            if self._error is not None:
                raise RedisConnectionError(self._error)
            self._reader = self._loop.create_future()
            await self._reader
        reply = self._replies.popleft()
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    async def disconnect(self, nowait: bool = False) -> None:
        """Closes the connection; what was sent is on its way all the same."""
        self.hang_up()

    # -- the wire ----------------------------------------------------------------------------------

    def hang_up(self) -> None:
        """Tells the server, behind all that was sent before."""
        if not self._closed:
            self._closed = True
            self._later("up", self._network.forget, self)

    def fail(self, why: str) -> None:
        """Lets the client see an error."""
        self._error = self._error or why
        self._wake()

    def answer(self, reply: Any, accident: str) -> None:
        """Sends a reply back."""
        if accident == "lost_reply":
            self._network.forget(self)
            self._later("down", self.fail, "Connection reset by peer")
        elif accident == "half_closed":
            self.cut = True
        elif not self.cut:
            self._later("down", self._receive, reply)

    def flush(self) -> None:
        """Lets pass what a partition held back."""
        while self._held:
            function, arguments = self._held.popleft()
            function(*arguments)

    def _send(self, command: list[bytes]) -> None:
        if self._error is not None or self._closed:
            raise RedisConnectionError(self._error or "Connection closed")
        accident = self._network.accident()
        if accident == "half_open":
            self.cut = True
        if self.cut:
            return
        if accident == "lost_command":
            self._later("up", self._network.reset, self)
        else:
            self._later("up", self._network.arrive, self, command, accident)

    def _later(self, way: str, function: Callable[..., None], *arguments: Any) -> None:
        now = self._loop.time()
        # A moment later than what went before: timers of one moment have no order.
        when = max(now + self._network.delay(), (self._up if way == "up" else self._down) + 1e-7)
        if way == "up":
            self._up = when
        else:
            self._down = when
        self._loop.in_world(when - now, self._pass, function, arguments)

    def _pass(self, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self._held or self._network.is_partitioned(self.process):
            self._held.append((function, arguments))
        elif not self.cut:
            function(*arguments)

    def _receive(self, reply: Any) -> None:
        if not self._closed:
            self._replies.append(reply)
            self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class _Beats(Link):
    """The connection of the lease thread, which waits for a third of a lease only."""

    def __init__(self, connect: Callable[[], Any], thread: Process) -> None:
        super().__init__(connect)
        self.thread = thread

    async def call(self, *command: Arg, timeout: float = LEASE / 3) -> Any:
        return await super().call(*command, timeout=timeout)


def in_a_thread(beats: Callable[[Any, Any], Awaitable[None]], begun: set[str]) -> Any:
    """Returns `Heartbeat._beats` as a thread: it goes on while the event loop of its process is blocked.

    From its first wait on: the wait of a task of the process ends when its loop turns again. Then `begun`
    has the name whose lease it renews.
    """

    async def thread_beats(heartbeat: Any, link: _Beats) -> None:
        OWNER.set(link.thread)
        begun.add(heartbeat.consumer)
        await beats(heartbeat, link)

    return thread_beats


class SimClock(Clock):
    """The clock of one simulated process: virtual, and off by what the network notes of its host."""

    def __init__(self, network: Network, process: Process) -> None:
        super().__init__()
        self._loop = network.loop
        self._skews_ms = network.skews_ms
        self._host = process.name

    def steady(self) -> float:
        """Returns virtual seconds."""
        return self._loop.time()

    def wall_ms(self) -> int:
        """Returns what the host's clock shows."""
        return int((EPOCH + self._loop.time()) * 1000) + self._skews_ms[self._host]


def fleet(
    network: Network,
    process: Process,
    random: Random,
    bounds: Bounds,
    *,
    thread: Process | None = None,
) -> Fleet:
    """Returns the fleet as one simulated process sees it; `thread` renews its lease."""
    network.skews_ms[process.name] = random.randint(-3_600_000, 3_600_000)

    def connect() -> Any:
        return SimConnection(network, process)

    return Fleet(
        keys=Keys("sim"),
        link=lambda name: _Beats(connect, thread) if name == "beat" and thread else Link(connect),
        beat_call=None,  # no thread of the operating system: a task that runs as one
        bounds=bounds,
        clock=SimClock(network, process),
        random=random,
        host=process.name,
        pid=1,
    )


def _set(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _unpacked(data: bytes) -> list[list[bytes]]:
    commands: list[list[bytes]] = []
    at = 0
    while at < len(data):
        end = data.index(b"\r\n", at)
        count, at = int(data[at + 1 : end]), end + 2
        command: list[bytes] = []
        for _ in range(count):
            end = data.index(b"\r\n", at)
            start = end + 2
            at = start + int(data[at + 1 : end])
            command.append(data[start:at])
            at += 2
        commands.append(command)
    return commands
