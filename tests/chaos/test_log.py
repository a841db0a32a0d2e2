"""What docs/guarantees.md says about an append-only file that was cut within a transaction."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from tests.support.servers import RedisServer, available_binaries
from tests.support.wait import eventually

WRITE = "for _, name in ipairs(KEYS) do redis.call('SET', name, ARGV[1]) end"


@pytest.fixture(name="server")
def _server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(
        available_binaries()["redis"], tmp_path, options=("--appendfsync", "always")
    )
    server.start()
    yield server
    server.kill()


async def test_a_rewrite_makes_a_cut_log_whole_before_the_next_restart(
    server: RedisServer, tmp_path: Path
) -> None:
    """Without the rewrite Redis 7.0 applies half of the transaction at its second restart."""
    with cast(Any, redis.Redis)(port=server.port) as client:
        client.eval(WRITE, 3, "a", "b", "c", "whole")
        client.eval(WRITE, 3, "a", "b", "c", "torn")
        server.kill()
        _cut(tmp_path)
        server.start()
        assert client.mget("a", "b", "c") == [b"whole"] * 3

        client.bgrewriteaof()
        await eventually(lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0, 20.0)
        client.eval(WRITE, 2, "d", "e", "later")
        server.restart()

        assert client.mget("a", "b", "c") == [b"whole"] * 3


def _cut(directory: Path) -> None:
    (log,) = directory.rglob("*.incr.aof")
    with log.open("r+b") as file:
        file.truncate(log.read_bytes().rindex(b"torn"))  # the third of three writes
