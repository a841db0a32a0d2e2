"""The address of a server: what a URL says, whether it can be used, how it is shown without its password."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

_SCHEMES: Final = ("redis", "rediss", "unix", "memory")
#: What a URL of Sentinels starts with, and the scheme of the server behind them.
_SENTINEL: Final = {"redis+sentinel://": "redis", "rediss+sentinel://": "rediss"}
_SENTINEL_PORT: Final = 26379


def mask_url(url: str) -> str:
    """Return `url` with its passwords, wherever they stand, replaced by `***`."""
    url = re.sub(r"(://[^:@/?]*):.*@", r"\1:***@", url, flags=re.DOTALL)
    return re.sub(r"(?i)([?&](?:sentinel_)?password=)[^&#]*", r"\1***", url)


def check_redis_url(url: str) -> str:
    """Return `url` when a client can be made from it.

    Raises:
        ValueError: the scheme, host, port, path or database is wrong; never shows the password.
    """
    if sentinels := sentinel_url(url):
        check_redis_url(sentinels.server)
        return url
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port != 0
    except ValueError:
        raise ValueError("the port or host cannot be read (escape / ? # @ in a password)") from None
    if parts.scheme not in _SCHEMES:
        raise ValueError(
            "the URL starts with redis://, rediss://, redis+sentinel://, unix:// or memory://"
        )
    if not port_is_valid:
        raise ValueError("the port is 1 to 65535")
    if reason := _wrong_place(parts):
        raise ValueError(reason)
    return url


class SentinelUrl(NamedTuple):
    """What `redis+sentinel://user:password@host:26379,host2:26379/name/0?option=1` says."""

    #: Where Sentinels are.
    hosts: tuple[tuple[str, int], ...]
    #: What they call the master.
    master: str
    #: All the rest as the URL of a plain server, whose host means nothing.
    server: str


def sentinel_url(url: str) -> SentinelUrl | None:
    """Return what a URL of Sentinels says, None for every other URL.

    Raises:
        ValueError: a host, a port or the name of the master is missing or wrong; never shows the password.
    """
    start = next((prefix for prefix in _SENTINEL if url.startswith(prefix)), None)
    if start is None:
        return None
    place, mark, options = url.removeprefix(start).partition("?")
    where, _, path = place.partition("/")
    user, at, hosts = where.rpartition("@")
    master, _, database = path.partition("/")
    if not master:
        raise ValueError(
            f"the name of the master stands behind its Sentinels: {start}host:26379,host2:26379/name"
        )
    server = f"{_SENTINEL[start]}://{user}{at}master/{database}{mark}{options}"
    return SentinelUrl(tuple(map(_host_and_port, hosts.split(","))), master, server)


def _host_and_port(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0:
        raise ValueError("a host or port of a Sentinel cannot be read: host:26379,host2:26379")
    return host, port or _SENTINEL_PORT


def _wrong_place(parts: SplitResult) -> str | None:
    if parts.scheme == "memory":
        return "memory:// has nothing behind it" if parts.netloc or parts.path else None
    if parts.scheme == "unix":
        return None if parts.path.strip("/") else "unix:// names a socket: unix:///path/redis.sock"
    if not parts.hostname:
        return f"{parts.scheme}:// names a host: {parts.scheme}://localhost:6379/0"
    database = parts.path.strip("/")
    return None if not database or database.isdecimal() else "the database behind the / is a number"
