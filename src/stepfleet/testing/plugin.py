"""pytest fixtures for tests of workflows; installed with stepfleet, they need nothing but pytest."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import pytest

from stepfleet.embedded.memory import MemoryRuntime
from stepfleet.testing.server import ServerForTests, start_server
from stepfleet.testing.virtual_time import run_in_virtual_time


@pytest.fixture
def stepfleet_memory() -> MemoryRuntime:
    """A `memory://` that this test has for itself: `Flow(runtime=stepfleet_memory).run()`."""
    return MemoryRuntime()


@pytest.fixture
def stepfleet_virtual_time() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine on `memory://` and a clock that skips waits: `run_in_virtual_time`."""
    return run_in_virtual_time


@pytest.fixture(scope="session")
def stepfleet_server_url() -> Generator[str]:
    """URL of a real server that the tests of this session share; it goes with them."""
    # Not pytest's own directory: the path of a unix socket has to be short.
    with (
        tempfile.TemporaryDirectory(prefix="stepfleet-") as folder,
        start_server(Path(folder)) as url,
    ):
        yield url


_numbers = itertools.count(1)


@pytest.fixture
def stepfleet_server(
    stepfleet_server_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Generator[ServerForTests]:
    """A real server, with a namespace of this test's own, and the worker processes that it starts."""
    namespace = f"test-{next(_numbers)}"
    server = ServerForTests(
        stepfleet_server_url, namespace, logs=tmp_path, folder=request.config.rootpath
    )
    with server:
        yield server
