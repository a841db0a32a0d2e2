"""Fences and answers of commit.lua: who may act, once, and what it is told otherwise."""

from __future__ import annotations

import pytest

from stepfleet.core.commit import (
    AmendFence,
    Answer,
    Commit,
    ControlFence,
    DeadLetter,
    DropTimer,
    EntryFence,
    Free,
    Lock,
    Locked,
    Note,
    OperationFence,
    OverdueFence,
    Park,
    Publish,
    Save,
    SetTimer,
    StrayFence,
    Unlock,
    Write,
)
from stepfleet.storage.keys import GROUP
from tests.scripts.rig import (
    SYS,
    WIDE,
    Rig,
    cancel,
    did,
    due,
    effect,
    emit,
    end,
    settle,
)

# -- a new run ---------------------------------------------------------------------------------------


def test_a_run_is_made_once_however_often_its_start_is_sent(rig: Rig) -> None:
    start = rig.new(emit(WIDE, "a"))
    assert rig.words(start, start) == ["applied", "applied"]
    assert rig.words(start) == ["applied"]
    assert rig.queued(WIDE) == ["a"]
    assert rig.run(start.run_id)["status"] == "running"


def test_an_id_that_is_taken_by_another_start_exists(rig: Rig) -> None:
    rig.apply(rig.new(emit(WIDE, "a"), run_id="taken"))
    assert rig.words(rig.new(emit(WIDE, "b"), run_id="taken", digest="other")) == ["exists"]
    assert rig.queued(WIDE) == ["a"]


def test_a_new_run_is_live_without_a_deadline(rig: Rig) -> None:
    run_id = rig.start(timeout_ms=1)
    assert rig.client.zscore(rig.keys.live, run_id) == float("inf")


# -- an entry ----------------------------------------------------------------------------------------


def test_a_settled_entry_leaves_its_stream_and_its_successors_are_there(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    assert rig.commit(settle(entry, emit(WIDE, "b"))) == Answer("applied")
    assert rig.queued(WIDE) == ["b"]
    assert rig.pending(WIDE, "me") == {}
    assert rig.open(run_id) == {"b": "stream"}
    assert rig.run(run_id)["s:wide"] == "1"


def test_the_same_commit_twice_in_one_call_is_applied_once(rig: Rig) -> None:
    rig.start(emit(WIDE, "a"))
    commit = settle(rig.take(WIDE), emit(WIDE, "b"))
    assert rig.words(commit, commit) == ["applied", "gone"]
    assert rig.queued(WIDE) == ["b"]


def test_the_same_commit_sent_again_after_others_is_gone(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a", "x"))
    first, second = rig.read(WIDE)
    commit = settle(first, emit(WIDE, "b"), Publish(b"p"))
    rig.apply(commit)
    rig.apply(settle(second, emit(WIDE, "y")))
    rig.apply(settle(rig.take(WIDE), emit(WIDE, "c")))
    before = rig.everything()
    assert rig.words(commit) == ["gone"]
    assert rig.everything() == before
    assert rig.public(run_id) == [("1-0", b"p")]


def test_a_commit_of_a_former_owner_is_gone_and_so_are_its_effects(rig: Rig) -> None:
    rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE, "old")
    rig.claim(entry, "new")
    before = rig.everything()
    stale = [effect(entry, emit(WIDE, "x", guard=entry.id)), settle(entry, emit(WIDE, "b"))]
    assert rig.words(*stale, consumer="old") == ["gone", "gone"]
    assert rig.everything() == before
    assert rig.words(*stale, consumer="new") == ["applied", "applied"]
    assert sorted(rig.queued(WIDE)) == ["b", "x"]


def test_an_entry_that_nobody_read_cannot_be_settled(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    (name, _), *_ = rig.client.xrange(rig.stream(WIDE))
    fence = EntryFence(WIDE, name.decode(), did("a"))
    assert rig.words(Commit(run_id, fence)) == ["gone"]
    assert rig.queued(WIDE) == ["a"]


def test_an_entry_of_a_run_that_is_unknown_is_acknowledged(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    rig.client.delete(rig.keys.run(run_id))
    assert rig.words(settle(entry, emit(WIDE, "b"))) == ["unknown-run"]
    assert rig.queued(WIDE) == []
    assert rig.pending(WIDE, "me") == {}


def test_an_entry_of_an_ended_run_is_acknowledged_and_nothing_is_written(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a", "b"))
    first, second = rig.read(WIDE)
    rig.apply(settle(first, end()))
    record, shown = rig.run(run_id), rig.public(run_id)
    assert rig.words(settle(second, emit(WIDE, "c"), Publish(b"late"))) == ["over"]
    assert rig.queued(WIDE) == []
    assert (rig.run(run_id), rig.public(run_id)) == (record, shown)


def test_an_effect_behind_the_end_is_over_and_leaves_the_entry_where_it_is(rig: Rig) -> None:
    rig.start(emit(WIDE, "a", "b"))
    first, second = rig.read(WIDE)
    rig.apply(settle(first, end()))
    assert rig.words(effect(second, emit(WIDE, "c", guard=second.id))) == ["over"]
    assert rig.queued(WIDE) == ["b"]


def test_a_lost_stream_belongs_to_nobody(rig: Rig) -> None:
    rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    rig.client.delete(rig.stream(WIDE))
    assert rig.words(settle(entry, emit(WIDE, "b"))) == ["gone"]


# -- a run that keeps its pending work ---------------------------------------------------------------


def test_a_delivery_of_a_cancelled_run_is_parked_as_long_as_its_run_is_kept(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    assert rig.words(cancel(run_id)) == ["applied"]
    assert rig.words(settle(entry, emit(WIDE, "b"))) == ["parking"]
    assert rig.queued(WIDE) == ["a"], "it stays where it is until it is parked"
    park = Commit(run_id, entry.fence, [Park(WIDE, entry.entry)])
    assert rig.words(park, park) == ["over", "gone"]
    assert rig.client.hgetall(rig.keys.parked(run_id)) == {
        did("a").encode(): b"A:wide\nrecord of a"
    }
    assert rig.queued(WIDE) == []
    assert rig.open(run_id) == {"a": "parked"}
    assert -1 not in rig.keys_of(run_id).values()


def test_parking_in_a_run_that_is_unknown_only_acknowledges(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    rig.client.delete(rig.keys.run(run_id), rig.keys.open(run_id))
    assert rig.words(Commit(run_id, entry.fence, [Park(WIDE, entry.entry)])) == ["unknown-run"]
    assert rig.keys_of(run_id) == {}
    assert rig.queued(WIDE) == []


def test_what_a_timer_of_a_cancelled_run_holds_is_kept_with_the_run(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    rig.apply(settle(rig.take(WIDE), SetTimer("t", 0, b"data"), Note(did("a"), "timer back-off")))
    rig.apply(cancel(run_id))
    assert rig.words(due(run_id, "t", emit(WIDE, "a"))) == ["parking"]
    assert rig.client.zscore(rig.keys.timers, "t") is not None, "it stays until it is kept"
    save = due(run_id, "t", Save(did("a"), "A:wide", b"record of a"))
    assert rig.words(save, save) == ["over", "gone"]
    assert rig.client.hgetall(rig.keys.parked(run_id)) == {
        did("a").encode(): b"A:wide\nrecord of a"
    }
    assert rig.open(run_id) == {"a": "parked"}
    assert not rig.client.exists(rig.keys.timers, rig.keys.timer_data)
    assert -1 not in rig.keys_of(run_id).values()


def test_a_timer_of_a_wait_is_dropped_with_a_cancelled_run(rig: Rig) -> None:
    run_id = rig.start()
    rig.apply(Commit(run_id, ControlFence(), [SetTimer("t", 0, b"data")]))
    rig.apply(cancel(run_id))
    assert rig.words(due(run_id, "t", DropTimer("t"))) == ["over"]
    assert not rig.client.exists(rig.keys.timers, rig.keys.timer_data)


# -- timers and deadlines ----------------------------------------------------------------------------


def test_a_timer_fires_once(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    rig.apply(settle(rig.take(WIDE), SetTimer("t", 0, b"data"), Note(did("a"), "timer")))
    fire = due(run_id, "t", emit(WIDE, "a"))
    assert rig.words(fire, fire) == ["applied", "gone"]
    assert rig.words(fire) == ["gone"]
    assert rig.queued(WIDE) == ["a"]
    assert rig.open(run_id) == {"a": "stream"}
    assert not rig.client.exists(rig.keys.timers, rig.keys.timer_data)


@pytest.mark.parametrize("what", ["over", "unknown-run"])
def test_a_timer_of_a_run_that_is_not_live_is_dropped(rig: Rig, what: str) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    rig.apply(settle(rig.take(WIDE), SetTimer("t", 0, b"data")))
    if what == "over":
        rig.apply(cancel(run_id)._replace(words=[end()]))
    else:
        rig.client.delete(rig.keys.run(run_id))
    assert rig.words(due(run_id, "t", emit(WIDE, "a"))) == [what]
    assert rig.queued(WIDE) == []
    assert not rig.client.exists(rig.keys.timers, rig.keys.timer_data)


def test_a_run_times_out_only_past_its_deadline(rig: Rig) -> None:
    run_id = rig.start()
    late = Commit(run_id, OverdueFence(), [end("timed_out")])
    assert rig.words(late) == ["gone"], "it has no deadline"
    rig.client.zadd(rig.keys.live, {run_id: rig.now_ms() + 60_000})
    assert rig.words(late) == ["gone"], "its deadline is to come"
    rig.client.zadd(rig.keys.live, {run_id: rig.now_ms() - 1})
    assert rig.words(late, late) == ["applied", "gone"]
    assert rig.run(run_id)["status"] == "timed_out"


def test_an_overdue_run_without_a_record_is_forgotten(rig: Rig) -> None:
    rig.client.zadd(rig.keys.live, {"ghost": 1})
    assert rig.words(Commit("ghost", OverdueFence(), [end("timed_out")])) == ["unknown-run"]
    assert rig.client.zscore(rig.keys.live, "ghost") is None
    assert rig.keys_of("ghost") == {}


# -- operations and whoever asks ---------------------------------------------------------------------


def test_an_operation_is_carried_out_once(rig: Rig) -> None:
    run_id = rig.start()
    send = Commit(run_id, OperationFence("op"), [emit(WIDE, "a")])
    assert rig.words(send, send) == ["applied", "applied"]
    assert rig.queued(WIDE) == ["a"]


def test_an_operation_that_was_carried_out_is_applied_even_behind_the_end(rig: Rig) -> None:
    run_id = rig.start()
    send = Commit(run_id, OperationFence("op"), [emit(WIDE, "a")])
    rig.apply(send)
    rig.apply(settle(rig.take(WIDE), end()))
    other = send._replace(fence=OperationFence("other"))
    assert rig.words(send, other) == ["applied", "over"]


def test_only_the_last_operations_are_remembered(rig: Rig) -> None:
    run_id = rig.start()
    for number in range(5):
        rig.apply(Commit(run_id, OperationFence(f"op{number}")))
    kept = rig.client.zrange(rig.keys.operations(run_id), 0, -1)
    assert kept == [b"op2", b"op3", b"op4"]


def test_an_operation_on_a_run_that_is_unknown_makes_nothing(rig: Rig) -> None:
    assert rig.words(Commit("ghost", OperationFence("op"), [emit(WIDE, "a")])) == ["unknown-run"]
    assert rig.keys_of("ghost") == {}
    assert rig.queued(WIDE) == []


def test_a_run_is_cancelled_once(rig: Rig) -> None:
    run_id = rig.start()
    assert rig.words(cancel(run_id), cancel(run_id), cancel("ghost")) == [
        "applied",
        "over",
        "unknown-run",
    ]
    assert rig.run(run_id)["status"] == "cancelled"
    assert rig.client.xlen(rig.keys.ends) == 1


def test_a_control_commit_may_write_while_the_run_is_live(rig: Rig) -> None:
    run_id = rig.start()
    assert rig.words(Commit(run_id, ControlFence(), [emit(WIDE, "a")])) == ["applied"]
    assert rig.queued(WIDE) == ["a"]


def test_the_store_of_an_ended_run_is_amended_and_leaves_with_its_record(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    amend = Commit(run_id, AmendFence("1"), [Write("late", b"1")])
    assert rig.words(amend, amend._replace(run_id="ghost")) == ["applied", "unknown-run"]
    names = (rig.keys.store(run_id), rig.keys.operations(run_id), rig.keys.further(run_id))
    assert [rig.client.pttl(key) for key in names] == [-1] * 3  # of a live run nothing expires
    rig.apply(settle(rig.take(WIDE), end()))
    rig.client.delete(*names)
    again = amend._replace(fence=AmendFence("2"))
    assert rig.words(Commit(run_id, OperationFence("o"), amend.words), again) == ["over", "applied"]
    left = rig.client.pttl(rig.keys.run(run_id))
    for key in (rig.keys.store(run_id), rig.keys.operations(run_id)):
        assert 0 < rig.client.pttl(key) <= left + 2  # set from what was left, a moment before
    assert rig.keys_of("ghost") == {}


def test_an_amendment_that_is_sent_again_is_applied_once(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    rig.apply(settle(rig.take(WIDE), end()))
    lock = Commit(run_id, AmendFence("1"), [Lock("me", 9000)], [Free("me")])
    save = Commit(run_id, AmendFence("2"), [Write("f", b"1"), Unlock("me")], [Locked("me")])
    other = Commit(run_id, AmendFence("3"), [Write("f", b"2")])
    assert rig.words(lock, lock, save, other, save) == ["applied"] * 5
    stored = rig.client.hgetall(rig.keys.store(run_id))
    assert [value.partition(b":")[2] for value in stored.values()] == [b"2"]


# -- strays ------------------------------------------------------------------------------------------


def test_a_stray_goes_to_the_dead_letters_without_a_look_at_its_run(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE)
    rig.client.delete(rig.keys.open(run_id))
    rig.client.set(rig.keys.run(run_id), "no hash")
    before = rig.keys_of(run_id)
    assert rig.words(settle(entry)) == ["broken"]
    letter = Commit(run_id, StrayFence(WIDE, entry.entry), [DeadLetter(("run", run_id))])
    assert rig.words(letter, letter) == ["applied", "gone"]
    assert [fields for _, fields in rig.client.xrange(rig.keys.dead)] == [{b"run": run_id.encode()}]
    assert rig.keys_of(run_id) == before
    assert rig.queued(WIDE) == []


def test_a_stray_of_another_owner_is_gone(rig: Rig) -> None:
    rig.start(emit(WIDE, "a"))
    entry = rig.take(WIDE, "other")
    letter = Commit(entry.run_id, StrayFence(WIDE, entry.entry), [DeadLetter(("a", "b"))])
    assert rig.words(letter) == ["gone"]
    assert not rig.client.exists(rig.keys.dead)


def test_the_group_of_every_stream_has_one_name(rig: Rig) -> None:
    rig.read(SYS)
    assert [row["name"] for row in rig.client.xinfo_groups(rig.stream(SYS))] == [GROUP.encode()]
