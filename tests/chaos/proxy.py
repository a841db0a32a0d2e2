"""A TCP proxy in front of a Redis server that knows where commands and replies begin and end.

It loses replies, delays, leaves connections half open, partitions, and calls a test at the moment at
which a command is about to reach Redis or its reply the worker: the moment to kill that worker.
It runs in a thread of its own, so that tests that block do not stop it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple

import msgpack

from stepfleet.storage.scripts import script

#: What becomes of a command or a reply: "close" ends its connection, "silence" leaves it open and
#: dead as one whose peer is gone. Losing one reply and nothing behind it is what TCP never does.
Order = Literal["forward", "close", "silence"]
#: The reply of a blocking read that found nothing.
NOTHING: Final = b"*-1\r\n"
#: Bytes of one line or value: larger than any that a worker sends.
_LARGEST: Final = 64 * 1024 * 1024


class Exchange(NamedTuple):
    """A command on its way, or its reply."""

    #: What the connection calls itself, '' before it does: the heart beats on one without a name.
    connection: str
    words: tuple[bytes, ...]
    reply: bytes = b""

    @property
    def brings_work(self) -> bool:
        """Whether it is a reply of a read with entries in it."""
        return self.words[0] == b"XREADGROUP" and self.reply.startswith(b"*") and not self.is_empty

    @property
    def arguments(self) -> Sequence[bytes]:
        """Those of a command; those of a commit, which go as one value, one by one."""
        if self.words[0] == b"EVALSHA" and self.words[1].decode() == script("commit").sha:
            return msgpack.unpackb(self.words[-1], raw=True)
        return self.words[1:]

    @property
    def is_empty(self) -> bool:
        """Whether it is a reply of a read without entries."""
        return self.reply in (NOTHING, b"*0\r\n")


class Proxy:
    """Forwards commands and replies until it is told otherwise. Its orders may change at any time."""

    def __init__(self, upstream: int, *, knows_redis: bool = True) -> None:
        self._upstream = upstream
        #: False: bytes are forwarded as they come, as for replicas and Sentinels.
        self.knows_redis = knows_redis
        #: Asked about each command before Redis gets it, and about each reply before its asker does.
        self.command: Callable[[Exchange], Order] = _forward
        self.reply: Callable[[Exchange], Order] = _forward
        #: Seconds that a command or a reply of so many bytes takes, one after the other.
        self.latency: Callable[[int], float] = _no_time
        #: Seconds by which a replica behind this proxy is late.
        self.replica_late = 0.0
        #: Names of the connections that lost a reply to `lose_next_reply`.
        self.lost: list[str] = []
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._closed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}"
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(ready)), name="proxy", daemon=True
        )
        self._thread.start()
        ready.wait()

    # -- orders ------------------------------------------------------------------------------------

    def lose_next_reply(self, name: str, then: Literal["close", "silence"]) -> None:
        """Loses the next reply with content to a connection of this name, and all that follow on it."""

        def order(exchange: Exchange) -> Order:
            has_content = exchange.reply.startswith(b"*") and not exchange.is_empty
            if exchange.connection != name or not has_content:
                return "forward"
            self.reply = _forward
            self.lost.append(name)
            return then

        self.reply = order

    def cut(self) -> None:
        """Partitions: nothing passes, new connections neither; what is on its way arrives after `heal`."""
        self._soon(self._open.clear)

    def heal(self) -> None:
        """Ends a partition."""
        self._soon(self._open.set)

    def forget(self) -> None:
        """Leaves every connection half open: no byte passes any more, and nobody is told."""

        def silence() -> None:
            for pair in self._pairs:
                pair.silent = True

        self._soon(silence)

    def lead_to(self, upstream: int) -> None:
        """Leads new connections to another server."""
        self._upstream = upstream

    def close(self) -> None:
        """Ends every connection."""
        self._soon(self._closed.set)
        self._thread.join()

    # -- the thread --------------------------------------------------------------------------------

    async def _serve(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._accepted, sock=self._listener, limit=_LARGEST)
        ready.set()
        await self._closed.wait()
        server.close()  # `asyncio.run` cancels what is still connected

    def _soon(self, order: Callable[[], object]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(order)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # In a task of our own: that of a coroutine given to `start_server` complains when cancelled.
        task = asyncio.create_task(self._accept(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        try:
            there = await asyncio.open_connection("127.0.0.1", self._upstream, limit=_LARGEST)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(self, (reader, writer), there)
        self._pairs.add(pair)
        try:
            await pair.run()
        finally:
            self._pairs.discard(pair)

    async def passing(self, size: int) -> None:
        """Returns when so many bytes have passed."""
        await self._open.wait()
        if seconds := self.latency(size):
            await asyncio.sleep(seconds)
            await self._open.wait()


Side = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Pair:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, here: Side, there: Side) -> None:
        self._proxy = proxy
        self._here = here
        self._there = there
        self._name = ""
        self._asked: deque[tuple[bytes, ...]] = deque()
        self._is_replica = False
        self.silent = False

    async def run(self) -> None:
        """Forwards until an end closes or an order says so."""
        if self._proxy.knows_redis:
            ways = (self._commands(), self._replies())
        else:
            here, there = self._here, self._there
            ways = (self._bytes(here[0], there[1]), self._bytes(there[0], here[1]))
        pumps = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for writer in (self._here[1], self._there[1]):
                writer.close()  # what was written before is still sent

    async def _bytes(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                await self._proxy.passing(len(data))
                self._is_replica = self._is_replica or b"REPLCONF" in data
                if self._is_replica and self._proxy.replica_late:
                    await asyncio.sleep(self._proxy.replica_late)
                if not self.silent:
                    target.write(data)
                    await target.drain()

    async def _commands(self) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                raw, words = await _command(self._here[0])
                await self._proxy.passing(len(raw))
                if words[:2] == (b"CLIENT", b"SETNAME"):
                    self._name = words[2].decode()
                order = self._proxy.command(Exchange(self._name, words))
                if order == "close":
                    return
                self.silent = self.silent or order == "silence"
                if not self.silent:
                    self._asked.append(words)
                    self._there[1].write(raw)
                    await self._there[1].drain()

    async def _replies(self) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                raw = await _reply(self._there[0])
                await self._proxy.passing(len(raw))
                if self.silent:
                    continue
                order = self._proxy.reply(Exchange(self._name, self._asked.popleft(), raw))
                if order == "close":
                    return
                self.silent = order == "silence"
                if not self.silent:
                    self._here[1].write(raw)
                    await self._here[1].drain()


async def _command(reader: asyncio.StreamReader) -> tuple[bytes, tuple[bytes, ...]]:
    raw = [await reader.readuntil(b"\r\n")]
    words: list[bytes] = []
    for _ in range(int(raw[0][1:])):
        raw.append(head := await reader.readuntil(b"\r\n"))
        raw.append(body := await reader.readexactly(int(head[1:]) + 2))
        words.append(body[:-2])
    return b"".join(raw), tuple(words)


async def _reply(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n")
    size = int(head[1:]) if head[:1] in b"$*" else -1
    if head[:1] == b"$" and size >= 0:
        return head + await reader.readexactly(size + 2)
    return head + b"".join([await _reply(reader) for _ in range(size)])


def _forward(_: Exchange) -> Order:
    return "forward"


def _no_time(_: int) -> float:
    return 0.0
