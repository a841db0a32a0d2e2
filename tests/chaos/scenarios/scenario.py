"""A scenario: one fault, what may come of it, and what a run of it measures."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.chaos.proxy import Proxy
from tests.support.fleet import Execution, TestFleet, WorkerProcess
from tests.support.wait import eventually

#: Seconds for anything to happen on a busy machine.
PATIENCE = 60.0
#: A seed to repeat a failure with.
SEED = "CHAOS_SEED"
#: Programs that a scenario may need beside a server, and what installs them on Debian.
PACKAGES = {"strace": "strace", "faketime": "faketime", "redis-server": "redis-server"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one run of a scenario measured."""

    #: Seconds of each recovery, from and to what the scenario says; none where nothing has to recover.
    recovery: Sequence[float]
    #: What was counted, in words.
    counted: str

    def took(self) -> str:
        """Returns the recovery in words."""
        if not self.recovery:
            return "-"
        worst = f"{max(self.recovery):.1f} s"
        if len(self.recovery) == 1:
            return worst
        return f"median {median(self.recovery):.1f} s, worst {worst}"


Body = Callable[[Path], Coroutine[Any, Any, Figures]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One fault."""

    name: str
    fault: str
    #: What the user of a run sees of it.
    seen: str
    lost: str
    #: From what to what the recovery is measured, '' where nothing has to recover.
    recovery: str
    run: Body
    #: Programs that it needs.
    needs: tuple[str, ...]
    #: Whether `make test` runs it.
    is_quick: bool

    def missing(self) -> list[str]:
        """Returns the Debian packages that this machine lacks for it."""
        return [PACKAGES[name] for name in self.needs if shutil.which(name) is None]

    def row(self, figures: Figures) -> str:
        """Returns its row of the table in docs/guarantees.md."""
        recovery = f"{figures.took()} ({self.recovery})" if self.recovery else "-"
        cells = (self.name, self.fault, self.seen, self.lost, recovery, figures.counted)
        return f"| {' | '.join(cells)} |"


def scenario(
    name: str,
    *,
    fault: str,
    seen: str,
    lost: str,
    recovery: str = "",
    needs: tuple[str, ...] = (),
    is_quick: bool = False,
) -> Callable[[Body], Scenario]:
    """Makes a scenario of a function, which gets an empty folder and raises where a promise is broken."""

    def made(run: Body) -> Scenario:
        return Scenario(
            name=name,
            fault=fault,
            seen=seen,
            lost=lost,
            recovery=recovery,
            run=run,
            needs=needs,
            is_quick=is_quick,
        )

    return made


def skip_without_programs(wanted: Scenario) -> None:
    """Skips a test that needs a program which this machine lacks; fails where CI runs."""
    if missing := wanted.missing():
        install = f"{wanted.name} needs: apt-get install {' '.join(missing)}"
        if os.environ.get("CI"):
            pytest.fail(install)
        pytest.skip(install)


@contextmanager
def proxied(fleet: TestFleet, count: int) -> Iterator[list[tuple[WorkerProcess, Proxy]]]:
    """Starts workers, each behind a proxy of its own."""
    proxies = [Proxy(fleet.server.port) for _ in range(count)]
    try:
        yield [(fleet.start(url=proxy.url)[0], proxy) for proxy in proxies]
    finally:
        for proxy in proxies:
            proxy.close()


@contextmanager
def through_a_proxy(fleet: TestFleet) -> Iterator[Proxy]:
    """Gives a proxy of a fleet's server."""
    proxy = Proxy(fleet.server.port)
    try:
        yield proxy
    finally:
        proxy.close()


def dice() -> random.Random:
    """Returns seeded randomness; the seed is shown with a failure."""
    seed = int(os.environ.get(SEED) or random.SystemRandom().getrandbits(32))
    sys.stdout.write(f"{SEED}={seed}\n")
    return random.Random(seed)


async def until_a_step_begins(fleet: TestFleet, moment: float) -> float:
    """Waits until a step begins after a moment, and returns how many seconds after."""

    def first() -> float | None:
        return next((line["t"] for line in fleet.ledger.lines("start") if line["t"] > moment), None)

    return await eventually(first, PATIENCE) - moment


# -- figures -----------------------------------------------------------------------------------------


def taken_over(executions: Iterable[Execution], deaths: dict[int, float]) -> list[float]:
    """Returns the seconds from the death of each worker to each of its deliveries running elsewhere."""
    of_delivery: dict[str, list[Execution]] = defaultdict(list)
    for execution in executions:
        of_delivery[execution.key].append(execution)
    return [
        after.began - deaths[before.pid]
        for group in of_delivery.values()
        for before, after in pairwise(group)
        if before.pid != after.pid and before.pid in deaths and after.began > deaths[before.pid]
    ]


def executed_twice(executions: Iterable[Execution]) -> tuple[int, int]:
    """Returns how many deliveries ran in more than one process, and how many there were."""
    pids: dict[str, set[int]] = defaultdict(set)
    for execution in executions:
        pids[execution.key].add(execution.pid)
    return sum(len(group) > 1 for group in pids.values()), len(pids)


def share(part: int, whole: int) -> str:
    """Returns `3 of 212 (1.4 %)`."""
    return f"{part} of {whole} ({100 * part / max(1, whole):.1f} %)"
