"""Group commit: what becomes ready while a call is in flight goes together in the next. Layer: storage.

No delay is added when idle. A batch is capped by weight, so that Redis is blocked for less than 3
ms, and answered in order; after a lost reply the same batch is sent again until it is answered,
because only an answer tells whether it was applied.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from random import Random, SystemRandom
from typing import Any, Final

from stepfleet.core.commit import (
    Answer,
    Append,
    Commit,
    EffectFence,
    Emit,
    End,
    EntryFence,
    Expectation,
    Forget,
    Gather,
    Open,
    Pair,
    Publish,
    SetTimer,
    Stage,
    Staged,
    Tell,
    Unstage,
    Wait,
    Word,
    Write,
)
from stepfleet.errors import ConnectionLost, StoreError, StoreRefused
from stepfleet.storage.run_store import APPLIED, RunStore

logger = logging.getLogger("stepfleet.committer")

#: Weight of one call: 100 middle commits take Redis 1.8 to 2.6 ms, ends 1.4 times that. With 64, worker
#: and client make a third more calls under load.
WEIGHT: Final = 100
#: Bytes of records, entries and values in one call.
BYTES: Final = 1_000_000
#: Deliveries that one commit emits by itself; more are staged, or sent ahead, in parts of this
#: size.
WIDE: Final = 500
#: Seconds between tries while Redis is away: from, to.
BACK_OFF: Final = (0.05, 2.0)

Done = Callable[[Answer | StoreError], None]


class Committer:
    """Sends commits in the order in which they came.

    With `patience` (seconds) a caller waits at most that long for a Redis that does not answer or
    refuses, and then gets the error; without it, commits are kept and sent again until they are
    answered.
    """

    def __init__(
        self, store: RunStore, *, patience: float | None = None, random: Random | None = None
    ) -> None:
        self._store = store
        self._patience = patience
        self._random = random or SystemRandom()
        self._queue: deque[tuple[Commit, Done, int, int]] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None

    def put(self, commit: Commit, done: Done) -> None:
        """Queue a commit; `done` is called with its answer."""
        weight, size, is_wide = _weigh(commit)
        if is_wide:
            *ahead, commit = _parts(commit)
            for part in ahead:
                self._queue.append((part, _ignored, *_weigh(part)[:2]))
            weight, size, _ = _weigh(commit)
        self._queue.append((commit, done, weight, size))
        self._idle.clear()
        self._wake.set()

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
        batch: list[tuple[Commit, Done, int, int]] = []
        try:
            while True:
                if not self._queue:
                    self._idle.set()
                    self._wake.clear()
                    await self._wake.wait()
                batch = self._next_batch()
                await self._send(batch)
                batch = []
        finally:
            left = [*batch, *self._queue]
            self._queue.clear()
            for _, done, _, _ in left:
                done(ConnectionLost("the connection was closed before Redis answered"))

    def _next_batch(self) -> list[tuple[Commit, Done, int, int]]:
        batch: list[tuple[Commit, Done, int, int]] = []
        weight = size = 0
        while self._queue:
            item = self._queue[0]
            if batch and (weight + item[2] > WEIGHT or size + item[3] > BYTES):
                break
            batch.append(self._queue.popleft())
            weight += item[2]
            size += item[3]
        return batch

    async def _send(self, batch: list[tuple[Commit, Done, int, int]]) -> None:
        answers = await self._answered([item[0] for item in batch])
        if all(answer is APPLIED for answer in answers):
            for _, done, _, _ in batch:
                done(APPLIED)
            return
        refused = [item for item, answer in zip(batch, answers, strict=True) if _is_refused(answer)]
        if refused:
            await self._leave_a_replica(_reason(answers))
        if refused and self._patience is None:
            # They go first again: a delivery's effects stay in order, and before its settling
            # commit.
            self._queue.extendleft(reversed(refused))
            logger.warning(
                "redis refuses to write: commits=%d reason=%s", len(refused), _reason(answers)
            )
            await asyncio.sleep(self._random.uniform(*BACK_OFF))
        for (_, done, _, _), answer in zip(batch, answers, strict=True):
            if not _is_refused(answer):
                done(answer)
            elif self._patience is not None:
                done(answer if isinstance(answer, StoreError) else StoreRefused(answer.detail))

    async def _leave_a_replica(self, reason: str) -> None:
        """Let the next connection reach the master, if this is a replica now or cut off from its own."""
        if "READONLY" in reason or "NOREPLICAS" in reason:
            await self._store.link.close()

    async def _answered(self, commits: list[Commit]) -> list[Answer | StoreError]:
        delay, tries = BACK_OFF[0], 0
        began = asyncio.get_running_loop().time()
        while True:
            try:
                return list(await self._store.commit(commits))
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
                return await self._one_by_one(commits)
            tries += 1
            await asyncio.sleep(self._random.uniform(delay / 2, delay))
            delay = min(delay * 2, BACK_OFF[1])

    async def _one_by_one(self, commits: list[Commit]) -> list[Answer | StoreError]:
        """Find the commit that cannot be packed, so that it fails alone."""
        answers: list[Answer | StoreError] = []
        for commit in commits:
            try:
                self._store.check(commit)
            except (TypeError, ValueError) as error:
                logger.exception("run_id=%s: a commit cannot be packed", commit.run_id)
                answers.append(Answer("broken", detail=str(error)))
            else:
                answers += await self._answered([commit])
        return answers


def _is_refused(answer: Answer | StoreError) -> bool:
    return isinstance(answer, StoreError) or answer.word == "refused"


def _reason(answers: list[Answer | StoreError]) -> str:
    for answer in answers:
        if isinstance(answer, StoreError):
            return str(answer)
        if answer.word == "refused":
            return answer.detail
    return ""


def _ignored(answer: Answer | StoreError) -> None:
    """A part that was not applied shows in the commit that ends the parts."""


def _weigh(commit: Commit) -> tuple[int, int, bool]:
    """Return a commit's weight, its bytes, and whether it has a word that is too wide for one call."""
    weight, size, emits, is_wide = 1, 0, 0, False
    for word in commit.words:
        kind = type(word)
        size_of = _SIZES.get(kind)
        if size_of is None:
            continue
        size += (own := size_of(word))
        if isinstance(word, Emit):
            count = len(word.deliveries)
            emits += count
            is_wide = is_wide or count > WIDE or own > BYTES
        elif isinstance(word, Stage | Gather):
            emits += len(word.deliveries) // 8
        elif isinstance(word, Pair):
            emits += 2
        elif isinstance(word, End):
            weight += 1
    return weight + emits // 4, size, is_wide


def _parts(commit: Commit) -> list[Commit]:
    """Return a wide commit as several: parts that can stand alone first, then the one that settles."""
    fence = commit.fence
    wide = [word for word in commit.words if isinstance(word, Emit) and _is_wide(word)]
    if not wide or not isinstance(fence, EntryFence | EffectFence):
        return [commit]
    if isinstance(fence, EffectFence):
        return _sent_ahead(commit, fence)
    opening = next((i for i, word in enumerate(commit.words) if isinstance(word, Open)), None)
    if opening is not None:
        # No member may begin before its scope is there; what was sent before it goes ahead.
        sent = commit._replace(words=commit.words[:opening])
        *ahead, rest = _sent_ahead(sent, fence) if _has_wide(sent) else [sent]
        *stages, last = _staged(rest._replace(words=commit.words[opening:]), fence)
        return [*ahead, *stages, last._replace(words=[*rest.words, *last.words])]
    steps = {word.route.step for word in wide if word.route.limit and not word.guard}
    return _staged(commit, fence) if len(steps) == len(wide) else _sent_ahead(commit, fence)


def _has_wide(commit: Commit) -> bool:
    return any(isinstance(word, Emit) and _is_wide(word) for word in commit.words)


def _staged(commit: Commit, fence: EntryFence) -> list[Commit]:
    """A step's part of a wide result gathers in a stage, which the last commit turns into held ones."""
    effect = EffectFence(fence.route, fence.entry)
    emits = [word for word in commit.words if isinstance(word, Emit) and not word.guard]
    staged = [word for word in emits if word.route.limit]
    lengths = Counter[str]()
    for word in staged:
        lengths[word.route.step] += len(word.deliveries)
    wide = {word.route.step for word in staged if _is_wide(word)}
    wide |= {step for step, length in lengths.items() if length > WIDE}
    parts: list[Commit] = []
    words: list[Word] = []
    expects: list[Expectation] = list(commit.expects)
    begun: set[str] = set()
    for word in commit.words:
        if not isinstance(word, Emit) or word.guard or word.route.step not in wide:
            words.append(word)
            continue
        step, length = word.route.step, lengths[word.route.step]
        for number, chunk in enumerate(_chunks(word)):
            first = number == 0 and step not in begun
            stage = Stage(fence.delivery, word.route, first, chunk)
            parts.append(Commit(commit.run_id, effect, [stage]))
        if step not in begun:
            expects.append(Staged(fence.delivery, word.route, length))
            words.append(Unstage(fence.delivery, word.route, length, word.also))
            begun.add(step)
    return [*parts, commit._replace(words=words, expects=expects)]


def _sent_ahead(commit: Commit, fence: EntryFence | EffectFence) -> list[Commit]:
    """Wide results and the effects before them go ahead, each once however often it is repeated."""
    effect = EffectFence(fence.route, fence.entry)
    delivery = fence.delivery if isinstance(fence, EntryFence) else ""
    parts: list[Commit] = []
    words: list[Word] = []
    for word in commit.words:
        if not isinstance(word, Emit) or not _is_wide(word):
            words.append(word)
            continue
        before = [_guarded(one, delivery) for one in words if isinstance(one, Emit)]
        words = [one for one in words if not isinstance(one, Emit)]
        guarded = _guarded(word, delivery)
        for chunk in _chunks(word):
            parts.append(
                Commit(commit.run_id, effect, [*before, guarded._replace(deliveries=chunk)])
            )
            before = []
    if delivery and not any(isinstance(word, Forget) for word in words):
        words.append(Forget(delivery))
    return [*parts, commit._replace(words=words)]


def _guarded(word: Emit, delivery: str) -> Emit:
    return word if word.guard else word._replace(guard=delivery)


def _is_wide(word: Emit) -> bool:
    return len(word.deliveries) > WIDE or _records(word) > BYTES


def _records(word: Emit | Stage | Gather) -> int:
    return sum([len(record) for _, record in word.deliveries])


#: Word -> bytes of what users made, for the words that have any.
_SIZES: Final[dict[type[Any], Callable[[Any], int]]] = {
    Emit: _records,
    Stage: _records,
    Gather: _records,
    Pair: lambda word: len(word.record),
    Publish: lambda word: len(word.entry),
    Append: lambda word: len(word.event),
    Tell: lambda word: len(word.row),
    Write: lambda word: len(word.value),
    Wait: lambda word: len(word.data),
    SetTimer: lambda word: len(word.data),
    End: lambda word: len(word.entry),
}


def _chunks(word: Emit) -> list[tuple[tuple[str, bytes], ...]]:
    chunks: list[tuple[tuple[str, bytes], ...]] = []
    chunk: list[tuple[str, bytes]] = []
    size = 0
    for delivery in word.deliveries:
        if chunk and (len(chunk) >= WIDE or size + len(delivery[1]) > BYTES):
            chunks.append(tuple(chunk))
            chunk, size = [], 0
        chunk.append(delivery)
        size += len(delivery[1])
    chunks.append(tuple(chunk))
    return chunks
