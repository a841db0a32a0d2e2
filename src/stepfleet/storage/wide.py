"""What a commit weighs in a call, and one that is too wide for a call as several. Layer: storage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from stepfleet.core.commit import (
    Append,
    Commit,
    EffectFence,
    Emit,
    End,
    EntryFence,
    Expectation,
    Forget,
    Gather,
    Kept,
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

#: Bytes of records, entries and values in one call.
BYTES: Final = 1_000_000
#: Deliveries that one commit emits by itself; more are staged, or sent ahead, in parts of this
#: size.
WIDE: Final = 500


def weigh(commit: Commit) -> tuple[int, int, bool]:
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


def parts_of(commit: Commit) -> list[Commit]:
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
    """Wide results and the effects before them go ahead, each once however often it is repeated.

    Each part expects the one before: what Redis has lost of them meanwhile is missed.
    """
    effect = EffectFence(fence.route, fence.entry)
    delivery = fence.delivery if isinstance(fence, EntryFence) else ""
    parts: list[Commit] = []
    words: list[Word] = []
    ahead: list[Expectation] = []
    for word in commit.words:
        if not isinstance(word, Emit) or not _is_wide(word):
            words.append(word)
            continue
        before = [_guarded(one, delivery) for one in words if isinstance(one, Emit)]
        words = [one for one in words if not isinstance(one, Emit)]
        guarded = _guarded(word, delivery)
        for chunk in _chunks(word):
            emits = [*before, guarded._replace(deliveries=chunk)]
            parts.append(Commit(commit.run_id, effect, emits, ahead))
            before = []
            ahead = [Kept(guarded.guard, chunk[-1][0])]
    if delivery and not any(isinstance(word, Forget) for word in words):
        words.append(Forget(delivery))
    return [*parts, commit._replace(words=words, expects=[*commit.expects, *ahead])]


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
