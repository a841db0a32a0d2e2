"""A continuation takes everything over that a run left, by one commit, once."""

from __future__ import annotations

import random

import pytest

from stepfleet.core.commit import Append, Commit, Note, Park, Publish, Quota, SetTimer, Wait, Write
from stepfleet.core.continuation import continuation, next_id, origin_of
from stepfleet.core.delivery import Record
from stepfleet.storage.cutting import cut_of, reading
from stepfleet.wire import (
    Promotion,
    Waiter,
    decode_record,
    decode_waiter,
    encode_record,
    encode_timer,
    encode_waiter,
)
from tests.scripts.rig import (
    NARROW,
    SYS,
    WIDE,
    WORKFLOW,
    Rig,
    cancel,
    did,
    effect,
    emit,
    end,
    settle,
)

ROUTES = {route.label: route for route in (WIDE, NARROW, SYS)}


def planned(rig: Rig, run_id: str, *, timeout_ms: int | None = None) -> Commit:
    script, keys, args = reading(rig.keys, run_id, contents=False)
    cut = cut_of(run_id, rig.script(script.name, keys, args))
    return continuation(cut, next_id(run_id), WORKFLOW, ROUTES, timeout_ms=timeout_ms)


def resume(rig: Rig, run_id: str, *, timeout_ms: int | None = None) -> str:
    commit = planned(rig, run_id, timeout_ms=timeout_ms)
    rig.apply(commit)
    return commit.run_id


def suspended(rig: Rig, run_id: str, name: str) -> Waiter:
    record = encode_record(Record("parent", "A", b""))
    timer = f"{run_id}/{name}/wait/60000"
    return Waiter(name, "A", "A", "id", b"", WIDE, did(name), record, timer)


def test_ids_of_continuations_count_up() -> None:
    assert [next_id("a"), next_id("a~1"), next_id("a~9")] == ["a~1", "a~2", "a~10"]
    assert [origin_of("a"), origin_of("a~12"), origin_of("a~x.1")] == ["a", "a", "a~x.1"]
    assert next_id("a~child.1") == "a~child.1~1"


def test_it_takes_what_is_in_streams_parked_and_held(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, *"abc"), emit(NARROW, *"pqrst"))
    first, _, _ = rig.read(WIDE, count=3)
    rig.apply(cancel(run_id))
    rig.commit(settle(first, Park(WIDE, first.entry)))
    again = resume(rig, run_id)
    assert rig.queued(WIDE) == ["a", "b", "c"]
    assert (rig.queued(NARROW), rig.held(again, "narrow")) == (["p", "q"], ["r", "s", "t"])
    assert rig.open(again) == dict.fromkeys("abcpq", "stream")
    assert {entry.run_id for route in (WIDE, NARROW) for entry in rig.read(route)} == {again}
    assert (rig.run(again)["s:wide"], rig.run(again)["s:narrow"]) == ("3", "5")


def test_an_execution_of_the_old_run_has_no_effect_any_more(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    rig.apply(cancel(run_id))
    resume(rig, run_id)
    assert rig.words(effect(entry, Publish(b"p")), settle(entry, end())) == ["gone", "gone"]
    assert rig.words(settle(entry, Park(WIDE, entry.entry))) == ["gone"]
    assert rig.queued(WIDE) == ["a"]


def test_both_runs_name_each_other_and_the_old_one_keeps_no_work(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    rig.apply(effect(rig.take(WIDE), Write("key", b"value")))
    rig.apply(cancel(run_id))
    again = resume(rig, run_id)
    assert (rig.run(run_id)["continued"], rig.run(run_id)["status"]) == (again, "cancelled")
    assert (rig.run(again)["continues"], rig.run(again)["status"]) == (run_id, "running")
    assert not rig.client.exists(rig.keys.open(run_id), rig.keys.parked(run_id))
    assert rig.client.hget(rig.keys.store(again), "key") == b"1:value"
    assert rig.client.hget(rig.keys.store(run_id), "key") == b"1:value"


def test_there_is_one_continuation_however_often_it_is_asked_for(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, *"ab"))
    rig.apply(cancel(run_id))
    commit = planned(rig, run_id)
    assert rig.words(commit, commit) == ["applied", "applied"]
    other = commit._replace(run_id="another")
    assert rig.words(other) == ["conflict"]
    assert rig.queued(WIDE) == ["a", "b"]


def test_what_moved_since_it_was_read_is_a_conflict(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, *"ab"))
    first, _ = rig.read(WIDE)
    rig.apply(cancel(run_id))
    early = planned(rig, run_id)
    rig.commit(settle(first, Park(WIDE, first.entry)))
    before = rig.everything()
    assert rig.words(early) == ["conflict"]
    assert rig.everything() == before
    resume(rig, run_id)
    assert rig.queued(WIDE) == ["a", "b"]


def test_a_run_that_goes_on_or_left_nothing_is_not_taken_over(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    assert rig.words(planned(rig, run_id)) == ["conflict"]
    rig.apply(settle(rig.take(WIDE), end()))
    assert rig.words(planned(rig, run_id)) == ["conflict"]


def test_buffers_waits_and_back_offs_go_on(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, *"abc"))
    a, b, c = rig.read(WIDE)
    quota = [Quota("join:x", "A", (("A", 2),))]
    rig.apply(settle(a, Append("join:x", "A", b"event"), expects=quota))
    waiter = suspended(rig, run_id, "b")
    set_ = SetTimer(waiter.timer, 60_000, b"")
    rig.apply(
        settle(b, Wait("b", "A", encode_waiter(waiter)), set_, Note(b.id, "waiting A A:wide"))
    )
    promotion = encode_timer(Promotion(WIDE, c.id, encode_record(Record("parent", "A", b""))))
    timer = f"{run_id}/{c.id}/back-off/2"
    rig.apply(settle(c, SetTimer(timer, 50_000, promotion), Note(c.id, "timer back-off 2 A:wide")))
    rig.apply(cancel(run_id))
    again = resume(rig, run_id)
    meta, events = rig.keys.buffer(again, "join:x")
    assert rig.client.hmget(meta, "version", "n:A") == [b"1", b"1"]
    assert rig.client.lrange(events, 0, -1) == [b"event"]
    (moved,) = map(decode_waiter, rig.client.hvals(rig.keys.wait(again)))
    assert moved == waiter._replace(timer=f"{again}/b/wait/60000")
    assert (rig.run(again)["waiting"], rig.run(again)["waiting:A"]) == ("1", "1")
    timers = {
        name.decode(): due
        for name, due in rig.client.zrange(rig.keys.timers, 0, -1, withscores=True)
    }
    assert set(timers) == {moved.timer, f"{again}/{c.id}/back-off/2"}
    assert 45_000 < timers[f"{again}/{c.id}/back-off/2"] - rig.now_ms() <= 50_000
    assert 55_000 < timers[moved.timer] - rig.now_ms() <= 60_000
    assert rig.open(again) == {"b": "waiting", "c": "timer"}
    assert not [ttl for ttl in rig.keys_of(again).values() if ttl != -1]


def test_what_was_sent_is_remembered_and_what_was_published_is_not(rig: Rig) -> None:
    record = encode_record(Record("parent", "A", b""))
    run_id = rig.start(emit(WIDE, "a")._replace(deliveries=((did("a"), record),)))
    entry = rig.take(WIDE)
    rig.apply(effect(entry, emit(NARROW, "x", guard=entry.id), Publish(b"p", entry.id, "p1:f")))
    rig.apply(cancel(run_id))
    again = resume(rig, run_id)
    assert rig.client.hkeys(rig.keys.sent(again, entry.id)) == [did("x").encode()]
    (resumed,) = rig.read(WIDE)
    assert decode_record(resumed.record) == Record(again, "A", b"", journal=[["resumed"]])


@pytest.mark.parametrize("waits", [True, False])
def test_the_budget_begins_anew_with_the_first_execution_or_at_once_when_there_is_none(
    rig: Rig, waits: bool
) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    if waits:
        waiter = suspended(rig, run_id, "a")
        rig.apply(
            settle(
                rig.take(WIDE),
                Wait("a", "A", encode_waiter(waiter)),
                Note(did("a"), "waiting A A:wide"),
            )
        )
    rig.apply(cancel(run_id))
    again = resume(rig, run_id, timeout_ms=60_000)
    score = rig.client.zscore(rig.keys.live, again)
    if waits:
        assert 55_000 < score - rig.now_ms() <= 60_000
        assert int(rig.run(again)["deadline"]) == score
    else:
        assert (score, rig.run(again)["deadline"]) == (float("inf"), "?60000")


@pytest.mark.parametrize("seed", range(25))
def test_over_many_continuations_nothing_is_lost_or_doubled(rig: Rig, seed: int) -> None:
    """Read, settled, parked, held and left in streams in any mixture: every delivery runs once."""
    chance = random.Random(seed)
    names = [f"n{n}" for n in range(chance.randint(1, 9))]
    run_id = rig.start(emit(NARROW, *names), emit(WIDE, "w"))
    settled: list[str] = []
    for _ in range(chance.randint(1, 4)):
        entries = [*rig.read(NARROW, count=chance.randint(1, 3)), *rig.read(WIDE)]
        for entry in entries:
            if entry.run_id == run_id and chance.random() < 0.5:
                rig.apply(settle(entry))
                settled.append(entry.id.rstrip("."))
                entries = [other for other in entries if other is not entry]
        rig.apply(cancel(run_id))
        for entry in entries:
            if chance.random() < 0.5:
                rig.commit(settle(entry, Park(entry.route, entry.entry)))
        run_id = resume(rig, run_id)
    while entries := [*rig.read(NARROW), *rig.read(WIDE)]:
        for entry in entries:
            rig.apply(settle(entry))
            settled.append(entry.id.rstrip("."))
    assert sorted(settled) == sorted([*names, "w"])
    assert rig.open(run_id) == {}
    rig.apply(cancel(run_id))
