"""Applies commits: many in one call of `commit.lua`, each answered by a word. Layer: storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from stepfleet.core.commit import Answer, Commit, Route
from stepfleet.errors import ConnectionLost
from stepfleet.storage.bounds import Bounds
from stepfleet.storage.keys import Keys
from stepfleet.storage.link import Arg, Link, pack
from stepfleet.storage.packing import Packing
from stepfleet.storage.scripts import script
from stepfleet.storage.words import write


class Taker(Protocol):
    """Who may take a new entry in the call that commits: one call less before the next step runs."""

    def wants(self, commit: Commit) -> Route | None:
        """Return the stream to take an entry from behind a commit that goes alone, if any."""
        ...

    def took(self, route: Route, row: Sequence[Any]) -> None:
        """Get the entry."""
        ...

    def missed(self) -> None:
        """An entry may have been taken, and the answer that has it did not come."""
        ...


class RunStore:
    """Applies commits in the name of one consumer."""

    def __init__(
        self,
        link: Link,
        keys: Keys,
        *,
        consumer: str,
        bounds: Bounds,
        taker: Taker | None = None,
    ) -> None:
        self.link = link
        self.keys = keys
        self.consumer = consumer
        self.bounds = bounds
        self._taker = taker

    async def commit(self, commits: Sequence[Commit]) -> list[Answer]:
        """Apply commits in order, each completely or not at all, and return an answer for each.

        Raises:
            ConnectionLost: no answer came: they may or may not be applied; send the same ones
            again. StoreRefused: the whole call was refused (rights, a script that cannot run).
        """
        packing = Packing(self.keys, self.consumer, self.bounds)
        for commit in commits:
            write(packing, commit)
        taker = self._taker
        if taker is not None and len(commits) == 1 and (route := taker.wants(commits[0])):
            packing.taken_from = packing.stream(route)
            answers = await self._taking(taker, route, packing)
        else:
            answers = await self.link.script(script("commit"), *self._arguments(packing))
        return [APPLIED if raw == b"applied" else answer_of(raw) for raw in answers]

    async def _taking(self, taker: Taker, route: Route, packing: Packing) -> list[Any]:
        try:
            answer, *taken = await self.link.script(script("commit"), *self._arguments(packing))
        except ConnectionLost:
            taker.missed()
            raise
        for row in taken:
            taker.took(route, row)
        return [answer]

    def check(self, commit: Commit) -> None:
        """Pack a commit without sending it.

        Raises:
            TypeError, ValueError: it holds something that Redis cannot be told.
        """
        packing = Packing(self.keys, self.consumer, self.bounds)
        write(packing, commit)
        keys, args = self._arguments(packing)
        pack((*keys, *args))

    def _arguments(self, packing: Packing) -> tuple[list[str], list[Arg]]:
        return packing.packed() if self.link.unpacks else packing.arguments()


def answer_of(raw: bytes) -> Answer:
    """Return what one answer of the script says."""
    if raw == b"applied":
        return APPLIED
    word, *rest = raw.decode("utf-8", "replace").split(" ")
    try:
        if word == "conflict" and len(rest) == 3:
            return Answer(word, buffer=rest[0], version=int(rest[1]), length=int(rest[2]))
        if word == "conflict" and len(rest) == 1:
            return Answer(word, length=int(rest[0]))
        if word == "applied":
            return Answer(word, missing=int(rest[0]))
    except ValueError:  # the version of a buffer that is damaged
        return Answer("broken", detail=" ".join(rest))
    return Answer(word, detail=" ".join(rest))


APPLIED: Final = Answer("applied")
