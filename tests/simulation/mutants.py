"""Known bugs, put into the code at run time: a simulation that does not find them proves nothing.

Each mutant replaces text of a script or a function of a class. `mutated` puts it in and takes it
out again; it refuses when the text is no longer there, so that a mutant never silently becomes
the right code.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Final, NamedTuple
from unittest.mock import patch

from stepfleet import remote_run
from stepfleet.core.commit import Answer, Commit, EffectFence, EntryFence, Word
from stepfleet.errors import ConnectionLost
from stepfleet.parents import Parent
from stepfleet.storage import run_store, scripts
from stepfleet.storage.committer import Committer, Subjects
from stepfleet.storage.keys import GROUP
from stepfleet.storage.state import RedisPort
from stepfleet.worker import execution, processor
from stepfleet.worker.heartbeat import Heartbeat
from stepfleet.worker.janitor import Janitor
from stepfleet.worker.sweep import Sweep
from stepfleet.worker.timers import Timers
from tests.simulation.simulation import simulate

#: Seeds within which every mutant has to be caught.
ENOUGH: Final = 200

#: A text of a script and what stands there instead: file (without .lua), old, new.
Replacement = tuple[str, str, str]
#: An attribute and what it becomes, given what it was.
Change = tuple[Any, str, Callable[[Any], Any]]


class Outdated(Exception):
    """The text that a mutant replaces is not in the source any more."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One bug."""

    name: str
    lua: Sequence[Replacement] = ()
    python: Sequence[Change] = field(default=())


class _Mutated:
    """Reads the scripts of the package with a mutant's replacements."""

    def __init__(self, place: Any, lua: Sequence[Replacement]) -> None:
        self._place = place
        self._lua = lua

    def __truediv__(self, name: str) -> _Mutated:
        return _Mutated(self._place / name, self._lua)

    def read_text(self, encoding: str) -> str:
        text = self._place.read_text(encoding=encoding)
        for file, old, new in self._lua:
            if self._place.name == f"{file}.lua":
                text = text.replace(old, new)
        return text


@contextmanager
def mutated(mutant: Mutant) -> Iterator[None]:
    """Runs the code with a mutant in it.

    Raises:
        Outdated: the source has changed.
    """
    folder = files("stepfleet.storage") / "lua"
    for file, old, _ in mutant.lua:
        if (folder / f"{file}.lua").read_text(encoding="utf-8").count(old) != 1:
            raise Outdated(f"{mutant.name}: {file}.lua has not exactly one {old!r}")
    with ExitStack() as stack:
        for owner, name, change in mutant.python:
            if name not in vars(owner):
                raise Outdated(f"{mutant.name}: {owner.__name__} has no {name}")
            stack.enter_context(patch.object(owner, name, change(vars(owner)[name])))
        if mutant.lua:
            stack.enter_context(
                patch.object(scripts, "files", lambda package: _Mutated(files(package), mutant.lua))
            )
        scripts.script.cache_clear()
        try:
            yield
        finally:
            scripts.script.cache_clear()


# -- what the functions become ---------------------------------------------------------------------


def _acknowledges_later(commit: Any) -> Any:
    async def apply(self: run_store.RunStore, commits: Sequence[Commit]) -> list[Answer]:
        answers = await commit(self, commits)
        for one, answer in zip(commits, answers, strict=True):
            fence = one.fence
            if isinstance(fence, EntryFence) and answer.word != "gone":
                route = fence.route
                stream = self.keys.stream(route.workflow, route.type, route.step)
                await self.link.calls(
                    [("XACK", stream, GROUP, fence.entry), ("XDEL", stream, fence.entry)]
                )
        return answers

    return apply


def _gives_up(lost: Callable[[Commit], bool]) -> Callable[[Any], Any]:
    def change(answered: Any) -> Any:
        async def once(
            self: Committer, commits: list[Commit], store: run_store.RunStore
        ) -> list[Any]:
            if not all(lost(commit) for commit in commits):
                return await answered(self, commits, store)
            try:
                return list(await store.commit(commits))
            except ConnectionLost:
                return [Answer("applied") for _ in commits]

        return once

    return change


async def _nothing(self: Any, **_: Any) -> None:
    """Stands for what is forgotten."""


@asynccontextmanager
async def _waiting_to_the_end(parent: Parent | None) -> AsyncGenerator[None]:
    """Lends a slot for a wait, and forgets what goes on when that is given up."""
    if parent is None:
        yield
        return
    parent.waits()
    try:
        yield
    finally:
        parent.waits_no_more()
    await parent.goes_on()


def _never_saves_unlocked(save: Any) -> Any:
    async def keep_locked(
        self: RedisPort, token: str, changed: Any, removed: Sequence[str]
    ) -> None:
        words: list[Word] = self._words(changed)
        self._check(await self._apply(words, []))

    return keep_locked


def _numbered(original: Any) -> Any:
    numbers = iter(range(1, 1_000_000))
    return lambda parent, step, kind, index: original(
        parent, step, kind, f"{index}/{next(numbers)}" if kind.startswith("send") else index
    )


def _tidies_first(tidy: Any) -> Any:
    async def forgetful(self: Janitor) -> None:
        keys = self._fleet.keys
        while ended := await self._link.call("LPOP", keys.tidy):
            run_id = ended.decode()
            further = await self._link.call("SMEMBERS", keys.further(run_id))
            left = await self._link.call("PTTL", keys.run(run_id))
            names = [*further, keys.further(run_id)]
            await self._link.calls([("PEXPIRE", name, max(left, 1)) for name in names])

    return forgetful


async def _beats_never(self: Heartbeat, link: Any) -> None:
    await asyncio.get_running_loop().create_future()


def _trusts_the_clock(learn: Any) -> Any:
    def trusting(self: Heartbeat, reply: list[Any]) -> None:
        self._redis_ahead = None
        learn(self, reply)

    return trusting


def _buries_at_any_time(_: Any) -> Any:
    return property(lambda self: 2**53 if self.may_bury else 0)


def _stalls_after(leases: float) -> Callable[[Any], Any]:
    def is_stalled(self: Heartbeat) -> bool:
        return self._clock.steady() - self._loop_seen > leases * self.lease

    return lambda _: is_stalled


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "no owner fence: whoever has an entry's id may commit for it",
        lua=[
            (
                "batch",
                "rc('XPENDING', STREAM[s], group, entry, entry, 1, consumer)",
                "rc('XPENDING', STREAM[s], group, entry, entry, 1)",
            )
        ],
    ),
    Mutant(
        "no fence at all: a commit that is sent again is applied again",
        lua=[
            ("fences", "if not mine(A[j] + 0, A[j + 1]) then return 'gone' end", ""),
            ("plain", "if not mine(s, A[i + 7]) then return nil, 'gone' end", ""),
        ],
    ),
    Mutant(
        "acknowledged outside of the script, behind the commit",
        lua=[
            ("batch", "rc('XACK', STREAM[s], group, entry)\n", "\n"),
            (
                "batch",
                "if list then list[#list + 1] = entry else deletions[STREAM[s]] = { entry } end",
                "",
            ),
        ],
        python=[(run_store.RunStore, "commit", _acknowledges_later)],
    ),
    Mutant(
        "sends that were not confirmed are not repeated",
        python=[
            (
                Committer,
                "_answered",
                _gives_up(lambda commit: isinstance(commit.fence, EffectFence)),
            )
        ],
    ),
    Mutant(
        "a commit is not sent again after its reply was lost",
        python=[(Committer, "_answered", _gives_up(lambda commit: True))],
    ),
    Mutant(
        "a commit overtakes those of its delivery that are under way",
        python=[(Subjects, "have", lambda _: lambda self, commit: False)],
    ),
    Mutant(
        "a join that is not atomic: it releases what it read, whatever came since",
        lua=[("expectations", "if version ~= A[j + 3] then", "if false then")],
    ),
    Mutant(
        "a released buffer is not emptied",
        lua=[("further_words", "rc('DEL', key_at(j), key_at(j + 1))\n", "\n")],
    ),
    Mutant(
        "no audit of what was read and never arrived",
        python=[(Sweep, "_audit", lambda _: _nothing)],
    ),
    Mutant("nobody reclaims from the dead", python=[(Sweep, "reclaim", lambda _: _nothing)]),
    Mutant(
        "the lease is written once and never renewed",
        python=[(Heartbeat, "_beats", lambda _: _beats_never)],
    ),
    Mutant(
        "a slot is not returned",
        lua=[
            (
                "fences",
                "local n = whole(fields[8]) - 1",
                "local n = whole(fields[8])",
            ),
            (
                "plain",
                "n, deliveries, others = whole(n), ",
                "n, deliveries, others = whole(n) + 1, ",
            ),
        ],
    ),
    Mutant(
        "a slot is taken without a look at how many there are",
        lua=[
            (
                "slots",
                "local free = (queue or closed) and 0 or math.min(LIMIT[s] - n + k, MOST)",
                "local free = MOST",
            ),
            (
                "plain",
                "if left == 0 then return not is_full, false end",
                "if left == 0 then return true, false end",
            ),
        ],
    ),
    Mutant(
        "a timer fires for everybody who found it due",
        lua=[("fences", "if not rc('ZSCORE', K[A[j] + 0], A[j + 2]) then return 'gone' end", "")],
    ),
    Mutant(
        "the conflict is checked before the fence",
        lua=[
            (
                "apply",
                "  local refusal = fence.prove(at)\n  if refusal then return refusal end\n",
                "  local refusal\n",
            ),
            (
                "apply",
                "  fence.check(at)\n",
                "  refusal = fence.prove(at)\n  if refusal then return refusal end\n  fence.check(at)\n",
            ),
        ],
    ),
    Mutant(
        "a hand-back counts as a loss",
        lua=[("hand_back", "'returned', 0, entry, 'JUSTID')", "'returned', 0, entry)")],
    ),
    Mutant(
        "effects of a step are carried out behind the end of its run",
        lua=[
            (
                "apply",
                "return fields[1] == 'running'",
                "return fields[1] == 'running' or fields[1] and kind == 'effect'",
            )
        ],
    ),
    Mutant(
        "an ended run can end once more",
        lua=[
            (
                "apply",
                "return fields[1] == 'running'",
                "return fields[1] == 'running' or fields[1] and kind == 'entry'",
            ),
            ("plain", "if status ~= 'running' or", "if not status or"),
        ],
    ),
    Mutant("an edit does not free its lock", python=[(RedisPort, "save", _never_saves_unlocked)]),
    Mutant(
        "a store write that is sent again is applied again",
        lua=[
            (
                "expectations",
                "if early(j) >= A[j + 2] + 0 then return j + 3, 'applied' end",
                "",
            )
        ],
    ),
    Mutant(
        "a repeated send is not recognised",
        lua=[
            (
                "emits",
                "if rc('HSETNX', K[guard], did, diverted and 'w' or '') == 1 then",
                "if true then",
            )
        ],
    ),
    Mutant(
        "a repeated public event is not recognised",
        lua=[("words", "if guard > 0 and rc('HGET', K[guard], field) then return end", "")],
    ),
    Mutant(
        "the id of a sent event is new in every execution",
        python=[(execution, "delivery_id", _numbered)],
    ),
    Mutant(
        "an operation of a client is applied as often as it arrives",
        lua=[("fences", "if rc('ZSCORE', K[A[j] + 0], A[j + 1]) then return 'applied' end", "")],
    ),
    Mutant(
        "two answers resume one waiting step",
        lua=[
            (
                "expectations",
                "if rc('HEXISTS', K[A[j] + 0], A[j + 1]) == 0 then return j + 2, 'conflict' end",
                "",
            )
        ],
    ),
    Mutant(
        "the scope of a list ends while one of its members is under way",
        lua=[
            (
                "scopes",
                "rc('HINCRBY', scope, 'open', by) > 0 then",
                "rc('HINCRBY', scope, 'open', by) > 1 then",
            )
        ],
    ),
    Mutant(
        "what was given up is not kept for the continuation",
        lua=[
            (
                "further_words",
                "        rc('HSET', key_at(j), A[j + 1], A[j + 2])\n"
                "        rc('HSET', open, A[j + 1], 'parked')\n",
                "",
            )
        ],
    ),
    Mutant(
        "suspects are taken over together, and die together",
        lua=[
            (
                "reclaim",
                "suspect = suspect or { s, row, consumer[1], how }",
                "if left > 0 then take(s, row, consumer[1], how) end",
            )
        ],
    ),
    Mutant(
        "a step that gives up waiting for a run counts as one that waits for it",
        python=[(remote_run, "waiting", lambda _: _waiting_to_the_end)],
    ),
    Mutant(
        "what Redis has lost of a step's effects is not missed when the step is settled",
        python=[(processor, "still_known", lambda _: lambda held: [])],
    ),
    Mutant(
        "only the last of a step's early commits is missed when Redis has lost some",
        lua=[("expectations", "if calls < A[j + 2] + 0 then", "if early(j) < A[j + 2] + 0 then")],
    ),
    Mutant(
        "a jump of Redis' clock makes every lease look old",
        python=[
            (Heartbeat, "_learn", _trusts_the_clock),
            (Heartbeat, "buries_until_ms", _buries_at_any_time),
        ],
    ),
    Mutant(
        "a step that blocks the loop costs the lease at once",
        python=[(Heartbeat, "_is_stalled", _stalls_after(0.5))],
    ),
    Mutant(
        "a worker whose loop is blocked keeps its lease for ever",
        python=[(Heartbeat, "_is_stalled", _stalls_after(1e9))],
    ),
    Mutant("nobody looks at timers", python=[(Timers, "fire", lambda _: _nothing)]),
    Mutant(
        "keys of an ended run are forgotten before they expire",
        python=[(Janitor, "tidy", _tidies_first)],
    ),
)


class Caught(NamedTuple):
    """How a mutant was found out."""

    name: str
    #: None: it was not.
    seed: int | None
    invariant: str


def catch(number: int) -> Caught:
    """Simulates one seed after the other until a mutant is caught."""
    mutant = MUTANTS[number]
    with mutated(mutant):
        for seed in range(ENOUGH):
            if violations := simulate(seed).violations:
                return Caught(mutant.name, seed, violations[0][0])
    return Caught(mutant.name, None, "")
