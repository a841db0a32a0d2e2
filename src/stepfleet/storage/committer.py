"""Group commit: what becomes ready while a call is in flight goes together in the next. Layer: storage.

No delay is added when idle. A batch is capped by weight, so that Redis is blocked for less than 3
ms, and answered in order; after a lost reply the same batch is sent again until it is answered,
because only an answer tells whether it was applied.

Much that is ready goes while another call is under way, over a connection of its own: Redis has the
next call before it has answered the last. Two calls under way have nothing in common, as it is open
which of them Redis carries out first, or again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from random import Random, SystemRandom
from typing import Final

from stepfleet.core.commit import Answer, Commit, EffectFence, EntryFence
from stepfleet.errors import ConnectionLost, StoreError, StoreRefused
from stepfleet.storage.run_store import APPLIED, RunStore
from stepfleet.storage.wide import BYTES, parts_of, weigh

logger = logging.getLogger("stepfleet.committer")

#: Weight of one call: 100 middle commits take Redis 1.8 to 2.6 ms, ends 1.4 times that. With 64, worker
#: and client make a third more calls under load.
WEIGHT: Final = 100
#: Weight from which on a second call goes while the first is under way: 1.15 times the steps per second.
#: With 40 there are 0.050 calls per step instead of 0.047.
MUCH: Final = 50
#: Seconds between tries while Redis is away: from, to.
BACK_OFF: Final = (0.05, 2.0)

Done = Callable[[Answer | StoreError], None]
#: A commit that is queued, its weight and its bytes.
_Item = tuple[Commit, Done, int, int]


def _final(answer: Answer | StoreError) -> None:
    """Whoever has put this commit need not know."""


class _Lane:
    """A connection, and what is under way on it."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self.batch: list[_Item] = []


class Committer:
    """Sends commits in the order in which they came, those of one delivery or run each behind its answer.

    `beside` is a store over another connection. With `patience` (seconds) a caller waits at most that
    long for a Redis that does not answer or refuses, and then gets the error; without it, commits are
    kept and sent again until they are answered.
    """

    def __init__(
        self,
        store: RunStore,
        *,
        beside: RunStore | None = None,
        patience: float | None = None,
        random: Random | None = None,
    ) -> None:
        self._first = _Lane(store)
        self._second = None if beside is None else _Lane(beside)
        self._patience = patience
        self._random = random or SystemRandom()
        self._queue: deque[_Item] = deque()
        #: Of all that is queued.
        self._weight = 0
        #: There may be something to send; there may be as much as a second call takes.
        self._wake, self._much = asyncio.Event(), asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, commit: Commit, done: Done = _final) -> None:
        """Queue a commit; `done` is called with its answer, unless every answer is final."""
        weight, size, is_wide = weigh(commit)
        if is_wide:
            *ahead, commit = parts_of(commit)
            part_done, done = _told_together(done)
            for part in ahead:
                self._enqueue((part, part_done, *weigh(part)[:2]))
            weight, size, _ = weigh(commit)
        self._enqueue((commit, done, weight, size))
        self._idle.clear()
        self._wake.set()

    def _enqueue(self, item: _Item) -> None:
        self._queue.append(item)
        self._weight += item[2]
        if self._weight >= MUCH:
            self._much.set()

    async def commit(self, commit: Commit) -> Answer:
        """Queue a commit and return its answer.

        Raises:
            StoreError: patience ended, or Redis refuses.
        """
        return await self.sent(commit)

    def sent(self, commit: Commit) -> asyncio.Future[Answer]:
        """Queue a commit and return the future of its answer."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def done(answer: Answer | StoreError) -> None:
            if future.done():
                return
            if isinstance(answer, StoreError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        self.put(commit, done)
        return future

    async def drained(self) -> None:
        """Wait until everything queued was answered."""
        await self._idle.wait()

    async def run(self) -> None:
        """Send batches until cancelled; then whoever still waits is told that no answer came."""
        second = self._second
        try:
            async with asyncio.TaskGroup() as lanes:
                if second is not None:
                    lanes.create_task(self._send_much(second), name="stepfleet-commit-beside")
                await self._send_all(self._first, second)
        finally:
            left = [*self._first.batch, *(second.batch if second else ()), *self._queue]
            self._queue.clear()
            for _, done, _, _ in left:
                done(ConnectionLost("the connection was closed before Redis answered"))

    async def _send_all(self, lane: _Lane, other: _Lane | None) -> None:
        """Send whatever is ready."""
        while True:
            lane.batch = self._next_batch(other.batch if other else ())
            if self._weight >= MUCH:
                self._much.set()
            if lane.batch:
                await self._send(lane)
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _send_much(self, lane: _Lane) -> None:
        """Send what would have to wait for the first call to be answered, where it is much."""
        first = self._first
        while True:
            await self._much.wait()
            if first.batch and self._weight >= MUCH:
                lane.batch = self._next_batch(first.batch)
            if lane.batch:
                await self._send(lane)
            else:
                self._much.clear()

    def _next_batch(self, under_way: Iterable[_Item]) -> list[_Item]:
        """Take what goes in one call, up to what has to wait for an answer that is under way."""
        batch: list[_Item] = []
        weight = size = 0
        busy = Subjects(under_way) if under_way and self._queue else None
        while self._queue:
            item = self._queue[0]
            if batch and (weight + item[2] > WEIGHT or size + item[3] > BYTES):
                break
            if busy is not None and busy.have(item[0]):
                break
            batch.append(self._queue.popleft())
            weight += item[2]
            size += item[3]
        self._weight -= weight
        return batch

    async def _send(self, lane: _Lane) -> None:
        """Send the batch of a lane and tell its answers."""
        batch = lane.batch
        answers = await self._answered([item[0] for item in batch], lane.store)
        if all(answer is APPLIED for answer in answers):
            for _, done, _, _ in batch:
                done(APPLIED)
        else:
            await self._tell(lane, answers)
        lane.batch = []
        if self._queue:
            self._wake.set()  # what had to wait for these answers
        elif not (self._first.batch or (self._second and self._second.batch)):
            self._idle.set()

    async def _tell(self, lane: _Lane, answers: list[Answer | StoreError]) -> None:
        batch = lane.batch
        refused = [item for item, answer in zip(batch, answers, strict=True) if _is_refused(answer)]
        if refused:
            await self._leave_a_replica(_reason(answers), lane.store)
        if refused and self._patience is None:
            # They go first again: a delivery's effects stay in order, and before its settling
            # commit.
            self._queue.extendleft(reversed(refused))
            self._weight += sum(item[2] for item in refused)
            logger.warning(
                "redis refuses to write: commits=%d reason=%s", len(refused), _reason(answers)
            )
            await asyncio.sleep(self._random.uniform(*BACK_OFF))
        for (_, done, _, _), answer in zip(batch, answers, strict=True):
            if not _is_refused(answer):
                done(answer)
            elif self._patience is not None:
                done(answer if isinstance(answer, StoreError) else StoreRefused(answer.detail))

    async def _leave_a_replica(self, reason: str, store: RunStore) -> None:
        """Let the next connection reach the master, if this is a replica now or cut off from its own."""
        if "READONLY" in reason or "NOREPLICAS" in reason:
            await store.link.close()

    async def _answered(self, commits: list[Commit], store: RunStore) -> list[Answer | StoreError]:
        delay, tries = BACK_OFF[0], 0
        began = asyncio.get_running_loop().time()
        while True:
            try:
                return list(await store.commit(commits))
            except ConnectionLost as error:
                waited = asyncio.get_running_loop().time() - began
                if self._patience is not None and waited >= self._patience:
                    return [error for _ in commits]
                if tries == 0:
                    logger.warning(
                        "redis does not answer, commits are kept: commits=%d error=%s",
                        len(commits),
                        error,
                    )
            except StoreRefused as error:
                return [error for _ in commits]
            except (TypeError, ValueError):
                return await self._one_by_one(commits, store)
            tries += 1
            await asyncio.sleep(self._random.uniform(delay / 2, delay))
            delay = min(delay * 2, BACK_OFF[1])

    async def _one_by_one(
        self, commits: list[Commit], store: RunStore
    ) -> list[Answer | StoreError]:
        """Find the commit that cannot be packed, so that it fails alone."""
        answers: list[Answer | StoreError] = []
        for commit in commits:
            try:
                store.check(commit)
            except (TypeError, ValueError) as error:
                logger.exception("run_id=%s: a commit cannot be packed", commit.run_id)
                answers.append(Answer("broken", detail=str(error)))
            else:
                answers += await self._answered([commit], store)
        return answers


class Subjects:
    """What the commits under way are about: deliveries of runs, or runs as a whole."""

    def __init__(self, items: Iterable[_Item]) -> None:
        self._runs = set[str]()
        self._whole = set[str]()
        self._deliveries = set[tuple[str, str]]()
        for commit, *_ in items:
            self._runs.add(commit.run_id)
            if isinstance(commit.fence, EntryFence | EffectFence):
                self._deliveries.add((commit.run_id, commit.fence.entry))
            else:
                self._whole.add(commit.run_id)

    def have(self, commit: Commit) -> bool:
        """Tell whether a commit may not be carried out before one of these."""
        if isinstance(commit.fence, EntryFence | EffectFence):
            return (
                commit.run_id in self._whole
                or (commit.run_id, commit.fence.entry) in self._deliveries
            )
        return commit.run_id in self._runs


def _is_refused(answer: Answer | StoreError) -> bool:
    return isinstance(answer, StoreError) or answer.word == "refused"


def _reason(answers: list[Answer | StoreError]) -> str:
    for answer in answers:
        if isinstance(answer, StoreError):
            return str(answer)
        if answer.word == "refused":
            return answer.detail
    return ""


def _told_together(done: Done) -> tuple[Done, Done]:
    """Return what is told the answers to parts, and what the one to their last commit.

    A part that was not applied shows in the last one, which expects it: what that part was answered is why.
    """
    why: list[Answer] = []

    def part_done(answer: Answer | StoreError) -> None:
        if isinstance(answer, Answer) and answer.word not in ("applied", "rewound"):
            why.append(answer)

    def last_done(answer: Answer | StoreError) -> None:
        missed = isinstance(answer, Answer) and answer.word in ("conflict", "rewound")
        done(why[0] if why and missed else answer)

    return part_done, last_done
