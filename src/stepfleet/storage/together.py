"""Reads that are asked for while one is under way go together in the next call. Layer: storage.

A hundred steps that want to read something would otherwise wait for a hundred round trips in a row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from stepfleet.errors import StoreError
from stepfleet.storage.link import Arg, Link

#: Questions in one call.
MOST: Final = 100

Commands = Sequence[tuple[Arg, ...]]


class Together:
    """Asks on one connection. What it is asked may be repeated: it must change nothing."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._asked: list[tuple[Commands, asyncio.Future[list[Any]]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def call(self, *command: Arg) -> Any:
        """Send one command and return its raw reply.

        Raises:
            ConnectionLost, StoreRefused: as `Link.call`.
        """
        (reply,) = await self.calls([command])
        if isinstance(reply, StoreError):
            raise reply
        return reply

    async def calls(self, commands: Commands) -> list[Any]:
        """Send several commands and return their replies; an error reply stands as `StoreRefused`.

        Raises:
            ConnectionLost: as `Link.calls`.
        """
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._asked.append((commands, future))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="stepfleet-reads")
        return await future

    async def _ask(self) -> None:
        try:
            while self._asked:
                batch, self._asked = self._asked[:MOST], self._asked[MOST:]
                await self._ask_for(batch)
        finally:
            self._asking = None
            for _, future in self._asked:
                future.cancel()
            self._asked.clear()

    async def _ask_for(self, batch: list[tuple[Commands, asyncio.Future[list[Any]]]]) -> None:
        try:
            replies = await self._link.calls([one for commands, _ in batch for one in commands])
        except (StoreError, TypeError, ValueError) as error:
            if not isinstance(error, StoreError) and len(batch) > 1:
                # One of them cannot be asked: it fails alone.
                for one in batch:
                    await self._ask_for([one])
                return
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        except BaseException:
            for _, future in batch:
                future.cancel()
            raise
        at = 0
        for commands, future in batch:
            own, at = replies[at : at + len(commands)], at + len(commands)
            if not future.done():
                future.set_result(own)
