"""Reads what is recorded: runs, their public streams, definitions, workers. Layer: storage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import msgpack

from stepfleet.core.commit import Route
from stepfleet.core.cut import Cut
from stepfleet.errors import DecodeError, NewerVersionError, StoreRefused
from stepfleet.storage.cutting import cut_of, reading
from stepfleet.storage.keys import Keys
from stepfleet.storage.link import Link
from stepfleet.storage.together import Together
from stepfleet.wire import (
    HistoryRow,
    PublicEntry,
    Waiter,
    decode_history_row,
    decode_public,
    decode_waiter,
    route_fields,
    route_of,
)

#: Announced ends read at once.
ENDS: Final = 1000
#: How the key of a buffer's events differs from that of the buffer.
_BUFFERED_EVENTS: Final = b":events"


class RunRecord(NamedTuple):
    """The hash of a run."""

    status: str
    workflow: str
    started_ms: int
    ended_ms: int | None
    seq: int
    deadline: str
    entry: PublicEntry | None
    error: bytes | None
    step: str | None
    #: It waits for its turn under a limit on runs.
    queued: bool
    #: The run that this one goes on from, the one that goes on from it, and the one whose step started it.
    continues: str | None
    continued: str | None
    parent: str | None

    @property
    def stands(self) -> str:
        """How the run stands, as users are told: a queued one has not begun."""
        return "queued" if self.queued else self.status

    def how_it_ended(self) -> Ended:
        """Return how the run ended."""
        return Ended(self.status, self.seq, self.entry, self.error)


class Ended(NamedTuple):
    """How a run ended."""

    status: str
    #: Sequence of its last public entry; 0 for one that nothing but the run's record has.
    seq: int
    entry: PublicEntry | None
    error: bytes | None


class Announcement(NamedTuple):
    """An entry of the stream of ended runs."""

    id: str
    run_id: str
    status: str
    seq: int = 0
    #: The run's last public entry, if it is short.
    entry: bytes | None = None
    #: Runs belong to it that may go on.
    is_parent: bool = False

    def ended(self) -> Ended | None:
        """Return how the run ended, None where its record has to be read for it.

        Raises:
            DecodeError: a newer version wrote the entry.
        """
        if self.entry is None or self.status not in _WITHOUT_MORE:
            return None
        return Ended(self.status, self.seq, decode_public(self.entry), None)


#: Ends of which the entry says everything.
_WITHOUT_MORE: Final = frozenset({"completed", "cancelled", "timed_out"})


class PublicRow(NamedTuple):
    """One entry of a public stream as it stands there."""

    seq: int
    entry: PublicEntry
    #: Of a mark: the entries that were not repeated.
    stale: tuple[int, ...]


class HistoryEntry(NamedTuple):
    """One row of a run's history as it stands there."""

    #: Its id in the stream, which begins with the time in ms.
    entry: str
    #: Last public sequence when it was written.
    seq: int
    row: HistoryRow
    #: Where deliveries went with the commit, in order.
    opened: Mapping[str, str]


class Waits(NamedTuple):
    """The open waits of a run, read at once."""

    open: list[Waiter]
    #: How many there ever were ('' for none): it changes with every new one.
    ever: str
    #: Last public sequence.
    seq: int


class Definition(NamedTuple):
    """What the workers of a workflow say of it, for callers without its class."""

    digest: str
    #: Type name -> streams.
    routes: Mapping[str, tuple[Route, ...]]
    start: str
    timeout_ms: int | None
    #: Digest of the constructor arguments of the workers' instance; '' when they cannot be
    #: compared.
    arguments: str
    #: How many of its runs go on at once; None: no limit.
    limit: int | None = None


class RunReader:
    """Reads by plain commands, over one connection."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self.link = link
        #: For what many steps read at the same time.
        self.together = Together(link)
        self.keys = keys

    async def runs(self, run_ids: Sequence[str]) -> list[RunRecord | None]:
        """Return the records of runs, None for one that is not there.

        Raises:
            ConnectionLost: Redis is away.
            StoreRefused: a record is no hash.
            DecodeError: what stands in a record is none.
        """
        fields = (
            "status",
            "workflow",
            "started",
            "ended",
            "seq",
            "deadline",
            "entry",
            "error",
            "step",
            "continues",
            "continued",
            "parent",
            "admitted",
        )
        replies = await self.link.calls(
            [("HMGET", self.keys.run(run_id), *fields) for run_id in run_ids]
        )
        return [_run_record(run_id, reply) for run_id, reply in zip(run_ids, replies, strict=True)]

    async def cut(self, run_id: str) -> Cut:
        """Return everything that is recorded of a run at one moment; what waits in lists is only counted."""
        call = reading(self.keys, run_id, contents=False)
        return cut_of(run_id, await self.link.script(*call))

    async def letters(self, run_id: str, since_ms: int) -> list[str]:
        """Return the ids of a run's dead letters, of those written since then."""
        found: list[str] = []
        first = str(since_ms)
        while rows := await self.link.call("XRANGE", self.keys.dead, first, "+", "COUNT", 1000):
            found += [name.decode() for name, fields in rows if _run_of(fields) == run_id]
            first = f"({rows[-1][0].decode()}"
        return found

    async def letter(self, entry: str) -> str | None:
        """Return the run of a dead letter, None when there is no such letter."""
        rows = await self.link.call("XRANGE", self.keys.dead, entry, entry)
        return _run_of(rows[0][1]) if rows else None

    async def pending(self, run_id: str) -> dict[str, str]:
        """Return where the run's open deliveries are."""
        rows = await self.link.call("HGETALL", self.keys.open(run_id))
        return {
            name.decode(): where.decode() for name, where in _pairs(rows) if not name.endswith(b"!")
        }

    async def held(self, run_id: str) -> dict[str, int]:
        """Return how many deliveries wait for a slot of each step."""
        further = await self.link.call("SMEMBERS", self.keys.further(run_id))
        prefix = self.keys.hold(run_id, "").encode()
        lists = [name for name in further if name.startswith(prefix)]
        lengths = await self.link.calls([("LLEN", name) for name in lists])
        return {
            name[len(prefix) :].decode(): length
            for name, length in zip(lists, lengths, strict=True)
            if isinstance(length, int) and length
        }

    async def public(self, run_id: str, after: int, count: int = 500) -> list[PublicRow]:
        """Return public entries behind a sequence.

        Raises:
            DecodeError: somebody damaged them.
        """
        key = self.keys.events(run_id)
        try:
            rows = await self.link.call("XRANGE", key, f"({after}-0", "+", "COUNT", count)
            return [public_row(row) for row in rows]
        except (StoreRefused, DecodeError) as error:
            is_other = isinstance(error, StoreRefused) and "WRONGTYPE" not in str(error)
            if is_other or isinstance(error, NewerVersionError):
                raise
            raise DecodeError(
                f"the public events of run {run_id} cannot be read, {key} is damaged: {damage(run_id)}"
            ) from error

    async def kept(self, run_id: str) -> int:
        """Return what the run's history keeps, 0 when it has none."""
        return int(await self.link.call("HGET", self.keys.run(run_id), "history") or 0)

    async def history(self, run_id: str, after: str, count: int = 500) -> list[HistoryEntry]:
        """Return rows of a run's history behind an entry."""
        rows = await self.link.call(
            "XRANGE", self.keys.history(run_id), f"({after}", "+", "COUNT", count
        )
        return [_history_entry(row) for row in rows]

    async def waits(self, run_id: str) -> Waits:
        """Return the run's open waits."""
        counts, rows = await self.together.calls(
            [
                ("HMGET", self.keys.run(run_id), "waits", "seq"),
                ("HGETALL", self.keys.wait(run_id)),
            ]
        )
        ever, seq = counts
        opened = [decode_waiter(data) for _, data in _pairs(rows)]
        return Waits(opened, (ever or b"").decode(), int(seq or 0))

    async def waiter(self, run_id: str, name: str) -> Waiter | None:
        """Return one open waiter."""
        data = await self.together.call("HGET", self.keys.wait(run_id), name)
        return None if data is None else decode_waiter(data)

    async def buffer(self, run_id: str, name: str, length: int) -> list[bytes]:
        """Return the first `length` events of a collect buffer."""
        _, events = self.keys.buffer(run_id, name)
        return list(await self.together.call("LRANGE", events, 0, length - 1)) if length else []

    async def batch(
        self, run_id: str, delivery: str, name: str
    ) -> tuple[tuple[str, bytes], ...] | None:
        """Return the events that a delivery takes (type name of the stream, record), None if it is settled.

        Args:
            name: key of the list where they are.
        """
        rows, pending = await self.together.calls(
            [("LRANGE", name, 0, -1), ("HEXISTS", self.keys.open(run_id), delivery)]
        )
        # The list goes with the delivery: if that is still pending now, nothing was missing before.
        return tuple(map(_gathered, rows)) if pending and not isinstance(rows, Exception) else None

    async def collected(self, run_id: str) -> dict[str, dict[str, int]]:
        """Return how many events of each type every collect buffer has."""
        further = await self.together.call("SMEMBERS", self.keys.further(run_id))
        prefix = self.keys.buffer(run_id, "")[0].encode()
        names = [
            name
            for name in further
            if name.startswith(prefix) and not name.endswith(_BUFFERED_EVENTS)
        ]
        rows = await self.together.calls([("HGETALL", name) for name in names])
        found: dict[str, dict[str, int]] = {}
        for name, row in zip(names, rows, strict=True):
            counts = {
                field[2:].decode(): int(value)
                for field, value in _pairs(row)
                if field.startswith(b"n:")
            }
            if counts:
                found[name[len(prefix) :].decode()] = counts
        return found

    async def inbox(self, run_id: str, delivery: str) -> tuple[str, list[bytes], int]:
        """Return how many events came to the inbox, those kept, and what `delivery` published last."""
        count, kept, sent = await self.together.calls(
            [
                ("HGET", self.keys.run(run_id), "inbox"),
                ("LRANGE", self.keys.inbox(run_id), 0, -1),
                ("HVALS", self.keys.sent(run_id, delivery)),
            ]
        )
        last = max((int(seq) for seq in sent if seq.isdigit()), default=0)
        return (count or b"").decode(), list(kept), last

    async def definitions(self, workflow: str) -> dict[str, Definition]:
        """Return what workers announced of a workflow, by code digest.

        Raises:
            DecodeError: none of it can be read here.
        """
        rows = await self.link.call("HGETALL", self.keys.workflow(workflow))
        found: dict[str, Definition] = {}
        unreadable: DecodeError | None = None
        for digest, data in _pairs(rows):
            try:
                found[digest.decode("utf-8", "replace")] = decode_definition(data)
            except DecodeError as error:
                unreadable = error
        if unreadable is not None and not found:
            raise unreadable
        return found

    async def workers(self) -> dict[str, dict[str, Any]]:
        """Return what live workers say of themselves, by consumer."""
        rows, leases, now = await self.link.calls(
            [
                ("HGETALL", self.keys.workers),
                ("ZRANGE", self.keys.leases, 0, -1, "WITHSCORES"),
                ("TIME",),
            ]
        )
        now_ms = int(now[0]) * 1000
        alive = {name for name, score in _pairs(leases) if float(score) > now_ms}
        return {
            name.decode(): cast("dict[str, Any]", msgpack.unpackb(data))
            for name, data in _pairs(rows)
            if name in alive
        }

    async def last_end(self) -> str:
        """Return the id of the newest entry of the stream of ended runs."""
        rows = await self.link.call("XREVRANGE", self.keys.ends, "+", "-", "COUNT", 1)
        return rows[0][0].decode() if rows else "0-0"

    async def ends(self, after: str) -> list[Announcement]:
        """Return what was announced behind an entry of the stream of ended runs, `ENDS` at most."""
        reply = await self.link.call("XREAD", "COUNT", ENDS, "STREAMS", self.keys.ends, after)
        return [announcement(row) for _, rows in reply or () for row in rows]

    async def children(self, run_ids: Sequence[str]) -> list[tuple[str, str]]:
        """Return (run, workflow) of the live runs that belong to ended ones."""
        sets = await self.link.calls([("SMEMBERS", self.keys.children(run)) for run in run_ids])
        members = [cast("list[bytes]", one) for one in sets if isinstance(one, list)]
        names = [name.decode("utf-8", "replace") for one in members for name in one]
        records = await self.link.calls(
            [("HMGET", self.keys.run(name), "status", "workflow") for name in names]
        )
        found = zip(names, records, strict=True)
        return [
            (name, (record[1] or b"").decode("utf-8", "replace"))
            for name, record in found
            if not isinstance(record, Exception) and record[0] == b"running"
        ]


def announcement(row: Sequence[Any]) -> Announcement:
    """Return an entry of the stream of ended runs; one that is none tells of no run."""
    entry, fields = row
    try:
        run_id, status = fields[1].decode(), fields[3].decode()
        is_parent = b"j" in fields[4::2]
        if b"e" not in fields[4::2]:
            return Announcement(entry.decode(), run_id, status, is_parent=is_parent)
        return Announcement(entry.decode(), run_id, status, int(fields[5]), fields[7], is_parent)
    except (ValueError, IndexError):
        return Announcement(entry.decode(), "", "")


def public_row(row: Sequence[Any]) -> PublicRow:
    """Return an entry of a public stream.

    Raises:
        DecodeError: it is none that this version can read.
    """
    name, fields = row
    try:
        stale = tuple(int(seq) for seq in fields[3].split(b",")) if len(fields) > 3 else ()
    except ValueError as error:
        raise DecodeError(f"a public event is not readable: {error}", fields[3]) from error
    return PublicRow(int(name.split(b"-")[0]), decode_public(fields[1]), stale)


def _history_entry(row: Sequence[Any]) -> HistoryEntry:
    name, fields = row
    opened: list[str] = fields[5].decode().split("\n") if fields[5] else []
    return HistoryEntry(
        name.decode(),
        int(fields[3]),
        decode_history_row(fields[1]),
        dict(zip(opened[::2], opened[1::2], strict=True)),
    )


def encode_definition(definition: Definition) -> bytes:
    """Return the bytes of a definition."""
    routes = {
        name: [route_fields(route) for route in routes]
        for name, routes in definition.routes.items()
    }
    return msgpack.packb(
        [
            1,
            definition.digest,
            routes,
            definition.start,
            definition.timeout_ms,
            definition.arguments,
            definition.limit,
        ]
    )


def decode_definition(data: bytes) -> Definition:
    """Return the definition that `encode_definition` wrote.

    Raises:
        DecodeError: the bytes are no definition, or one of a newer version.
    """
    try:
        unpacked = msgpack.unpackb(data)
    except Exception as error:
        raise DecodeError(f"a definition is not readable: {error}", data) from error
    fields = cast("list[Any]", unpacked) if isinstance(unpacked, list) else []
    if not fields or fields[0] != 1:
        raise DecodeError("the definition of a workflow was written by a newer version", data)
    match fields[1:]:
        case [str(digest), dict(), str(start), int() | None as timeout_ms, str(arguments), *more]:
            routes = cast("dict[str, Any]", fields[2])
        case _:
            raise DecodeError("a definition has other fields than this version knows", data)
    if len(more) > 1 or not all(isinstance(rows, list) for rows in routes.values()):
        raise DecodeError("a definition has other fields than this version knows", data)
    by_type = {
        name: tuple(route_of(route, data) for route in rows) for name, rows in routes.items()
    }
    return Definition(digest, by_type, start, timeout_ms, arguments, *more)


def _gathered(element: bytes) -> tuple[str, bytes]:
    """Return an element of a list of deliveries: id (22 characters), label, line feed, record."""
    label, _, record = element[22:].partition(b"\n")
    return label.partition(b":")[0].decode(), record


def _run_record(run_id: str, reply: Any) -> RunRecord | None:
    if isinstance(reply, StoreRefused):
        raise reply
    try:
        return _record_of(reply)
    except ValueError as error:
        raise DecodeError(f"the record of run {run_id} is damaged: {damage(run_id)}") from error


def damage(run_id: str) -> str:
    """Return the cure of a run whose keys were damaged."""
    return (
        f"`stepfleet doctor` names what is wrong, `stepfleet runs delete {run_id}` removes the run"
    )


def _record_of(reply: Sequence[Any]) -> RunRecord | None:
    status, workflow, started, ended_at, seq, deadline, entry, error, step, *others = reply
    if status is None:
        return None
    return RunRecord(
        status.decode(),
        (workflow or b"").decode(),
        int(started or 0),
        int(ended_at) if ended_at else None,
        int(seq or 0),
        (deadline or b"").decode(),
        decode_public(entry) if entry else None,
        error,
        step.decode() if step else None,
        status == b"running" and others[3] == b"0",
        *(run_id.decode() if run_id else None for run_id in others[:3]),
    )


def _run_of(letter: Sequence[bytes]) -> str:
    return dict(_pairs(letter)).get(b"run", b"").decode()


def _pairs(rows: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(rows[::2], rows[1::2], strict=True)
