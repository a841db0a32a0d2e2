"""Many commits in one call: each completely or not at all, none at the cost of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from stepfleet.core.commit import (
    AmendFence,
    Append,
    Commit,
    Deadline,
    Forget,
    Keep,
    Lock,
    Mark,
    Note,
    OperationFence,
    Park,
    Publish,
    Quota,
    SetTimer,
    Stage,
    Staged,
    Take,
    Unkeep,
    Unlock,
    Unstage,
    Unwait,
    Unwrite,
    Version,
    Wait,
    Write,
)
from tests.scripts.rig import NARROW, WIDE, Entry, Rig, cancel, did, due, effect, emit, end, settle
from tests.support.servers import RedisServer, available_binaries

OTHER = "other"

#: A commit of a delivery, and the key of its run that is of another type.
Broken = tuple[Callable[[Rig, Entry], Commit], Callable[[Rig, Entry], str]]


def _buffer(rig: Rig, entry: Entry) -> str:
    return rig.keys.buffer(entry.run_id, "b")[0]


def _list(rig: Rig, entry: Entry) -> str:
    return rig.keys.buffer(entry.run_id, "b")[1]


def _append(entry: Entry) -> Commit:
    quota = Quota("b", "A", (("A", 3),))
    return settle(entry, Publish(b"p"), Append("b", "A", b"x"), expects=[quota])


def _take(entry: Entry) -> Commit:
    return settle(entry, Publish(b"p"), Take("b", 0), expects=[Version("b", 0)])


def _many(entry: Entry) -> Commit:
    return settle(entry, Publish(b"p"), emit(NARROW, *range(5)))


def _unstage(rig: Rig, entry: Entry) -> Commit:
    staged = ((did("s1"), b""), (did("s2"), b""), (did("s3"), b""))
    rig.apply(effect(entry, Stage(entry.id, NARROW, True, staged)))
    words = [Publish(b"p"), Unstage(entry.id, NARROW, 3)]
    return settle(entry, *words, expects=[Staged(entry.id, NARROW, 3)])


BROKEN: dict[str, Broken] = {
    "the record": (lambda _, e: settle(e, emit(WIDE, "n")), lambda r, e: r.keys.run(e.run_id)),
    "open, settling": (lambda _, e: settle(e, emit(WIDE, "n")), lambda r, e: r.keys.open(e.run_id)),
    "open, effect": (
        lambda _, e: effect(e, emit(WIDE, "n", guard=e.id)),
        lambda r, e: r.keys.open(e.run_id),
    ),
    "open, operation": (
        lambda _, e: Commit(e.run_id, OperationFence("o"), [emit(WIDE, "n")]),
        lambda r, e: r.keys.open(e.run_id),
    ),
    "open, timer": (
        lambda _, e: due(e.run_id, f"{e.run_id}/t", emit(WIDE, "n")),
        lambda r, e: r.keys.open(e.run_id),
    ),
    "open, cancel": (lambda _, e: cancel(e.run_id), lambda r, e: r.keys.open(e.run_id)),
    "hold, emitting": (lambda _, e: _many(e), lambda r, e: r.keys.hold(e.run_id, "narrow")),
    "hold, unstaging": (_unstage, lambda r, e: r.keys.hold(e.run_id, "narrow")),
    "hold, own slot": (lambda _, e: settle(e), lambda r, e: r.keys.hold(e.run_id, "wide")),
    "keys, hold": (lambda _, e: _many(e), lambda r, e: r.keys.further(e.run_id)),
    "keys, buffer": (lambda _, e: _append(e), lambda r, e: r.keys.further(e.run_id)),
    "keys, store": (
        lambda _, e: settle(e, Publish(b"p"), Write("f", b"v")),
        lambda r, e: r.keys.further(e.run_id),
    ),
    "keys, waiter": (
        lambda _, e: settle(e, Publish(b"p"), Wait(e.id, "T", b"w")),
        lambda r, e: r.keys.further(e.run_id),
    ),
    "keys, inbox": (
        lambda _, e: settle(e, Publish(b"p"), Keep(b"x", 3)),
        lambda r, e: r.keys.further(e.run_id),
    ),
    "keys, sent": (
        lambda _, e: effect(e, Publish(b"p", e.id, "f")),
        lambda r, e: r.keys.further(e.run_id),
    ),
    "keys, operation": (
        lambda _, e: Commit(e.run_id, OperationFence("o"), [emit(WIDE, "n")]),
        lambda r, e: r.keys.further(e.run_id),
    ),
    "keys, stage": (
        lambda _, e: effect(e, Publish(b"p"), Stage(e.id, WIDE, True, ((did("x"), b""),))),
        lambda r, e: r.keys.further(e.run_id),
    ),
    "events, publishing": (
        lambda _, e: settle(e, emit(WIDE, "n"), Publish(b"p")),
        lambda r, e: r.keys.events(e.run_id),
    ),
    "events, end": (lambda _, e: settle(e, end()), lambda r, e: r.keys.events(e.run_id)),
    "events, mark": (
        lambda _, e: settle(e, emit(WIDE, "n"), Mark(b"m", e.id, ())),
        lambda r, e: r.keys.events(e.run_id),
    ),
    "sent, emitting": (
        lambda _, e: effect(e, Publish(b"p"), emit(WIDE, "n", guard=e.id)),
        lambda r, e: r.keys.sent(e.run_id, e.id),
    ),
    "sent, publishing": (
        lambda _, e: effect(e, emit(WIDE, "n"), Publish(b"p", e.id, "f")),
        lambda r, e: r.keys.sent(e.run_id, e.id),
    ),
    "sent, mark": (
        lambda _, e: settle(e, emit(WIDE, "n"), Mark(b"m", e.id, ())),
        lambda r, e: r.keys.sent(e.run_id, e.id),
    ),
    "buffer, append": (lambda _, e: _append(e), _buffer),
    "buffer, take": (lambda _, e: _take(e), _buffer),
    "list, append": (lambda _, e: _append(e), _list),
    "list, take": (lambda _, e: _take(e), _list),
    "stage": (
        lambda _, e: effect(e, Publish(b"p"), Stage(e.id, WIDE, False, ((did("x"), b""),))),
        lambda r, e: r.keys.stage(e.run_id, e.id, "wide"),
    ),
    "waiters, wait": (
        lambda _, e: settle(e, Publish(b"p"), Wait(e.id, "T", b"w")),
        lambda r, e: r.keys.wait(e.run_id),
    ),
    "waiters, unwait": (
        lambda _, e: settle(e, Publish(b"p"), Unwait(e.id, "T")),
        lambda r, e: r.keys.wait(e.run_id),
    ),
    "inbox, keep": (
        lambda _, e: settle(e, Publish(b"p"), Keep(b"x", 3)),
        lambda r, e: r.keys.inbox(e.run_id),
    ),
    "inbox, unkeep": (
        lambda _, e: settle(e, Publish(b"p"), Unkeep(b"x")),
        lambda r, e: r.keys.inbox(e.run_id),
    ),
    "store, write": (
        lambda _, e: settle(e, Publish(b"p"), Write("f", b"v")),
        lambda r, e: r.keys.store(e.run_id),
    ),
    "store, unwrite": (
        lambda _, e: settle(e, Publish(b"p"), Unwrite("f")),
        lambda r, e: r.keys.store(e.run_id),
    ),
    "lock": (
        lambda _, e: settle(e, Publish(b"p"), Unlock("t")),
        lambda r, e: r.keys.lock(e.run_id),
    ),
    "operations": (
        lambda _, e: Commit(e.run_id, OperationFence("o"), [emit(WIDE, "n")]),
        lambda r, e: r.keys.operations(e.run_id),
    ),
}


def _spoil(rig: Rig, key: str) -> None:
    """Replaces a key by one of another type."""
    rig.client.delete(key)
    if key.endswith((":lock", ":keys")):
        rig.client.rpush(key, OTHER)
    else:
        rig.client.set(key, OTHER)


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_run_writes_nothing_and_its_neighbours_are_applied(rig: Rig, case: str) -> None:
    make, key_of = BROKEN[case]
    run_id = rig.start(emit(WIDE, "a", "b"))
    entry = rig.take(WIDE)
    if "timer" in case:
        rig.client.zadd(rig.keys.timers, {f"{run_id}/t": 1})
    commit = make(rig, entry)
    _spoil(rig, key_of(rig, entry))
    before = rig.everything()
    assert rig.words(commit) == ["broken"]
    assert rig.everything() == before

    neighbours = [rig.start(emit(WIDE, "n")), rig.start(emit(WIDE, "n"))]
    entries = [one for one in rig.read(WIDE) if one.run_id in neighbours]
    batch = [settle(entries[0], end()), commit, settle(entries[1], end())]
    assert rig.words(*batch) == ["applied", "broken", "applied"]
    assert [rig.run(one)["status"] for one in neighbours] == ["completed", "completed"]


def test_every_word_at_once_is_applied_to_a_whole_run(rig: Rig) -> None:
    """The counterpart of the test above: what it refuses, it refuses for the wrong type alone."""
    for make, _ in BROKEN.values():
        run_id = rig.start(emit(WIDE, "a", "b"))
        entry = rig.take(WIDE)
        rig.client.zadd(rig.keys.timers, {f"{run_id}/t": 1})
        assert rig.words(make(rig, entry)) == ["applied"]
        rig.read(WIDE)


def test_answers_come_in_the_order_of_the_commits(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    commits = [
        rig.new(run_id="again", digest="1"),
        rig.new(run_id="again", digest="2"),
        cancel("ghost"),
        settle(entry, emit(WIDE, "b")),
        settle(entry),
        cancel(run_id),
        Commit(run_id, OperationFence("late")),
    ]
    assert rig.words(*commits) == [
        "applied",
        "exists",
        "unknown-run",
        "applied",
        "gone",
        "applied",
        "over",
    ]


def test_a_later_commit_of_a_call_sees_what_an_earlier_one_wrote(rig: Rig) -> None:
    start = rig.new(emit(WIDE, "a"))
    send = Commit(start.run_id, OperationFence("o"), [emit(WIDE, "b")])
    assert rig.words(start, send, cancel(start.run_id)) == ["applied"] * 3
    assert rig.queued(WIDE) == ["a", "b"]


def test_an_entry_that_a_call_settled_is_deleted_by_the_end_of_the_call(rig: Rig) -> None:
    rig.start(emit(WIDE, *range(50)))
    assert set(rig.words(*[settle(entry) for entry in rig.read(WIDE)])) == {"applied"}
    assert rig.client.xlen(rig.stream(WIDE)) == 0
    assert rig.pending(WIDE, "me") == {}


def test_what_redis_refuses_stops_the_run_but_not_its_neighbours(rig: Rig) -> None:
    run_id, other = rig.start(emit(WIDE, "a")), rig.start(emit(WIDE, "b"))
    first, second = rig.read(WIDE)
    answers = rig.commits(
        effect(first, Lock("no time", 0)), effect(first, emit(WIDE, "x")), settle(second, end())
    )
    assert [answer.word for answer in answers] == ["refused", "refused", "applied"]
    assert answers[0].detail == answers[1].detail != ""
    assert "x" not in rig.open(run_id)
    assert rig.run(other)["status"] == "completed"


def test_a_counter_that_is_no_number_breaks_the_commit_that_needs_it_before_it_writes(
    rig: Rig,
) -> None:
    run_id, other = rig.start(emit(WIDE, "a")), rig.start(emit(WIDE, "b"))
    first, second = rig.read(WIDE)
    rig.client.hset(rig.keys.run(run_id), "s:wide", "not a number")
    answers = rig.commits(
        effect(first, Publish(b"p"), emit(WIDE, "x")),
        effect(first, Publish(b"q")),
        settle(second, end()),
    )
    assert [answer.word for answer in answers] == ["broken", "applied", "applied"]
    assert [entry for _, entry in rig.public(run_id)] == [b"q"]
    assert rig.run(other)["status"] == "completed"


# -- a full Redis ------------------------------------------------------------------------------------


@pytest.fixture(params=["redis", "valkey"])
def full(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Rig, Callable[[], None]]]:
    """A server of its own and what makes it full."""
    binaries = available_binaries()
    if request.param not in binaries:
        pytest.skip(f"this machine has no {request.param}")
    server = RedisServer(binaries[request.param], tmp_path, appendonly=False)
    server.start()
    client = cast(Any, redis.Redis).from_url(server.url, protocol=2)

    def fill() -> None:
        client.config_set("maxmemory", 1)

    yield Rig(client, request.param), fill
    client.close()
    server.kill()


def test_a_full_redis_takes_no_more_runs_and_no_more_operations(
    full: tuple[Rig, Callable[[], None]],
) -> None:
    rig, fill = full
    run_id = rig.start()
    fill()
    before = rig.everything()
    send = Commit(run_id, OperationFence("o"), [emit(WIDE, "x")])
    answers = rig.commits(rig.new(emit(WIDE, "n")), send)
    assert [answer.word for answer in answers] == ["refused", "refused"]
    assert answers[0].detail.startswith("OOM")
    assert rig.everything() == before


def test_a_full_redis_takes_no_more_into_the_store_of_an_ended_run(
    full: tuple[Rig, Callable[[], None]],
) -> None:
    rig, fill = full
    run_id = rig.start(emit(WIDE, "a"))
    rig.apply(settle(rig.take(WIDE), end()))
    rig.apply(Commit(run_id, AmendFence("1"), [Write("small", b"v")]))
    fill()
    before = rig.everything()
    assert rig.words(Commit(run_id, AmendFence("2"), [Write("more", b"v")])) == ["refused"]
    assert rig.everything() == before
    assert rig.words(Commit(run_id, AmendFence("3"), [Unwrite("small")])) == ["applied"]


def test_what_follows_a_refused_commit_of_its_run_is_refused_too(
    full: tuple[Rig, Callable[[], None]],
) -> None:
    rig, fill = full
    fill()
    start = rig.new(emit(WIDE, "n"))
    send = Commit(start.run_id, OperationFence("o"), [emit(WIDE, "x")])
    assert rig.words(start, send) == ["refused", "refused"]


@pytest.mark.parametrize("what", ["settle", "effect", "timer", "cancel", "end"])
def test_what_is_under_way_goes_on_in_a_full_redis(
    full: tuple[Rig, Callable[[], None]], what: str
) -> None:
    rig, fill = full
    run_id = rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    rig.apply(effect(entry, SetTimer("t", 0, b"d")))
    fill()
    commit = {
        "settle": settle(entry, Deadline(0), emit(WIDE, "b"), Publish(b"p"), Write("f", b"v")),
        "effect": effect(entry, Publish(b"p", entry.id, "f"), Note(f"{entry.id}!", "e 1")),
        "timer": due(run_id, "t", emit(WIDE, "b")),
        "cancel": cancel(run_id),
        "end": settle(entry, Forget(entry.id), end()),
    }[what]
    assert rig.words(commit) == ["applied"]
    assert rig.words(commit) == [{"cancel": "over", "effect": "applied"}.get(what, "gone")]


def test_a_full_redis_parks_what_a_cancelled_run_left(full: tuple[Rig, Callable[[], None]]) -> None:
    rig, fill = full
    run_id = rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    rig.apply(cancel(run_id))
    fill()
    assert rig.words(Commit(run_id, entry.fence, [Park(WIDE, entry.entry)])) == ["over"]
    assert rig.client.hlen(rig.keys.parked(run_id)) == 1
