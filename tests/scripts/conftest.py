"""One server of each kind under every script test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import redis
from fakeredis import FakeRedis, FakeServer

from tests.scripts.rig import Rig


def connect(kind: str, urls: dict[str, str]) -> Any:
    """Returns a synchronous client of a server of this kind."""
    if kind == "fake":
        return cast(Any, FakeRedis)(server=FakeServer(version=(7,)), protocol=2)
    if kind not in urls:
        pytest.skip(f"this machine has no {kind}")
    return cast(Any, redis.Redis).from_url(urls[kind], protocol=2)


@pytest.fixture(params=["redis", "valkey", "fake"])
def rig(request: pytest.FixtureRequest, server_urls: dict[str, str]) -> Iterator[Rig]:
    client = connect(request.param, server_urls)
    rig = Rig(client, request.param)
    yield rig
    client.close()


@pytest.fixture
def real_rig(server_urls: dict[str, str]) -> Iterator[Rig]:
    client = connect("redis", server_urls)
    rig = Rig(client, "redis")
    yield rig
    client.close()
