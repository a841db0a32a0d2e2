"""A worker's small HTTP server: `/metrics`, `/healthz`, `/readyz`. Layer: above `worker`.

It is served by the worker's own event loop on purpose: a loop that hangs does not answer a probe,
where a thread would go on saying that all is well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple

from stepfleet.errors import SettingsError
from stepfleet.worker.worker import Worker

logger = logging.getLogger("stepfleet.telemetry")

#: Seconds for a client to send its request and to take the answer.
PATIENCE: Final = 5.0
#: Bytes of a request's head: a longer one is refused.
HEAD: Final = 16 * 1024

_REASONS: Final = {
    200: "OK",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


class Page(NamedTuple):
    """What is answered."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


@asynccontextmanager
async def serving(
    address: str, port: int, pages: Mapping[str, Callable[[], Awaitable[Page]]]
) -> AsyncGenerator[int]:
    """Serve pages by their path while the block runs; gives the port.

    Raises:
        SettingsError: nobody may listen there.
    """

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(
            OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
        ):
            async with asyncio.timeout(PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_response(await _answer(head, pages), head))
                await writer.drain()
        writer.close()

    try:
        server = await asyncio.start_server(connected, address, port, limit=HEAD)
    except OSError as error:
        raise SettingsError(
            f"metrics_port = {port} at metrics_address = {address} cannot be served: {error}"
        ) from error
    bound = int(server.sockets[0].getsockname()[1])
    logger.info("metrics and health are served: address=%s port=%d", address, bound)
    async with server:
        yield bound


async def health(worker: Worker) -> Page:
    """Answer 503 when a worker does not read any more, though it has room."""
    if worker.healthy():
        return Page(200, b"ok\n")
    return Page(503, b"the worker has not read from Redis for too long\n")


async def readiness(worker: Worker, ready: asyncio.Event) -> Page:
    """Answer 503 until a worker reads for the first time, while it drains and when it is not healthy."""
    if worker.draining:
        return Page(503, b"draining\n")
    if not ready.is_set():
        return Page(503, b"starting\n")
    return await health(worker)


async def _answer(head: bytes, pages: Mapping[str, Callable[[], Awaitable[Page]]]) -> Page:
    method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    page = pages.get(path)
    if page is None:
        return Page(404, f"there are {', '.join(pages)}\n".encode())
    if method not in ("GET", "HEAD"):
        return Page(405, b"GET or HEAD\n")
    try:
        return await page()
    except Exception:
        logger.exception("a page failed: path=%s", path)
        return Page(503, b"failed, the worker's log has the reason\n")


def _response(page: Page, head: bytes) -> bytes:
    lines = (
        f"HTTP/1.1 {page.status} {_REASONS[page.status]}",
        f"Content-Type: {page.content_type}",
        f"Content-Length: {len(page.body)}",
        "Cache-Control: no-store",
        "Connection: close",
        "\r\n",
    )
    return "\r\n".join(lines).encode() + (b"" if head.startswith(b"HEAD ") else page.body)
