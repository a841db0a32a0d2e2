"""Reads a consumer's deliveries: new, reclaimed, handed back, and those it never saw. Layer: storage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from stepfleet.core.commit import Route
from stepfleet.core.delivery import Delivery, Record
from stepfleet.errors import DecodeError, StoreRefused
from stepfleet.storage.keys import GROUP, Keys
from stepfleet.storage.link import Link
from stepfleet.storage.scripts import script
from stepfleet.wire import decode_record

#: Reads of the streams that have much work between two reads of all: those bring little where a worker
#: has many streams.
BY_THEMSELVES: Final = 8
#: Seconds after which all are read in any case: behind steps that end together so many reads are so many turns.
OVERLOOKED: Final = 0.1
#: Told of a step whether all of it that a worker may run at once ends soon, even one after the other.
IsBrief = Callable[[Route], bool]


class Alarm(NamedTuple):
    """A system entry: a place was kept for this run, under a step's ceiling or a limit on runs."""

    run_id: str
    route: Route
    entry: str
    #: '': the limit is on runs.
    step: str


class Unreadable(NamedTuple):
    """An entry that is no delivery of this version."""

    run_id: str
    id: str
    route: Route
    entry: str
    raw: bytes
    error: DecodeError
    deliveries: int


Arrival = Delivery | Alarm | Unreadable


class _Found(NamedTuple):
    """What one read returned of one stream."""

    stream: str
    arrivals: list[Arrival]
    #: It gave all that it was asked for, or more than a read of all streams would have asked for.
    is_full: bool


def _never(_: Route) -> bool:
    return False


class Consumer:
    """Reads the streams of one worker in its name."""

    def __init__(
        self, reading: Link, calls: Link, keys: Keys, routes: Sequence[Route], *, consumer: str
    ) -> None:
        self._reading = reading
        self._calls = calls
        self._keys = keys
        self._routes = {self._stream(route): route for route in routes}
        self._streams = list(self._routes)
        self._turn = 0
        #: Streams that gave all they were asked for in the last read.
        self._busy: list[str] = []
        self._full: list[str] = []
        #: Streams that gave something in the last read that brought anything.
        self._last: list[str] = []
        self._by_themselves = 0
        #: When all streams were last read.
        self._looked = 0.0
        self.consumer = consumer

    async def create_groups(self) -> None:
        """Create streams and groups that are missing; entries already there will be delivered.

        Raises:
            StoreRefused: Redis does not allow it.
        """
        commands = [("XGROUP", "CREATE", name, GROUP, "0", "MKSTREAM") for name in self._streams]
        for reply in await self._calls.calls(commands):
            if isinstance(reply, StoreRefused) and "BUSYGROUP" not in str(reply):
                raise reply

    async def read(
        self, free: int, *, wait: bool = True, ahead: int = 0, is_brief: IsBrief = _never
    ) -> list[Arrival]:
        """Return up to about `free` new deliveries, waiting a while for the first if asked to.

        Up to `ahead` more come where the last that came were all of brief steps.

        Raises:
            ConnectionLost, StoreRefused: as `Link.call`.
        """
        # Each stream may answer with COUNT entries, and what is read has to be startable at once.
        # With many streams their shares are small: those that gave all they were asked for are read
        # by themselves, a few times, before all are again.
        every = len(self._streams)
        busy = self._busy[:free]
        clock = asyncio.get_running_loop().time
        at_once = 1
        if free >= every:
            at_once = BY_THEMSELVES if clock() - self._looked < OVERLOOKED else 0
        are_brief = all(is_brief(self._routes[name]) for name in self._last)
        most = free + ahead if are_brief else free
        share = max(1, free // every)
        if busy and self._by_themselves < at_once:
            self._by_themselves += 1
            if found := await self._read_new(busy, most // len(busy), share, block=False):
                return self._noted(found)
        self._by_themselves = 0
        if free < every:
            found = await self._read_exactly(free)
            if found or not wait:
                return self._noted(found)
        # The next entries are in one of the streams that gave the last, seldom in more than two. With a share
        # of each it would be a few entries of a batch: 0.061 calls per step instead of 0.052, two workers.
        count = max(share, most // max(2, len(busy))) if are_brief and self._last else share
        found = await self._read_new(self._streams, count, share, block=wait)
        self._looked = clock()
        return self._noted(found)

    def _noted(self, found: Sequence[_Found]) -> list[Arrival]:
        """Remember which streams gave all they were asked for: there is likely more in them.

        A single entry, all that a worker of many streams asks each for, tells so only where another came before
        it: an idle worker would read twice for every step of a run (3.65 calls per step instead of 2.67).
        """
        full = [one.stream for one in found if one.is_full]
        is_one = len(full) == 1 and sum(len(one.arrivals) for one in found) == 1
        self._busy = [] if is_one and full != self._full else full
        self._full = full
        self._last = [one.stream for one in found] or self._last
        return [arrival for one in found for arrival in one.arrivals]

    async def _read_new(
        self, streams: Sequence[str], count: int, full: int, *, block: bool
    ) -> list[_Found]:
        before = ("XREADGROUP", "GROUP", GROUP, self.consumer, "COUNT", count)
        after = ("STREAMS", *streams, *[">"] * len(streams))
        reply = await (
            self._reading.read(before, after) if block else self._reading.call(*before, *after)
        )
        return [self._found(name.decode(), entries, full) for name, entries in reply or ()]

    async def _read_exactly(self, free: int) -> list[_Found]:
        """Read what is there, from fewer places than there are streams; another stream begins each time."""
        turn = self._turn
        self._turn = (turn + free) % len(self._streams)
        streams = [*self._streams[turn:], *self._streams[:turn]]
        rows: list[tuple[int, list[Any]]] = await self._reading.script(
            script("read"), streams, [GROUP, self.consumer, free]
        )
        return [self._found(streams[index - 1], entries, 1) for index, entries in rows]

    def _found(self, stream: str, entries: Sequence[Any], full: int) -> _Found:
        route = self._routes[stream]
        arrivals = [
            _arrival(route, entry.decode(), fields, 1, fresh=True) for entry, fields in entries
        ]
        return _Found(stream, arrivals, len(arrivals) >= full)

    def reads(self, route: Route) -> bool:
        """Tell whether a stream is one of this worker's."""
        return self._stream(route) in self._routes

    def taken(self, route: Route, row: Sequence[Any]) -> Arrival:
        """Return a new delivery that came with the answer to a commit."""
        entry, fields = row
        mine = self._routes[self._stream(route)]
        return _arrival(mine, entry.decode(), fields, 1, fresh=True)

    async def reclaim(
        self,
        leases: str,
        *,
        most: int,
        lost_once: bool,
        suspect: bool,
        buries_until_ms: int,
        lease_ms: int,
    ) -> list[Arrival]:
        """Take over handed-back deliveries and, if allowed, those of consumers whose lease ran out."""
        rows = await self._calls.script(
            script("reclaim"),
            [leases, *self._streams],
            [GROUP, self.consumer, most, int(lost_once), int(suspect), buries_until_ms, lease_ms],
        )
        return self._taken(rows)

    async def pending(self) -> list[tuple[int, str]]:
        """Return (stream index, entry id) of what is pending under this consumer's name."""
        commands = [
            ("XPENDING", name, GROUP, "-", "+", 1000, self.consumer) for name in self._streams
        ]
        rows: list[tuple[int, str]] = []
        for index, reply in enumerate(await self._calls.calls(commands), start=1):
            if not isinstance(reply, Exception):
                rows += [(index, row[0].decode()) for row in cast(Iterable[Any], reply)]
        return rows

    def held_rows(self, held: Collection[tuple[Route, str]]) -> set[tuple[int, str]]:
        """Return held deliveries as (stream index, entry id)."""
        positions = {name: index for index, name in enumerate(self._streams, start=1)}
        return {(positions[self._stream(route)], entry) for route, entry in held}

    def rows_named(self, rows: Iterable[tuple[int, str]]) -> list[tuple[Route, str]]:
        """Return (stream index, entry id) as (route, entry id)."""
        return [(self._routes[self._streams[index - 1]], entry) for index, entry in rows]

    async def audit(self, rows: Iterable[tuple[int, str]]) -> list[Arrival]:
        """Return deliveries that are pending under this consumer's name and that it never saw."""
        args = [part for row in rows for part in row]
        if not args:
            return []
        return self._taken(
            await self._calls.script(script("audit"), self._streams, [GROUP, self.consumer, *args])
        )

    async def give_back(self, held: Collection[tuple[Route, str]]) -> int:
        """Return deliveries to every worker, and return how many were given back."""
        return await self._hand_back("stays", held)

    async def hand_back(self, held: Collection[tuple[Route, str]]) -> int:
        """Return deliveries to every worker, give up the lease, and return how many were given back."""
        return await self._hand_back("leaves", held)

    async def _hand_back(self, what: str, held: Collection[tuple[Route, str]]) -> int:
        rows = [part for row in sorted(self.held_rows(held)) for part in row]
        keys = [self._keys.leases, self._keys.workers, *self._streams]
        args = [GROUP, self.consumer, what, *rows]
        return int(await self._calls.script(script("hand_back"), keys, args))

    async def clean(self, *, tombstone_ms: int, retention_ms: int, lease_ms: int) -> int:
        """Remove what only dead workers left."""
        keys = [self._keys.leases, self._keys.workers, self._keys.ended, *self._streams]
        return int(
            await self._calls.script(
                script("janitor"), keys, [GROUP, tombstone_ms, retention_ms, lease_ms]
            )
        )

    def _taken(self, rows: Sequence[Any]) -> list[Arrival]:
        found: list[Arrival] = []
        for index, entry, deliveries, fields, _owner in rows:
            route = self._routes[self._streams[index - 1]]
            found.append(_arrival(route, entry.decode(), fields, int(deliveries), fresh=False))
        return found

    def _stream(self, route: Route) -> str:
        return self._keys.stream(route.workflow, route.type, route.step)


def _arrival(
    route: Route, entry: str, fields: Sequence[bytes], deliveries: int, *, fresh: bool
) -> Arrival:
    if len(fields) == 6 and fields[0] == b"r" and fields[2] == b"i" and fields[4] == b"d":
        run_id, name = str(fields[1], "utf-8", "replace"), str(fields[3], "utf-8", "replace")
        raw = fields[5]
    else:
        content: Mapping[bytes, bytes] = dict(zip(fields[::2], fields[1::2], strict=False))
        run_id = content.get(b"r", b"").decode("utf-8", "replace")
        step = content.get(b"w")
        if step is not None:
            return Alarm(run_id, route, entry, step.decode("utf-8", "replace"))
        name, raw = content.get(b"i", b"").decode("utf-8", "replace"), content.get(b"d", b"")
    try:
        record: Record = decode_record(raw)
    except DecodeError as error:
        return Unreadable(run_id, name, route, entry, raw, error, deliveries)
    return Delivery(run_id, name, route, entry, record, deliveries, fresh)
