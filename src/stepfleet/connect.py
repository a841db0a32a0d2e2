"""URL -> connections -> `Client`, and the runtime that `Workflow.run()` takes by default."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Iterable
from typing import Any

from stepfleet.address import check_redis_url
from stepfleet.client import PATIENCE
from stepfleet.client import Client as _Client
from stepfleet.codec import Limits
from stepfleet.embedded.server import dev_server_url
from stepfleet.errors import SettingsError
from stepfleet.settings import Settings, resolve_redis_url
from stepfleet.storage.beat import beat_caller
from stepfleet.storage.bounds import Bounds
from stepfleet.storage.fleet import Fleet
from stepfleet.storage.keys import Keys
from stepfleet.storage.link import REPLY_TIMEOUT, Link, connector
from stepfleet.workflow import Runtime


def fleet_of(url: str, settings: Settings) -> Fleet:
    """Return the fleet at a URL; nothing is connected yet.

    Raises:
        SettingsError: the URL is none of redis://, rediss:// and unix://.
    """
    check_redis_url(url)
    if url.startswith("memory:"):
        raise SettingsError(
            "memory:// lives inside one event loop, so no client can connect to it: call "
            "Workflow.run(), which uses it when STEPFLEET_REDIS_URL is not set, or name a server"
        )
    connect_timeout = settings.connect_timeout.total_seconds()
    connect = connector(url, connect_timeout=connect_timeout)
    return Fleet(
        keys=Keys(settings.namespace),
        link=lambda name: Link(connect, name=f"stepfleet-{name}"),
        call_now=lambda: beat_caller(url, timeout=REPLY_TIMEOUT),
        beat_call=lambda: beat_caller(url, timeout=settings.lease.total_seconds() / 3),
        bounds=bounds_of(settings),
        limits=limits_of(settings),
        tracing=settings.tracing,
        inbox_limit=settings.inbox_limit,
        keeps_history=settings.history == "on",
    )


def limits_of(settings: Settings) -> Limits:
    """Return how large and how many events may be."""
    return Limits(
        max_bytes=int(settings.event_limit),
        max_depth=settings.depth_limit,
        fan_out=settings.fan_out_limit,
        collected=settings.collect_limit,
    )


def bounds_of(settings: Settings) -> Bounds:
    """Return how much is kept in Redis."""
    return Bounds(
        retention=settings.retention,
        stream_limit=settings.stream_limit,
        pending_runs_limit=settings.pending_runs_limit,
        waiters_limit=settings.waiters_limit,
        deliveries_limit=settings.deliveries_limit,
    )


class Client(_Client):
    """Starts runs on a fleet and attaches to them, from any process.

    An async context manager, and a `Runtime`: `Flow(runtime=client).run(...)` submits to the fleet.

    Args:
        url: the Redis server; without it `STEPFLEET_REDIS_URL`, `REDIS_URL`, `[tool.stepfleet]` in
        pyproject.toml,
            or the development server of this folder.
        namespace: the fleet on that server.
        types: classes that results and events may carry beside those of the workflows.
        history: the runs that it starts keep a history, for internal events and drawings of what they did.

    Raises:
        SettingsError: no server is named anywhere, or a setting is wrong.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str | None = None,
        types: Iterable[type] = (),
        history: bool | None = None,
    ) -> None:
        chosen = None if history is None else ("on" if history else "off")
        settings = Settings(namespace=namespace, history=chosen)
        super().__init__(
            fleet_of(resolve_url(url, settings), settings), types=types, patience=PATIENCE
        )


def resolve_url(url: str | None, settings: Settings) -> str:
    """Return the URL of the Redis server: the argument, the environment, pyproject, this folder's server.

    Raises:
        SettingsError: none of them names one.
    """
    return resolve_redis_url(url, settings, dev_server=dev_server_url)


#: The default client of each event loop, with the task that closes it.
_clients: weakref.WeakKeyDictionary[
    asyncio.AbstractEventLoop, tuple[_Client, asyncio.Task[None]]
] = weakref.WeakKeyDictionary()


def default_runtime() -> Runtime:
    """Return what `Workflow.run()` uses when it is told nothing: `STEPFLEET_REDIS_URL`, else `memory://`."""
    url = os.environ.get("STEPFLEET_REDIS_URL", "")
    if not url or url.startswith("memory:"):
        # Clients and workers of a fleet do without: 12 MB and 0.1 s.
        from stepfleet.embedded.memory import memory_runtime  # noqa: PLC0415

        return memory_runtime()
    loop = asyncio.get_running_loop()
    known: Any = _clients.get(loop)
    if known is None:
        client = Client(url)
        known = _clients[loop] = client, loop.create_task(_closed_with_its_loop(client))
    return known[0]


async def _closed_with_its_loop(client: _Client) -> None:
    """Close a client that nobody else closes: `asyncio.run` cancels this when the program is done."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        _clients.pop(asyncio.get_running_loop(), None)
        await client.close()
