"""How a connection begins, and what is said when TLS is why it does not. Layer: storage.

A plain server waits for the rest of a TLS greeting, and a TLS server hangs up on a plain one: without
a closer look both read as an outage, for which workers wait without end.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import Final

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection
from redis.asyncio.sentinel import SentinelManagedConnection
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError

from stepfleet.errors import StoreRefused

#: Seconds after which a TLS greeting without an answer is worth a closer look.
SILENCE: Final = 2.0
#: Seconds for the closer look.
LOOK: Final = 2.0
#: What a plain server may answer to a PING.
_PLAIN: Final = (b"+PONG", b"-NOAUTH", b"-NOPERM", b"-DENIED", b"-LOADING", b"-MASTERDOWN")


async def greet(connection: AbstractConnection, name: str, *, is_first: bool) -> None:
    """Open a connection and give it a name that `CLIENT LIST` shows.

    Only the first one to a server is looked at closely when it fails: later it is an outage, which should
    not last longer for it.

    Raises:
        StoreRefused: client and server do not agree about TLS, or about the certificate.
        redis.RedisError, OSError: anything else.
    """
    try:
        await _opened(connection, is_first=is_first)
        if name:
            await connection.send_command("CLIENT", "SETNAME", name)
            await connection.read_response()
    except (ResponseError, AuthenticationError, BusyLoadingError):
        raise  # it was understood
    except (RedisError, OSError) as error:
        reason = await _misunderstanding(connection, error) if is_first else None
        if reason is None:
            raise
        raise StoreRefused(reason) from error


async def _opened(connection: AbstractConnection, *, is_first: bool) -> None:
    if not is_first or not isinstance(connection, SSLConnection):
        await connection.connect()
        return
    opening = asyncio.ensure_future(connection.connect())
    try:
        done, _ = await asyncio.wait({opening}, timeout=SILENCE)
        if not done and (reason := await _misunderstanding(connection, None)):
            raise StoreRefused(reason)
        await opening
    finally:
        opening.cancel()


async def _misunderstanding(
    connection: AbstractConnection, error: BaseException | None
) -> str | None:
    """Return what client and server do not agree about; None when that is not why it failed."""
    if not isinstance(connection, Connection) or isinstance(connection, SentinelManagedConnection):
        return None  # a socket of this machine, or a server that no Sentinel may have named yet
    if isinstance(connection, SSLConnection):
        if (refusal := _of_certificate(error)) is not None:
            return refusal
        if await _speaks_plainly(connection.host, int(connection.port)):
            return (
                "the server speaks no TLS: say redis:// instead of rediss://, or give it a tls-port"
            )
    elif await _speaks_tls(connection.host, int(connection.port)):
        return "the server speaks TLS: say rediss:// instead of redis://"
    return None


def _of_certificate(error: BaseException | None) -> str | None:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    reason = error.verify_message.rstrip(".")
    if "mismatch" in reason:
        return (
            f"the server's certificate is for another name ({reason}): say the name that it is for"
        )
    return (
        f"the server's certificate is not trusted ({reason}): name the authority behind it in the URL, such "
        "as ?ssl_ca_certs=/etc/ssl/redis-ca.pem"
    )


async def _speaks_plainly(host: str, port: int) -> bool:
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(LOOK):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"PING\r\n")
                return (await reader.readline()).startswith(_PLAIN)
            finally:
                writer.close()
    return False


async def _speaks_tls(host: str, port: int) -> bool:
    anyone = ssl.create_default_context()
    anyone.check_hostname = False
    anyone.verify_mode = ssl.CERT_NONE  # nothing is told to this server
    with suppress(OSError, TimeoutError):  # ssl.SSLError is an OSError
        async with asyncio.timeout(LOOK):
            _, writer = await asyncio.open_connection(host, port, ssl=anyone)
            writer.close()
            return True
    return False
