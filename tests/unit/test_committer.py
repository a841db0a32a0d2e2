"""Group commit: batches, their caps, wide results, lost replies and refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any, cast

import pytest

from stepfleet.core.commit import (
    Answer,
    Commit,
    ControlFence,
    EffectFence,
    Emit,
    End,
    EntryFence,
    Publish,
    Route,
    Stage,
    Staged,
    Unstage,
    Word,
    Write,
)
from stepfleet.errors import ConnectionLost, StoreRefused
from stepfleet.storage import committer as committing
from stepfleet.storage.committer import MUCH, WEIGHT, Committer
from stepfleet.storage.run_store import RunStore
from stepfleet.storage.wide import BYTES, WIDE

ROUTE = Route("Flow", "Work", "work", 4, 0, ("Work",))
OTHER = ROUTE._replace(type="Other")
FENCE = EntryFence(ROUTE, "1-0", "D" * 22)


class FakeStore:
    """Answers what it is told to; notes each call."""

    def __init__(self) -> None:
        self.calls: list[list[Commit]] = []
        self.failures: list[Exception] = []
        self.answers: dict[str, list[str]] = {}
        self.called = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def commit(self, commits: Sequence[Commit]) -> list[Answer]:
        self.calls.append(list(commits))
        self.called.set()
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        return [self._answer(commit.run_id) for commit in commits]

    def _answer(self, run_id: str) -> Answer:
        told = self.answers.get(run_id)
        return Answer(told.pop(0) if told else "applied", detail="told so")

    @property
    def sizes(self) -> list[int]:
        return [len(call) for call in self.calls]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committing, "BACK_OFF", (0.001, 0.002))


@asynccontextmanager
async def running(store: FakeStore, **options: Any) -> AsyncIterator[Committer]:
    committer = Committer(cast(RunStore, store), random=Random(1), **options)
    task = asyncio.create_task(committer.run())
    yield committer
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def commit(run_id: str, *words: Word) -> Commit:
    return Commit(run_id, ControlFence(), words)


def emit(count: int, route: Route = ROUTE, size: int = 1, guard: str = "") -> Emit:
    return Emit(route, tuple((f"{n:022d}", b"x" * size) for n in range(count)), guard)


async def test_what_is_ready_while_a_call_is_in_flight_goes_together_in_the_next() -> None:
    store = FakeStore()
    async with running(store) as committer:
        store.gate.clear()
        first = asyncio.create_task(committer.commit(commit("first")))
        await store.called.wait()
        rest = [asyncio.create_task(committer.commit(commit(f"r{n}"))) for n in range(10)]
        await asyncio.sleep(0)
        store.gate.set()
        await asyncio.gather(first, *rest)
    assert store.sizes == [1, 10]
    assert [one.run_id for one in store.calls[1]] == [f"r{n}" for n in range(10)]


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ((), WEIGHT),
        ((End("completed", b""),), WEIGHT // 2),
        ((emit(8),), WEIGHT // 3),
        ((emit(1, size=BYTES // 4),), 4),
        ((Publish(b"x" * (BYTES // 3)),), 3),
        ((Write("f", b"x" * (BYTES // 2)),), 2),
    ],
    ids=["middle", "end", "eight emits", "large event", "large entry", "large value"],
)
async def test_a_call_is_capped_by_weight_and_bytes(words: tuple[Word, ...], size: int) -> None:
    store = FakeStore()
    async with running(store) as committer:
        for number in range(2 * size):
            committer.put(commit(f"r{number}", *words), lambda _: None)
        await committer.drained()
    assert store.sizes == [size, size]


async def test_one_commit_that_is_too_heavy_goes_alone() -> None:
    store = FakeStore()
    async with running(store) as committer:
        for number in range(2):
            committer.put(commit(f"r{number}", emit(5 * WEIGHT)), lambda _: None)
        await committer.drained()
    assert store.sizes == [1, 1]


async def test_after_a_lost_reply_the_same_call_is_sent_again_until_it_is_answered() -> None:
    store = FakeStore()
    store.failures = [ConnectionLost("reset"), ConnectionLost("time-out")]
    async with running(store) as committer:
        answers = await asyncio.gather(*[committer.commit(commit(f"r{n}")) for n in range(3)])
    assert store.calls[0] == store.calls[1] == store.calls[2]
    assert {answer.word for answer in answers} == {"applied"}


async def test_without_patience_a_refused_commit_is_sent_again_before_what_came_behind_it() -> None:
    store = FakeStore()
    store.answers = {"full": ["refused", "refused"]}
    async with running(store) as committer:
        answers: list[str] = []
        store.gate.clear()
        for name in ("before", "full"):
            committer.put(commit(name), lambda answer, name=name: answers.append(name))
        await store.called.wait()
        committer.put(commit("behind"), lambda answer: answers.append("behind"))
        store.gate.set()
        await committer.drained()
    assert [[one.run_id for one in call] for call in store.calls] == [
        ["before", "full"],
        ["full", "behind"],
        ["full"],
    ]
    assert answers == ["before", "behind", "full"]


async def test_with_patience_a_refusal_is_an_error_at_once() -> None:
    store = FakeStore()
    store.answers = {"full": ["refused"]}
    async with running(store, patience=5.0) as committer:
        with pytest.raises(StoreRefused, match="told so"):
            await committer.commit(commit("full"))
        assert (await committer.commit(commit("next"))).word == "applied"


async def test_patience_ends() -> None:
    store = FakeStore()
    store.failures = [ConnectionLost("away")] * 1_000
    async with running(store, patience=0.02) as committer:
        with pytest.raises(ConnectionLost, match="away"):
            await committer.commit(commit("r"))
        store.failures.clear()
        assert (await committer.commit(commit("next"))).word == "applied"
    assert len(store.calls) > 2


async def test_a_caller_that_went_away_does_not_disturb_the_others() -> None:
    store = FakeStore()
    async with running(store) as committer:
        store.gate.clear()
        gone = asyncio.create_task(committer.commit(commit("gone")))
        await store.called.wait()
        other = asyncio.create_task(committer.commit(commit("other")))
        await asyncio.sleep(0)
        gone.cancel()
        store.gate.set()
        assert (await other).word == "applied"
    assert [one.run_id for call in store.calls for one in call] == ["gone", "other"]


# -- a second call under way ---------------------------------------------------------------------------


@asynccontextmanager
async def with_a_call_under_way(
    *first: Commit,
) -> AsyncIterator[tuple[Committer, FakeStore, FakeStore]]:
    """A committer whose first connection does not answer yet, and its two connections."""
    store, beside = FakeStore(), FakeStore()
    store.gate.clear()
    async with running(store, beside=cast(RunStore, beside)) as committer:
        for one in first:
            committer.put(one, lambda _: None)
        await store.called.wait()
        yield committer, store, beside
        store.gate.set()
        async with asyncio.timeout(20):
            await committer.drained()


async def test_much_that_is_ready_goes_while_the_first_call_is_under_way() -> None:
    async with with_a_call_under_way(commit("first")) as (committer, store, beside):
        answers = [committer.sent(commit(f"r{n}")) for n in range(MUCH)]
        async with asyncio.timeout(20):
            await asyncio.gather(*answers)
        assert (store.sizes, beside.sizes) == ([1], [MUCH])


async def test_little_that_is_ready_waits_for_the_answer() -> None:
    async with with_a_call_under_way(commit("first")) as (committer, store, beside):
        for n in range(MUCH - 1):
            committer.put(commit(f"r{n}"), lambda _: None)
        await turns()
        assert (store.sizes, beside.sizes) == ([1], [])
    assert (store.sizes, beside.sizes) == ([1, MUCH - 1], [])


OF_RUN = commit("run")
EFFECT = Commit("run", EffectFence(ROUTE, "1-0"), [emit(1)])
SETTLING = Commit("run", FENCE, [emit(1)])
OF_ANOTHER_DELIVERY = Commit("run", EntryFence(ROUTE, "2-0", "E" * 22), [emit(1)])


@pytest.mark.parametrize(
    ("under_way", "next_"),
    [(EFFECT, EFFECT), (EFFECT, SETTLING), (OF_RUN, OF_RUN), (OF_RUN, EFFECT), (SETTLING, OF_RUN)],
    ids=[
        "effects",
        "an effect, its end",
        "of a run",
        "of a run, a delivery",
        "a delivery, its run",
    ],
)
async def test_what_depends_on_a_call_under_way_waits_for_its_answer(
    under_way: Commit, next_: Commit
) -> None:
    """However much is behind it: the order stays."""
    others = [commit(f"r{n}") for n in range(2 * MUCH)]
    async with with_a_call_under_way(under_way) as (committer, store, beside):
        for one in (others[0], next_, *others[1:]):
            committer.put(one, lambda _: None)
        await turns()
        assert beside.calls in ([], [others[:1]])
    behind = [one for call in store.calls[1:] for one in call]
    assert next_ in behind
    assert [one for call in [*store.calls[1:], *beside.calls] for one in call if one is next_] == [
        next_
    ]


async def test_two_deliveries_of_a_run_do_not_wait_for_each_other() -> None:
    async with with_a_call_under_way(SETTLING) as (committer, _, beside):
        others = [committer.sent(OF_ANOTHER_DELIVERY) for _ in range(MUCH)]
        async with asyncio.timeout(20):
            await asyncio.gather(*others)
        assert beside.sizes == [MUCH]


async def test_a_call_without_a_reply_is_sent_again_whatever_is_under_way_beside_it() -> None:
    async with with_a_call_under_way(commit("first")) as (committer, store, beside):
        beside.failures = [ConnectionLost("reset")]
        answers = [committer.sent(commit(f"r{n}")) for n in range(MUCH)]
        async with asyncio.timeout(20):
            await asyncio.gather(*answers)
        assert beside.calls[0] == beside.calls[1]
        assert store.sizes == [1]


async def test_what_was_refused_is_not_overtaken_by_what_depends_on_it() -> None:
    store, beside = FakeStore(), FakeStore()
    store.gate.clear()
    store.answers = {"run": ["refused"]}
    answered: list[str] = []
    async with running(store, beside=cast(RunStore, beside)) as committer:
        committer.put(EFFECT, lambda answer: answered.append(f"effect {answer}"))
        await store.called.wait()
        committer.put(SETTLING, lambda answer: answered.append(f"end {answer}"))
        for n in range(2 * MUCH):
            committer.put(commit(f"r{n}"), lambda _: None)
        store.gate.set()
        async with asyncio.timeout(20):
            await committer.drained()
    assert [one.split(" ")[0] for one in answered] == ["effect", "end"]
    together = [*store.calls, *beside.calls]
    assert sum(EFFECT in call for call in together) == 2


async def test_who_waits_for_either_call_is_told_when_the_committer_ends() -> None:
    store, beside = FakeStore(), FakeStore()
    store.gate.clear()
    beside.gate.clear()
    async with running(store, beside=cast(RunStore, beside)) as committer:
        first = committer.sent(commit("first"))
        await store.called.wait()
        second = [committer.sent(commit(f"r{n}")) for n in range(MUCH)]
        await beside.called.wait()
        last = committer.sent(commit("last"))
    for one in (first, *second, last):
        with pytest.raises(ConnectionLost, match="was closed"):
            await one


async def turns() -> None:
    """Let everything run that is ready."""
    for _ in range(20):
        await asyncio.sleep(0)


# -- wide results ------------------------------------------------------------------------------------


async def sent(*commits: Commit) -> list[Commit]:
    store = FakeStore()
    async with running(store) as committer:
        for one in commits:
            committer.put(one, lambda _: None)
        await committer.drained()
    return [one for call in store.calls for one in call]


async def test_a_result_that_is_not_wide_goes_as_it_is() -> None:
    one = Commit("run", FENCE, [emit(WIDE)])
    assert await sent(one) == [one]


async def test_a_wide_result_is_staged_in_parts_and_then_committed() -> None:
    wide = emit(2 * WIDE + 1)
    *parts, last = await sent(Commit("run", FENCE, [Publish(b"p"), wide]))
    assert all(part.fence == EffectFence(ROUTE, "1-0") for part in parts)
    stages = [word for part in parts for word in part.words]
    assert all(isinstance(word, Stage) for word in stages)
    assert [word.first for word in stages if isinstance(word, Stage)] == [True, False, False]
    assert sum((w.deliveries for w in stages if isinstance(w, Stage)), ()) == wide.deliveries
    assert last == Commit(
        "run",
        FENCE,
        [Publish(b"p"), Unstage("D" * 22, ROUTE, 2 * WIDE + 1)],
        [Staged("D" * 22, ROUTE, 2 * WIDE + 1)],
    )


async def test_a_large_result_is_staged_by_its_bytes() -> None:
    *parts, _ = await sent(Commit("run", FENCE, [emit(5, size=BYTES // 2)]))
    assert [
        len(word.deliveries) for part in parts for word in part.words if isinstance(word, Stage)
    ] == [2, 2, 1]


@pytest.mark.parametrize("guard", ["D" * 22, ""])
@pytest.mark.parametrize("second", [OTHER, ROUTE._replace(step="", type="__sys", limit=0)])
async def test_whatever_goes_ahead_goes_once_and_nothing_is_left_out(
    guard: str, second: Route
) -> None:
    """Two wide results of one commit: sent in parts, each under a guard, since a part may be repeated."""
    first, other = emit(WIDE + 1, guard=guard), emit(WIDE + 1, second, guard=guard)
    commits = await sent(Commit("run", FENCE, [first, emit(2, guard=guard), other, End("x", b"")]))
    *ahead, last = commits
    assert all(part.fence == EffectFence(ROUTE, "1-0") for part in ahead)
    emits = [word for part in ahead for word in part.words if isinstance(word, Emit)]
    stages = [word for part in ahead for word in part.words if isinstance(word, Stage)]
    assert all(word.guard == "D" * 22 for word in emits), "or a lost reply doubles them"
    rest = [word for word in last.words if isinstance(word, Emit)]
    count = sum(len(word.deliveries) for word in [*emits, *stages, *rest])
    assert count == 2 * (WIDE + 1) + 2
    assert isinstance(last.words[-1], End) or any(isinstance(word, End) for word in last.words)


async def test_wide_effects_go_in_parts_behind_what_was_sent_before_them() -> None:
    effect = EffectFence(ROUTE, "1-0")
    small, wide = emit(1, OTHER, guard="g"), emit(WIDE + 1, guard="g")
    parts = await sent(Commit("run", effect, [small, wide]))
    assert all(part.fence == effect for part in parts)
    emits = [word for part in parts for word in part.words if isinstance(word, Emit)]
    assert [(word.route, len(word.deliveries)) for word in emits] == [
        (OTHER, 1),
        (ROUTE, WIDE),
        (ROUTE, 1),
    ]


async def test_what_a_part_was_answered_is_why_the_last_one_missed_it() -> None:
    store = FakeStore()
    store.answers["run"] = ["broken", "rewound", "rewound"]
    told: list[object] = []
    wide = emit(WIDE + 1, guard="g")
    async with running(store) as committer:
        committer.put(Commit("run", EffectFence(ROUTE, "1-0"), [wide]), told.append)
        await committer.drained()
    assert told == [Answer("broken", detail="told so")]
