"""One connection as `Link` uses it: what the other end may do to it. A server of a few lines answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from stepfleet.errors import ConnectionLost, StoreRefused
from stepfleet.storage.link import Link, connector

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def linked(serve: Serve) -> AsyncGenerator[Link]:
    """A link to a server that greets as Redis does and then serves its one connection after the other."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    link = Link(connector(f"redis://127.0.0.1:{port}"))
    try:
        yield link
    finally:
        await link.close()
        server.close()
        await server.wait_closed()


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The name of the next command; what redis-py says of itself is answered."""
    while True:
        count = int((await reader.readline())[1:] or b"0")
        words: list[bytes] = []
        for _ in range(count):
            length = int((await reader.readline())[1:])
            words.append((await reader.readexactly(length + 2))[:-2])
        if not words:
            raise ConnectionResetError
        if words[0] != b"CLIENT":
            return words[0]
        writer.write(b"+OK\r\n")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it, some turns of the loop."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)


def is_closed(link: Link) -> bool:
    """Whether a link has seen that the other end closed its connection."""
    exchange = link._exchange  # pyright: ignore[reportPrivateUsage]
    return exchange is not None and exchange.is_closed


async def test_a_reply_may_come_in_pieces() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader, writer)
        for piece in (b"*2\r\n$5\r\nhe", b"llo\r\n:", b"7\r\n"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        await asked(reader, writer)

    async with linked(serve) as link:
        assert await link.call("ANY") == [b"hello", 7]


async def test_several_replies_come_in_order_and_an_error_stands_among_them() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in (b":1\r\n", b"-WRONGTYPE no\r\n", b"$-1\r\n"):
            await asked(reader, writer)
            writer.write(reply)
        await asked(reader, writer)

    async with linked(serve) as link:
        first, error, last = await link.calls([("A",), ("B",), ("C",)])
    assert (first, str(error), last) == (1, "WRONGTYPE no", None)
    assert isinstance(error, StoreRefused)


async def test_a_server_that_hangs_up_is_a_lost_connection_and_the_next_call_has_a_new_one() -> (
    None
):
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        await asked(reader, writer)
        if len(connections) > 1:
            writer.write(b":1\r\n")
            await asked(reader, writer)

    async with linked(serve) as link:
        with pytest.raises(ConnectionLost):
            await link.call("ANY")
        assert await link.call("ANY") == 1


async def test_a_connection_that_was_closed_while_it_was_idle_costs_no_call() -> None:
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader, writer)
        writer.write(b":1\r\n")
        await writer.drain()
        if closed.is_set():
            await asked(reader, writer)
        closed.set()

    async with linked(serve) as link:
        assert await link.call("ANY") == 1
        await closed.wait()
        await until(lambda: is_closed(link))
        assert await link.call("ANY") == 1


async def test_an_answer_that_nobody_asked_for_is_given_to_nobody() -> None:
    said = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader, writer)
        writer.write(b":1\r\n")
        if not said.is_set():
            said.set()
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.write(b":666\r\n")
        await asked(reader, writer)

    async with linked(serve) as link:
        assert await link.call("ANY") == 1
        await until(lambda: is_closed(link))
        assert await link.call("ANY") == 1


async def test_a_late_reply_is_given_to_nobody() -> None:
    """After a time-out the connection is not used any more."""
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        await asked(reader, writer)
        if len(connections) > 1:
            writer.write(b":1\r\n")
        await asked(reader, writer)

    async with linked(serve) as link:
        with pytest.raises(ConnectionLost):
            await link.call("ANY", timeout=0.05)
        assert await link.call("ANY", timeout=5) == 1


async def test_a_call_may_wait_longer_than_the_one_before_it() -> None:
    """All calls share one timer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader, writer)
        writer.write(b":1\r\n")
        await asked(reader, writer)
        await asyncio.sleep(0.2)
        writer.write(b":2\r\n")
        await asked(reader, writer)

    async with linked(serve) as link:
        assert await link.call("ANY", timeout=0.1) == 1
        assert await link.call("ANY", timeout=10) == 2


async def test_a_call_may_wait_less_long_than_the_one_before_it() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader, writer)
        writer.write(b":1\r\n")
        await asked(reader, writer)
        await asked(reader, writer)

    async with linked(serve) as link:
        assert await link.call("ANY", timeout=60) == 1
        async with asyncio.timeout(30):
            with pytest.raises(ConnectionLost):
                await link.call("ANY", timeout=0.05)


async def test_what_is_no_reply_is_a_lost_connection() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader, writer)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await asked(reader, writer)

    async with linked(serve) as link:
        with pytest.raises(StoreRefused):
            await link.call("ANY")


async def test_a_call_that_is_given_up_takes_its_connection_with_it() -> None:
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        await asked(reader, writer)
        if len(connections) > 1:
            writer.write(b":1\r\n")
        await asked(reader, writer)

    async with linked(serve) as link:
        call = asyncio.create_task(link.call("ANY"))
        await until(lambda: bool(connections))
        call.cancel()
        await asyncio.wait([call])
        assert await link.call("ANY") == 1
