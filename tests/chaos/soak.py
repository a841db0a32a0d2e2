"""The soak: for some minutes workers are killed every two seconds and Redis every minute, under load.

`make chaos MINUTES=30`. Workers and producers are processes. Two witnesses are joined at the end,
which know nothing of each other: the ledger that steps and producers write outside of Redis, and
Redis' append-only file with all that was ever written. A victim holds deliveries when it is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from stepfleet.embedded.supervisor import die_with_parent
from tests.chaos.soak_flows import COLLECTING, DELIVERIES, LIST, WIDTH
from tests.support.fleet import Execution, Record, TestFleet, WorkerProcess
from tests.support.wait import wait_until

#: A seed to repeat the order of faults with.
SEED: Final = "CHAOS_SEED"
#: Where the page is that shows the figures, and between which lines.
PAGE: Final = Path("docs/guarantees.md")
BEGIN, END = "<!-- made by make chaos MINUTES=30 -->", "<!-- end of the soak -->"
#: Minutes from which on the figures are worth a page.
LONG: Final = 30.0
#: Where the figures go, and the ledger and the record of one that failed.
RESULTS: Final = Path(".chaos")

LEASE_S: Final = 2.0
SWEEP_S: Final = 0.5
#: Seconds between two kills, on average.
KILLS_S: Final = 2.0
#: Seconds for what is under way when the faults end.
DRAIN_S: Final = 120.0
#: Seconds for a producer to say that it has begun, and to leave.
PRODUCER_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How much of everything there is."""

    seconds: float
    #: Seconds between two restarts of Redis.
    restarts_s: float = 60.0
    workers: int = 6
    producers: int = 2
    #: Runs that one producer has under way.
    at_once: int = 3
    #: Seconds of a longer step, on average.
    step_s: float = 0.25
    #: Seconds for which ended runs are kept: long enough to read a result while Redis is away.
    retention_s: int = 20

    @property
    def least_kills(self) -> int:
        """Fewer than this prove nothing."""
        return int(self.seconds / KILLS_S * 0.5)

    @property
    def least_restarts(self) -> int:
        """As `least_kills`."""
        return max(1, int(self.seconds / self.restarts_s * 0.8))

    @property
    def least_commits(self) -> int:
        """As `least_kills`."""
        return int(self.seconds * 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a soak came to."""

    minutes: float
    workers: int
    producers: int
    runs: int
    #: Deliveries settled for good, each once.
    deliveries: int
    #: Commits that settled an entry: back-offs and waits settle one, and the delivery comes again.
    commits: int
    kills: int
    redis_restarts: int
    #: Entries that went from a dead worker to another.
    reclaims: int
    retries: int
    waits: int
    edits: int
    executions: int
    #: Executions of what another execution had begun.
    repeated: int
    repeated_percent: float
    #: From kill -9 until a step that it cut off began again elsewhere.
    recovery_median_s: float
    recovery_worst_s: float
    #: The slowest run, from its start to its result.
    slowest_run_s: float
    keys_of_runs_left: int
    seed: int
    versions: str


class Soak:
    """One soak from start to end."""

    def __init__(self, directory: Path, shape: Shape, seed: int) -> None:
        self.shape = shape
        self._seed = seed
        self._dice = random.Random(seed)
        self._directory = directory
        # History is kept when the append-only file is rewritten, so a restart loads little.
        options = ("--auto-aof-rewrite-percentage", "0", "--aof-disable-auto-gc", "yes")
        self.fleet = TestFleet(
            directory,
            target="tests.chaos.soak_flows:FLOWS",
            options=options,
            lease=f"{LEASE_S}s",
            sweep=f"{SWEEP_S}s",
            retention=f"{shape.retention_s}s",
        )
        self._ready: set[int] = set()
        self._restarts = 0

    def run(self) -> Figures:
        """Runs to the end and checks everything.

        Raises:
            AssertionError: something was lost, doubled or left behind, or too little happened.
        """
        with self.fleet as fleet:
            fleet.start(self.shape.workers)
            producers = [self._producer(number) for number in range(self.shape.producers)]
            try:
                wait_until(lambda: fleet.ledger.lines("started"), PRODUCER_S)
                self._rage()
                self._keep_workers()
                for producer in producers:
                    producer.terminate()
                for producer in producers:
                    assert producer.wait(DRAIN_S) == 0, self._said(producers.index(producer))
            finally:
                for producer in producers:
                    producer.kill()
                    producer.wait()
            runs = [line["key"] for line in fleet.ledger.lines("started")]
            fleet.wait_until_tidy(runs, timeout=60.0)
            left = self._keys_after_retention()
            for worker in fleet.live:
                assert worker.leave() == 0, worker.log()[-2000:]
            return self._judged(runs, left)

    # -- while it lasts ----------------------------------------------------------------------------

    def _producer(self, number: int) -> subprocess.Popen[bytes]:
        settings = {"FLEET_LEDGER": os.fspath(self.fleet.ledger.path)}
        program = "tests.chaos.soak_producer"
        arguments = [self.fleet.url, str(self.shape.at_once), str(self.shape.step_s)]
        with self._output(number).open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", program, *arguments],
                env={**os.environ, **settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent(),
            )

    def _output(self, number: int) -> Path:
        return self._directory / f"producer-{number}.log"

    def _said(self, number: int) -> str:
        return self._output(number).read_text(errors="replace")[-3000:]

    def _rage(self) -> None:
        now = time.monotonic()
        end = now + self.shape.seconds
        kill, restart = now + self._pause(), now + self.shape.restarts_s * 0.6
        while now < (until := self._until(end)):
            time.sleep(max(0.0, min(kill, restart, until) - now))
            now = time.monotonic()
            if now >= restart:
                self._restart_redis()
                restart += self.shape.restarts_s
            elif now >= kill:
                self._kill_one(until)
                # What a busy machine was late for is not made up for: kills stay apart.
                kill = max(kill + self._pause(), time.monotonic())
            now = time.monotonic()

    def _until(self, end: float) -> float:
        """A busy machine, where workers need long to start, is given more time for enough kills."""
        return end if len(self.fleet.deaths()) >= self.shape.least_kills else end + DRAIN_S

    def _pause(self) -> float:
        return self._dice.expovariate(1 / KILLS_S)

    def _restart_redis(self) -> None:
        self.fleet.server.kill()
        time.sleep(self._dice.uniform(0.0, 1.0))
        self.fleet.server.start()
        self._restarts += 1
        with self.fleet.redis() as redis:
            redis.bgrewriteaof()

    def _kill_one(self, end: float) -> None:
        """Kills a worker at a moment at which it holds deliveries, and starts another.

        Another one is ready then: on a busy machine kills would else come faster than workers start,
        and what is measured would be how long a worker needs to start.
        """
        while time.monotonic() < end:
            workers = [worker for worker in self.fleet.live if self._is_ready(worker)]
            self._dice.shuffle(workers)
            for worker in workers if len(workers) > 1 else ():
                worker.pause()
                if self.fleet.owned_by(worker):
                    worker.kill()
                    self._keep_workers()
                    return
                worker.go_on()
            time.sleep(0.02)

    def _is_ready(self, worker: WorkerProcess) -> bool:
        if worker.pid not in self._ready and worker.is_ready():
            self._ready.add(worker.pid)
        return worker.pid in self._ready

    def _keep_workers(self) -> None:
        self.fleet.launch(self.shape.workers - len(self.fleet.live))

    def _keys_after_retention(self) -> int:
        """Waits until no key of a run is left, and returns how many are all the same."""

        def left() -> list[bytes]:
            with self.fleet.redis() as redis:
                found = list(redis.scan_iter("*:run:*", count=10_000))
                found += list(redis.scan_iter("*}:tidy"))
                found += [key for key in redis.scan_iter("*}:ended") if redis.zcard(key)]
                return found

        with contextlib.suppress(AssertionError):
            wait_until(lambda: not left(), self.shape.retention_s + 60.0)
        return len(left())

    # -- what it came to ---------------------------------------------------------------------------

    def _judged(self, runs: list[str], left: int) -> Figures:
        ledger, record = self.fleet.ledger, self.fleet.record()
        self._check_results(runs)
        commits = record.check_settled(ledger, runs)
        entries = record.of_runs(runs)
        by_delivery = Counter((one.run_id, one.delivery) for one in entries if one.delivery)
        of_steps = {one.delivery for one in entries if one.delivery and one.step != "__sys"}
        assert len(of_steps) == DELIVERIES * len(runs), (len(of_steps), DELIVERIES, len(runs))
        executions = ledger.executions()
        recoveries = _recoveries(executions, self.fleet.deaths(), record, runs)
        repeated = _repeated(executions, by_delivery)
        lines = Counter(line["what"] for line in ledger.lines())
        finished = ledger.lines("finished")
        figures = Figures(
            minutes=round(self.shape.seconds / 60, 2),
            workers=self.shape.workers,
            producers=self.shape.producers,
            runs=len(runs),
            deliveries=len(by_delivery),
            commits=commits,
            kills=len(self.fleet.deaths()),
            redis_restarts=self._restarts,
            reclaims=len(record.reclaimed(runs)),
            retries=_comings(entries, "work"),
            waits=_comings(entries, "ask"),
            edits=lines["edited"],
            executions=len(executions),
            repeated=repeated,
            repeated_percent=round(100 * repeated / len(executions), 2),
            recovery_median_s=round(median(recoveries), 2) if recoveries else 0.0,
            recovery_worst_s=round(max(recoveries, default=0.0), 2),
            slowest_run_s=round(max(line["s"] for line in finished), 1),
            keys_of_runs_left=left,
            seed=self._seed,
            versions=_versions(self.fleet),
        )
        self._check_counts(figures)
        return figures

    def _check_results(self, runs: list[str]) -> None:
        """Every run that was started ended with the one result that it can have."""
        finished = {line["key"]: line for line in self.fleet.ledger.lines("finished")}
        assert sorted(finished) == sorted(runs), set(runs) ^ set(finished)
        edits, edited, joined = Counter[str](), defaultdict[str, list[float]](list), {}
        for line in self.fleet.ledger.lines():
            if line["what"] == "edit":
                edits[line["key"]] += 1
            elif line["what"] == "edited":
                edited[line["key"]].append(line["t"])
            elif line["what"] == "start" and line["step"] == "join":
                joined[line["run"]] = line["t"]
        for run_id, line in finished.items():
            counter = line["result"].pop("counter")
            assert line["result"] == {
                "numbers": list(range(WIDTH)),
                "list": [list(range(LIST))],
                "answers": [f"to {run_id}"],
            }, line
            assert line["published"] == ["1 Ask", "2 StopEvent"], line
            least = sum(t < joined[run_id] for t in edited[run_id])
            assert least <= counter <= edits[run_id], (run_id, least, counter, edits[run_id])

    def _check_counts(self, figures: Figures) -> None:
        """Nothing is proved by a soak in which nothing happens."""
        shape = self.shape
        assert figures.keys_of_runs_left == 0, figures
        assert figures.kills >= shape.least_kills > 0, figures
        assert figures.redis_restarts >= shape.least_restarts, figures
        assert figures.reclaims >= figures.kills, figures
        assert figures.commits >= shape.least_commits, figures
        assert figures.retries >= figures.runs, figures
        assert figures.waits >= figures.runs, figures
        assert figures.edits >= WIDTH * figures.runs, figures


def _recoveries(
    executions: list[Execution], deaths: dict[int, float], record: Record, runs: list[str]
) -> list[float]:
    """Returns for each execution that a kill cut off how long it took until it began elsewhere."""
    starts: defaultdict[str, list[Execution]] = defaultdict(list)
    for execution in executions:
        starts[execution.delivery].append(execution)
    found: list[float] = []
    for entry in record.reclaimed(runs):
        for execution in starts[entry.delivery]:
            died = deaths.get(execution.pid)
            if execution.ended is None and died is not None:
                later = [one.began for one in starts[entry.delivery] if one.began > died]
                found += [min(later) - died] if later else []
    return found


def _repeated(executions: list[Execution], comings: Counter[tuple[str, str]]) -> int:
    """Returns how many executions there were beyond one for each entry."""
    began: Counter[tuple[str, str]] = Counter()
    seen: set[tuple[str, int]] = set()
    for execution in executions:
        if execution.step in COLLECTING and (execution.delivery, execution.pid) in seen:
            continue
        seen.add((execution.delivery, execution.pid))
        began[execution.run_id, execution.delivery] += 1
    return sum(max(0, count - comings[delivery]) for delivery, count in began.items())


def _comings(entries: list[Any], step: str) -> int:
    """Returns how often deliveries of a step came again from a timer or a wait."""
    counts = Counter((entry.run_id, entry.delivery) for entry in entries if entry.step == step)
    return sum(count - 1 for count in counts.values())


def _versions(fleet: TestFleet) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    log = fleet.server.log.read_text(errors="replace")
    server = next(
        (line.partition("version=")[2] for line in log.splitlines() if "version=" in line), ""
    )
    return f"commit {commit}, Redis {server.split(',')[0]}, Python {platform.python_version()}"


# -- the command -------------------------------------------------------------------------------------


def soak(directory: Path, shape: Shape) -> Figures:
    """Runs one soak; the seed of its faults is drawn, or given by the environment."""
    seed = int(os.environ.get(SEED) or random.SystemRandom().getrandbits(32))
    sys.stdout.write(f"{SEED}={seed}\n")  # shown with a failure
    return Soak(directory, shape, seed).run()


def main() -> None:
    """Runs a soak of some minutes and writes its figures down."""
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("--minutes", type=float, default=1.0)
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        seconds = 60 * arguments.minutes
        figures = soak(directory, Shape(seconds=seconds, restarts_s=min(60.0, seconds)))
    except BaseException:
        print(f"ledger, logs and record: {directory}", file=sys.stderr)
        raise
    (RESULTS / "soak.json").write_text(json.dumps(asdict(figures), indent=2) + "\n")
    print(*table(figures), sep="\n")
    if arguments.minutes >= LONG:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text("\n".join([f"{before}{BEGIN}\n", *table(figures), f"\n{END}{after}"]))
    shutil.rmtree(directory)


def table(figures: Figures) -> list[str]:
    """Returns the figures as the lines of a table."""
    f = figures
    rows = {
        "duration": f"{f.minutes:g} min, {f.workers} workers, {f.producers} producers",
        "`kill -9` of a worker that held deliveries": f"{f.kills:,}",
        "Redis killed and started again": f"{f.redis_restarts:,}",
        "runs, each with the one right result": f"{f.runs:,}",
        "deliveries, each settled once": f"{f.deliveries:,}",
        "commits of deliveries": f"{f.commits:,}",
        "of them back-offs, waits": f"{f.retries:,}, {f.waits:,}",
        "edits of the store": f"{f.edits:,}",
        "deliveries taken over from the dead": f"{f.reclaims:,}",
        "from `kill -9` until a step runs again, median": f"{f.recovery_median_s:g} s",
        "from `kill -9` until a step runs again, worst": f"{f.recovery_worst_s:g} s",
        "steps executed more than once": f"{f.repeated:,} of {f.executions:,} "
        f"({f.repeated_percent:g} %)",
        "slowest run": f"{f.slowest_run_s:g} s",
        "keys of runs left after the retention": f"{f.keys_of_runs_left:,}",
    }
    return [
        "| soak | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows.items()),
    ]


if __name__ == "__main__":
    main()
