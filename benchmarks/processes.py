"""The processes of a measurement, and what the kernel and Redis count of them."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from benchmarks.environments import NotStarted
from benchmarks.peers import PEERS, worker_commands
from stepfleet.embedded.server import find_server_binary

ROOT = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
PERSISTENCE = {
    "none": ["--save", "", "--appendonly", "no"],
    "everysec": ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"],
}
#: A driver answers within the limit of its measure; this much later it is given up.
GRACE_SECONDS = 30


class DidNotRun(Exception):
    """A measure of a peer was not finished, and why."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def family(pid: int) -> list[int]:
    """Return a process and its descendants that live."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in family(int(child)))]


def cpu_seconds(pids: list[int]) -> float:
    """Return the processor time of these processes, to the nanosecond: of their threads that live."""
    total = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(thread.read_text().split()[0])
            except OSError:
                continue
    return total / 1e9


def megabytes(pids: list[int]) -> float:
    """Return the resident memory of processes; what they share is counted for each of them."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
    return total / 1000


def busy_seconds() -> float:
    """Return the processor time that the whole machine has used."""
    fields = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


class Session:
    """One peer with its server, its workers and its driver; all end with it."""

    def __init__(self, *, peer: str, python: Path, server: str, workers: int, target: str) -> None:
        self._peer, self._python, self._target = peer, python, target
        self._started: list[subprocess.Popen[bytes]] = []
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name, "log").open("wb")  # noqa: SIM115 - closed by stop()
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}"
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "BENCH_REDIS_URL": self.url,
            "STEPFLEET_REDIS_URL": "memory://" if peer == "stepfleet-memory" else self.url,
            "BENCH_WORKERS": str(workers),
            "BENCH_MODEL": "workflows" if peer == "llama" else "stepfleet",
        }
        self.redis: Any = redis.Redis(port=self._port)
        self._persistence, self._count = server, workers
        self._looks = 0

    def begin(self) -> None:
        """Start everything, and wait until the first work came back from a worker.

        Raises:
            NotStarted: it does not get there.
        """
        self._server = self._start_server(self._persistence)
        self.workers = self._start_workers(self._count)
        self.driver = self._start_driver()
        self._ready(self._count)

    def _start_server(self, server: str) -> subprocess.Popen[bytes]:
        options = ["--port", str(self._port), "--bind", "127.0.0.1", "--dir", self._folder.name]
        process = self._spawn([str(find_server_binary()), *options, *PERSISTENCE[server]])
        end = time.monotonic() + 20
        while True:
            try:
                self.redis.ping()
                return process
            except redis.ConnectionError:
                if time.monotonic() > end:
                    raise NotStarted("the server did not start") from None
                time.sleep(0.05)

    def _start_workers(self, count: int) -> list[subprocess.Popen[bytes]]:
        if not count or not PEERS[self._peer].has_workers:
            return []
        commands = worker_commands(self._peer, self._python, count)
        if self._target != "workflows":
            commands = [
                [word.replace("flows:workflows", f"flows:{self._target}") for word in command]
                for command in commands
            ]
        return [self._spawn(command) for command in commands]

    def _start_driver(self) -> subprocess.Popen[bytes]:
        command = [str(self._python), "-m", "benchmarks.driver", self._peer]
        return self._spawn(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _spawn(self, command: list[str], **pipes: int) -> subprocess.Popen[bytes]:
        outputs: dict[str, Any] = {"stdout": self._log, "stderr": self._log, **pipes}
        process = subprocess.Popen(
            command, cwd=ROOT, env=self._environment, start_new_session=True, **outputs
        )
        self._started.append(process)
        return process

    def _ready(self, workers: int) -> None:
        try:
            self._read(60)
            if workers:
                self.ask({"measure": "warm up"}, 40)
        except DidNotRun as error:
            raise NotStarted(f"does not come up: {error}") from error
        if workers > 1:
            time.sleep(workers)  # all of them have to be there, and few peers tell

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Return what the driver answers.

        Raises:
            DidNotRun: it raised, ended or did not answer in time.
        """
        assert self.driver.stdin is not None
        try:
            self.driver.stdin.write(json.dumps(question).encode() + b"\n")
            self.driver.stdin.flush()
        except BrokenPipeError:
            raise DidNotRun(f"its driver ended: {self._last_words()}") from None
        answer = self._read(seconds + GRACE_SECONDS)
        if "error" in answer:
            raise DidNotRun(answer["error"])
        return answer

    def _read(self, seconds: float) -> dict[str, Any]:
        assert self.driver.stdout is not None
        if not select.select([self.driver.stdout], [], [], seconds)[0]:
            raise DidNotRun(f"no answer after {seconds:.0f} s: {self._last_words()}")
        line = self.driver.stdout.readline()
        if not line:
            raise DidNotRun(f"its driver ended: {self._last_words()}")
        return json.loads(line)

    def _last_words(self) -> str:
        lines = Path(self._log.name).read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"

    def counters(self) -> dict[str, float]:
        """Return what grows: calls, commands and bytes by Redis' own counts, processor seconds by process."""
        info: dict[str, Any] = self.redis.info("all")
        looks, self._looks = self._looks, self._looks + 1
        stats = {name: one for name, one in info.items() if name.startswith("cmdstat_")}
        return {
            "commands": sum(one["calls"] for one in stats.values()),
            # Commands inside of scripts are counted like others, but a call has one answer.
            # The answers to earlier questions of this method are nobody's.
            "calls": info["total_writes_processed"] - looks,
            "bytes in": info["total_net_input_bytes"],
            "bytes out": info["total_net_output_bytes"],
            "Redis bytes": info["used_memory"],
            "Redis seconds": cpu_seconds([self._server.pid]),
            "worker seconds": cpu_seconds(self.worker_pids()),
            "producer seconds": cpu_seconds(family(self.driver.pid)),
            "machine seconds": busy_seconds(),
        }

    def worker_pids(self) -> list[int]:
        return [pid for worker in self.workers for pid in family(worker.pid)]

    def stop(self) -> None:
        """End every process of the session, by its id."""
        pids = [pid for process in self._started for pid in family(process.pid)]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in self._started:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self.redis.close()
        self._log.close()
        self._folder.cleanup()


@contextmanager
def session(
    *, peer: str, python: Path, server: str, workers: int, target: str
) -> Iterator[Session]:
    """A session that ends with the block; workers have answered when it begins."""
    opened = Session(peer=peer, python=python, server=server, workers=workers, target=target)
    try:
        opened.begin()
        yield opened
    finally:
        opened.stop()
