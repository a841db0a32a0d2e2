"""Random histories of two runs on the scripts, against a model of what must be true of them.

Deliveries are settled, retried, suspended, answered, joined, lost and reclaimed in any order, commits
are sent again or come from workers that lost their lease. The model knows which deliveries are
pending and what they contributed; after every step the design's invariants D1 to D5 are read off the
keys.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import redis
from fakeredis import FakeRedis, FakeServer
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from stepfleet.core.commit import (
    Append,
    Commit,
    ControlFence,
    DropTimer,
    Emit,
    EntryFence,
    Has,
    Keep,
    Note,
    OperationFence,
    Park,
    Publish,
    Quota,
    Route,
    Save,
    SetTimer,
    Take,
    TimerFence,
    Unwait,
    Version,
    Wait,
    Wake,
)
from stepfleet.storage.bounds import Bounds
from stepfleet.storage.keys import GROUP
from tests.scripts.rig import SYS, WORKFLOW, Entry, Rig, end

#: Two types for one step with two slots, and a step with a ceiling over both runs.
ONE = Route(WORKFLOW, "One", "step", 2, 0, ("One", "Two"))
TWO = ONE._replace(type="Two")
SCARCE = Route(WORKFLOW, "Scarce", "scarce", 2, 1, ("Scarce",))
ROUTES = (ONE, TWO, SCARCE)
STREAMS = (*ROUTES, SYS)
WORKERS = ("w1", "w2")
QUOTA = (("One", 3),)


@dataclass
class Model:
    """What must have become of everything that was accepted."""

    #: Deliveries that are somewhere, of each live or parking run.
    pending: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    status: dict[str, str] = field(default_factory=dict[str, str])
    published: Counter[str] = field(default_factory=Counter[str])
    #: Contributions in the open buffer, and those of each release.
    buffered: dict[str, list[bytes]] = field(default_factory=dict[str, list[bytes]])
    released: list[bytes] = field(default_factory=list[bytes])
    waiters: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    timers: dict[str, tuple[str, Route, str]] = field(
        default_factory=dict[str, tuple[str, Route, str]]
    )


class Histories(RuleBasedStateMachine):
    """One history."""

    client: Any = None
    kind = ""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(self.client, self.kind)
        self.rig.bounds = Bounds()
        self.model = Model()
        self.names = itertools.count(1)
        #: Entries that a worker believes to own; after a reclaim it may be wrong.
        self.held: list[tuple[str, Entry]] = []
        #: Commits that were answered for good, with their consumers.
        self.sent: list[tuple[str, Commit]] = []

    @initialize()
    def streams(self) -> None:
        for route in STREAMS:
            self.rig.stream(route)

    def teardown(self) -> None:
        for name in self.rig.everything():
            self.client.delete(name)

    # -- parts -------------------------------------------------------------------------------------

    def fresh(self) -> str:
        return f"d{next(self.names)}".ljust(22, ".")

    def emission(self, route: Route, names: list[str], **more: Any) -> Emit:
        return Emit(route, tuple((name, b"record") for name in names), **more)

    def owns(self, consumer: str, entry: Entry) -> bool:
        return entry.entry in self.rig.pending(entry.route, consumer)

    def settle(
        self,
        consumer: str,
        entry: Entry,
        words: list[Any],
        *,
        expects: tuple[Any, ...] = (),
        doubled: bool = False,
    ) -> str:
        """Commits for an entry and returns the answer that counts, checked against ownership and status."""
        commit = Commit(entry.run_id, entry.fence, words, expects)
        mine = self.owns(consumer, entry)
        status = self.model.status[entry.run_id]
        if doubled:
            first, second = self.rig.commits(commit, commit, consumer=consumer)
            assert second.word == (first.word if first.word in ("parking", "conflict") else "gone")
        else:
            first = self.rig.commit(commit, consumer)
        if not mine:
            assert first.word == "gone"
        elif status == "running":
            assert first.word in ("applied", "conflict")
        elif status == "cancelled" and not entry.wakes:
            assert first.word == "parking"
            park = Commit(entry.run_id, entry.fence, [Park(entry.route, entry.entry)])
            assert self.rig.words(park, park, consumer=consumer) == ["over", "gone"]
        else:
            assert first.word == "over"
        if first.word not in ("conflict", "gone"):
            self.sent.append((consumer, commit))
        return first.word

    def choose(self, data: st.DataObject) -> tuple[str, Entry]:
        index = data.draw(st.integers(0, len(self.held) - 1))
        return self.held.pop(index)

    # -- rules: what comes in ----------------------------------------------------------------------

    @precondition(lambda self: len(self.model.status) < 3)
    @rule(route=st.sampled_from(ROUTES), count=st.integers(1, 4), doubled=st.booleans())
    def start(self, route: Route, count: int, doubled: bool) -> None:
        run_id = f"{self.rig.keys.namespace}-{len(self.model.status)}"
        names = [self.fresh() for _ in range(count)]
        commit = self.rig.new(self.emission(route, names, awaitable=False), run_id=run_id)
        assert set(self.rig.words(*[commit] * (1 + doubled))) == {"applied"}
        self.model.status[run_id] = "running"
        self.model.pending[run_id] = set(names)
        self.model.waiters[run_id] = {}
        self.model.buffered[run_id] = []
        self.sent.append(("client", commit))

    @precondition(lambda self: self.model.status)
    @rule(data=st.data(), route=st.sampled_from(ROUTES), doubled=st.booleans())
    def send(self, data: st.DataObject, route: Route, doubled: bool) -> None:
        run_id = data.draw(st.sampled_from(sorted(self.model.status)))
        name = self.fresh()
        commit = Commit(run_id, OperationFence(name), [self.emission(route, [name])])
        answers = self.rig.words(*[commit] * (1 + doubled))
        live = self.model.status[run_id] == "running"
        assert set(answers) == {"applied" if live else "over"}
        if live:
            self.model.pending[run_id].add(name)
            self.sent.append(("client", commit))

    @rule(
        consumer=st.sampled_from(WORKERS), route=st.sampled_from(STREAMS), count=st.integers(1, 3)
    )
    def deliver(self, consumer: str, route: Route, count: int) -> None:
        self.held += [(consumer, entry) for entry in self.rig.read(route, consumer, count)]

    # -- rules: what workers do --------------------------------------------------------------------

    @precondition(lambda self: self.held)
    @rule(
        data=st.data(),
        route=st.sampled_from(ROUTES),
        count=st.integers(0, 4),
        doubled=st.booleans(),
    )
    def finish(self, data: st.DataObject, route: Route, count: int, doubled: bool) -> None:
        consumer, entry = self.choose(data)
        if not entry.route.step:
            self.serve(consumer, entry, doubled)
            return
        names = [self.fresh() for _ in range(count)]
        words = [Publish(entry.id.encode()), self.emission(route, names)]
        if self.settle(consumer, entry, words, doubled=doubled) == "applied":
            self.model.pending[entry.run_id].discard(entry.id)
            self.model.pending[entry.run_id] |= set(names)
            self.model.published[entry.run_id] += 1

    def serve(self, consumer: str, entry: Entry, doubled: bool) -> None:
        """What any worker decides of the system stream: wake-ups, answers, the inbox."""
        if entry.wakes:
            self.settle(consumer, entry, [Wake(SCARCE)], doubled=doubled)
            return
        run_id = entry.run_id
        waiters = self.model.waiters.get(run_id, {})
        if not waiters:
            word = self.settle(consumer, entry, [Keep(entry.id.encode(), 100)], doubled=doubled)
            if word == "applied":
                self.model.pending[run_id].discard(entry.id)
            return
        waiter, member = next(iter(waiters.items()))
        words = [
            Unwait(waiter, "One"),
            self.emission(ONE, [waiter], awaitable=False),
            DropTimer(member),
        ]
        expects = (Has(waiter),)
        if self.settle(consumer, entry, words, expects=expects, doubled=doubled) == "applied":
            self.model.pending[run_id].discard(entry.id)
            del waiters[waiter]
            self.model.timers.pop(member)

    @precondition(lambda self: any(entry.route.step for _, entry in self.held))
    @rule(data=st.data(), delayed=st.booleans(), doubled=st.booleans())
    def retry(self, data: st.DataObject, delayed: bool, doubled: bool) -> None:
        consumer, entry = self.choose(data)
        if not entry.route.step:
            self.serve(consumer, entry, doubled)
            return
        member = f"{entry.run_id}/{self.fresh()}"
        words: list[Any] = [self.emission(entry.route, [entry.id], awaitable=False)]
        if delayed:
            words = [SetTimer(member, 60_000, b"data"), Note(entry.id, "timer back-off")]
        if self.settle(consumer, entry, words, doubled=doubled) == "applied" and delayed:
            self.model.timers[member] = (entry.run_id, entry.route, entry.id)

    @precondition(lambda self: any(entry.route.step for _, entry in self.held))
    @rule(data=st.data(), doubled=st.booleans())
    def suspend(self, data: st.DataObject, doubled: bool) -> None:
        consumer, entry = self.choose(data)
        if not entry.route.step:
            self.serve(consumer, entry, doubled)
            return
        member = f"{entry.run_id}/{self.fresh()}"
        words = [
            Wait(entry.id, "One", b"waiter"),
            SetTimer(member, 60_000, b"data"),
            Note(entry.id, "waiting One"),
        ]
        if self.settle(consumer, entry, words, doubled=doubled) == "applied":
            self.model.waiters[entry.run_id][entry.id] = member
            self.model.timers[member] = (entry.run_id, ONE, entry.id)

    @precondition(lambda self: any(entry.route.step for _, entry in self.held))
    @rule(data=st.data(), stale=st.booleans(), doubled=st.booleans())
    def collect(self, data: st.DataObject, stale: bool, doubled: bool) -> None:
        """Contributes blindly; on a conflict releases with the version that was told, or with an old one."""
        consumer, entry = self.choose(data)
        if not entry.route.step:
            self.serve(consumer, entry, doubled)
            return
        run_id, event = entry.run_id, entry.id.encode()
        words = [Append("b", "One", event)]
        word = self.settle(
            consumer, entry, words, expects=(Quota("b", "One", QUOTA),), doubled=doubled
        )
        if word == "conflict":
            assert len(self.model.buffered[run_id]) == 2
            counts, events = self.rig.keys.buffer(run_id, "b")
            version = int(self.client.hget(counts, "version"))
            if stale:
                before = (Version("b", version - 1),)
                assert (
                    self.settle(consumer, entry, [Take("b", version - 1)], expects=before)
                    == "conflict"
                )
            content = self.client.lrange(events, 0, -1)
            known = (Version("b", version),)
            assert self.settle(consumer, entry, [Take("b", version)], expects=known) == "applied"
            assert content == self.model.buffered[run_id]
            self.model.released += [*content, event]
            self.model.buffered[run_id] = []
        elif word == "applied":
            self.model.buffered[run_id].append(event)
        if word in ("applied", "conflict"):
            self.model.pending[run_id].discard(entry.id)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), route=st.sampled_from(ROUTES), times=st.integers(1, 2))
    def send_early(self, data: st.DataObject, route: Route, times: int) -> None:
        """An effect while the step runs, sent once or twice."""
        index = data.draw(st.integers(0, len(self.held) - 1))
        consumer, entry = self.held[index]
        if not entry.id:
            return
        name = self.fresh()
        word = self.emission(route, [name], guard=entry.id)
        commit = Commit(entry.run_id, entry.effect, [word, Publish(b"p", entry.id, f"p:{name}")])
        live = self.model.status[entry.run_id] == "running"
        expected = ("applied" if live else "over") if self.owns(consumer, entry) else "gone"
        assert self.rig.words(*[commit] * times, consumer=consumer) == [expected] * times
        if expected == "applied":
            self.model.pending[entry.run_id].add(name)
            self.model.published[entry.run_id] += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data(), cancelled=st.booleans(), doubled=st.booleans())
    def end(self, data: st.DataObject, cancelled: bool, doubled: bool) -> None:
        consumer, entry = self.choose(data)
        if not entry.route.step:
            self.serve(consumer, entry, doubled)
            return
        if cancelled:
            self.held.append((consumer, entry))
            self.cancel(entry.run_id)
            return
        if self.settle(consumer, entry, [end()], doubled=doubled) == "applied":
            self.ended(entry.run_id, "completed")

    def cancel(self, run_id: str) -> None:
        commit = Commit(run_id, ControlFence(), [end("cancelled", parks=True)])
        live = self.model.status[run_id] == "running"
        assert self.rig.words(commit) == ["applied" if live else "over"]
        if live:
            self.ended(run_id, "cancelled")

    def ended(self, run_id: str, status: str) -> None:
        self.model.status[run_id] = status
        if self.model.published[run_id]:
            self.model.published[run_id] += 1

    # -- rules: time, losses, doubles --------------------------------------------------------------

    @precondition(lambda self: self.model.timers)
    @rule(data=st.data(), doubled=st.booleans())
    def fire(self, data: st.DataObject, doubled: bool) -> None:
        member = data.draw(st.sampled_from(sorted(self.model.timers)))
        run_id, route, name = self.model.timers.pop(member)
        words: list[Any] = [self.emission(route, [name], awaitable=False)]
        expects: list[Any] = []
        if self.model.waiters[run_id].pop(name, None):
            words.append(Unwait(name, "One"))
            expects.append(Has(name))
        commit = Commit(run_id, TimerFence(member), words, expects)
        answers = self.rig.words(*[commit] * (1 + doubled))
        status = self.model.status[run_id]
        if status != "cancelled":
            first = "applied" if status == "running" else "over"
            assert answers == [first, "gone"][: 1 + doubled]
            return
        assert set(answers) == {"parking"}
        # What waits is kept where it is; what backs off is kept with the run.
        kept = DropTimer(member) if expects else Save(name, route.label, b"record")
        if expects:
            self.model.waiters[run_id][name] = member
        last = commit._replace(words=[kept], expects=())
        assert self.rig.words(last, last) == ["over", "gone"]

    @rule(dead=st.sampled_from(WORKERS), most=st.integers(1, 5))
    def lose(self, dead: str, most: int) -> None:
        """The lease of a worker runs out and another takes its work; the worker does not know."""
        other = next(name for name in WORKERS if name != dead)
        self.client.zadd(self.rig.keys.leases, {dead: 1, other: 10**15})
        keys = [self.rig.keys.leases, *(self.rig.stream(route) for route in STREAMS)]
        before = sum(len(self.rig.pending(route, dead)) for route in STREAMS)
        until_ms = self.rig.now_ms() + 60_000
        rows: list[Any] = []
        # Those lost once come together, each of the others by itself.
        while more := self.rig.script(
            "reclaim", keys, [GROUP, other, most - len(rows), 1, 1, until_ms, 1000]
        ):
            rows += more
        assert len(rows) == min(most, before)
        for index, name, _, fields, owner in rows:
            assert owner == dead.encode()
            content = dict(zip(fields[::2], fields[1::2], strict=True))
            run_id, did = content[b"r"].decode(), content[b"i"].decode()
            wakes = content.get(b"w", b"").decode()
            route = STREAMS[index - 1]
            self.held.append((other, Entry(route, name.decode(), run_id, did, b"", wakes)))
        self.client.zrem(self.rig.keys.leases, dead, other)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        """A reply was lost: the commit comes again, whatever happened since, and changes nothing."""
        consumer, commit = data.draw(st.sampled_from(self.sent))
        before = self.rig.everything()
        (word,) = self.rig.words(commit, consumer=consumer)
        assert word in ("gone", "applied")
        assert word == "gone" or not isinstance(commit.fence, EntryFence)
        assert self.rig.everything() == before

    # -- D1 to D5 ----------------------------------------------------------------------------------

    @invariant()
    def every_event_is_in_exactly_one_place(self) -> None:
        for run_id, pending in self.model.pending.items():
            places = Counter[str]()
            for route in STREAMS:
                for _, fields in self.client.xrange(self.rig.stream(route)):
                    if fields[b"r"].decode() == run_id and fields[b"i"]:
                        places[fields[b"i"].decode()] += 1
            for step in ("step", "scarce"):
                held = self.client.lrange(self.rig.keys.hold(run_id, step), 0, -1)
                places.update(element[:22].decode() for element in held)
            places.update(_texts(self.client.hkeys(self.rig.keys.wait(run_id))))
            places.update(_texts(self.client.hkeys(self.rig.keys.parked(run_id))))
            waiting = set(self.model.waiters[run_id])
            places.update(
                name
                for owner, _, name in self.model.timers.values()
                if owner == run_id and name not in waiting
            )
            if self.model.status[run_id] == "running":
                assert places == Counter(dict.fromkeys(pending, 1))
            elif self.model.status[run_id] == "cancelled":
                assert places == Counter(dict.fromkeys(pending, 1)), "what is pending is kept"
            else:
                assert set(places) <= pending
                assert not places or max(places.values()) == 1

    @invariant()
    def public_entries_are_gapless_and_the_end_is_one(self) -> None:
        for run_id, status in self.model.status.items():
            shown = self.rig.public(run_id)
            expected = [f"{number}-0" for number in range(1, self.model.published[run_id] + 1)]
            assert [name for name, _ in shown] == expected
            ends = [entry for _, entry in shown].count(b"the end")
            assert ends == (1 if status != "running" and shown else 0)
            assert not ends or shown[-1][1] == b"the end"
        told = [fields[b"r"].decode() for _, fields in self.client.xrange(self.rig.keys.ends)]
        assert sorted(told) == sorted(r for r, s in self.model.status.items() if s != "running")

    @invariant()
    def slots_and_places_are_kept(self) -> None:
        taken = Counter[tuple[str, str]]()
        for route in ROUTES:
            for _, fields in self.client.xrange(self.rig.stream(route)):
                taken[fields[b"r"].decode(), route.step] += 1
        alarms = [
            fields for _, fields in self.client.xrange(self.rig.stream(SYS)) if b"w" in fields
        ]
        gauge = self.rig.keys.gauge(WORKFLOW, "scarce")
        reserved = int(self.client.hget(gauge, "reserved") or 0)
        assert reserved == len(alarms)
        assert reserved + self.client.xlen(self.rig.stream(SCARCE)) <= SCARCE.ceiling
        queue = self.client.lrange(f"{gauge}:queue", 0, -1)
        assert len(queue) == len(set(queue))
        for run_id, status in self.model.status.items():
            if status != "running":
                continue
            record = self.rig.run(run_id)
            for step in ("step", "scarce"):
                held = self.client.llen(self.rig.keys.hold(run_id, step))
                assert taken[run_id, step] <= 2
                assert int(record.get(f"s:{step}", "0")) == taken[run_id, step] + held
                if step == "step":
                    assert not held or taken[run_id, step] == 2, (
                        "a slot is free and nobody takes it"
                    )
            held = self.client.llen(self.rig.keys.hold(run_id, "scarce"))
            woken = any(fields[b"r"].decode() == run_id for fields in alarms)
            if held and not taken[run_id, "scarce"]:
                assert woken or run_id.encode() in queue, "nobody will ever wake it"

    @invariant()
    def joins_take_every_contribution_once(self) -> None:
        released = Counter(self.model.released)
        assert not released or max(released.values()) == 1
        for run_id, buffered in self.model.buffered.items():
            _, events = self.rig.keys.buffer(run_id, "b")
            assert self.client.lrange(events, 0, -1) == buffered


def _texts(raw: list[bytes]) -> list[str]:
    return [name.decode() for name in raw]


def check(client: Any, kind: str, *, examples: int, steps: int) -> None:
    class Here(Histories):
        pass

    Here.client, Here.kind = client, kind
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_short_histories_keep_the_invariants(kind: str, server_urls: dict[str, str]) -> None:
    with cast(Any, redis.Redis).from_url(server_urls[kind], protocol=2) as client:
        check(client, kind, examples=12, steps=25)


def test_short_histories_keep_the_invariants_in_memory() -> None:
    client = cast(Any, FakeRedis)(server=FakeServer(version=(7,)), protocol=2)
    check(client, "fake", examples=4, steps=15)
    client.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_long_histories_keep_the_invariants(kind: str, server_urls: dict[str, str]) -> None:
    with cast(Any, redis.Redis).from_url(server_urls[kind], protocol=2) as client:
        check(client, kind, examples=150, steps=80)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_long_histories_keep_the_invariants_in_memory() -> None:
    client = cast(Any, FakeRedis)(server=FakeServer(version=(7,)), protocol=2)
    check(client, "fake", examples=20, steps=40)
    client.close()
