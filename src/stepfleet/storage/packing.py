"""The KEYS and ARGV of one call of `commit.lua`; the layout is in the script's header. Layer: storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import msgpack

from stepfleet.core.commit import Route
from stepfleet.storage.bounds import Bounds
from stepfleet.storage.keys import GROUP, SYSTEM, Keys
from stepfleet.storage.link import Arg

#: Of the older format, which knows bytes only: that is what Redis' Lua calls strings.
_pack: Final[Callable[[list[Arg]], bytes]] = (
    cast(Any, msgpack).Packer(use_bin_type=False, autoreset=True).pack
)
_USUAL: Final = frozenset({str, bytes, int})


def _told(arg: Arg) -> Arg:
    """Return an argument as it would be sent by itself."""
    if isinstance(arg, str | bytes):
        return arg
    if type(arg) is int or type(arg) is float:
        return str(arg)
    raise TypeError(f"{arg!r} cannot be an argument of a script")


class Packing:
    """Keys, streams and inboxes are named once; what is written in `args` refers to them by number."""

    def __init__(self, keys: Keys, consumer: str, bounds: Bounds) -> None:
        self.keys = keys
        self._consumer = consumer
        self.bounds = bounds
        #: Number of each key.
        self.index: dict[str, int] = {}
        self._rows: dict[Route, int] = {}
        self._inboxes: dict[str, int] = {}
        self._row_args: list[Arg] = []
        #: Commits, as `words.write` writes them.
        self.args: list[Arg] = []
        #: Run of the commit at hand.
        self.run_id = ""
        #: Row of the stream that an entry is taken from behind the commits; 0: none.
        self.taken_from = 0
        #: Workflow of the entry at hand.
        self.workflow = ""

    def arguments(self) -> tuple[list[str], list[Arg]]:
        """Return KEYS and ARGV."""
        head: list[Arg] = [
            GROUP,
            self._consumer,
            self.bounds.deliveries_limit,
            self.taken_from,
            len(self._rows),
        ]
        return list(self.index), head + self._row_args + self.args

    def packed(self) -> tuple[list[str], list[Arg]]:
        """Return KEYS, and ARGV as one msgpack array of strings, as `commit.lua` takes it as well.

        Raises:
            TypeError, ValueError: it holds something that Redis cannot be told.
        """
        keys, args = self.arguments()
        if not _USUAL.issuperset(map(type, args)):
            args = list(map(_told, args))
        return keys, [_pack([str(one) if type(one) is int else one for one in args])]

    def key(self, name: str) -> int:
        """Return the index of a key."""
        return self.index.setdefault(name, len(self.index) + 1)

    def stream(self, route: Route) -> int:
        """Return the row of a stream."""
        row = self._rows.get(route)
        if row is None:
            row = self._rows[route] = len(self._rows) + 1
            keys = self.keys
            key = self.key(keys.stream(route.workflow, route.type, route.step))
            self._row_args += (key, route.label, f"s:{route.step}", route.limit, route.ceiling)
            if route.ceiling:
                self._row_args += self._ceiling(route)
        return row

    def _ceiling(self, route: Route) -> list[Arg]:
        gauge = self.keys.gauge(route.workflow, route.step)
        woken = self.key(self.keys.stream(route.workflow, SYSTEM, ""))
        streams = [
            self.key(self.keys.stream(route.workflow, name, route.step))
            for name in route.types or (route.type,)
        ]
        return [self.key(gauge), self.key(f"{gauge}:queue"), woken, len(streams), *streams]

    def hold(self, route: Route) -> int:
        """Return the index of the hold list of the route's step; 0 for no limit."""
        if not route.limit:
            return 0
        if len(route.types) > 1:
            # What is let go may belong to any stream of the step.
            for type_name in route.types:
                self.key(self.keys.stream(route.workflow, type_name, route.step))
        return self.key(self.keys.hold(self.run_id, route.step))

    def inbox(self, route: Route) -> int:
        """Return the row of the stream where the events of a workflow's waiters go."""
        row = self._inboxes.get(route.workflow)
        if row is None:
            row = self._inboxes[route.workflow] = self.stream(Route(route.workflow, SYSTEM, ""))
        return row

    def buffer(self, name: str) -> tuple[int, int]:
        """Return the indexes of a buffer's counts and of its events."""
        meta, events = self.keys.buffer(self.run_id, name)
        return self.key(meta), self.key(events)

    def guard(self, delivery: str) -> int:
        """Return the index of a delivery's early effects, 0 for no guard."""
        return self.key(self.keys.sent(self.run_id, delivery)) if delivery else 0
