"""Connections to the master that Sentinels name, asked anew for each. Layer: storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from redis import Redis
from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.asyncio.connection import parse_url as parse_async_url
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.sentinel import MasterNotFoundError, Sentinel

from stepfleet.address import SentinelUrl

#: Seconds for a Sentinel to answer, before the next one is asked.
PATIENCE: Final = 2.0
#: What the URL says of the Sentinels' own users, and what redis-py calls it.
_LOGIN: Final = {"sentinel_username": "username", "sentinel_password": "password"}


class _Sentinels:
    """Asks with connections of its own each time: questions are rare, and may be under way together."""

    def __init__(self, url: SentinelUrl, options: dict[str, Any]) -> None:
        self._hosts = url.hosts
        self._options = options

    async def discover_master(self, name: str) -> Any:
        """Return host and port of the master.

        Raises:
            AuthenticationError: no Sentinel names it, and one refuses the user or password.
            MasterNotFoundError: no Sentinel names it.
        """
        # Not redis-py's own, whose error is a page of the options of each connection.
        asked: Any = AsyncSentinel(self._hosts, sentinel_kwargs=self._options)
        silent: list[str] = []
        refusal: AuthenticationError | None = None
        try:
            for (host, port), sentinel in zip(self._hosts, asked.sentinels, strict=True):
                try:
                    state = (await sentinel.sentinel_masters()).get(name)
                except AuthenticationError as error:
                    refusal = AuthenticationError(
                        f"the Sentinel {host}:{port} refuses: {error}; its own password is "
                        "?sentinel_password=... in the URL, its user ?sentinel_username=..."
                    )
                except (RedisConnectionError, RedisTimeoutError) as error:
                    silent.append(f"{host}:{port}: {error}")
                else:
                    if state and asked.check_master_state(state, name):
                        return state["ip"], state["port"]
        finally:
            for sentinel in asked.sentinels:
                await sentinel.connection_pool.disconnect()
        raise refusal or _not_found(name, silent)


class _ThreadSentinels(Sentinel):
    """The same for the lease thread, which begins when the Sentinels have been asked before."""

    def discover_master(self, service_name: str) -> Any:
        """Return host and port of the master."""
        try:
            return super().discover_master(service_name)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        except MasterNotFoundError:
            raise _not_found(service_name) from None


def _not_found(name: str, silent: Sequence[str] = ()) -> MasterNotFoundError:
    why = f" ({'; '.join(silent)})" if silent else ""
    return MasterNotFoundError(f"no Sentinel names a master called {name} that is up{why}")


def master_connector(url: SentinelUrl, options: dict[str, Any]) -> Callable[[], AbstractConnection]:
    """Return a maker of connections to the master; `options` are those of redis-py's connections."""
    given = _given(url) | options
    sentinels: Any = _Sentinels(url, _for_sentinels(given))
    pool: Any = SentinelConnectionPool(url.master, sentinels, **given)
    return cast(Callable[[], AbstractConnection], pool.make_connection)


def master_client(url: SentinelUrl, options: dict[str, Any]) -> Redis:
    """Return a synchronous client of the master."""
    given = _given(url) | options
    asking = _for_sentinels(given)
    sentinels: Any = cast(Any, _ThreadSentinels)(url.hosts, sentinel_kwargs=asking, **given)
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
    """Take out what is for connections to Sentinels only, and add what holds for them too: TLS, no retries."""
    login = {name: given.pop(key) for key, name in _LOGIN.items() if key in given}
    tls = {name: value for name, value in given.items() if name.startswith("ssl")}
    return (
        login
        | tls
        | {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE}
        | {name: given[name] for name in ("retry", "retry_on_error") if name in given}
    )
