"""Worker processes of a fleet, what their steps wrote down, and what Redis itself recorded of them.

Two witnesses that know nothing of each other: the *ledger* is a file outside of Redis, to which
steps append a line when they start and end (O_APPEND: one line is one write); the *record* is
Redis' append-only file, in which every effect of every script stands in the order in which it was
applied. `Record.check_settled` joins them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import redis

from stepfleet.embedded.supervisor import die_with_parent
from tests.support import least_privilege
from tests.support.servers import RedisServer, available_binaries
from tests.support.wait import wait_until

#: The environment variable that tells steps where their ledger is.
LEDGER = "FLEET_LEDGER"
#: Seconds for a worker to import everything and say that it is ready, on a loaded machine.
READY_S = 60.0
#: Seconds for a worker to drain and leave.
LEAVE_S = 90.0
ROOT = Path(__file__).parents[2]

#: The kernel ties a child's life to the *thread* that started it: this one ends with the process.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker-starter")


# -- what steps write down ---------------------------------------------------------------------------


def note(what: str, key: str, **more: object) -> None:
    """Appends one line to the ledger of this fleet; called by steps."""
    line = {"t": time.monotonic(), "pid": os.getpid(), "what": what, "key": key, **more}
    ledger = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(ledger, json.dumps(line).encode() + b"\n")
    finally:
        os.close(ledger)


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One execution of a step as its own process saw it."""

    key: str
    step: str
    run_id: str
    pid: int
    began: float
    #: None: it never came to its end.
    ended: float | None

    @property
    def delivery(self) -> str:
        """Id of the delivery."""
        return self.key.rpartition(":")[2]


class Ledger:
    """What the steps of a fleet wrote down."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def lines(self, what: str = "") -> list[dict[str, Any]]:
        """Returns the lines, all or of one kind, oldest first."""
        lines = [json.loads(line) for line in self.path.read_bytes().splitlines()]
        return [line for line in lines if not what or line["what"] == what]

    def executions(self, step: str = "", run_id: str = "") -> list[Execution]:
        """Returns executions, all or of one step and run."""
        open_: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
        found: list[Execution] = []
        for line in self.lines():
            if line["what"] == "start":
                open_[line["pid"], line["key"]].append(line)
            elif line["what"] == "end":
                found.append(_execution(open_[line["pid"], line["key"]].pop(), line["t"]))
        found += [_execution(line, None) for rest in open_.values() for line in rest]
        return sorted(
            (
                execution
                for execution in found
                if step in ("", execution.step) and run_id in ("", execution.run_id)
            ),
            key=lambda execution: execution.began,
        )


def _execution(start: dict[str, Any], ended: float | None) -> Execution:
    return Execution(
        key=start["key"],
        step=start["step"],
        run_id=start["run"],
        pid=start["pid"],
        began=start["t"],
        ended=ended,
    )


def most_at_once(executions: Iterable[Execution], deaths: Mapping[int, float]) -> int:
    """Returns how many executions overlapped; one that never ended ended with its process."""
    changes: list[tuple[float, int]] = []
    for execution in executions:
        ended = execution.ended if execution.ended is not None else deaths[execution.pid]
        changes += [(execution.began, 1), (ended, -1)]
    now = most = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


# -- what Redis recorded -----------------------------------------------------------------------------


@dataclass(slots=True)
class Entry:
    """One entry of a step stream over its whole life."""

    stream: str
    entry: str
    run_id: str
    delivery: str
    #: Consumers that owned it, in order; 'returned' where it was handed back.
    owners: list[str] = field(default_factory=list[str])
    acknowledged: int = 0

    @property
    def step(self) -> str:
        """Name of the step, '' for the system stream."""
        return self.stream.rpartition(":")[2]

    @property
    def settled_by(self) -> int:
        """Process id of the owner that settled it."""
        return pid_of(self.owners[-1])


def pid_of(consumer: str) -> int:
    """Returns the process id in a consumer's name."""
    return int(consumer.rsplit(":", 2)[1])


class Record:
    """The history of a Redis server, read from its append-only file."""

    def __init__(self, directory: Path) -> None:
        self.entries: dict[tuple[str, str], Entry] = {}
        #: Deliveries (run, id) that were added while they were in a stream, or behind their end.
        self.again: list[tuple[str, str]] = []
        #: Deliveries by what becomes of them: in a stream, settled for good.
        self._pending: set[tuple[str, str]] = set()
        self._consumed: set[tuple[str, str]] = set()
        #: Of the transaction at hand: deliveries acknowledged, and those of them that come back later.
        self._acknowledged: set[tuple[str, str]] = set()
        self._put_off: set[tuple[str, str]] = set()
        #: (list, value) -> how often it was appended.
        self.contributions: Counter[tuple[str, bytes]] = Counter()
        #: Run -> how often it was given an end.
        self.ends: Counter[str] = Counter()
        #: (run, step) -> slots taken, lowest value seen.
        self.lowest_slots: dict[tuple[str, str], int] = {}
        self.slots: Counter[tuple[str, str]] = Counter()
        for transaction in _applied(_commands(directory)):
            for words in transaction:
                self._apply(words)
            self._close_transaction()

    def _close_transaction(self) -> None:
        self._consumed |= self._acknowledged - self._put_off
        self._acknowledged.clear()
        self._put_off.clear()

    def _apply(self, words: list[bytes]) -> None:
        command = words[0].upper().decode()
        key = words[1].decode() if len(words) > 1 else ""
        if command == "XADD" and ":s:" in key:
            self._added(key, words)
        elif command == "XCLAIM":
            self._owned(key, words)
        elif command == "XACK":
            for name in words[3:]:
                entry = self.entries[key, name.decode()]
                entry.acknowledged += 1
                self._pending.discard((entry.run_id, entry.delivery))
                self._acknowledged.add((entry.run_id, entry.delivery))
        elif command == "HSET" and key.endswith(":open"):
            self._opened(key.rpartition(":run:")[2].removesuffix(":open"), words)
        elif command == "RPUSH" and key.endswith(":events"):
            self.contributions.update((key, value) for value in words[2:])
        elif command == "XADD" and key.endswith(":ends"):
            start = words.index(b"r")
            fields = dict(zip(words[start::2], words[start + 1 :: 2], strict=True))
            if fields[b"r"]:
                self.ends[fields[b"r"].decode()] += 1
        elif command == "HINCRBY" and words[2].startswith(b"s:"):
            self._counted(key, words[2], by=int(words[3]))
        elif command == "HSET" and ":" not in key.rpartition(":run:")[2]:
            self._recorded(key, words)

    def _recorded(self, key: str, words: list[bytes]) -> None:
        for name, value in zip(words[2::2], words[3::2], strict=True):
            if name.startswith(b"s:"):
                self._counted(key, name, to=int(value))

    def _counted(self, key: str, name: bytes, *, by: int = 0, to: int | None = None) -> None:
        slot = (key.rpartition(":run:")[2], name[2:].decode())
        self.slots[slot] = to if to is not None else self.slots[slot] + by
        self.lowest_slots[slot] = min(self.lowest_slots.get(slot, 0), self.slots[slot])

    def _added(self, stream: str, words: list[bytes]) -> None:
        start = words.index(b"r") if b"r" in words else 3  # not ours: a scenario wrote it
        fields = dict(zip(words[start::2], words[start + 1 :: 2], strict=True))
        entry = words[start - 1].decode()
        delivery = fields.get(b"r", b"").decode(), fields.get(b"i", b"").decode()
        self.entries[stream, entry] = Entry(stream, entry, *delivery)
        if not delivery[1]:
            return  # a wake-up for the next run under a ceiling is no delivery and has no id
        if delivery in self._pending or delivery in self._consumed:
            self.again.append(delivery)
        self._pending.add(delivery)

    def _opened(self, run_id: str, words: list[bytes]) -> None:
        # A delivery that backs off or waits comes back: settling it is no end of it.
        for name, where in zip(words[2::2], words[3::2], strict=True):
            if where.startswith((b"timer", b"waiting")):
                self._put_off.add((run_id, name.decode()))

    def _owned(self, stream: str, words: list[bytes]) -> None:
        # Redis records a read by a group as the claim that it amounts to.
        entry = self.entries[stream, words[5].decode()]
        owner = words[3].decode()
        if not entry.owners or entry.owners[-1] != owner:
            entry.owners.append(owner)

    def of_runs(self, run_ids: Iterable[str]) -> list[Entry]:
        """Returns the entries of runs."""
        wanted = set(run_ids)
        return [entry for entry in self.entries.values() if entry.run_id in wanted]

    def reclaimed(self, run_ids: Iterable[str]) -> list[Entry]:
        """Returns entries that went from one worker to another without being handed back."""
        return [
            entry
            for entry in self.of_runs(run_ids)
            if len(entry.owners) > 1 and "returned" not in entry.owners
        ]

    def check_settled(self, ledger: Ledger, run_ids: Iterable[str]) -> int:
        """Checks that each delivery of ended runs was committed once, and returns how many there were.

        A second commit of a delivery would show in one of these: a delivery that was emitted while
        it was pending or behind its end, a contribution to a join that stands there twice, a slot
        that was given back twice, a run that ended twice. And whoever committed it has executed it,
        as its own process wrote down.
        """
        runs = set(run_ids)
        entries = self.of_runs(runs)
        again = [delivery for delivery in self.again if delivery[0] in runs]
        assert not again, f"emitted twice: {again[:5]}"
        open_ = [entry for entry in entries if entry.acknowledged != 1]
        assert not open_, f"not settled once: {open_[:5]}"
        twice = [key for (key, _), count in self.contributions.items() if count > 1]
        assert not twice, f"contributed twice: {twice[:5]}"
        ends = {run: self.ends[run] for run in runs if self.ends[run] != 1}
        assert not ends, f"not ended once: {ends}"
        broken = {
            slot: count
            for slot, count in self.lowest_slots.items()
            if slot[0] in runs and count < 0
        }
        assert not broken, f"slots given back twice: {broken}"
        executed = {(execution.delivery, execution.pid) for execution in ledger.executions()}
        known = {line["step"] for line in ledger.lines("start")}
        strange = [
            entry
            for entry in entries
            if entry.step in known and (entry.delivery, entry.settled_by) not in executed
        ]
        assert not strange, f"settled by a process that did not execute them: {strange[:5]}"
        return len(entries)


def _applied(commands: Iterable[list[bytes]]) -> Iterator[list[list[bytes]]]:
    """Gives what was applied at once; leaves out a transaction that was cut off: Redis did not apply it."""
    transaction: list[list[bytes]] | None = None
    for words in commands:
        if words[0] == b"MULTI":
            transaction = []
        elif words[0] == b"EXEC":
            yield transaction or []
            transaction = None
        elif transaction is None:
            yield [words]
        else:
            transaction.append(words)


def _commands(directory: Path) -> Iterator[list[bytes]]:
    for path in sorted(directory.rglob("*.aof"), key=_generation):
        data = path.read_bytes()
        if data.startswith(b"REDIS"):
            continue  # the snapshot that an append-only file begins with: empty, as nothing was rewritten
        position = 0
        while position < len(data):
            position, words = _command(data, position)
            yield words


def _generation(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\.(\d+)\.", path.name))


def _command(data: bytes, position: int) -> tuple[int, list[bytes]]:
    stop = data.index(b"\r\n", position)
    count, position = int(data[position + 1 : stop]), stop + 2
    words: list[bytes] = []
    for _ in range(count):
        stop = data.index(b"\r\n", position)
        length = int(data[position + 1 : stop])
        words.append(data[stop + 2 : stop + 2 + length])
        position = stop + 4 + length
    return position, words


# -- processes ---------------------------------------------------------------------------------------


class WorkerProcess:
    """One `workflow-worker`, started as an operator starts it."""

    def __init__(
        self,
        url: str,
        target: str,
        log: Path,
        ledger: Path,
        settings: Mapping[str, object],
        environment: Mapping[str, str],
    ) -> None:
        self.log_path = log
        self.killed_at = 0.0
        environment = {
            **{name: value for name, value in os.environ.items() if "STEPFLEET" not in name},
            **{f"STEPFLEET_{name.upper()}": str(value) for name, value in settings.items()},
            LEDGER: str(ledger),
            **environment,
        }
        main = "from stepfleet.cli.worker import main; main()"
        with log.open("wb") as output:
            self.process = _STARTER.submit(
                lambda: subprocess.Popen(
                    [sys.executable, "-c", main, target, "--redis-url", url],
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    preexec_fn=die_with_parent(),
                )
            ).result()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def log(self) -> str:
        """Returns what it logged so far."""
        return self.log_path.read_text(errors="replace")

    def is_ready(self) -> bool:
        """Tells whether it reads."""
        if self.process.poll() is not None:
            raise RuntimeError(f"a worker ended with {self.process.returncode}:\n{self.log()}")
        return "worker is ready" in self.log()

    def kill(self) -> None:
        """Ends it as a crash does."""
        self.process.kill()
        self.process.wait()
        self.killed_at = time.monotonic()

    def pause(self) -> None:
        """Stops it in the middle of whatever it does."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Continues it."""
        os.kill(self.pid, signal.SIGCONT)

    def terminate(self) -> None:
        """Asks it to drain."""
        self.process.terminate()

    def leave(self) -> int:
        """Asks it to drain, and returns its exit code."""
        self.terminate()
        return self.process.wait(LEAVE_S)

    def cpu_seconds(self) -> float:
        """Returns the CPU time that it has used."""
        return cpu_seconds(self.pid)


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time that the threads of a process have used, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def recording_server(
    directory: Path,
    binary: str = "redis",
    *options: str,
    wrapper: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> RedisServer:
    """Returns a server, not yet started, whose append-only file keeps everything.

    By default nothing waits for the disk. With `everysec` a slow disk makes Redis put off its writes
    for up to two seconds: what a kill then loses is a scenario of its own, not this machine's chance.
    """
    return RedisServer(
        available_binaries()[binary],
        directory / "redis",
        options=("--auto-aof-rewrite-percentage", "0", "--appendfsync", "no", *options),
        wrapper=wrapper,
        environment=environment,
    )


class TestFleet:
    """A Redis server of its own, worker processes, their ledger."""

    __test__ = False

    def __init__(
        self,
        directory: Path,
        server: RedisServer | None = None,
        /,
        *,
        target: str = "tests.support.flows:FLOWS",
        binary: str = "redis",
        options: Sequence[str] = (),
        **settings: str | int,
    ) -> None:
        self.directory = directory
        self.target = target
        word = secrets.token_hex(8)
        if least_privilege.is_asked_for():
            options = (*options, *least_privilege.server_options("default", word))
        self.server = server or recording_server(directory, binary, *options)
        self.server.start()
        #: Where programs connect, and workers: the same, unless the suite runs as least-privilege users.
        self.url = self.worker_url = self.server.url
        if least_privilege.is_asked_for():
            place = f"{word}@127.0.0.1:{self.server.port}"
            self.url = f"redis://stepfleet-producer:{place}"
            self.worker_url = f"redis://stepfleet-worker:{place}"
        self.ledger = Ledger(directory / "ledger.jsonl")
        # Runs under random kills have bad luck without being poison.
        self.settings = {"lease": "1s", "sweep": "500ms", "max_deliveries": 1000, **settings}
        self.workers: list[WorkerProcess] = []
        self._started = 0

    def start(
        self,
        count: int = 1,
        *,
        url: str = "",
        target: str = "",
        environment: Mapping[str, str] | None = None,
        **settings: str | int,
    ) -> list[WorkerProcess]:
        """Starts workers and returns them when they read."""
        fresh = self.launch(count, url=url, target=target, environment=environment, **settings)
        for worker in fresh:
            wait_until(worker.is_ready, READY_S)
        return fresh

    def launch(
        self,
        count: int = 1,
        *,
        url: str = "",
        target: str = "",
        environment: Mapping[str, str] | None = None,
        **settings: str | int,
    ) -> list[WorkerProcess]:
        """Starts workers and does not wait for them."""
        fresh: list[WorkerProcess] = []
        for _ in range(count):
            self._started += 1
            log = self.directory / f"worker-{self._started}.log"
            fresh.append(
                WorkerProcess(
                    url or self.worker_url,
                    target or self.target,
                    log,
                    self.ledger.path,
                    self.settings | settings,
                    environment or {},
                )
            )
        self.workers += fresh
        return fresh

    @property
    def live(self) -> list[WorkerProcess]:
        """Workers that run."""
        return [worker for worker in self.workers if worker.process.poll() is None]

    def deaths(self) -> dict[int, float]:
        """Returns when workers were killed, by process id."""
        return {worker.pid: worker.killed_at for worker in self.workers if worker.killed_at}

    def redis(self) -> Any:
        """Returns a client for looking."""
        return cast(Any, redis.Redis)(port=self.server.port, socket_timeout=5.0)

    def record(self) -> Record:
        """Returns what Redis recorded until now."""
        return Record(self.directory / "redis")

    def owned_by(self, worker: WorkerProcess) -> int:
        """Returns how many deliveries a worker owns."""
        # In one call: with hundreds of workflows it would take longer than a delivery otherwise.
        with self.redis() as client, client.pipeline(transaction=False) as asked:
            for stream in client.scan_iter("*:s:*", count=1000):
                asked.xpending(stream, "workers")
            rows = [row for answer in asked.execute() for row in answer["consumers"] or ()]
        mine = (row for row in rows if pid_of_or_zero(row["name"].decode()) == worker.pid)
        return sum(row["pending"] for row in mine)

    def wait_until_tidy(
        self, run_ids: Iterable[str], *, timers: int = 0, timeout: float = 15.0
    ) -> None:
        """Waits until ended runs have left nothing that stays: no pending work, no key without TTL.

        The timers of a cancelled run stay until they are due: it may be resumed.
        """
        runs = set(run_ids)

        def leftovers() -> list[str]:
            return [*self._lasting_keys(runs), *self._pending_work(timers)]

        def tidy() -> bool:
            return not leftovers()

        with contextlib.suppress(AssertionError):
            wait_until(tidy, timeout)
        left = leftovers()
        assert not left, f"left behind: {left[:20]}"

    def _lasting_keys(self, runs: set[str]) -> list[str]:
        with self.redis() as client:
            found = client.scan_iter("*:run:*", count=10_000)
            keys = [key for key in found if key.decode().split(":run:")[1].split(":")[0] in runs]
            with client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.pttl(key)
                return [
                    key.decode()
                    for key, ttl in zip(keys, pipeline.execute(), strict=True)
                    if ttl == -1
                ]

    def _pending_work(self, timers: int) -> list[str]:
        left: list[str] = []
        with self.redis() as client:
            for stream in client.scan_iter("*:s:*", count=1000):
                left += _unless_zero(stream, client.xlen(stream))
            for name, size, allowed in (
                ("timers", "zcard", timers),
                ("timers:data", "hlen", timers),
                ("live", "zcard", 0),
            ):
                for key in client.scan_iter(f"*}}:{name}"):
                    left += _unless_zero(key, getattr(client, size)(key) - allowed)
            for key in client.scan_iter("*:lim:*"):
                if client.type(key) == b"hash":
                    left += _unless_zero(key, int(client.hget(key, "reserved") or 0))
        return left

    def stop(self) -> None:
        """Ends every process."""
        for worker in self.live:
            with contextlib.suppress(ProcessLookupError):
                worker.go_on()
            worker.process.kill()
            worker.process.wait()
        self.server.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _unless_zero(key: bytes, count: int) -> list[str]:
    return [f"{key.decode()}: {count}"] if count else []


def pid_of_or_zero(consumer: str) -> int:
    """Returns the process id in a consumer's name, 0 for names that are no process."""
    return pid_of(consumer) if consumer.count(":") >= 2 else 0


def calls(client: Any) -> Counter[str]:
    """Returns how often each command was called since the server started; scripts count their own."""
    return Counter(
        {
            name.removeprefix("cmdstat_"): stat["calls"]
            for name, stat in client.info("commandstats").items()
        }
    )


def while_holding(worker: WorkerProcess, fleet: TestFleet, then: Callable[[], None]) -> None:
    """Does something to a worker at a moment at which it owns a delivery."""

    def done() -> bool:
        if fleet.owned_by(worker) == 0:
            return False
        worker.pause()  # else it may be done with all that it owns before anything is done to it
        try:
            # With what it had sent before it was paused Redis is done when it has answered twice.
            holds = all(fleet.owned_by(worker) > 0 for _ in range(2))
            if holds:
                then()
        finally:
            with contextlib.suppress(ProcessLookupError):
                worker.go_on()
        return holds

    wait_until(done, 60.0)
