"""What memory:// leans on in the pinned fakeredis: a new minor version has to pass this before it is taken."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import fakeredis
import pytest
import pytest_asyncio
from fakeredis import FakeServer

from stepfleet.embedded.memory import Bell, MemoryLink
from stepfleet.errors import StoreRefused


@pytest_asyncio.fixture
async def link() -> AsyncIterator[MemoryLink]:
    server = FakeServer(version=(7,))
    link = MemoryLink(server, Bell(), "test")
    yield link
    await link.close()


async def script(link: MemoryLink, source: str, *args: Any) -> Any:
    return await link.call("EVAL", source, 0, *args)


def test_the_version_is_the_pinned_one() -> None:
    assert fakeredis.__version__.startswith("2.40.")


async def test_a_group_read_without_block_gives_new_entries_once(link: MemoryLink) -> None:
    await link.call("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")
    await link.call("XADD", "s", "1-0", "f", b"\x00\xff")
    read = ("XREADGROUP", "GROUP", "g", "me", "COUNT", 10, "STREAMS", "s", ">")
    assert await link.call(*read) == [[b"s", [[b"1-0", [b"f", b"\x00\xff"]]]]]
    assert await link.call(*read) is None


async def test_a_blocking_group_read_is_still_broken_there(link: MemoryLink) -> None:
    """The reason why memory:// wakes its readers by itself; when this fails, that can go."""
    await link.call("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")
    reply = await link.call(
        *("XREADGROUP", "GROUP", "g", "me", "COUNT", 1, "BLOCK", 60_000, "STREAMS", "s", ">")
    )
    assert not reply


async def test_pending_rows_are_found_by_owner(link: MemoryLink) -> None:
    await link.call("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")
    await link.call("XADD", "s", "1-0", "f", "v")
    await link.call("XREADGROUP", "GROUP", "g", "me", "STREAMS", "s", ">")
    owned = "return #redis.call('XPENDING', 's', 'g', '1-0', '1-0', 1, ARGV[1])"
    assert await script(link, owned, "me") == 1
    assert await script(link, owned, "other") == 0
    await link.call("XCLAIM", "s", "g", "other", 0, "1-0", "JUSTID")
    assert await script(link, owned, "me") == 0
    assert (await link.call("XPENDING", "s", "g", "-", "+", 10, "other"))[0][3] == 1


async def test_an_error_caught_in_lua_has_a_text(link: MemoryLink) -> None:
    await link.call("SET", "k", "text")
    source = (
        "local ok, e = pcall(redis.call, 'HGET', 'k', 'f') "
        "if type(e) == 'table' and e.err then return e.err end return tostring(e)"
    )
    assert b"WRONGTYPE" in await script(link, source)


async def test_long_variadic_writes_and_the_clock_work_in_lua(link: MemoryLink) -> None:
    source = (
        "local v = {} for i = 1, 4000 do v[i] = i end redis.call('RPUSH', 'l', unpack(v)) "
        "return {redis.call('LLEN', 'l'), redis.call('TIME')[1]}"
    )
    length, seconds = await script(link, source)
    assert length == 4000
    assert int(seconds) > 1_700_000_000


async def test_an_unknown_script_is_refused_as_redis_does(link: MemoryLink) -> None:
    with pytest.raises(StoreRefused) as refusal:
        await link.call("EVALSHA", "0" * 40, 0)
    assert type(refusal.value.__cause__).__name__ == "NoScriptError"


async def test_a_read_returns_with_the_next_write_of_this_process(link: MemoryLink) -> None:
    import asyncio

    reading = asyncio.create_task(link.read(("XREAD",), ("STREAMS", "s", "0"), block=30.0))
    await asyncio.sleep(0)
    await link.call("XADD", "s", "1-0", "f", "v")
    async with asyncio.timeout(20):
        assert (await reading)[0][1][0][0] == b"1-0"


def test_a_function_that_a_script_keeps_beside_the_commands_is_there_for_the_next_one() -> None:
    """Scripts of memory:// are compiled once: what stands at their SHA only calls what was compiled."""
    server = FakeServer(version=(7,))
    client = fakeredis.FakeRedis(server=server)
    client.eval("redis['kept'] = (loadstring or load)('return {KEYS[1], ARGV[1]}')", 0)
    server.script_cache[b"sha"] = b"return redis['kept']()"
    assert client.evalsha("sha", 1, "key", "first") == [b"key", b"first"]
    assert client.evalsha("sha", 1, "other", "second") == [b"other", b"second"]
