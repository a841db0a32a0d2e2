"""Starts the demo's server and workers, kills one, and asks Redis what becomes of its deliveries."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgpack
from redis.asyncio import Redis

from stepfleet.embedded import supervisor
from stepfleet.embedded.server import DIRECTORY, embedded_server
from stepfleet.storage.keys import GROUP, Keys

HERE = Path(__file__).parent
NAMESPACE = "demo"
KEYS = Keys(NAMESPACE)
#: Seconds of silence after which a worker's deliveries go to the others. Short, to be watched;
#: fifteen is the default.
LEASE = 2.0
#: Seconds between two looks at what there is to take over.
SWEEP = 0.5
#: Deliveries that one process reads ahead while its one thread parses a file.
CONCURRENCY = 8
#: Seconds for workers to start, and to leave.
PATIENCE = 20.0
#: Seconds between two questions to Redis about the dead worker's deliveries.
LOOK = 0.01
#: Seconds for Redis to read what a killed process had already written to its connections.
LAST_WORDS = 0.2


@dataclass(eq=False)
class WorkerProcess:
    number: int
    process: subprocess.Popen[bytes]
    log: Path
    #: Its name in Redis.
    consumer: str = ""
    killed: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.pid})"


@dataclass
class Recovery:
    victim: WorkerProcess
    #: (stream, entry) of what Redis had in the victim's name after its death.
    held: list[tuple[str, str]]
    #: time.monotonic() of the kill.
    killed_at: float
    #: Seconds from the kill to the commit of the last of them.
    seconds: float | None = None


@contextlib.contextmanager
def project_folder(*, keep: bool) -> Iterator[Path]:
    if keep:
        yield Path(tempfile.mkdtemp(prefix="stepfleet-demo-"))
        return
    with tempfile.TemporaryDirectory(prefix="stepfleet-demo-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Gives the url of a server that runs while the block does, and is gone after it."""
    try:
        with embedded_server(folder, linger=timedelta(0)) as url:
            yield url
    finally:
        # The server, which nobody uses any more, ends by itself; it holds this lock until then.
        lock = supervisor.open_lock(folder / DIRECTORY / supervisor.SERVER_LOCK)
        supervisor.lock_within(lock, fcntl.LOCK_EX, seconds=PATIENCE)
        os.close(lock)


@contextlib.contextmanager
def worker_processes(url: str, folder: Path, count: int) -> Iterator[list[WorkerProcess]]:
    """Starts workers; whatever happens in the block, none of them outlives it."""
    workers: list[WorkerProcess] = []
    try:
        while len(workers) < count:
            workers.append(_start_worker(url, folder, number=len(workers) + 1))
        yield workers
    finally:
        for worker in workers:
            worker.process.terminate()
        deadline = time.monotonic() + PATIENCE
        for worker in workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


def _start_worker(url: str, folder: Path, number: int) -> WorkerProcess:
    program = Path(sysconfig.get_path("scripts")) / "workflow-worker"
    options = {"redis-url": url, "namespace": NAMESPACE, "lease": f"{LEASE}s"}
    options |= {"concurrency": CONCURRENCY, "threads": 1}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    log = folder / f"worker-{number}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "workflow:LibraryIndex", *words],
            cwd=HERE,
            env={**os.environ, "STEPFLEET_SWEEP": f"{SWEEP}s"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for this program, which then ends the workers
            preexec_fn=supervisor.die_with_parent(),  # noqa: PLW1509 - nothing else runs yet
        )
    return WorkerProcess(number, process, log)


async def wait_until_ready(redis: Redis, workers: Sequence[WorkerProcess]) -> None:
    """Waits until every worker has announced itself, and learns its name in Redis."""
    async with asyncio.timeout(PATIENCE):
        while not all(worker.consumer for worker in workers):
            check_alive(workers)
            announced: dict[Any, Any] = await redis.hgetall(KEYS.workers)
            for consumer, about in announced.items():
                pid = msgpack.unpackb(about)["pid"]
                for worker in workers:
                    if worker.pid == pid:
                        worker.consumer = consumer.decode()
            await asyncio.sleep(LOOK)


def check_alive(workers: Sequence[WorkerProcess]) -> None:
    for worker in workers:
        if not worker.killed and worker.process.poll() is not None:
            end = "\n".join(worker.log.read_text(errors="replace").splitlines()[-10:])
            raise RuntimeError(f"{worker} ended with {worker.process.returncode}:\n{end}")


async def kill_one(redis: Redis, workers: Sequence[WorkerProcess]) -> Recovery:
    """Kills the worker that holds most as soon as it holds several deliveries."""
    while True:
        holding = {worker: len(await _held_by(redis, worker)) for worker in workers}
        victim = max(workers, key=lambda worker: holding[worker])
        # Several, as the commit of one may already be on its way.
        if holding[victim] > 1:
            break
        await asyncio.sleep(LOOK)
    victim.killed = True
    victim.process.kill()
    killed_at = time.monotonic()
    victim.process.wait()
    await asyncio.sleep(LAST_WORDS)
    return Recovery(victim, await _held_by(redis, victim), killed_at)


async def _held_by(redis: Redis, worker: WorkerProcess) -> list[tuple[str, str]]:
    held: list[tuple[str, str]] = []
    # Each step has a stream of its own for each type of event that it accepts.
    async for stream in redis.scan_iter(KEYS.stream("LibraryIndex", "*", "*"), count=1000):
        rows: list[Any] = await redis.xpending_range(
            stream, GROUP, "-", "+", 1000, consumername=worker.consumer
        )
        held += [(stream.decode(), row["message_id"].decode()) for row in rows]
    return held


async def watch_recovery(redis: Redis, recovery: Recovery) -> None:
    """Waits until the last delivery that the victim held is committed.

    Only an owner can commit, a commit removes the entry, and the victim is dead: an entry that is
    gone was taken over and committed by another worker.
    """
    pending = recovery.held
    while pending:
        await asyncio.sleep(LOOK)
        rows = [await redis.xrange(stream, entry, entry) for stream, entry in pending]
        pending = [one for one, row in zip(pending, rows, strict=True) if row]
    recovery.seconds = time.monotonic() - recovery.killed_at


def count_taken_over(worker: WorkerProcess) -> int:
    """Returns how many deliveries of others a worker says that it took over."""
    log = worker.log.read_text(errors="replace")
    return sum(int(count) for count in re.findall(r"took over .* count=(\d+)", log))
