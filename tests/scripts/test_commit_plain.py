"""Plain commits: applied straight ahead, they leave what the interpreter would have left, without it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import pytest

from stepfleet.core.commit import Append, Commit, Deadline, End, Quota, Room
from stepfleet.storage.scripts import script
from tests.scripts.rig import NARROW, WIDE, Rig, did, emit, end, settle

RUN: Final = "the-run"
#: What turns the script into one that has only the interpreter, and into one that has none.
INTERPRETED: Final = ("pcall(plain, i, stop)", "true, nil")
STRAIGHT: Final = ("apply = apply or interpreter()", "apply = function() error('not plain') end")
BOTH: Final = ("pcall(plain, i, stop)", "pcall(plain, i, stop)")


class _Halved(Rig):
    """A rig whose script has one of its two ways of applying a commit."""

    halved: tuple[str, str] | None = None

    def script(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        source = script(name).source
        if name == "commit" and self.halved is not None:
            assert source.count(self.halved[0]) == 1
            source = source.replace(*self.halved)
        return self.client.eval(source, len(keys), *keys, *args)


def _new(rig: Rig, *words: Any, timeout_ms: int = 0) -> Commit:
    return rig.new(*words, run_id=RUN, timeout_ms=timeout_ms)._replace(expects=[Room()])


def _contribution(rig: Rig) -> Commit:
    return settle(rig.take(WIDE), Append("b", "A", b"x"), expects=[Quota("b", "A", (("A", 4),))])


def a_start(rig: Rig) -> list[Commit]:
    return [_new(rig, emit(NARROW, "a"), timeout_ms=5000)]


def a_start_that_is_repeated(rig: Rig) -> list[Commit]:
    start = _new(rig, emit(NARROW, "a"))
    return [start, start, start._replace(fence=start.fence._replace(digest="other"))]


def a_step_goes_on(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a"), timeout_ms=5000))
    return [settle(rig.take(WIDE), Deadline(3), emit(NARROW, "b", awaitable=True))]


def a_step_goes_on_with_itself(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b")))
    return [settle(rig.take(WIDE), emit(WIDE, "c"))]


def what_is_held_is_let_go(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(NARROW, "a", "b", "c", "d")))
    return [settle(entry, emit(WIDE, f"{entry.id[0]}1")) for entry in rig.read(NARROW)]


def what_finds_no_slot_waits_behind_others(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b"), emit(NARROW, "c", "d", "e")))
    return [settle(entry, emit(NARROW, f"{entry.id[0]}1")) for entry in rig.read(WIDE)]


def an_event_is_collected(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b", "c", "d")))
    rig.apply(_contribution(rig))
    return [_contribution(rig), _contribution(rig)]


def a_run_ends(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a"), timeout_ms=5000))
    return [settle(rig.take(WIDE), Deadline(3), end())]


def a_run_ends_with_work_left_and_keys_of_its_own(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a"), emit(NARROW, "b", "c", "d")))
    return [settle(rig.take(WIDE), End("failed", b"x" * 1000, ("error", "E"), True))]


def a_commit_is_repeated(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b")))
    commit = settle(rig.take(WIDE), emit(NARROW, "c"))
    return [commit, commit]


# -- what is left to the interpreter ----------------------------------------------------------------


def a_run_with_too_many_deliveries_collects(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b", "c", "d")))
    rig.apply(_contribution(rig))
    rig.bounds = replace(rig.bounds, deliveries_limit=3)
    return [_contribution(rig)]


def what_comes_back_waits_behind_others(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a"), emit(NARROW, "c", "d", "e")))
    rig.client.hset(rig.keys.open(RUN), did("z"), "timer")
    return [settle(rig.take(WIDE), emit(NARROW, "z", awaitable=False))]


def a_start_where_a_stranger_counted(rig: Rig) -> list[Commit]:
    rig.client.hset(rig.keys.run(RUN), "s:narrow", 2)
    return [_new(rig, emit(NARROW, "a"))]


def a_step_whose_counter_is_gone(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a")))
    rig.client.hdel(rig.keys.run(RUN), "s:wide")
    return [settle(rig.take(WIDE), emit(WIDE, "b"))]


def a_step_whose_counter_is_below_one(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a")))
    rig.client.hset(rig.keys.run(RUN), "s:wide", 0)
    return [settle(rig.take(WIDE), end())]


def an_event_for_another_buffer_than_its_quota(rig: Rig) -> list[Commit]:
    rig.apply(_new(rig, emit(WIDE, "a", "b", "c", "d")))
    rig.apply(_contribution(rig))
    quota = Quota("b", "A", (("A", 4),))
    return [settle(rig.take(WIDE), Append("other", "A", b"x"), expects=[quota])]


@pytest.mark.parametrize(
    "scenario",
    [
        a_run_with_too_many_deliveries_collects,
        what_comes_back_waits_behind_others,
        a_start_where_a_stranger_counted,
        a_step_whose_counter_is_gone,
        a_step_whose_counter_is_below_one,
        an_event_for_another_buffer_than_its_quota,
    ],
)
def test_what_is_not_plain_is_left_to_the_interpreter(
    rig: Rig, scenario: Callable[[Rig], list[Commit]]
) -> None:
    straight, both, interpreted = [
        _left(rig, scenario, way) for way in (STRAIGHT, BOTH, INTERPRETED)
    ]
    assert all("not plain" in answer.detail for answer in straight[0])
    assert both == interpreted


@pytest.mark.parametrize(
    "scenario",
    [
        a_start,
        a_start_that_is_repeated,
        a_step_goes_on,
        a_step_goes_on_with_itself,
        what_is_held_is_let_go,
        what_finds_no_slot_waits_behind_others,
        an_event_is_collected,
        a_run_ends,
        a_run_ends_with_work_left_and_keys_of_its_own,
        a_commit_is_repeated,
    ],
)
def test_a_plain_commit_leaves_what_the_interpreter_leaves(
    rig: Rig, scenario: Callable[[Rig], list[Commit]]
) -> None:
    found = [_left(rig, scenario, way) for way in (STRAIGHT, INTERPRETED)]
    assert found[0] == found[1]


def _left(rig: Rig, scenario: Callable[[Rig], list[Commit]], way: tuple[str, str]) -> Any:
    """Returns the answers to what a scenario ends with, and all that is in Redis then, without times."""
    halved = _Halved(rig.client, rig.kind)
    halved.bounds = rig.bounds
    commits = scenario(halved)
    halved.halved = way
    answers = halved.commits(*commits)
    names = rig.client.keys(f"{halved.keys.tag}:*".replace("{", "[{]"))
    return answers, {
        name.decode().removeprefix(halved.keys.tag): _content(rig.client, name, halved.keys.tag)
        for name in names
    }


def _content(client: Any, name: bytes, tag: str) -> Any:
    match client.type(name):
        case b"hash":
            content: Any = sorted(client.hgetall(name).items())
        case b"list":
            content = client.lrange(name, 0, -1)
        case b"set":
            content = sorted(client.smembers(name))
        case b"zset":
            content = client.zrange(name, 0, -1)
        case _:
            content = [fields for _, fields in client.xrange(name)]
    return re.sub(r"\d{13}(-\d+)?", "time", str(content).replace(tag, "")), client.ttl(name) > 0
