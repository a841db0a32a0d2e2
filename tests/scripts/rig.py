"""The scripts on one server, called as the store calls them, without an event loop."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple, cast

from stepfleet.core.commit import (
    Answer,
    Commit,
    ControlFence,
    EffectFence,
    Emit,
    End,
    EntryFence,
    NewRunFence,
    Route,
    TimerFence,
    Word,
)
from stepfleet.storage.bounds import Bounds
from stepfleet.storage.keys import GROUP, SYSTEM, Keys
from stepfleet.storage.packing import Packing
from stepfleet.storage.run_store import answer_of
from stepfleet.storage.scripts import script
from stepfleet.storage.words import write

WORKFLOW = "Flow"
#: Where events for waiters and wake-ups go.
SYS = Route(WORKFLOW, SYSTEM, "")
#: A step with plenty of slots, and one with two.
WIDE = Route(WORKFLOW, "A", "wide", 100, 0, ("A",))
NARROW = Route(WORKFLOW, "B", "narrow", 2, 0, ("B",))

_runs = itertools.count(1)


def did(name: object) -> str:
    """Returns a delivery id: 22 characters, as all of them."""
    return str(name).ljust(22, ".")


def emit(route: Route, *names: object, **more: Any) -> Emit:
    """Returns the word that emits deliveries with these names."""
    return Emit(route, tuple((did(name), f"record of {name}".encode()) for name in names), **more)


def end(status: str = "completed", *, parks: bool = False) -> End:
    """Returns the word that ends a run."""
    return End(status, b"the end", (), parks)


class Entry(NamedTuple):
    """What a consumer read."""

    route: Route
    entry: str
    run_id: str
    id: str
    record: bytes
    #: Step to wake, in a wake-up.
    wakes: str = ""

    @property
    def fence(self) -> EntryFence:
        """The fence of the commit that settles it."""
        return EntryFence(self.route, self.entry, self.id)

    @property
    def effect(self) -> EffectFence:
        """The fence of its early effects."""
        return EffectFence(self.route, self.entry)


def settle(entry: Entry, *words: Word, expects: Sequence[Any] = ()) -> Commit:
    """Returns the commit that settles a delivery."""
    return Commit(entry.run_id, entry.fence, words, expects)


def effect(entry: Entry, *words: Word, expects: Sequence[Any] = ()) -> Commit:
    """Returns a commit of a delivery that goes on."""
    return Commit(entry.run_id, entry.effect, words, expects)


def cancel(run_id: str) -> Commit:
    """Returns the commit that cancels a run."""
    return Commit(run_id, ControlFence(), [end("cancelled", parks=True)])


def due(run_id: str, member: str, *words: Word) -> Commit:
    """Returns the commit that fires a timer."""
    return Commit(run_id, TimerFence(member), words)


class Rig:
    """Calls scripts in a namespace of its own."""

    def __init__(self, client: Any, kind: str) -> None:
        self.client = client
        self.kind = kind
        self.keys = Keys(f"t{secrets.token_hex(6)}")
        self.bounds = Bounds(retention=timedelta(minutes=10), stream_limit=1000, operations_limit=3)
        self.created: set[str] = set()

    # -- calls -------------------------------------------------------------------------------------

    def script(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Runs a script."""
        source = script(name).source
        return self.client.eval(source, len(keys), *keys, *args)

    def commits(self, *commits: Commit, consumer: str = "me") -> list[Answer]:
        """Applies commits in one call."""
        packing = Packing(self.keys, consumer, self.bounds)
        for commit in commits:
            write(packing, commit)
        return [answer_of(raw) for raw in self.script("commit", *self.arguments(packing))]

    def arguments(self, packing: Packing) -> tuple[list[str], list[Any]]:
        """Returns the arguments of a call as they are sent to a server of this kind."""
        return packing.arguments() if self.kind == "fake" else packing.packed()

    def commit(self, commit: Commit, consumer: str = "me") -> Answer:
        """Applies one commit."""
        return self.commits(commit, consumer=consumer)[0]

    def words(self, *commits: Commit, consumer: str = "me") -> list[str]:
        """Applies commits in one call and returns the words of the answers."""
        return [answer.word for answer in self.commits(*commits, consumer=consumer)]

    def new(self, *words: Word, run_id: str = "", digest: str = "d", timeout_ms: int = 0) -> Commit:
        """Returns the commit that makes a run."""
        fields = ["status", "running", "workflow", WORKFLOW]
        if timeout_ms:
            fields += ["deadline", f"?{timeout_ms}", "timeout", str(timeout_ms)]
        return Commit(run_id or f"run{next(_runs)}", NewRunFence(digest, fields), words)

    def start(self, *words: Word, timeout_ms: int = 0) -> str:
        """Starts a run and returns its id."""
        commit = self.new(*words, timeout_ms=timeout_ms)
        assert self.commit(commit).word == "applied"
        return commit.run_id

    def apply(self, commit: Commit, consumer: str = "me") -> Answer:
        """Applies a commit that has to be applied."""
        answer = self.commit(commit, consumer)
        assert answer.word == "applied", answer
        return answer

    # -- streams -----------------------------------------------------------------------------------

    def stream(self, route: Route) -> str:
        """Returns the key of a stream whose group exists."""
        key = self.keys.stream(route.workflow, route.type, route.step)
        if key not in self.created:
            self.client.xgroup_create(key, GROUP, "0", mkstream=True)
            self.created.add(key)
        return key

    def read(self, route: Route, consumer: str = "me", count: int = 1000) -> list[Entry]:
        """Reads new entries in the name of a consumer."""
        key = self.stream(route)
        reply = self.client.execute_command(
            "XREADGROUP", "GROUP", GROUP, consumer, "COUNT", count, "STREAMS", key, ">"
        )
        return [_entry(route, row) for row in _rows(reply)]

    def take(self, route: Route, consumer: str = "me") -> Entry:
        """Reads the next entry, which has to be there."""
        (entry,) = self.read(route, consumer, 1)
        return entry

    def queued(self, route: Route) -> list[str]:
        """Returns the names of what is in a stream."""
        rows = self.client.xrange(self.stream(route))
        return [fields[b"i"].decode().rstrip(".") for _, fields in rows]

    def pending(self, route: Route, consumer: str) -> dict[str, int]:
        """Returns entry -> deliveries of what is pending under a name."""
        rows = self.client.xpending_range(self.stream(route), GROUP, "-", "+", 1000, consumer)
        return {row["message_id"].decode(): row["times_delivered"] for row in rows}

    def claim(self, entry: Entry, consumer: str) -> None:
        """Gives an entry to another consumer, as a reclaim does."""
        self.client.xclaim(self.stream(entry.route), GROUP, consumer, 0, [entry.entry])

    # -- runs --------------------------------------------------------------------------------------

    def run(self, run_id: str) -> dict[str, str]:
        """Returns a run's record."""
        return _texts(self.client.hgetall(self.keys.run(run_id)))

    def open(self, run_id: str) -> dict[str, str]:
        """Returns where a run's deliveries are, by name and kind of place."""
        found = _texts(self.client.hgetall(self.keys.open(run_id)))
        return {name.rstrip("."): where.split(" ")[0] for name, where in found.items()}

    def held(self, run_id: str, step: str) -> list[str]:
        """Returns the names of what waits for a slot."""
        rows = self.client.lrange(self.keys.hold(run_id, step), 0, -1)
        return [row[:22].decode().rstrip(".") for row in rows]

    def public(self, run_id: str) -> list[tuple[str, bytes]]:
        """Returns the public entries of a run."""
        rows = self.client.xrange(self.keys.events(run_id))
        return [(name.decode(), fields[b"d"]) for name, fields in rows]

    def keys_of(self, run_id: str) -> dict[str, int]:
        """Returns the keys of a run with the seconds that they live on (-1: for ever)."""
        names = self.client.keys(f"{self.keys.run(run_id)}*".replace("{", "[{]"))
        return {name.decode(): self.client.ttl(name) for name in names}

    def everything(self) -> dict[str, Any]:
        """Returns every key with its content."""
        names = self.client.keys(f"{self.keys.tag}:*".replace("{", "[{]"))
        return {name.decode(): self.client.dump(name) for name in names}

    def now_ms(self) -> int:
        """Returns the server's time."""
        seconds, micros = self.client.time()
        return seconds * 1000 + micros // 1000


def _rows(reply: Any) -> list[Any]:
    if isinstance(reply, dict):  # as the client shapes it on RESP3
        return [row for rows in cast("dict[Any, Any]", reply).values() for row in rows[0]]
    return [row for _, rows in reply or () for row in rows]


def _entry(route: Route, row: Any) -> Entry:
    name, fields = row
    if not isinstance(fields, dict):
        fields = dict(zip(fields[::2], fields[1::2], strict=True))
    texts = cast("dict[bytes, bytes]", fields)
    return Entry(
        route,
        name.decode(),
        texts[b"r"].decode(),
        texts[b"i"].decode(),
        texts.get(b"d", b""),
        texts.get(b"w", b"").decode(),
    )


def _texts(found: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode("utf-8", "replace") for name, value in found.items()}
