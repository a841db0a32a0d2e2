"""Connections to the master that Sentinels name, asked anew for each. Layer: storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from redis import Redis
from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.asyncio.connection import parse_url as parse_async_url
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.sentinel import Sentinel

from stepfleet.settings import SentinelUrl

#: Seconds for a Sentinel to answer, before the next one is asked.
PATIENCE: Final = 2.0


class _Sentinels:
    """Asks with connections of its own each time: questions are rare, and may be under way together."""

    def __init__(self, url: SentinelUrl, options: dict[str, Any]) -> None:
        self._hosts = url.hosts
        self._options = options

    async def discover_master(self, name: str) -> Any:
        """Return host and port of the master."""
        asked: Any = AsyncSentinel(self._hosts, sentinel_kwargs=self._options)
        try:
            return await asked.discover_master(name)
        finally:
            for sentinel in asked.sentinels:
                await sentinel.connection_pool.disconnect()


def master_connector(url: SentinelUrl, options: dict[str, Any]) -> Callable[[], AbstractConnection]:
    """Return a maker of connections to the master; `options` are those of redis-py's connections."""
    given = _given(url) | options
    sentinels: Any = _Sentinels(url, _for_sentinels(given))
    pool: Any = SentinelConnectionPool(url.master, sentinels, **given)
    return cast(Callable[[], AbstractConnection], pool.make_connection)


def master_client(url: SentinelUrl, options: dict[str, Any]) -> Redis:
    """Return a synchronous client of the master."""
    given = _given(url) | options
    sentinels: Any = Sentinel(url.hosts, sentinel_kwargs=_for_sentinels(given), **given)
    return cast(Redis, sentinels.master_for(url.master, redis_class=Redis))


def _given(url: SentinelUrl) -> dict[str, Any]:
    """Return what the URL says beside hosts: user, password, database, TLS, further options."""
    given: dict[str, Any] = dict(cast(Any, parse_async_url)(url.server))
    del given["host"]
    given.pop("port", None)
    if given.pop("connection_class", None) is SSLConnection:
        given["ssl"] = True
    return given


def _for_sentinels(given: dict[str, Any]) -> dict[str, Any]:
    """Return what holds for connections to Sentinels too: TLS, and no retries."""
    tls = {name: value for name, value in given.items() if name.startswith("ssl")}
    return (
        tls
        | {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE}
        | {name: given[name] for name in ("retry", "retry_on_error") if name in given}
    )
