"""What goes over one open connection: packed commands out, replies in. Layer: storage.

redis-py opens connections (TLS, authentication, Sentinel). From then on replies are parsed where they
arrive, without its stream, its parser's coroutines and its response callbacks: half the time until the
reply is there.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol, cast

import hiredis
from redis.asyncio.connection import AbstractConnection, DefaultParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError

#: How redis-py turns the text of an error into an exception.
_error_of: Final = cast(Any, DefaultParser).parse_error

#: Bytes that one read from the socket brings at most.
BUFFER: Final = 64 * 1024

_CLOSED: Final = "Connection closed by server."


class Exchange(Protocol):
    """One open connection. One call at a time."""

    @property
    def is_closed(self) -> bool:
        """Whether the other end closed it while no reply was awaited."""
        ...

    async def ask(self, packed: bytes, count: int, timeout: float) -> list[Any]:
        """Send commands and return their replies; a `redis.ResponseError` stands as a value.

        Raises:
            redis.ConnectionError, OSError: the connection is lost.
            TimeoutError: the last reply did not come within `timeout` seconds.
        """
        ...


def exchange_over(connection: AbstractConnection) -> Exchange:
    """Return the exchange over a connection that is open and on which nothing is under way."""
    writer: object = getattr(connection, "_writer", None)
    if isinstance(writer, asyncio.StreamWriter):
        return _Direct(writer.transport)
    return _ThroughConnection(connection)


class _Direct(asyncio.BufferedProtocol):
    """Replies are parsed as they arrive from the socket.

    It has a buffer of its own: without one, each read from the socket takes and gives back 256 KiB.
    """

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        # redis-py's own protocol hears of everything but the data: it closes the connection.
        self._streams = cast(asyncio.Protocol, transport.get_protocol())
        self._parser: Any = cast(Any, hiredis).Reader(
            protocolError=InvalidResponse, replyError=_error_of
        )
        self._buffer = memoryview(bytearray(BUFFER))
        self._replies: list[Any] = []
        self._expected = 0
        self._answered: asyncio.Future[None] | None = None
        self._deadline = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self.is_closed = transport.is_closing()
        transport.set_protocol(self)

    async def ask(self, packed: bytes, count: int, timeout: float) -> list[Any]:
        if self.is_closed:
            raise RedisConnectionError(_CLOSED)
        self._replies, self._expected = [], count
        self._deadline = self._loop.time() + timeout
        # One timer for all calls: to set and cancel one for each takes 4 us.
        if self._alarm is None or self._alarm.when() > self._deadline:
            self._set_alarm()
        answered = self._answered = self._loop.create_future()
        try:
            # Nothing else is sent before the reply is there, so what waits to be sent stays small.
            self._transport.write(packed)
            await answered
        finally:
            self._answered = None
        return self._replies

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self._parser.feed(self._buffer, 0, nbytes)
            while (reply := self._parser.gets(False)) is not False:
                self._replies.append(reply)
        except Exception as error:  # noqa: BLE001 - what arrives is no reply
            self._fail(error)
            return
        if self._answered is None:
            if self._replies:  # nobody has asked: what follows would be taken for other answers
                self._replies = []
                self.is_closed = True
            return
        if len(self._replies) >= self._expected and not self._answered.done():
            # A server that hangs up after a reply (`-ERR max number of clients reached`) says why.
            lost = next(
                (one for one in self._replies if isinstance(one, RedisConnectionError)), None
            )
            if lost is None:
                self._answered.set_result(None)
            else:
                self._fail(lost)

    def eof_received(self) -> None:
        self._streams.eof_received()
        self._fail(RedisConnectionError(_CLOSED))

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.connection_lost(exc)
        if self._alarm is not None:
            self._alarm.cancel()
        self._fail(exc or RedisConnectionError(_CLOSED))

    def pause_writing(self) -> None:
        self._streams.pause_writing()

    def resume_writing(self) -> None:
        self._streams.resume_writing()

    def _fail(self, error: Exception) -> None:
        self.is_closed = True
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(self._deadline, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._alarm = None
        if self._answered is None or self._answered.done():
            return
        if self._loop.time() < self._deadline:
            self._set_alarm()
        else:
            self._fail(TimeoutError())


class _ThroughConnection:
    """Whatever has no socket: a server in this process."""

    #: It is never closed by the other end.
    is_closed = False

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    async def ask(self, packed: bytes, count: int, timeout: float) -> list[Any]:
        replies: list[Any] = []
        connection = self._connection
        async with asyncio.timeout(timeout):
            await connection.send_packed_command(packed, check_health=False)
            for _ in range(count):
                try:
                    replies.append(cast(Any, await connection.read_response(disable_decoding=True)))
                except ResponseError as error:
                    replies.append(error)
        return replies
