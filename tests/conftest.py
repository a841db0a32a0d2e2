"""Fixtures of every test: real servers, one of each kind for the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

from tests.support.servers import RedisServer, available_binaries

#: arq pins an older redis-py: its tests run where it is installed, which is `make test-redis5`.
collect_ignore = [] if find_spec("arq") else ["scheduling"]

# How long an example takes says how busy this machine is.
settings.register_profile(
    "patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def no_server_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may reach a server that somebody uses."""
    for name in os.environ.keys() & {"REDIS_URL", "STEPFLEET_REDIS_URL"}:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def server_urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Starts a server of each kind that this machine has."""
    binaries = available_binaries()
    missing = {"redis", "valkey"} - binaries.keys()
    assert not (missing and os.environ.get("CI")), f"CI has to test on {missing} too"
    servers = {
        kind: RedisServer(binary, tmp_path_factory.mktemp(kind), appendonly=False)
        for kind, binary in binaries.items()
    }
    for server in servers.values():
        server.start()
    yield {kind: server.url for kind, server in servers.items()}
    for server in servers.values():
        server.stop()
