"""Pairs: deliveries of several streams that make one, first come, first joined."""

from __future__ import annotations

from collections import Counter

from stepfleet.core.commit import (
    Commit,
    Consume,
    ControlFence,
    Open,
    Pair,
    Tally,
    Unwait,
    Wait,
    Within,
)
from tests.scripts.rig import SYS, WIDE, Rig, Route, did, effect, emit, settle

#: A step that joins one A and two Bs.
TYPES = ("A", "B")
OF_A = Route("Flow", "A", "join", 1, 0, TYPES, (1, 2))
OF_B = Route("Flow", "B", "join", 1, 0, TYPES, (1, 2))
END = Route("Flow", "List", "end", 1, 0, ("List",))


def pair(name: str, *, scope: str = "", guard: str = "", also: bool = False) -> Pair:
    """Returns the word that brings an event; the first letter of its name is its type."""
    route = OF_A if name[0] == "a" else OF_B
    return Pair(route, did(name), f"record of {name}".encode(), scope, guard, also=also)


def bring(rig: Rig, run_id: str, *names: str, scope: str = "") -> None:
    words = [pair(name, scope=scope) for name in names]
    rig.apply(Commit(run_id, ControlFence(), words))


def whole(route: Route) -> Route:
    return route._replace(slots=())


def batch(rig: Rig, run_id: str, name: str) -> list[str]:
    rows = rig.client.lrange(rig.keys.batch(run_id, did(name)), 0, -1)
    return [row[:22].decode().rstrip(".") for row in rows]


def started(rig: Rig) -> str:
    for route in (SYS, whole(OF_A), whole(OF_B)):
        rig.stream(route)
    return rig.start(emit(WIDE, "s"))


def test_the_event_that_completes_a_set_is_emitted(rig: Rig) -> None:
    run_id = started(rig)
    bring(rig, run_id, "b1", "a1")
    assert (rig.queued(OF_A), rig.queued(OF_B)) == ([], [])
    bring(rig, run_id, "b2")
    assert rig.queued(OF_B) == ["b2"]
    assert Counter(batch(rig, run_id, "b2")) == Counter(["a1", "b1", "b2"])
    assert not [key for key in rig.keys_of(run_id) if ":pair:" in key]


def test_sets_are_made_in_the_order_of_arrival(rig: Rig) -> None:
    run_id = started(rig)
    bring(rig, run_id, "a1", "a2", "b1", "b2", "b3", "b4")
    assert (rig.queued(OF_B), rig.held(run_id, "join")) == (["b2"], ["b4"])
    assert set(batch(rig, run_id, "b2")) == {"a1", "b1", "b2"}
    assert set(batch(rig, run_id, "b4")) == {"a2", "b3", "b4"}


def test_events_of_different_scopes_never_come_together(rig: Rig) -> None:
    run_id = started(rig)
    bring(rig, run_id, "a1", "b1", scope="s")
    bring(rig, run_id, "b2", "b3", scope="t")
    assert (rig.queued(OF_A), rig.queued(OF_B)) == ([], [])
    bring(rig, run_id, "b4", scope="s")
    assert set(batch(rig, run_id, "b4")) == {"a1", "b1", "b4"}


def test_a_pair_that_waits_does_not_keep_its_scope_open(rig: Rig) -> None:
    run_id = started(rig)
    rig.stream(END)
    opening = Open("s", ((END, did("end"), b"release"),))
    first = settle(
        rig.take(WIDE), opening, Within(), pair("a1", scope="s"), emit(WIDE, "x"), Tally("s", 0, ())
    )
    rig.apply(first)
    assert rig.client.hget(rig.keys.scope(run_id, "s"), "open") == b"1"
    done = [Within(), pair("b1", scope="s"), pair("b2", scope="s"), Tally("s", -1, (END,))]
    rig.apply(settle(rig.take(WIDE), *done))
    assert rig.queued(END) == []
    last = rig.take(whole(OF_B))
    rig.apply(settle(last, Consume(last.id), Within(), Tally("s", -1, (END,))))
    assert rig.queued(END) == ["end"]
    assert not [key for key in rig.keys_of(run_id) if ":batch:" in key or ":pair:" in key]


def test_an_event_that_is_sent_again_is_joined_once(rig: Rig) -> None:
    run_id = started(rig)
    entry = rig.take(WIDE)
    sent = effect(entry, *(pair(name, guard=did("s")) for name in ("a1", "b1")))
    assert rig.words(sent, sent) == ["applied", "applied"]
    assert rig.queued(OF_B) == []
    bring(rig, run_id, "b2")
    assert rig.queued(OF_B) == ["b2"]


def test_an_awaited_event_goes_to_the_waiters_instead(rig: Rig) -> None:
    run_id = started(rig)
    rig.apply(Commit(run_id, ControlFence(), [Wait("w", "A", b"")]))
    bring(rig, run_id, "a1", "b1", "b2")
    assert (rig.queued(SYS), rig.queued(OF_B)) == (["a1"], [])
    rig.apply(settle(rig.take(SYS), Unwait("w", "A"), pair("a1")))
    assert rig.queued(OF_A) == ["a1"]


def test_an_event_that_went_to_the_waiters_is_not_joined_when_it_is_sent_again(rig: Rig) -> None:
    run_id = started(rig)
    entry = rig.take(WIDE)
    rig.apply(Commit(run_id, ControlFence(), [Wait("w", "A", b"")]))
    sent = effect(entry, pair("a1", guard=did("s")), pair("a9", guard=did("s"), also=True))
    rig.apply(sent)
    rig.apply(Commit(run_id, ControlFence(), [Unwait("w", "A")]))
    rig.apply(sent)
    bring(rig, run_id, "b1", "b2")
    assert (rig.queued(SYS), rig.queued(OF_B)) == (["a1"], [])


def test_a_key_of_a_wrong_type_is_found_before_anything_is_written(rig: Rig) -> None:
    run_id = started(rig)
    entry = rig.take(WIDE)
    rig.client.set(rig.keys.partners(run_id, "join", "B", ""), "no list")
    before = rig.everything()
    assert rig.words(settle(entry, pair("a1"))) == ["broken"]
    assert rig.everything() == before
