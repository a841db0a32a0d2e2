"""The synchronous connection of the lease thread. Layer: storage."""

from __future__ import annotations

from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.retry import Retry

from stepfleet.address import sentinel_url
from stepfleet.errors import ConnectionLost, StoreRefused
from stepfleet.storage.fleet import BeatCall
from stepfleet.storage.link import is_demoted
from stepfleet.storage.scripts import Script
from stepfleet.storage.sentinel import master_client


def beat_caller(url: str, *, timeout: float) -> BeatCall:
    """Return a caller of scripts with a connection of its own and a reply time-out in seconds."""
    options: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
        "health_check_interval": 0,
    }
    sentinels = sentinel_url(url)
    client: Any = (
        master_client(sentinels, options)
        if sentinels
        else cast(Any, redis.Redis).from_url(url, **options)
    )

    def call(script: Script, keys: list[str], args: list[Any]) -> Any:
        command = ("EVALSHA", script.sha, len(keys), *keys, *args)
        try:
            try:
                return client.execute_command(*command)
            except NoScriptError:
                client.execute_command("SCRIPT LOAD", script.source)
                return client.execute_command(*command)
        except ResponseError as error:
            if is_demoted(error):
                # A master no more: the next connection may reach the new one.
                client.connection_pool.disconnect()
            raise StoreRefused(str(error)) from error
        except (RedisError, OSError) as error:
            raise ConnectionLost(str(error)) from error

    return call
