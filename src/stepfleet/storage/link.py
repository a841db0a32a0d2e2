"""One connection to Redis: calls go out in order, replies come back in order, errors are ours. Layer: storage.

Built on redis-py's `Connection` (TLS, authentication, Sentinel), without its client: no response
callbacks, no pool, commands packed by hiredis, which halves the cost of a call, and replies parsed
where they arrive (`exchange`), which halves it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, cast

import hiredis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from stepfleet.address import sentinel_url
from stepfleet.errors import ConnectionLost, StoreRefused
from stepfleet.storage.exchange import Exchange, exchange_over
from stepfleet.storage.greeting import greet
from stepfleet.storage.scripts import Script
from stepfleet.storage.sentinel import master_connector

Arg = str | bytes | int | float

#: How often a script is loaded that Redis has lost again meanwhile.
LOADS: Final = 5
#: Turns a command into bytes, in C.
pack: Final[Callable[[tuple[Arg, ...]], bytes]] = cast(Any, hiredis).pack_command

#: Seconds without an answer after which a connection counts as lost.
REPLY_TIMEOUT = 5.0
#: Seconds for a connection to be there, with its authentication: a stopped server accepts connections
#: and answers nothing.
CONNECT_TIMEOUT = 15.0
#: Seconds that a blocking read waits at Redis: below `REPLY_TIMEOUT`, short enough to notice a
#: half-open socket.
BLOCK = 2.0


def connector(url: str, *, connect_timeout: float = 10.0) -> Callable[[], AbstractConnection]:
    """Return a maker of connections to `url` (redis://, rediss://, redis+sentinel:// or unix://)."""
    options: dict[str, Any] = {
        "protocol": 2,
        "decode_responses": False,
        "socket_timeout": None,
        "socket_connect_timeout": connect_timeout,
        "health_check_interval": 0,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
    }
    if url.startswith("unix:"):
        del options["socket_connect_timeout"]
    else:
        options["socket_keepalive"] = True
    if sentinels := sentinel_url(url):
        return master_connector(sentinels, options)
    pool = cast(Any, ConnectionPool).from_url(url, **options)
    return cast(Callable[[], AbstractConnection], pool.make_connection)


class Link:
    """One connection. Calls may come from many tasks: each waits for its turn.

    A call that fails closes the connection, the next one opens a new one: after a lost reply
    nothing can be read from the old connection any more.
    """

    #: Whether scripts can take one msgpack value apart there.
    unpacks = True

    def __init__(self, connect: Callable[[], AbstractConnection], *, name: str = "") -> None:
        self._connect = connect
        self._name = name
        self._connection: AbstractConnection | None = None
        self._exchange: Exchange | None = None
        self._has_greeted = False
        self._turn = asyncio.Lock()
        #: Calls made so far (a pipeline or a script is one): what the cost guard counts.
        self.calls_made = 0
        self._client_id: int | None = None
        self._interrupting: asyncio.Task[None] | None = None
        self._interrupt_wanted = False
        self._reading = False
        self._bell: Link | None = None

    async def call(self, *command: Arg, timeout: float = REPLY_TIMEOUT) -> Any:
        """Send one command and return its raw reply.

        Raises:
            ConnectionLost: Redis did not answer; the command may or may not have been carried out.
            StoreRefused: Redis answered with an error.
        """
        (reply,) = await self._ask(pack(command), 1, timeout)
        if isinstance(reply, ResponseError):
            raise _refused(reply) from reply
        return reply

    async def calls(
        self, commands: Sequence[tuple[Arg, ...]], *, timeout: float = REPLY_TIMEOUT
    ) -> list[Any]:
        """Send several commands at once and return their replies; an error reply stands as `StoreRefused`.

        Raises:
            ConnectionLost: as `call`.
        """
        if not commands:
            return []
        packed = b"".join(pack(command) for command in commands)
        replies = await self._ask(packed, len(commands), timeout)
        return [_refused(one) if isinstance(one, ResponseError) else one for one in replies]

    async def script(self, script: Script, keys: Sequence[Arg], args: Sequence[Arg]) -> Any:
        """Run a script, loading it when Redis does not know it (a restart forgets scripts).

        Raises:
            ConnectionLost, StoreRefused: as `call`.
        """
        command = ("EVALSHA", script.sha, len(keys), *keys, *args)
        for _ in range(LOADS):
            try:
                return await self.call(*command)
            except StoreRefused as refusal:
                if not isinstance(refusal.__cause__, NoScriptError):
                    raise
            # Redis may be restarted between these two as well.
            await self.call("SCRIPT", "LOAD", script.source)
        return await self.call(*command)

    async def read(
        self, before: Sequence[Arg], after: Sequence[Arg], *, block: float = BLOCK
    ) -> Any:
        """Send a blocking read (`before`, BLOCK, `after`) and return its reply, None when nothing came."""
        self._reading = True
        try:
            if self._client_id is None:
                self._client_id = await self.call("CLIENT", "ID")
            return await self.call(
                *before, "BLOCK", int(block * 1000), *after, timeout=block + REPLY_TIMEOUT
            )
        finally:
            self._reading = False

    def interrupt(self) -> None:
        """Make a blocking read that is under way return now, with nothing."""
        self._interrupt_wanted = True
        if self._interrupting is None or self._interrupting.done():
            self._interrupting = asyncio.create_task(self._unblock(), name="stepfleet-interrupt")

    async def _unblock(self) -> None:
        if self._bell is None:
            self._bell = Link(self._connect)
        while self._interrupt_wanted:
            self._interrupt_wanted = False
            # The read may be on its way to Redis still: ask until it was found waiting, or has
            # returned.
            while self._reading:
                try:
                    if self._client_id is not None and await self._bell.call(
                        "CLIENT", "UNBLOCK", self._client_id
                    ):
                        break
                except (ConnectionLost, StoreRefused):
                    return  # the read ends by itself within BLOCK seconds
                await asyncio.sleep(0.002)

    async def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        connection, self._connection = self._connection, None
        self._exchange = self._client_id = None
        if self._interrupting is not None:
            self._interrupting.cancel()
        if self._bell is not None:
            await self._bell.close()
        if connection is not None:
            await connection.disconnect()

    async def _ask(self, packed: bytes, count: int, timeout: float) -> list[Any]:
        """Return replies; map errors, and close when a reply may still be on its way."""
        async with self._turn:
            try:
                exchange = self._exchange
                # Closed while it was idle: no call was lost with it, so this one need not fail for it.
                if exchange is None or exchange.is_closed:
                    exchange = await self._opened()
                self.calls_made += 1
                replies = await exchange.ask(packed, count, timeout)
            except BaseException as error:
                await self._drop()
                if isinstance(error, ResponseError):
                    raise _refused(error) from error
                if isinstance(error, AuthenticationError):
                    # For redis-py a ConnectionError, but no later try with this password will succeed.
                    raise StoreRefused(str(error)) from error
                if isinstance(
                    error, (RedisConnectionError, RedisTimeoutError, OSError, TimeoutError)
                ):
                    raise ConnectionLost(f"Redis did not answer: {error or 'time-out'}") from error
                if isinstance(error, RedisError):
                    raise StoreRefused(str(error)) from error
                raise
            for reply in replies:
                if isinstance(reply, ResponseError) and is_demoted(reply):
                    # A master no more: the next connection may reach the new one.
                    await self._drop()
            return replies

    async def _opened(self) -> Exchange:
        await self._drop()
        connection = self._connection = self._connect()
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await greet(connection, self._name, is_first=not self._has_greeted)
        self._has_greeted = True
        exchange = self._exchange = exchange_over(connection)
        return exchange

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._exchange = self._client_id = None
        if connection is not None:
            with suppress(OSError, RedisError):
                await connection.disconnect(nowait=True)


def is_demoted(error: Exception) -> bool:
    """Tell whether a server is a master no more, or one that is cut off from its replicas."""
    return isinstance(error, ReadOnlyError) or str(error).startswith("NOREPLICAS")


def _refused(error: ResponseError) -> StoreRefused:
    refusal = StoreRefused(str(error) or type(error).__name__)
    refusal.__cause__ = error
    return refusal
