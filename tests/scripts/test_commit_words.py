"""Each word of commit.lua: what it writes, and that it does so once."""

from __future__ import annotations

import pytest

from stepfleet.core.commit import (
    Answer,
    Append,
    Commit,
    ControlFence,
    Count,
    DeadLetter,
    Deadline,
    DropTimer,
    End,
    Forget,
    Free,
    Is,
    Keep,
    Lock,
    Locked,
    Mark,
    Note,
    OperationFence,
    Publish,
    Quota,
    SetTimer,
    Stage,
    Stored,
    Tell,
    Unapplied,
    Unlock,
    Unwrite,
    Wait,
    Word,
    Write,
)
from tests.scripts.rig import NARROW, WIDE, Rig, cancel, did, effect, emit, end, settle


def control(run_id: str, *words: Word, expects: list[object] | None = None) -> Commit:
    return Commit(run_id, ControlFence(), words, expects or [])  # type: ignore[arg-type]


# -- emit --------------------------------------------------------------------------------------------


def test_a_guarded_event_is_emitted_once_whatever_is_sent_again(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "s"))
    entry = rig.take(WIDE)
    rig.apply(effect(entry, emit(NARROW, "x", "y", "z", guard=entry.id)))
    rig.apply(effect(entry, emit(NARROW, "x", "y", guard=entry.id)))
    rig.apply(settle(entry, emit(NARROW, "z", "q", guard=entry.id), Forget(entry.id)))
    assert rig.queued(NARROW) + rig.held(run_id, "narrow") == ["x", "y", "z", "q"]
    assert not rig.client.exists(rig.keys.sent(run_id, entry.id))


def test_an_emitted_delivery_is_where_the_index_says(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    (name, fields), *_ = rig.client.xrange(rig.stream(WIDE))
    where = rig.client.hget(rig.keys.open(run_id), did("a"))
    assert where == b"stream " + name + b" A:wide"
    assert fields == {b"r": run_id.encode(), b"i": did("a").encode(), b"d": b"record of a"}


# -- publish and mark --------------------------------------------------------------------------------


def test_public_entries_have_one_gapless_order(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a", "b"))
    first, second = rig.read(WIDE)
    rig.apply(effect(first, Publish(b"1")))
    rig.apply(settle(second, Publish(b"2")))
    rig.apply(settle(first, Publish(b"3"), end()))
    assert rig.public(run_id) == [
        ("1-0", b"1"),
        ("2-0", b"2"),
        ("3-0", b"3"),
        ("4-0", b"the end"),
    ]


def test_a_guarded_entry_is_published_once(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    publish = effect(entry, Publish(b"p", entry.id, "f:1"), Publish(b"p", entry.id, "f:2"))
    assert rig.words(publish, publish) == ["applied", "applied"]
    assert rig.public(run_id) == [("1-0", b"p"), ("2-0", b"p")]


def test_a_mark_names_what_this_execution_did_not_repeat(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    rig.apply(effect(entry, *[Publish(b"p", entry.id, field) for field in "fgh"]))
    rig.apply(effect(entry, emit(WIDE, "x", guard=entry.id)))
    rig.apply(settle(entry, Mark(b"mark", entry.id, ("g",)), Forget(entry.id)))
    name, fields = rig.client.xrevrange(rig.keys.events(run_id), count=1)[0]
    assert (name, fields) == (b"4-0", {b"d": b"mark", b"seqs": b"1,3"})


def test_a_row_of_the_history_says_where_deliveries_went_with_its_commit(rig: Rig) -> None:
    run_id = rig.start(emit(NARROW, "a", "b", "c"))
    first = rig.take(NARROW)
    rig.apply(settle(first, Publish(b"shown"), emit(WIDE, "w"), Tell(b"row"), Note("late", "x")))
    ((name, fields),) = rig.client.xrange(rig.keys.history(run_id))
    assert abs(int(name.split(b"-")[0]) - rig.now_ms()) < 60_000
    assert (fields[b"d"], fields[b"s"]) == (b"row", b"1")
    told = fields[b"o"].decode().split("\n")
    opened = rig.client.hgetall(rig.keys.open(run_id))
    # What was let go for the slot that is free again, then what was emitted; not what follows the word.
    assert told[::2] == [did("c"), did("w")]
    assert told[1::2] == [opened[did(name).encode()].decode() for name in ("c", "w")]


def test_the_history_of_a_run_goes_with_it(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"), Tell(b"first"))
    rig.apply(settle(rig.take(WIDE), Tell(b"last"), end()))
    assert [fields[b"d"] for _, fields in rig.client.xrange(rig.keys.history(run_id))] == [
        b"first",
        b"last",
    ]
    assert rig.keys.history(run_id).encode() in rig.client.smembers(rig.keys.further(run_id))


def test_a_mark_with_nothing_to_name_publishes_nothing(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    rig.apply(effect(entry, Publish(b"p", entry.id, "f")))
    rig.apply(settle(entry, Publish(b"q", entry.id, "g"), Mark(b"mark", entry.id, ("f", "g"))))
    assert rig.public(run_id) == [("1-0", b"p"), ("2-0", b"q")]


# -- the end -----------------------------------------------------------------------------------------


def test_the_end_writes_everything_that_tells_of_it(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"), timeout_ms=60_000)
    rig.apply(settle(rig.take(WIDE), End("failed", b"entry", ("error", b"e", "step", "s"), True)))
    record = rig.run(run_id)
    assert {name: record[name] for name in ("status", "entry", "error", "step", "parks")} == {
        "status": "failed",
        "entry": "entry",
        "error": "e",
        "step": "s",
        "parks": "1",
    }
    assert rig.now_ms() - 60_000 < int(record["ended"]) <= rig.now_ms()
    assert rig.client.zscore(rig.keys.live, run_id) is None
    assert rig.client.zscore(rig.keys.ended, run_id) == int(record["ended"])
    ends = [fields for _, fields in rig.client.xrange(rig.keys.ends)]
    assert ends == [{b"r": run_id.encode(), b"s": b"failed", b"q": b"1", b"e": b"entry"}]


def test_an_end_is_announced_with_its_sequence_and_its_entry_if_that_is_short(rig: Rig) -> None:
    for size in (512, 513):
        run_id = rig.start(emit(WIDE, "a"))
        entry = rig.take(WIDE)
        rig.apply(effect(entry, Publish(b"p"), Publish(b"q")))
        rig.apply(settle(entry, End("completed", b"x" * size)))
        assert rig.public(run_id)[-1] == ("3-0", b"x" * size)
    short, long = (fields for _, fields in rig.client.xrange(rig.keys.ends))
    assert (short[b"q"], short[b"e"]) == (b"3", b"x" * 512)
    assert set(long) == {b"r", b"s"}


def test_a_run_that_published_nothing_has_no_stream(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    rig.apply(settle(rig.take(WIDE), end()))
    assert rig.public(run_id) == []
    assert rig.run(run_id)["entry"] == "the end"


def test_nothing_is_written_behind_the_end(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, *"abc"), timeout_ms=1000)
    first, second, third = rig.read(WIDE)
    rig.apply(effect(second, Publish(b"p")))
    rig.apply(settle(first, end()))
    record, keys = rig.run(run_id), rig.keys_of(run_id)
    late = [
        effect(second, Deadline(0), Publish(b"q"), Write("f", b"v"), Count(second.id, "e", 1)),
        settle(third, end("failed")),
        Commit(run_id, OperationFence("o"), [Write("f", b"v")]),
        cancel(run_id),
    ]
    assert rig.words(*late) == ["over"] * 4
    assert rig.run(run_id) == record
    assert rig.keys_of(run_id).keys() == keys.keys()
    assert rig.client.xlen(rig.keys.ends) == 1
    assert rig.client.zscore(rig.keys.live, run_id) is None


def test_no_key_of_an_ended_run_lives_on(rig: Rig) -> None:
    """The end expires what it can name; every other key is in the set that the janitor goes by."""
    run_id = rig.start(
        Write("seed", b"v"), emit(WIDE, *"abcdefgh"), emit(NARROW, *"123"), timeout_ms=60_000
    )
    a, b, c, d, e, f, g, h = rig.read(WIDE)
    rig.apply(Commit(run_id, OperationFence("o"), [Write("other", b"v")]))
    quota = Quota("b", "A", (("A", 3),))
    rig.apply(settle(a, Append("b", "A", b"x"), expects=[quota]))
    rig.apply(settle(b, Wait(b.id, "T", b"w")))
    rig.apply(settle(c, Keep(b"x", 2)))
    rig.apply(effect(d, Publish(b"p", d.id, "f"), emit(WIDE, "x", guard=d.id)))
    rig.apply(effect(e, emit(WIDE, "y", guard=e.id), Count(e.id, "e", 1)))
    rig.apply(effect(f, Stage(f.id, NARROW, True, ((did("s"), b""),))))
    rig.apply(effect(g, Lock("token", 60_000)))
    rig.apply(settle(h, emit(WIDE, "z"), end()))
    lasting = {key for key, ttl in rig.keys_of(run_id).items() if ttl == -1}
    further = {key.decode() for key in rig.client.smembers(rig.keys.further(run_id))}
    assert lasting == (further & lasting) | {rig.keys.further(run_id)}
    assert rig.client.lrange(rig.keys.tidy, 0, -1) == [run_id.encode()]
    kinds = {key.removeprefix(rig.keys.run(run_id)).split(":")[1] for key in lasting}
    assert kinds == {"buf", "hold", "inbox", "keys", "ops", "sent", "stage", "store", "wait"}


def test_a_run_without_further_keys_leaves_nothing_to_tidy(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    rig.apply(settle(rig.take(WIDE), emit(WIDE, "b"), Publish(b"p"), end()))
    assert -1 not in rig.keys_of(run_id).values()
    assert not rig.client.exists(rig.keys.tidy)


# -- the deadline ------------------------------------------------------------------------------------


def deadline(rig: Rig, run_id: str) -> float:
    score = rig.client.zscore(rig.keys.live, run_id)
    recorded = rig.run(run_id)["deadline"]
    assert recorded.startswith("?") or float(recorded) == score
    return score


def test_the_budget_runs_from_the_first_execution(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"), timeout_ms=60_000)
    before = rig.now_ms()
    rig.apply(effect(rig.take(WIDE), Deadline(5_000)))
    assert before + 55_000 <= deadline(rig, run_id) <= rig.now_ms() + 55_000


def test_the_earliest_deadline_stays(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a", "b", "c"), timeout_ms=60_000)
    a, b, c = rig.read(WIDE)
    rig.apply(settle(a, Deadline(5_000)))
    first = deadline(rig, run_id)
    rig.apply(settle(b, Deadline(10)))
    assert deadline(rig, run_id) == first, "a later execution does not defer it"
    rig.apply(effect(c, Deadline(20_000)))
    assert deadline(rig, run_id) <= first - 14_000, "one that began before counts"


def test_a_run_without_a_time_out_gets_no_deadline(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    rig.apply(settle(rig.take(WIDE), Deadline(0)))
    assert rig.client.zscore(rig.keys.live, run_id) == float("inf")
    assert "deadline" not in rig.run(run_id)


# -- timers and dead letters -------------------------------------------------------------------------


def test_a_timer_is_set_in_redis_time_and_can_be_dropped(rig: Rig) -> None:
    run_id = rig.start()
    rig.apply(control(run_id, SetTimer("t", 5_000, b"data")))
    assert 4_000 < rig.client.zscore(rig.keys.timers, "t") - rig.now_ms() <= 5_000
    assert rig.client.hgetall(rig.keys.timer_data) == {b"t": b"data"}
    rig.apply(control(run_id, DropTimer("t")))
    assert not rig.client.exists(rig.keys.timers, rig.keys.timer_data)


def test_a_dead_letter_is_kept_apart_from_its_run(rig: Rig) -> None:
    run_id = rig.start()
    rig.apply(control(run_id, DeadLetter(("run", run_id, "deliveries", 4, "record", b"\xff"))))
    (_, fields), *_ = rig.client.xrange(rig.keys.dead)
    assert fields == {b"run": run_id.encode(), b"deliveries": b"4", b"record": b"\xff"}


# -- the store ---------------------------------------------------------------------------------------


def stored(rig: Rig, run_id: str, name: str) -> tuple[int, bytes]:
    version, _, value = rig.client.hget(rig.keys.store(run_id), name).partition(b":")
    return int(version), value


def test_a_stored_value_changes_only_from_the_version_that_was_read(rig: Rig) -> None:
    run_id = rig.start(Write("f", b"one"))
    version, value = stored(rig, run_id, "f")
    assert value == b"one"
    assert rig.words(
        control(run_id, Write("f", b"no"), expects=[Stored("f", version + 1)]),
        control(run_id, Write("f", b"two"), expects=[Stored("f", version)]),
        control(run_id, Write("f", b"no"), expects=[Stored("f", version)]),
    ) == ["conflict", "applied", "conflict"]
    assert stored(rig, run_id, "f")[1] == b"two"


def test_a_value_that_is_not_there_has_version_0(rig: Rig) -> None:
    run_id = rig.start()
    make = control(run_id, Write("f", b"v"), expects=[Stored("f", 0)])
    assert rig.words(make, make) == ["applied", "conflict"]


def test_a_value_that_was_removed_and_written_again_has_another_version(rig: Rig) -> None:
    run_id = rig.start(Write("f", b"same"))
    version, _ = stored(rig, run_id, "f")
    rig.apply(control(run_id, Unwrite("f")))
    rig.apply(control(run_id, Write("f", b"same")))
    assert rig.words(control(run_id, Write("f", b"x"), expects=[Stored("f", version)])) == [
        "conflict"
    ]


def test_a_call_of_an_execution_is_applied_once(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)

    def write(execution: str, call: int, value: bytes) -> Commit:
        words = [Write("f", value), Count(entry.id, execution, call)]
        return effect(entry, *words, expects=[Unapplied(entry.id, execution, call)])

    assert (
        rig.words(write("e1", 1, b"1"), write("e1", 2, b"2"), write("e1", 1, b"1"))
        == ["applied"] * 3
    )
    assert stored(rig, run_id, "f")[1] == b"2"
    rig.apply(write("e2", 1, b"3"))
    assert stored(rig, run_id, "f")[1] == b"3", "another execution counts from 1"
    rig.apply(settle(entry, Forget(entry.id)))
    assert rig.open(run_id) == {}


def test_a_call_has_its_number_compared_as_a_number(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    for call in (9, 10):
        words = [Write("f", str(call).encode()), Count(entry.id, "e", call)]
        rig.apply(effect(entry, *words, expects=[Unapplied(entry.id, "e", call)]))
    assert stored(rig, run_id, "f")[1] == b"10"


# -- the edit lock -----------------------------------------------------------------------------------


def test_the_edit_lock_has_one_holder(rig: Rig) -> None:
    run_id = rig.start()

    def lock(token: str) -> Answer:
        return rig.commit(control(run_id, Lock(token, 5_000), expects=[Free(token)]))

    assert lock("one") == Answer("applied")
    assert lock("one") == Answer("applied"), "asking again is harmless"
    refused = lock("two")
    assert refused.word == "conflict"
    assert 4_000 < refused.length <= 5_000
    assert rig.words(
        control(run_id, Write("f", b"2"), expects=[Locked("two")]),
        control(run_id, Unlock("two")),
        control(run_id, Write("f", b"1"), Unlock("one"), expects=[Locked("one")]),
    ) == ["conflict", "applied", "applied"]
    assert lock("two") == Answer("applied")


def test_a_lock_that_ran_out_is_lost(rig: Rig) -> None:
    run_id = rig.start()
    rig.apply(control(run_id, Lock("one", 5_000)))
    rig.client.delete(rig.keys.lock(run_id))
    assert rig.words(control(run_id, Write("f", b"1"), expects=[Locked("one")])) == ["conflict"]


# -- expectations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "answer"), [("running", "applied"), ("", "conflict"), ("runnin", "conflict")]
)
def test_a_field_of_the_record_is_what_was_read(rig: Rig, value: str, answer: str) -> None:
    run_id = rig.start()
    assert rig.words(control(run_id, expects=[Is("status", value)])) == [answer]


def test_a_commit_that_conflicts_writes_nothing(rig: Rig) -> None:
    rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    before = rig.everything()
    words = [emit(WIDE, "b"), Publish(b"p"), Write("f", b"v"), end()]
    assert rig.words(settle(entry, *words, expects=[Is("status", "running"), Is("x", "y")])) == [
        "conflict"
    ]
    assert rig.everything() == before
