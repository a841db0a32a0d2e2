"""What a late commit finds moved: the waits, the timers and the values that were there when it was decided."""

from __future__ import annotations

from stepfleet.core.commit import (
    Commit,
    ControlFence,
    Has,
    Is,
    Keep,
    Kept,
    Note,
    SetTimer,
    Stored,
    Unwait,
    Wait,
    Write,
    Written,
)
from tests.scripts.rig import SYS, WIDE, Rig, did, due, effect, emit, settle


def control(run_id: str, *words: object, expects: tuple[object, ...] = ()) -> Commit:
    return Commit(run_id, ControlFence(), words, expects)  # type: ignore[arg-type]


def test_an_answer_to_the_first_wait_of_a_step_does_not_fit_its_second(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "s"))
    rig.apply(control(run_id, Wait("s:1:0", "A", b"")))
    late = control(run_id, Unwait("s:1:0", "A"), emit(WIDE, "late"), expects=(Has("s:1:0"),))
    rig.apply(control(run_id, Unwait("s:1:0", "A"), Wait("s:1:1", "A", b"")))
    assert rig.words(late) == ["conflict"]
    assert rig.queued(WIDE) == ["s"]


def test_a_timer_that_was_fired_late_leaves_the_next_one(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "s"))
    rig.apply(control(run_id, SetTimer(f"{run_id}/s/back-off/2", 0, b"")))
    late = due(run_id, f"{run_id}/s/back-off/2", emit(WIDE, "again", awaitable=False))
    rig.apply(late)
    rig.apply(control(run_id, SetTimer(f"{run_id}/s/back-off/3", 60_000, b"")))
    assert rig.words(late) == ["gone"]
    assert rig.client.zrange(rig.keys.timers, 0, -1) == [f"{run_id}/s/back-off/3".encode()]


def test_an_event_for_nobody_is_not_put_away_while_a_wait_begins(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "s"))
    put_away = control(run_id, Keep(b"event", 100), expects=(Is("waits", ""),))
    rig.apply(control(run_id, Wait("s:1:0", "A", b"")))
    assert rig.words(put_away) == ["conflict"]
    assert not rig.client.exists(rig.keys.inbox(run_id))


def test_an_event_that_went_to_the_waiters_goes_nowhere_else_when_it_is_sent_again(
    rig: Rig,
) -> None:
    run_id = rig.start(emit(WIDE, "s"))
    entry = rig.take(WIDE)
    rig.stream(SYS)
    rig.apply(control(run_id, Wait("w", "A", b"")))
    sent = effect(
        entry, emit(WIDE, "x", guard=did("s")), emit(WIDE, "y", guard=did("s"), also=True)
    )
    rig.apply(sent)
    rig.apply(control(run_id, Unwait("w", "A")))
    rig.apply(sent)
    assert rig.queued(SYS) == ["x"]
    assert rig.queued(WIDE) == ["s"]
    assert rig.words(settle(entry)) == ["applied"]


def test_a_version_of_a_value_never_comes_again(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "s"))
    rig.apply(control(run_id, Write("d", b"one")))
    rig.client.delete(rig.keys.store(run_id))
    rig.apply(control(run_id, Write("d", b"two")))
    assert rig.words(control(run_id, Write("d", b"stale"), expects=(Stored("d", 1),))) == [
        "conflict"
    ]


# -- a server that came back with an older state -------------------------------------------------------


def test_a_delivery_whose_early_effect_was_lost_is_not_settled(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "s"))
    entry = rig.take(WIDE)
    rig.apply(effect(entry, emit(WIDE, "x", guard=did("s"))))
    last = settle(entry)._replace(expects=[Kept(did("s"), did("x"))])
    known = rig.client.hgetall(rig.keys.sent(run_id, did("s")))
    rig.client.delete(rig.keys.sent(run_id, did("s")))
    assert rig.words(last) == ["rewound"]
    assert "s" in rig.queued(WIDE)
    rig.client.hset(rig.keys.sent(run_id, did("s")), mapping=known)
    assert rig.words(last) == ["applied"]


def test_a_delivery_whose_store_write_was_lost_is_not_settled(rig: Rig) -> None:
    run_id = rig.start(emit(WIDE, "s"))
    entry = rig.take(WIDE)
    rig.apply(effect(entry, Write("f", b"v"), Note(f"{did('s')}!", "x.1 2")))

    def ends_after(execution: str, call: int) -> str:
        (word,) = rig.words(settle(entry)._replace(expects=[Written(did("s"), execution, call)]))
        return word

    assert ends_after("x.1", 3) == "rewound"
    assert ends_after("x.2", 1) == "rewound"
    rig.client.hset(rig.keys.open(run_id), f"{did('s')}!", "no number")
    assert ends_after("x.1", 1) == "rewound"
    rig.client.hset(rig.keys.open(run_id), f"{did('s')}!", "x.1 2")
    assert ends_after("x.1", 1) == "applied"
