"""Commits as KEYS and ARGV, and answers as they come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast, get_args

import msgpack
import pytest
from fakeredis import FakeServer

from stepfleet.core import commit as c
from stepfleet.core.commit import Answer, Commit, Route
from stepfleet.embedded.memory import memory_fleet
from stepfleet.errors import StoreRefused
from stepfleet.storage import words
from stepfleet.storage.bounds import Bounds
from stepfleet.storage.keys import Keys
from stepfleet.storage.link import pack
from stepfleet.storage.packing import Packing
from stepfleet.storage.run_store import RunStore, answer_of
from stepfleet.storage.scripts import PARTS, script
from stepfleet.storage.words import write

GOLDEN = Path(__file__).parents[1] / "golden" / "commit"
#: Raise it when the arguments of a commit change: workers of two versions run side by side, each
#: with its own script, so this is about what reviewers see and not about what must stay.
LAYOUT = 5

WORK = Route("Flow", "Work", "work", 4, 0, ("Work",))
LIMITED = Route("Flow", "Item", "pick", 2, 3, ("Item", "Part"))
RELEASE = Route("Flow", "List", "gather", 4, 0, ("List",))
JOIN = Route("Flow", "Part", "join", 4, 0, ("Item", "Part"), (1, 2))
D1, D2, D3 = "A" * 22, "B" * 22, "C" * 22

COMMITS: dict[str, list[Commit]] = {
    "start": [
        Commit(
            "run1",
            c.NewRunFence("digest", ["status", "running", "workflow", "Flow"]),
            [c.Write("seed", b"\x01"), c.Emit(WORK, ((D1, b"record"),), awaitable=False)],
        )
    ],
    "limits": [
        Commit("run1", c.NewRunFence("digest", ["status", "running"]), [], [c.Room()]),
        Commit(
            "run1",
            c.EntryFence(WORK, "1-0", D1),
            [c.Wait("waiter", "Reply", b"data")],
            [c.FewWaits()],
        ),
    ],
    "step": [Commit("run1", c.EntryFence(WORK, "1-0", D1), [c.Emit(WORK, ((D2, b"record"),))])],
    "two-commits": [
        Commit("run1", c.EntryFence(WORK, "1-0", D1), [c.Emit(WORK, ((D2, b"r"),))]),
        Commit("run2", c.EntryFence(WORK, "2-0", D3), [c.End("completed", b"end")]),
    ],
    "fan-out": [
        Commit(
            "run1",
            c.EntryFence(WORK, "1-0", D1),
            [
                c.Emit(LIMITED, ((D2, b"r2"), (D3, b"r3")), D1),
                c.Emit(LIMITED._replace(type="Part"), ((D3, b"r3"),), D1, also=True),
                c.Publish(b"entry", D1, "p1:x:1"),
                c.Mark(b"mark", D1, ("p1:x:1",)),
                c.Forget(D1),
            ],
        )
    ],
    "join": [
        Commit(
            "run1",
            c.EntryFence(WORK, "1-0", D1),
            [c.Append("work:b", "Work", b"event")],
            [c.Quota("work:b", "Work", (("Work", 3), ("Item", 1)))],
        ),
        Commit(
            "run1",
            c.EntryFence(WORK, "2-0", D2),
            [c.Take("work:b", 3)],
            [c.Version("work:b", 3)],
        ),
    ],
    "scope": [
        Commit(
            "run1",
            c.EntryFence(WORK, "1-0", D1),
            [
                c.Open(D1, ((RELEASE, D2, b"release"),)),
                c.Within(),
                c.Emit(WORK, ((D3, b"member"),)),
                c.Gather(D1, RELEASE, "Part", ((D3, b"part"),), 2, also=True),
                c.Tally(D1, 0, (RELEASE,)),
                c.Tally("outer", 0, (RELEASE,)),
            ],
        ),
        Commit(
            "run1",
            c.EntryFence(RELEASE, "2-0", D2),
            [
                c.Consume(D1, RELEASE),
                c.Within(),
                c.Gather("outer", RELEASE, "Part", ((D3, b"part"),)),
                c.Tally("outer", -1, (RELEASE,)),
            ],
        ),
    ],
    "pair": [
        Commit(
            "run1",
            c.EntryFence(WORK, "1-0", D1),
            [c.Pair(JOIN, D2, b"r2", "scope", D1), c.Pair(JOIN, D3, b"r3", also=True)],
        ),
        Commit("run1", c.EntryFence(JOIN._replace(slots=()), "2-0", D2), [c.Consume(D2)]),
    ],
    "wait": [
        Commit(
            "run1",
            c.EntryFence(WORK, "1-0", D1),
            [
                c.Wait("waiter", "Reply", b"data"),
                c.SetTimer("run1/t", 500, b"timer"),
                c.Note(D1, "waiting Reply Work:work"),
            ],
            [c.Is("inbox", "2")],
        ),
        Commit(
            "run1",
            c.TimerFence("run1/t"),
            [
                c.Unwait("waiter", "Reply"),
                c.DropTimer("run1/t"),
                c.Keep(b"event", 100),
                c.Unkeep(b"event"),
            ],
            [c.Has("waiter")],
        ),
    ],
    "store": [
        Commit(
            "run1",
            c.EffectFence(WORK, "1-0"),
            [c.Deadline(7), c.Lock("token", 15_000), c.Count(D1, "x.1", 1)],
            [c.Unapplied(D1, "x.1", 1), c.Free("token")],
        ),
        Commit(
            "run1",
            c.OperationFence("op"),
            [c.Write("field", b"\x02"), c.Unwrite("old"), c.Unlock("token")],
            [c.Locked("token"), c.Stored("field", 3), c.Stored("new", 0)],
        ),
    ],
    "counted": [
        Commit("run1", c.EntryFence(WORK, "1-0", D1), (), [c.Counted(D1, "x.1", 1), c.Kept(D1, D2)])
    ],
    "damaged": [Commit("run1", c.DamagedFence(), [c.End("failed", b"end", ("error", b"e"))])],
    "amend": [Commit("run1", c.AmendFence("op"), [c.Write("field", b"\x02")], [c.Free("-")])],
    "wide": [
        Commit("run1", c.EffectFence(WORK, "1-0"), [c.Stage(D1, LIMITED, True, ((D2, b"r"),))]),
        Commit(
            "run1",
            c.EntryFence(WORK, "1-0", D1),
            [c.Unstage(D1, LIMITED, 1)],
            [c.Staged(D1, LIMITED, 1)],
        ),
    ],
    "lend": [
        Commit("run1", c.EffectFence(WORK, "1-0"), [c.Lend(LIMITED, "1-0", D1, 1)]),
        Commit("run1", c.EffectFence(WORK, "1-0"), [c.Recount(WORK, "1-0", 2)]),
    ],
    "belong": [
        Commit(
            "root~child",
            c.NewRunFence("digest", ["status", "running", "parent", "root"]),
            [c.Place("Flow", 2), c.Join("root"), c.Emit(WORK, ((D1, b"record"),), awaitable=False)],
            [c.Live("root")],
        ),
        Commit("root", c.EntryFence(WORK, "1-0", D1), [c.Leave(("root~child", "root~other"))]),
        Commit("root~child", c.EntryFence(Route("Flow", "__sys", ""), "5-0", ""), [c.Admit(WORK)]),
    ],
    "ends": [
        Commit("run1", c.OverdueFence(), [c.End("timed_out", b"end", ("reason", "why"))]),
        Commit("run2", c.ControlFence(), [c.End("cancelled", b"end", (), True)]),
        Commit("run2", c.EntryFence(WORK, "1-0", D1), [c.Park(WORK, "1-0")]),
        Commit("run2", c.TimerFence("run2/t"), [c.Save(D2, "Work:work", b"record")]),
        Commit("run3", c.StrayFence(WORK, "3-0"), [c.DeadLetter(("run", "run3", "n", 4))]),
        Commit("run4", c.EntryFence(Route("Flow", "__sys", ""), "4-0", ""), [c.Wake(LIMITED)]),
    ],
    "history": [
        Commit(
            "run1",
            c.EntryFence(WORK, "1-0", D1),
            [c.Emit(WORK, ((D2, b"record"),)), c.Tell(b"row"), c.End("completed", b"end")],
        )
    ],
    "continuation": [
        Commit(
            "run1~1",
            c.NewRunFence("digest", ("status", "running", "continues", "run1")),
            [
                c.Withdraw(WORK, "1-0"),
                c.LetGo("run1", LIMITED, 2),
                c.Adopt("run1", "buf:join:default"),
                c.Fill("buf:join:other", {"version": b"1", "n:A": b"2"}),
                c.Pile("buf:join:other:events", (b"a", b"b")),
                c.Remember(b"about", 100),
                c.Expunge(D1, "p1:a"),
                c.Succeed("run1"),
            ],
            [
                c.Recorded("run1", {"status": "cancelled", "continued": ""}),
                c.Located("run1", {D1: "stream 1-0 Work:work"}),
                c.Withheld("run1", "limited", 2),
            ],
        ),
    ],
}


class Text(str):
    """A text of a class of its own."""

    __slots__ = ()


def packed(commits: list[Commit]) -> tuple[list[str], list[Any]]:
    packing = Packing(Keys("golden"), "consumer", Bounds())
    for commit in commits:
        write(packing, commit)
    return packing.arguments()


def shown(commits: list[Commit]) -> dict[str, list[str]]:
    keys, args = packed(commits)
    texts = [arg.decode("latin-1") if isinstance(arg, bytes) else str(arg) for arg in args]
    return {"KEYS": keys, "ARGV": texts}


@pytest.mark.parametrize("name", COMMITS)
def test_a_commit_has_the_arguments_that_its_layout_promises(name: str) -> None:
    path = GOLDEN / f"v{LAYOUT}" / f"{name}.json"
    found = shown(COMMITS[name])
    assert path.exists(), f"write tests/golden/commit/v{LAYOUT}/{name}.json: {json.dumps(found)}"
    assert found == json.loads(path.read_text()), (
        "the arguments of commit.lua changed. If that is meant: say it in the header of commit.lua, raise "
        f"LAYOUT, and write the new arguments to tests/golden/commit/v{LAYOUT + 1}, the old ones removed"
    )


@pytest.mark.parametrize("name", COMMITS)
def test_the_arguments_go_as_one_value_that_has_all_of_them_as_text(name: str) -> None:
    packing = Packing(Keys("golden"), "consumer", Bounds())
    for commit in COMMITS[name]:
        write(packing, commit)
    keys, args = packing.arguments()
    assert packing.packed()[0] == keys
    (value,) = packing.packed()[1]
    texts = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
    assert msgpack.unpackb(cast(bytes, value), raw=True) == texts


@pytest.mark.parametrize(("given", "sent"), [(1.5, b"1.5"), (Text("a"), b"a"), (1.0, b"1.0")])
def test_an_unusual_argument_goes_as_it_would_by_itself(given: Any, sent: bytes) -> None:
    packing = Packing(Keys("golden"), "consumer", Bounds())
    packing.args += ("run", given)
    (value,) = packing.packed()[1]
    assert msgpack.unpackb(cast(bytes, value), raw=True)[-2:] == [b"run", sent]
    assert pack(("run", given)).split(b"\r\n")[-2] == sent


@pytest.mark.parametrize("given", [None, True, ["a"], {"a": 1}, "\ud800"])
def test_what_redis_cannot_be_told_is_refused_before_it_is_sent(given: Any) -> None:
    packing = Packing(Keys("golden"), "consumer", Bounds())
    packing.args += ("run", given)
    with pytest.raises((TypeError, ValueError)):
        packing.packed()


def test_every_fence_expectation_and_word_is_in_a_golden_commit() -> None:
    used: set[type] = set()
    for commits in COMMITS.values():
        for commit in commits:
            used |= {type(part) for part in (commit.fence, *commit.expects, *commit.words)}
    assert used == {*get_args(c.Fence), *get_args(c.Expectation), *get_args(c.Word)}


@pytest.mark.parametrize("name", COMMITS)
def test_keys_are_named_once_and_are_all_of_one_partition(name: str) -> None:
    keys, _ = packed(COMMITS[name])
    assert len(keys) == len(set(keys))
    assert all(key.startswith("{golden:0}:") for key in keys)


def test_a_commit_costs_few_arguments() -> None:
    """The client is the limit: this is what packing and parsing of one middle step cost."""
    alone = packed(COMMITS["step"])
    both = packed([*COMMITS["step"], *[one._replace(run_id="r2") for one in COMMITS["step"]]])
    assert (len(alone[0]), len(alone[1])) == (6, 34)
    assert (len(both[0]) - len(alone[0]), len(both[1]) - len(alone[1])) == (4, 19)


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (b"applied", Answer("applied")),
        (b"applied 3", Answer("applied", missing=3)),
        (b"gone", Answer("gone")),
        (b"exists", Answer("exists")),
        (b"unknown-run", Answer("unknown-run")),
        (b"over", Answer("over")),
        (b"parking", Answer("parking")),
        (b"conflict", Answer("conflict")),
        (b"conflict work:b 7 3", Answer("conflict", buffer="work:b", version=7, length=3)),
        (b"conflict 1500", Answer("conflict", length=1500)),
        (b"conflict work:b x 3", Answer("broken", detail="work:b x 3")),
        (b"broken", Answer("broken")),
        (b"refused OOM command not allowed", Answer("refused", detail="OOM command not allowed")),
        (b"refused \xff", Answer("refused", detail="\ufffd")),
    ],
)
def test_an_answer_says_what_the_script_said(raw: bytes, answer: Answer) -> None:
    assert answer_of(raw) == answer


def test_every_part_of_a_commit_can_be_packed() -> None:
    """A new fence, expectation or word without a writer would show only at run time."""
    writers: dict[type, Any] = {}
    for name in ("FENCES", "EXPECTATIONS", "WORDS"):
        writers |= getattr(words, name)
    assert writers.keys() == {*get_args(c.Fence), *get_args(c.Expectation), *get_args(c.Word)}


async def test_a_store_sends_its_commits_in_one_call_and_answers_each() -> None:
    fleet = memory_fleet(server=FakeServer(version=(7,)))
    link = fleet.link("test")
    store = RunStore(link, fleet.keys, consumer="me", bounds=fleet.bounds)
    await store.commit([])
    before = link.calls_made
    (start,) = COMMITS["start"]
    other = start._replace(fence=c.NewRunFence("other", ["status", "running"]))
    assert [answer.word for answer in await store.commit([start, start, other])] == [
        "applied",
        "applied",
        "exists",
    ]
    assert link.calls_made == before + 1
    await link.close()


async def test_a_call_that_redis_refuses_as_a_whole_is_an_error() -> None:
    fleet = memory_fleet(server=FakeServer(version=(7,)))
    link = fleet.link("test")
    store = RunStore(link, fleet.keys, consumer="me", bounds=fleet.bounds)
    bad = Commit("run1", c.ControlFence(), [c.Emit(WORK._replace(limit=-1), ())])
    bad = bad._replace(fence=c.NewRunFence("d", ["odd"]))
    (answer,) = await store.commit([bad])
    assert answer.word == "refused"
    with pytest.raises(StoreRefused):
        await link.call("NOSUCHCOMMAND")
    await link.close()


def test_a_script_has_the_sha_of_its_parts() -> None:
    for name in PARTS:
        assert script(name) is script(name)
        assert len(script(name).sha) == 40
        assert script(name).source.startswith("-- prelude.lua")
