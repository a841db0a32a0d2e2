"""Random commits, with and without the straight way of the script: the same answers, and the same is left."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from stepfleet.core.commit import (
    Answer,
    Append,
    Commit,
    ControlFence,
    Deadline,
    Emit,
    End,
    Join,
    Lend,
    OperationFence,
    Place,
    Publish,
    Quota,
    Room,
    Wait,
    Word,
)
from tests.scripts.conftest import connect
from tests.scripts.rig import NARROW, SYS, WIDE, WORKFLOW, Entry, Route, did, effect, settle
from tests.scripts.two_ways import OneWay

ONE: Final = Route(WORKFLOW, "C", "one", 1, 0, ("C",))
TYPED: Final = tuple(Route(WORKFLOW, name, "typed", 2, 0, ("F", "G")) for name in "FG")
CEILED: Final = Route(WORKFLOW, "D", "ceiled", 2, 2, ("D",))
FREE: Final = Route(WORKFLOW, "E", "free")
PLAIN: Final = (WIDE, NARROW, ONE, *TYPED)
ROUTES: Final = (*PLAIN, CEILED, FREE)
SEEDS: Final = range(20)
STEPS: Final = 60
#: Runs of a seed: few enough that one of them gets much to do.
RUNS: Final = 5
#: Counters and marks of a record, and what no script writes there.
FIELDS: Final = (
    *("s:wide", "s:narrow", "s:one", "s:typed", "deliveries", "lent", "waiting", "admitted"),
    *("deadline", "timeout", "further", "joined", "seq", "status", "digest"),
)
COUNTS: Final = ("version", "n:A")
VALUES: Final = ("", "x", "0", "-0", "-1", "3", "007", "1.5", "9" * 16, "9" * 20)


class Both:
    """Two rigs, one for each way, to which the same is done."""

    def __init__(self, client: Any, chance: random.Random) -> None:
        self.rigs = tuple(OneWay(client, "redis", straight=way) for way in (True, False))
        self.chance = chance
        limits = {
            "deliveries_limit": chance.choice([8, 20, 1000]),
            "pending_runs_limit": chance.choice([3, 1000]),
        }
        self.entries: list[Entry] = []
        self.names = 0
        self.applied: list[Commit] = []
        for rig in self.rigs:
            rig.bounds = replace(rig.bounds, **limits)
            for route in (*ROUTES, SYS):
                rig.stream(route)

    def read(self) -> None:
        """Reads a few entries of every stream."""
        for route in ROUTES:
            count = self.chance.randrange(1, 4)
            found, same = (rig.read(route, count=count) for rig in self.rigs)
            assert found == same
            self.entries += found

    def commit(self, commits: list[Commit]) -> str:
        """Applies commits in one call; returns which were applied straight ahead.

        Raises:
            AssertionError: the two ways differ.
        """
        straight, interpreted = self.rigs
        told = [[_told(answer) for answer in rig.commits(*commits)] for rig in self.rigs]
        assert told[0] == told[1], commits
        self.applied += commits
        assert straight.content() == interpreted.content(), commits
        return straight.hits

    def harm(self) -> None:
        """Writes something else into a key of a run."""
        chance = self.chance
        run_id, place = _run(chance), chance.choice(["record", "open", "held", "counts", "list"])
        field = chance.choice(COUNTS if place == "counts" else FIELDS)
        value, way = chance.choice(VALUES), chance.random()
        for rig in self.rigs:
            counts, events = rig.keys.buffer(run_id, "b")
            key, kind = {
                "record": (rig.keys.run(run_id), b"hash"),
                "open": (rig.keys.open(run_id), b"hash"),
                "held": (rig.keys.hold(run_id, "narrow"), b"list"),
                "counts": (counts, b"hash"),
                "list": (events, b"list"),
            }[place]
            if way < 0.1:
                rig.client.set(key, "x")
            elif way < 0.2 or rig.client.type(key) != kind:
                rig.client.delete(key)
            elif kind == b"list":
                rig.client.lset(key, 0, value)
            elif way < 0.4:
                rig.client.hdel(key, field)
            else:
                rig.client.hset(key, field, value)

    # -- commits -----------------------------------------------------------------------------------

    def next_commit(self) -> Commit:
        """Returns a commit, mostly one that settles what was read."""
        chance = self.chance
        kind = chance.random()
        if kind < 0.12 or not self.entries:
            return self._start()
        if kind < 0.17 and self.applied:
            return chance.choice(self.applied[-5:])
        if kind < 0.25:
            return self._beside()
        entry = self.entries.pop(chance.randrange(max(0, len(self.entries) - 8), len(self.entries)))
        return self._settle(entry)

    def _start(self) -> Commit:
        chance = self.chance
        words: list[Word] = [self._emit(WIDE) for _ in range(chance.choice([1, 1, 3]))]
        words += [self._emit(NARROW, 4)] if chance.random() < 0.4 else []
        if chance.random() < 0.15:
            words.insert(0, Place(WORKFLOW, 2))
        rig = self.rigs[0]
        timeout_ms = chance.choice([0, 5000])
        new = rig.new(
            *words, run_id=_run(chance), timeout_ms=timeout_ms, digest=chance.choice("dde")
        )
        return new._replace(expects=[Room()])

    def _settle(self, entry: Entry) -> Commit:
        chance = self.chance
        words: list[Word] = [Deadline(chance.randrange(5000))] if chance.random() < 0.3 else []
        kind = chance.random()
        if kind < 0.5:
            return settle(entry, *words, self._emit(chance.choice(PLAIN)))
        if kind < 0.75:
            quota = Quota("b", "A", (("A", chance.choice([3, 5])),))
            return settle(entry, *words, Append("b", "A", entry.record), expects=[quota])
        if kind < 0.82:
            status = chance.choice(["completed", "failed"])
            content = b"x" * chance.choice([3, 513])
            return settle(
                entry, *words, End(status, content, ("error", "E"), chance.random() < 0.5)
            )
        if kind < 0.86:
            return settle(entry, Emit(entry.route, ((entry.id, b"again"),), awaitable=False))
        return settle(entry, *words, self._emit(chance.choice(ROUTES), chance.randrange(4)))

    def _beside(self) -> Commit:
        """Returns what happens to a run beside its steps."""
        chance = self.chance
        entry = chance.choice(self.entries)
        makers: list[Callable[[], Commit]] = [
            lambda: effect(entry, Lend(entry.route, entry.entry, entry.id, 2)),
            lambda: effect(entry, Publish(b"p")),
            lambda: effect(entry, self._emit(NARROW)._replace(guard=entry.id)),
            lambda: settle(entry, Wait(entry.id, chance.choice("ABC"), b"w")),
            lambda: Commit(_run(chance), ControlFence(), [Join(_run(chance))]),
            lambda: Commit(_run(chance), OperationFence(did(self.names)), [self._emit(ONE)]),
        ]
        return chance.choice(makers)()

    def _emit(self, route: Route, count: int = 1) -> Emit:
        rows: list[tuple[str, bytes]] = []
        for _ in range(count):
            self.names += self.chance.random() > 0.02
            rows.append((did(self.names), b"record"))
        return Emit(route, tuple(rows), awaitable=self.chance.random() < 0.7)


@pytest.mark.parametrize("is_harmed", [False, True], ids=["well", "harmed"])
@pytest.mark.parametrize("seed", SEEDS)
def test_random_commits_leave_the_same_with_and_without_the_straight_way(
    server_urls: dict[str, str], seed: int, is_harmed: bool
) -> None:
    chance = random.Random(seed)
    client = connect("redis", server_urls)
    both = Both(client, chance)
    hits = ""
    for _ in range(STEPS):
        both.read()
        if is_harmed and chance.random() < 0.1:
            both.harm()
        hits += both.commit([both.next_commit() for _ in range(chance.choice([1, 1, 2, 4]))])
    client.close()
    # Else it compares the interpreter with itself.
    assert hits.count("1") > STEPS / 4
    assert hits.count("0") > STEPS / 4


def _run(chance: random.Random) -> str:
    return f"run{chance.randrange(RUNS)}"


def _told(answer: Answer) -> Answer:
    """Returns an answer without the text of an error, which names a line of the script."""
    return answer._replace(detail="") if answer.word == "refused" else answer
