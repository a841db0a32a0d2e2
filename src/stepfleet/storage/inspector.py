"""What an operator sees: runs, queues, workers, dead letters, and who holds what. Reads only, but for `drop`.

Nothing here is on the path of a step: it scans where a worker would never scan. Layer: storage.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, Final, NamedTuple, cast

import msgpack

from stepfleet.core.commit import Route
from stepfleet.errors import DecodeError, NewerVersionError, StoreRefused
from stepfleet.storage.keys import (
    GROUP,
    SYSTEM,
    Keys,
    run_of,
    type_of_workflow,
    types_of_partition,
)
from stepfleet.storage.link import Arg, Link
from stepfleet.storage.reader import RunReader, RunRecord, public_row
from stepfleet.storage.scripts import script
from stepfleet.wire import Expiry, Promotion, decode_timer

#: Runs, keys or dead letters per call.
PAGE: Final = 500
#: Public streams of which the last entries are read, and how many of each.
LOOKED_AT: Final = (1000, 20)
#: Stands for a record that cannot be read.
DAMAGED: Final = RunRecord("damaged", "", 0, None, 0, "", None, None, None, False, None, None, None)


class Queue(NamedTuple):
    """One stream: the events of one type for one step."""

    workflow: str
    #: `__sys`: events that somebody may wait for, and wake-ups.
    event_type: str
    step: str
    #: Entries that no worker has taken.
    backlog: int
    #: Entries that workers have taken and not yet committed.
    in_flight: int
    #: Milliseconds since the oldest entry was added, None for an empty stream.
    oldest_ms: int | None
    #: Runs that wait for a place of the step (`max_concurrency`), for any of its event types.
    queued: int


class WorkerRow(NamedTuple):
    """What a worker tells of itself, and whether it lives."""

    consumer: str
    #: live, silent (the lease ran out, nobody has taken its work yet) or dead (others took its work).
    state: str
    #: Milliseconds of Redis time since its last sign of life; None when it cannot be told.
    silent_ms: int | None
    about: Mapping[str, Any]

    def serves(self, workflow: str, event_type: str, step: str) -> bool:
        """Tell whether it lives and takes these events for this step ('': those that somebody waits for)."""
        if self.state != "live":
            return False
        if not step:
            return self.has(workflow)
        return f"{event_type}:{step}" in self.about.get("streams", {}).get(workflow, ())

    def has(self, workflow: str) -> bool:
        """Tell whether it lives and has some code of a workflow."""
        return self.state == "live" and workflow in self.about.get("workflows", {})


class DeadLetter(NamedTuple):
    """An entry that was taken out of circulation."""

    id: str
    fields: Mapping[str, str]
    #: The delivery as it stood in its stream, b"" when none was kept.
    record: bytes


class Taken(NamedTuple):
    """Who has a stream entry."""

    consumer: str
    idle_ms: int
    deliveries: int


class Occupant(NamedTuple):
    """A run with a place of a step under `max_concurrency`."""

    run_id: str
    #: Who has its delivery, None when nobody has taken it.
    taken: Taken | None


class Turn(NamedTuple):
    """Where a run stands under `num_concurrent_runs`."""

    #: How many go on at once; None when the run is not in the queue any more.
    limit: int | None
    #: From 1; None when it is not in the queue any more.
    place: int | None
    #: The runs that have their turn.
    going_on: list[str]


class Gathering(NamedTuple):
    """What a step has of a returned list that it takes."""

    step: str
    #: What it gets when the list is done, as it is stored.
    record: bytes
    events: int
    #: Deliveries of the list that are not settled.
    pending: int


class TimerRow(NamedTuple):
    """A timer of a run."""

    member: str
    due_in_ms: int
    timer: Promotion | Expiry | None


class Orphan(NamedTuple):
    """A key of a run that is not there."""

    key: str
    run_id: str


class Stuck(NamedTuple):
    """Deliveries of a consumer that does not live."""

    stream: str
    consumer: str
    deliveries: int


class Unreadable(NamedTuple):
    """An entry of a public stream that no reader gets past."""

    run_id: str
    key: str
    entry: str


class Inspector:
    """Looks at one partition of one namespace."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self.link = link
        self.keys = keys
        self.reader = RunReader(link, keys)

    # -- runs --------------------------------------------------------------------------------------

    async def runs(self) -> AsyncGenerator[tuple[str, RunRecord]]:
        """Give every recorded run: live ones by deadline, then ended ones, the last to end first."""
        for command in (("ZRANGE", self.keys.live), ("ZREVRANGE", self.keys.ended)):
            at = 0
            while True:
                found = await self.link.call(*command, at, at + PAGE - 1)
                run_ids = [_text(run_id) for run_id in found]
                records = await self._records(run_ids)
                for run_id, record in zip(run_ids, records, strict=True):
                    if record is not None:
                        yield run_id, record
                if len(run_ids) < PAGE:
                    break
                at += PAGE

    async def record(self, run_id: str) -> RunRecord | None:
        """Return the record of a run, `DAMAGED` when it cannot be read, None when it is not there."""
        return (await self._records([run_id]))[0]

    async def _records(self, run_ids: Sequence[str]) -> list[RunRecord | None]:
        try:
            return await self.reader.runs(run_ids)
        except (DecodeError, StoreRefused) as error:
            if isinstance(error, StoreRefused) and "WRONGTYPE" not in str(error):
                raise
        # One that cannot be read does not keep the others from being shown.
        if len(run_ids) == 1:
            return [DAMAGED]
        return [(await self._records([run_id]))[0] for run_id in run_ids]

    async def delete_damaged(self, run_id: str) -> None:
        """Delete whatever there is of a run, live or not; what its workers still do of it is dropped."""
        await self.link.call("ZREM", self.keys.live, run_id)
        await self.link.call("ZREM", self.keys.ended, run_id)
        names = [name async for name in self.scan(f"{_literal(self.keys.run(run_id))}:*")]
        await self.link.call("UNLINK", self.keys.run(run_id), *names)

    async def delete(self, run_id: str) -> bool:
        """Delete an ended run with all of its keys; return False when it is live or not there.

        Raises:
            ConnectionLost, StoreRefused: as `Link.call`.
        """
        keys = self.keys
        further = await self.link.call("SMEMBERS", keys.further(run_id))
        owned = [
            keys.run(run_id),
            keys.ended,
            keys.further(run_id),
            keys.open(run_id),
            keys.events(run_id),
            keys.parked(run_id),
            *(_text(name) for name in further),
        ]
        return bool(await self.link.script(script("erase"), owned, [run_id]))

    # -- queues and workers ------------------------------------------------------------------------

    async def queues(self) -> list[Queue]:
        """Return every stream of every workflow, by name."""
        return await self._queues(
            sorted([name async for name in self.scan(f"{self.keys.tag}:s:*")])
        )

    async def queues_of(self, routes: Iterable[Route]) -> list[Queue]:
        """Return the streams of these routes that are there; two round trips, no scan."""
        return await self._queues(
            [self.keys.stream(route.workflow, route.type, route.step) for route in routes]
        )

    async def _queues(self, names: Sequence[str]) -> list[Queue]:
        now_ms = await self.now_ms()
        asked: list[tuple[Arg, ...]] = []
        for name in names:
            workflow, _, step = self._parts(name)
            asked += [
                ("XLEN", name),
                ("XPENDING", name, GROUP),
                ("XRANGE", name, "-", "+", "COUNT", 1),
                ("LLEN", f"{self.keys.gauge(workflow, step)}:queue"),
            ]
        replies = await self.link.calls(asked) if asked else []
        queues: list[Queue] = []
        for name, length, pending, first, queued in zip(
            names, *(replies[n::4] for n in range(4)), strict=True
        ):
            if isinstance(length, StoreRefused):
                continue  # no stream: `doctor` names it
            taken = 0 if isinstance(pending, StoreRefused) else int(pending[0])
            age = now_ms - int(first[0][0].split(b"-")[0]) if first else None
            queues.append(
                Queue(
                    *self._parts(name),
                    max(0, length - taken),
                    taken,
                    None if age is None else max(0, age),
                    0 if isinstance(queued, StoreRefused) else queued,
                )
            )
        return queues

    def _parts(self, stream: str) -> tuple[str, str, str]:
        """Return workflow, event type and step of a stream."""
        workflow, _, label = stream.removeprefix(f"{self.keys.tag}:s:").partition(":")
        event_type, _, step = label.partition(":")
        return workflow, event_type, step

    async def workers(self) -> list[WorkerRow]:
        """Return every worker that has left a trace, the living first."""
        rows, leases, now = await self.link.calls(
            [
                ("HGETALL", self.keys.workers),
                ("ZRANGE", self.keys.leases, 0, -1, "WITHSCORES"),
                ("TIME",),
            ]
        )
        for reply in (rows, leases):
            if isinstance(reply, StoreRefused):
                raise reply
        now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
        ends = {_text(name): float(score) for name, score in _pairs(leases)}
        found: list[WorkerRow] = []
        for name, data in _pairs(rows):
            consumer, about = _text(name), _about(data)
            end = ends.get(consumer)
            state = "silent" if end is None or 0 <= end <= now_ms else "live"
            silent_ms: int | None = None
            if end is not None and end < 0:
                state, silent_ms = "dead", int(now_ms + end) if isfinite(end) else None
            elif end is not None and isfinite(end):
                silent_ms = max(0, int(now_ms - end) + int(about.get("lease", 0)))
            found.append(WorkerRow(consumer, state, silent_ms, about))
        return sorted(found, key=lambda row: (("live", "silent", "dead").index(row.state), row))

    async def taken(self, workflow: str, label: str, entry: str) -> Taken | None:
        """Return who has an entry of a stream, None when nobody has taken it."""
        stream = f"{self.keys.tag}:s:{workflow}:{label}"
        (rows,) = await self.link.calls([("XPENDING", stream, GROUP, entry, entry, 1)])
        if isinstance(rows, StoreRefused) or not rows:
            return None
        _, consumer, idle_ms, deliveries = rows[0]
        return Taken(_text(consumer), int(idle_ms), int(deliveries))

    async def slots(self, run_id: str) -> dict[str, int]:
        """Return how many deliveries of each step are in streams or held, by step."""
        rows = await self.link.call("HGETALL", self.keys.run(run_id))
        slots = {_text(name[2:]): n for name, n in _pairs(rows) if name.startswith(b"s:")}
        # A stranger's is no number.
        return {step: int(n) if n.isdigit() else 0 for step, n in slots.items()}

    async def quotas(self, run_id: str, buffers: Sequence[str]) -> dict[str, dict[str, int]]:
        """Return how many events of each type the buffers wait for, by buffer."""
        names = [self.keys.buffer(run_id, buffer)[0] for buffer in buffers]
        replies = await self.link.calls([("HGET", name, "quota") for name in names])
        found: dict[str, dict[str, int]] = {}
        for buffer, reply in zip(buffers, replies, strict=True):
            parts = _text(reply).split(" ") if isinstance(reply, bytes) else []
            found[buffer] = {name: int(n) for name, n in zip(parts[::2], parts[1::2], strict=True)}
        return found

    async def paired(self, run_id: str) -> dict[tuple[str, str], dict[str, int]]:
        """Return how many events of each type wait for others to be joined with, by step and scope."""
        further = await self.link.call("SMEMBERS", self.keys.further(run_id))
        prefix = self.keys.partners(run_id, "", "", "").removesuffix("::")
        names = sorted(name for name in map(_text, further) if name.startswith(prefix))
        found: dict[tuple[str, str], dict[str, int]] = {}
        for name, length in zip(
            names, await self.link.calls([("LLEN", name) for name in names]), strict=True
        ):
            step, event_type, scope = f"{name.removeprefix(prefix)}::".split(":")[:3]
            if isinstance(length, int) and length:
                found.setdefault((step, scope), {})[event_type] = length
        return found

    async def gatherings(self, run_id: str) -> list[Gathering]:
        """Return what steps have of returned lists that are not done."""
        further = await self.link.call("SMEMBERS", self.keys.further(run_id))
        prefix = self.keys.scope(run_id, "")
        scopes = [name[len(prefix) :] for name in map(_text, further) if name.startswith(prefix)]
        scopes = sorted(scope for scope in scopes if ":" not in scope)
        replies = await self.link.calls([("HGETALL", prefix + scope) for scope in scopes])
        found: list[Gathering] = []
        for scope, reply in zip(scopes, replies, strict=True):
            fields = dict(_pairs(cast("list[Any]", reply))) if isinstance(reply, list) else {}
            pending = fields.pop(b"open", b"")
            steps = {_text(label).partition(":")[2]: held for label, held in fields.items()}
            lists = [("LLEN", self.keys.gathered(run_id, scope, step)) for step in steps]
            for (step, held), length in zip(
                steps.items(), await self.link.calls(lists), strict=True
            ):
                if isinstance(length, int) and pending.isdigit():
                    record = held.partition(b"\n")[2]
                    found.append(Gathering(step, record, length, int(pending)))
        return found

    async def timers(self, run_id: str) -> list[TimerRow]:
        """Return the timers of a run, the next first."""
        now_ms, cursor = await self.now_ms(), b"0"
        found: list[TimerRow] = []
        while True:
            cursor, rows = await self.link.call(
                "ZSCAN", self.keys.timers, cursor, "MATCH", f"{_literal(run_id)}/*", "COUNT", PAGE
            )
            members = {_text(name): int(float(due)) for name, due in _pairs(rows)}
            data = await self.link.call("HMGET", self.keys.timer_data, *members) if members else ()
            for (member, due), raw in zip(members.items(), data, strict=True):
                try:
                    timer = None if raw is None else decode_timer(raw)
                except DecodeError:
                    timer = None
                found.append(TimerRow(member, due - now_ms, timer))
            if cursor == b"0":
                return sorted(set(found), key=lambda row: (row.due_in_ms, row.member))

    async def queued_for_place(self, workflow: str, step: str, run_id: str) -> int | None:
        """Return a run's place, from 1, in the queue for `max_concurrency`; None when it is not there."""
        rows = await self.link.call("LRANGE", f"{self.keys.gauge(workflow, step)}:queue", 0, -1)
        waiting = [_text(row) for row in rows]
        return waiting.index(run_id) + 1 if run_id in waiting else None

    async def occupants(
        self, workflow: str, step: str, types: Sequence[str], most: int
    ) -> list[Occupant]:
        """Return runs with places of a step under `max_concurrency`, of each type the `most` oldest."""
        lent = set(await self.link.call("HKEYS", self.keys.gauge(workflow, step)))
        found: list[Occupant] = []
        for event_type in types:
            label = f"{event_type}:{step}"
            stream = self.keys.stream(workflow, event_type, step)
            for name, fields in await self.link.call("XRANGE", stream, "-", "+", "COUNT", most):
                entry = _text(name)
                if f"lent:{label}:{entry}".encode() not in lent:
                    run_id = _text(dict(_pairs(fields)).get(b"r", b"?"))
                    found.append(Occupant(run_id, await self.taken(workflow, label, entry)))
        return found

    async def queued_for_turn(self, workflow: str, run_id: str) -> Turn:
        """Return where a run stands under `num_concurrent_runs`."""
        going_on, queue = self.keys.places(workflow)
        runs = sorted(map(_text, await self.link.call("SMEMBERS", going_on)))
        for place, row in enumerate(await self.link.call("LRANGE", queue, 0, -1), 1):
            limit, _, queued = _text(row).partition(" ")
            if queued == run_id:
                return Turn(int(limit) if limit.isdigit() else None, place, runs)
        return Turn(None, None, runs)

    async def lock(self, run_id: str) -> int | None:
        """Return the milliseconds left of the edit lock of a run, None when nobody edits."""
        left = await self.link.call("PTTL", self.keys.lock(run_id))
        return left if left > 0 else None

    # -- dead letters ------------------------------------------------------------------------------

    async def dead(self, run_id: str | None = None) -> AsyncGenerator[DeadLetter]:
        """Give the dead letters, of one run or of all, the last first."""
        end = "+"
        while True:
            rows = await self.link.call("XREVRANGE", self.keys.dead, end, "-", "COUNT", PAGE)
            for row in rows:
                letter = _letter(row)
                if run_id is None or letter.fields.get("run") == run_id:
                    yield letter
            if len(rows) < PAGE:
                return
            end = f"({_text(rows[-1][0])}"

    async def letter(self, letter_id: str) -> DeadLetter | None:
        """Return one dead letter."""
        rows = await self.link.call("XRANGE", self.keys.dead, letter_id, letter_id)
        return _letter(rows[0]) if rows else None

    async def drop(self, letter_id: str) -> bool:
        """Delete one dead letter; the work that its run parked stays."""
        return bool(await self.link.call("XDEL", self.keys.dead, letter_id))

    # -- what should not be there ------------------------------------------------------------------

    async def orphans(self, limit: int = 100) -> list[Orphan]:
        """Return keys of runs that have no record and no time to live."""
        prefix, found = f"{self.keys.tag}:run:", list[Orphan]()
        async for name in self.scan(f"{prefix}*"):
            run_id, _, rest = name.removeprefix(prefix).partition(":")
            if not rest:
                continue
            known, left = await self.link.calls([("EXISTS", self.keys.run(run_id)), ("PTTL", name)])
            if not known and left == -1:
                found.append(Orphan(name, run_id))
                if len(found) == limit:
                    break
        return found

    async def stuck(self) -> list[Stuck]:
        """Return deliveries of consumers that have no lease, although a worker should have taken them over."""
        leases = await self.link.call("ZRANGE", self.keys.leases, 0, -1)
        known = {_text(name) for name in leases}
        found: list[Stuck] = []
        async for name in self.scan(f"{self.keys.tag}:s:*"):
            (rows,) = await self.link.calls([("XPENDING", name, GROUP)])
            if isinstance(rows, StoreRefused) or not rows[0]:
                continue
            for consumer, count in rows[3] or ():
                if _text(consumer) not in known:
                    found.append(Stuck(name, _text(consumer), int(count)))
        return found

    async def wrong_types(self) -> list[str]:
        """Return what is of a wrong type among the keys that runs share: its name, and both types."""
        expected = types_of_partition(self.keys)
        # One pattern for streams, workflows and ceilings: each scan walks over every key.
        for pattern in ("[slw]*:*", "runs:*"):
            async for name in self.scan(f"{self.keys.tag}:{pattern}"):
                kind = type_of_workflow(name)
                if kind is not None:
                    expected[name] = kind
        types = await self.link.calls([("TYPE", name) for name in expected])
        return [
            f"{name} ({_text(kind)} instead of {expected[name]})"
            for name, kind in zip(expected, types, strict=True)
            if _text(kind) not in (expected[name], "none")
        ]

    async def damaged(self, only: str = "") -> dict[str, str]:
        """Return runs, or `only` this one, that have a wrong or missing key, or no readable record."""
        names = [name async for name in self.scan(f"{_literal(self.keys.run(only))}*")]
        if only:
            names = [name for name in names if run_of(name)[0] == only]
        types = await self.link.calls([("TYPE", name) for name in names])
        found: dict[str, str] = {}
        recorded: list[str] = []
        for name, kind in zip(names, types, strict=True):
            run_id, expected = run_of(name)
            if _text(kind) not in (expected, "none"):
                found[run_id] = f"{name} is a {_text(kind)}"
            elif name == self.keys.run(run_id):
                recorded.append(run_id)
        known = set(names)
        for first in range(0, len(recorded), PAGE):
            page = recorded[first : first + PAGE]
            for run_id, record in zip(page, await self._records(page), strict=True):
                open_ = self.keys.open(run_id)
                if record is DAMAGED:
                    found.setdefault(run_id, f"{self.keys.run(run_id)} cannot be read")
                elif record is None or record.status != "running" or run_id in found:
                    continue
                elif open_ not in known and await self._has_lost_its_index(run_id):
                    found[run_id] = f"{open_} is missing, although it has deliveries in streams"
        return found

    async def _has_lost_its_index(self, run_id: str) -> bool:
        """Whether slots of a live run are taken by deliveries that its index of pending work does not have."""
        slots, held = await self.slots(run_id), await self.reader.held(run_id)
        if all(count <= held.get(step, 0) for step, count in slots.items()):
            return False
        (is_there,) = await self.link.calls([("EXISTS", self.keys.open(run_id))])
        return not is_there and slots == await self.slots(run_id)

    async def unreadable(self) -> list[Unreadable]:
        """Return, of each run, the last unreadable one among the newest public entries; see `LOOKED_AT`."""
        streams, entries = LOOKED_AT
        names: list[str] = []
        async for name in self.scan(f"{self.keys.tag}:run:*:events"):
            if name == self.keys.events(run_of(name)[0]):
                names.append(name)
            if len(names) == streams:
                break
        found: list[Unreadable] = []
        for first in range(0, len(names), PAGE):
            page = names[first : first + PAGE]
            asked: list[tuple[Arg, ...]] = [
                ("XREVRANGE", name, "+", "-", "COUNT", entries) for name in page
            ]
            for name, rows in zip(page, await self.link.calls(asked), strict=True):
                if isinstance(rows, StoreRefused):
                    continue  # no stream: `damaged` tells
                entry = next((_text(row[0]) for row in rows if not _is_public(row)), None)
                if entry is not None:
                    found.append(Unreadable(run_of(name)[0], name, entry))
        return found

    # -- the server --------------------------------------------------------------------------------

    async def now_ms(self) -> int:
        """Return Redis' time in milliseconds."""
        seconds, micros = await self.link.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def scan(self, pattern: str) -> AsyncGenerator[str]:
        """Give the names of keys that match a pattern; slow on a server with many keys."""
        cursor, seen = b"0", set[str]()
        while True:
            cursor, names = await self.link.call("SCAN", cursor, "MATCH", pattern, "COUNT", PAGE)
            for name in {_text(name) for name in names} - seen:
                seen.add(name)
                yield name
            if cursor == b"0":
                return


def is_system(queue: Queue) -> bool:
    """Whether a queue is the system stream of its workflow."""
    return queue.event_type == SYSTEM


def _is_public(row: Sequence[Any]) -> bool:
    """Whether this or newer code can read an entry of a public stream."""
    try:
        public_row(row)
    except NewerVersionError:
        return True
    except DecodeError:
        return False
    return True


def _literal(text: str) -> str:
    """Return `text` so that a pattern takes it as it stands: run ids have no other special characters."""
    return text.replace("[", "\\[")


def _about(data: bytes) -> dict[str, Any]:
    try:
        about = msgpack.unpackb(data)
    except Exception:  # noqa: BLE001 - whatever msgpack says of bytes that a stranger wrote
        return {}
    return cast("dict[str, Any]", about) if isinstance(about, dict) else {}


def _letter(row: Sequence[Any]) -> DeadLetter:
    entry, values = row
    fields = dict(_pairs(values))
    record = fields.pop(b"record", b"")
    return DeadLetter(
        _text(entry),
        {_text(name): _text(value) for name, value in fields.items()},
        record,
    )


def _text(raw: bytes) -> str:
    """Return a name as it is shown: a stranger's may be no text."""
    return raw.decode("utf-8", "replace")


def _pairs(rows: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(rows[::2], rows[1::2], strict=True))
