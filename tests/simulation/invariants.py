"""What must hold in Redis after every commit, and when everything has ended: D1-D7 of the design."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from stepfleet.core.commit import Route
from stepfleet.core.plan import Plan
from stepfleet.storage.keys import GROUP, Keys
from stepfleet.wire import Promotion, decode_public, decode_timer, decode_waiter
from stepfleet.worker.heartbeat import JUMP_MS
from tests.simulation.server import Server, arguments_of, script_name
from tests.simulation.workload import LEASE

#: Characters of a delivery id.
ID = 22


class Settled(NamedTuple):
    """One commit as the server saw it."""

    run_id: str
    fence: str
    stream: str
    entry: str
    delivery: str
    answer: str
    consumer: str


class Invariants:
    """Looks at the whole of Redis behind every commit; `violated(invariant, text)` is told what is wrong."""

    def __init__(
        self,
        server: Server,
        keys: Keys,
        plan: Plan,
        violated: Callable[[str, str], None],
        *,
        may_idle: Callable[[str], bool],
        freed: set[str],
        lost_data: Callable[[], bool],
        steady: Callable[[], float],
    ) -> None:
        self._server = server
        self._keys = keys
        self._violated = violated
        self._may_idle = may_idle
        self._freed = freed
        self._lost_data = lost_data
        self._steady = steady
        #: When each consumer renewed its lease last, by a clock that never jumps.
        self.beats: dict[str, float] = {}
        #: By how many seconds Redis' clock was ahead then.
        self._ahead: dict[str, float] = {}
        #: Deliveries of a run that were settled for good.
        self._consumed: defaultdict[str, set[str]] = defaultdict(set)
        self._routes: dict[str, Route] = {
            keys.stream(route.workflow, route.type, route.step): route
            for route in (*plan.routes, plan.system)
        }
        self._settled: Counter[tuple[str, str]] = Counter()
        #: Before the command at hand: owner of each entry, and how often it was delivered.
        self._pending: dict[tuple[str, str], tuple[bytes, int]] = {}
        #: Runs that were seen ended: what they looked like then.
        self._final: dict[str, tuple[Any, ...]] = {}
        self.commits = 0
        self.answers: Counter[str] = Counter()

    # -- at every command --------------------------------------------------------------------------

    def before(self, command: Sequence[bytes]) -> None:
        """Remembers who owns what."""
        if command[0] == b"EVALSHA":
            self._pending = dict(self._rows())

    def after(self, command: Sequence[bytes], reply: Any) -> None:
        """Looks at what a command changed."""
        if command[0] != b"EVALSHA":
            return
        name = script_name(command[1])
        if name == "commit" and isinstance(reply, list):
            self._after_commits(command, reply)
        elif name in ("hand_back", "audit", "reclaim"):
            self._check_counters(name)
        elif name == "beat" and isinstance(reply, list) and reply[0]:
            consumer = command[3 + int(command[2])].decode()
            self.beats[consumer] = self._steady()
            self._ahead[consumer] = self._server.ahead

    def renewed(self) -> list[str]:
        """Returns who renewed its lease within the last one.

        By beats and not by what is left of leases: when Redis' clock has jumped back, those of the dead
        last longer by as much.
        """
        return [name for name, at in self.beats.items() if self._steady() - at < LEASE]

    def _check_counters(self, name: str) -> None:
        """The delivery counter says how often a delivery was lost: only a dead owner makes it rise."""
        for row, (_, delivered) in self._rows():
            owner, before = self._pending.get(row, (b"", 0))
            rises = name == "reclaim" and owner != b"returned"
            if delivered > before + rises:
                self._violated("lost count", f"{row}: {name} took it from {owner!r}, {delivered}")
            if delivered > before:
                self._check_dead(row, owner.decode())

    def _check_dead(self, row: tuple[str, str], owner: str) -> None:
        """Nobody is taken for dead within a lease of its last beat.

        A lease is whole milliseconds from one that had begun, so it ends up to a millisecond sooner. And it
        ends sooner by a jump of Redis' clock that is too short to be told from a slow network, half a lease
        at most: who missed no beat has more left, who missed some is taken over that much earlier.
        """
        seen = self.beats.get(owner, 0.0)
        jumped = self._server.ahead - self._ahead.get(owner, 0.0)
        unnoticed = min(max(jumped, 0.0), LEASE * JUMP_MS / 1000)
        if self._steady() - seen < LEASE - unnoticed - 0.001:
            self._violated(
                "lost count", f"{row}: taken from {owner!r}, which renewed its lease at {seen}"
            )

    # -- a server that loses what happened last ----------------------------------------------------

    def memory(self) -> Callable[[], None]:
        """Returns what goes back to what is known now, as a server does that loses what comes after."""
        consumed = {run_id: set(ids) for run_id, ids in self._consumed.items()}
        settled, final = Counter(self._settled), dict(self._final)

        def forget() -> None:
            self._consumed = defaultdict(set, {run: set(ids) for run, ids in consumed.items()})
            self._settled, self._final = Counter(settled), dict(final)
            self._freed.clear()
            self.beats.clear()  # leases are those of then

        return forget

    def _check_owner(self, one: Settled, consumer: str) -> None:
        """Who does not own an entry hears only that it is gone."""
        owner, _ = self._pending.get((one.stream, one.entry), (b"", 0))
        if owner.decode() != consumer and one.answer not in ("gone", "refused", "broken"):
            self._violated(
                "D2",
                f"{one.run_id}: {consumer} was answered {one.answer!r} for {one.stream} {one.entry} "
                f"of {owner.decode() or 'nobody'}",
            )

    def _rows(self) -> Iterator[tuple[tuple[str, str], tuple[bytes, int]]]:
        for name in self._routes:
            stream = self._server.value(name)
            group = stream._groups.get(GROUP.encode()) if stream is not None else None
            for entry, row in group.pel.items() if group is not None else ():
                yield (name, f"{entry.ts}-{entry.seq}"), (row.consumer_name, row.times_delivered)

    def _after_commits(self, command: Sequence[bytes], reply: Sequence[bytes]) -> None:
        touched: dict[str, set[str]] = {}
        for one in _commits(command, reply):
            self.commits += 1
            self.answers[one.answer] += 1
            settled = touched.setdefault(one.run_id, set())
            if one.fence in ("entry", "effect", "stray"):
                self._check_owner(one, one.consumer)
            if one.answer == "rewound" and not self._lost_data():
                self._violated(
                    "D2",
                    f"{one.run_id}: {one.delivery} was carried out before what was sent before it",
                )
            if one.fence == "entry" and one.answer == "applied":
                self._settled[one.stream, one.entry] += 1
                settled.add(one.delivery)
                if self._settled[one.stream, one.entry] > 1:
                    self._violated("D2", f"{one.run_id}: entry {one.entry} was settled twice")
        for run_id, settled in touched.items():
            self.check(run_id, settled)

    def check(self, run_id: str, settled: set[str]) -> None:
        """Checks one run, of which these deliveries were just settled."""
        record = self._hash(self._keys.run(run_id))
        if not record:
            return
        if record.get(b"status") == b"running":
            if run_id in self._final:
                self._violated("D3", f"{run_id}: it had ended and goes on")
            self._check_live(run_id, record, settled)
        else:
            self._check_ended(run_id, record)
        self._check_public(run_id, record)

    def _check_live(self, run_id: str, record: dict[bytes, bytes], settled: set[str]) -> None:
        places = list(self._places(run_id))
        found = dict(places)
        if len(found) < len(places):
            self._violated("D1", f"{run_id}: a delivery is in two places: {places}")
        consumed = self._consumed[run_id]
        consumed |= settled - found.keys()
        if again := consumed & found.keys():
            self._violated("D2", f"{run_id}: {sorted(again)} came again behind their end")
        opened = {
            name.decode(): where.decode()
            for name, where in self._hash(self._keys.open(run_id)).items()
            if not name.endswith(b"!")
        }
        for delivery, where in found.items():
            if where.startswith("hold"):
                if delivery in opened:
                    self._violated("D1", f"{run_id}: {delivery} is held and open")
            elif not opened.get(delivery, "").startswith(where):
                self._violated(
                    "D1",
                    f"{run_id}: {delivery} is in {where}, `open` says {opened.get(delivery)}",
                )
        for delivery, where in opened.items():
            if delivery not in found:
                self._violated("D1", f"{run_id}: {delivery} is lost, `open` says {where}")
        if not places and not self._may_idle(run_id):
            self._violated("D1", f"{run_id}: it runs and nothing of it is anywhere")
        lock = self._server.value(self._keys.lock(run_id))
        if lock is not None and lock.decode() in self._freed:
            self._violated("D8", f"{run_id}: {lock} is locked, its edit has returned")
        self._check_slots(run_id, record)
        self._check_waits(run_id, record)
        if self._server.value(self._keys.live) is None or run_id.encode() not in self._server.value(
            self._keys.live
        ):
            self._violated("D8", f"{run_id}: it is not among the live runs")

    def _places(self, run_id: str) -> Iterator[tuple[str, str]]:
        run = run_id.encode()
        for name, route in self._routes.items():
            for entry, fields in self._entries(name):
                if fields[1] == run and fields[3]:
                    yield fields[3].decode(), f"stream {entry} {route.label}"
        for step in self._steps():
            for element in self._server.value(self._keys.hold(run_id, step)) or ():
                yield element[:ID].decode(), f"hold {step}"
        for member, data in self._hash(self._keys.timer_data).items():
            if member.startswith(run + b"/"):
                timer = decode_timer(data)
                if isinstance(timer, Promotion):
                    yield timer.delivery, "timer"
        for data in self._hash(self._keys.wait(run_id)).values():
            yield decode_waiter(data).delivery, "waiting"

    def _check_slots(self, run_id: str, record: dict[bytes, bytes]) -> None:
        run = run_id.encode()
        lent = {
            delivery
            for delivery, where in self._hash(self._keys.open(run_id)).items()
            if where.endswith(b" lent")
        }
        if int(record.get(b"lent", b"0")) != len(lent):
            self._violated("D4", f"{run_id}: counts {record.get(b'lent')} lent slots, has {lent}")
        for step, (limit, ceiling) in self._steps().items():
            streams = [name for name, route in self._routes.items() if route.step == step]
            entries = [fields for name in streams for _, fields in self._entries(name)]
            taken = sum(fields[1] == run and fields[3] not in lent for fields in entries)
            held = len(self._server.value(self._keys.hold(run_id, step)) or ())
            counted = int(record.get(f"s:{step}".encode(), b"0"))
            if counted != taken + held:
                self._violated(
                    "D4", f"{run_id}: {step} counts {counted} slots, has {taken} + {held} held"
                )
            if taken > limit:
                self._violated("D4", f"{run_id}: {taken} of {step} are let go, {limit} may be")
            if ceiling:
                self._check_ceiling(step, ceiling, len(entries))
            queued = ceiling and f"queued:{step}".encode() in record
            if held and taken < limit and not queued:
                self._violated("D8", f"{run_id}: {held} of {step} are held, {taken} are let go")

    def _check_ceiling(self, step: str, ceiling: int, entries: int) -> None:
        workflow = next(iter(self._routes.values())).workflow
        gauge = self._hash(self._keys.gauge(workflow, step))
        reserved = int(gauge.get(b"reserved", b"0"))
        lent = int(gauge.get(b"lent", b"0"))
        if entries + reserved - lent > ceiling:
            self._violated(
                "D4", f"{entries} + {reserved} - {lent} of {step} are let go, {ceiling} may be"
            )

    def _check_waits(self, run_id: str, record: dict[bytes, bytes]) -> None:
        waits = self._hash(self._keys.wait(run_id))
        if int(record.get(b"waiting", b"0")) != len(waits):
            self._violated("D1", f"{run_id}: counts {record.get(b'waiting')} waits, has {waits}")
        for data in waits.values():
            timer = decode_waiter(data).timer
            if timer and timer.encode() not in self._hash(self._keys.timer_data):
                self._violated("D8", f"{run_id}: a wait has lost its timer {timer}")

    def _check_public(self, run_id: str, record: dict[bytes, bytes]) -> None:
        entries = list(self._entries(self._keys.events(run_id)))
        seqs = [int(entry.partition("-")[0]) for entry, _ in entries]
        last = int(record.get(b"seq", b"0"))
        if seqs != list(range(1, last + 1)):
            self._violated("D7", f"{run_id}: public entries are {seqs}, the last is {last}")
        kinds = [decode_public(fields[1]).kind for _, fields in entries]
        ended = record.get(b"status") != b"running"
        if kinds and kinds.count("end") != ended:
            self._violated("D3", f"{run_id}: terminal entries: {kinds}")
        if kinds and ended and kinds[-1] != "end":
            self._violated("D3", f"{run_id}: published after its end: {kinds}")

    def _check_ended(self, run_id: str, record: dict[bytes, bytes]) -> None:
        final = (
            record.get(b"status"),
            record.get(b"entry"),
            record.get(b"seq"),
            tuple(sorted(self._hash(self._keys.store(run_id)).items())),
        )
        if not record.get(b"entry"):
            self._violated("D3", f"{run_id}: it has ended without a terminal entry")
        before = self._final.setdefault(run_id, final)
        if before != final:
            self._violated("D3", f"{run_id}: changed behind its end: {before} -> {final}")
        live = self._server.value(self._keys.live)
        if live is not None and run_id.encode() in live:
            self._violated("D3", f"{run_id}: it has ended and is among the live runs")

    # -- when all is over --------------------------------------------------------------------------

    def check_rest(self) -> None:
        """Checks what is left when every run has ended and no worker works."""
        for name in self._routes:
            if left := list(self._entries(name)):
                self._violated("D1", f"{name} still has {left}")
            stream = self._server.value(name)
            for group in (stream._groups if stream is not None else {}).values():
                if group.pel:
                    self._violated("D1", f"{name} has pending rows {dict(group.pel)}")
        if self._server.value(self._keys.live):
            self._violated("D6", f"{self._keys.live} is not empty")
        for member, data in self._hash(self._keys.timer_data).items():
            # What an ended run waited for stays until it is due: it may be resumed.
            if self._timer_is_stray(member, data):
                self._violated("D1", f"the timer {member} is left")
        for name in self._server.names():
            if ":lim:" in name and not name.endswith(":queue"):
                if any(count != b"0" for count in self._hash(name).values()):
                    self._violated("D4", f"{name} keeps {self._hash(name)}")
            elif ":lim:" in name:
                self._violated("D4", f"{name} is not empty")

    def check_gone(self) -> None:
        """Checks that no key of a run is left."""
        for name in self._server.names():
            if name.startswith(f"{self._keys.tag}:run:") or name == self._keys.tidy:
                self._violated("D6", f"{name} is left, ttl {self._server.ask('PTTL', name)}")

    def _timer_is_stray(self, member: bytes, data: bytes) -> bool:
        record = self._hash(self._keys.run(member.decode().partition("/")[0]))
        return bool(record) and record.get(b"status") in (b"running", b"completed")

    # -- reading -----------------------------------------------------------------------------------

    def _hash(self, key: str) -> dict[bytes, bytes]:
        value = self._server.value(key)
        return value._values if value is not None else {}

    def _entries(self, key: str) -> Iterator[tuple[str, list[bytes]]]:
        stream = self._server.value(key)
        if stream is not None:
            for name in stream._ids:
                yield f"{name.ts}-{name.seq}", stream._values_dict[name]

    def _steps(self) -> dict[str, tuple[int, int]]:
        return {
            route.step: (route.limit, route.ceiling)
            for route in self._routes.values()
            if route.step
        }


def _commits(command: Sequence[bytes], reply: Sequence[bytes]) -> Iterator[Settled]:
    """Reads the arguments of `commit.lua`: its header says what they are."""
    keys = int(command[2])
    K = [b"", *command[3 : 3 + keys]]  # noqa: N806 - counted from 1, as in the script
    A = [b"", *arguments_of(command)]  # noqa: N806
    streams, i = [""], 6
    for _ in range(int(A[5])):
        streams.append(K[int(A[i])].decode())
        i += 9 + int(A[i + 8]) if int(A[i + 4]) > 0 else 5
    for answer in reply:
        if i >= len(A):
            return  # behind the answers: an entry that was taken
        fence = A[i + 5].decode()
        stream = entry = delivery = ""
        if fence in ("entry", "effect", "stray"):
            stream, entry = streams[int(A[i + 6])], A[i + 7].decode()
            delivery = A[i + 8].decode() if fence == "entry" else ""
        word = answer.decode("utf-8", "replace").split(" ")[0]
        yield Settled(A[i + 4].decode(), fence, stream, entry, delivery, word, A[2].decode())
        i += int(A[i])
