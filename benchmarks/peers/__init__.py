"""The peers: their packages, how each is set up, and how its workers are started."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.peers.peer import KINDS, About

NO_FAN = KINDS - {"fan"}

#: By name; the module of the same name (see `module_of`) has the class `Adapter`.
PEERS: dict[str, About] = {
    "stepfleet": About(
        packages=(),
        settings="workflow-worker, concurrency 100 (default), num_workers 100 in fans and waits, else 4",
    ),
    "stepfleet-memory": About(
        packages=(), settings="memory://, in the producer's process", has_workers=False
    ),
    "ceiling": About(
        packages=("redis[hiredis]>=5.2,<6", "uvloop", "msgpack"),
        settings="hand-made: streams, one Lua call per batch of up to 100, uvloop; no guarantees",
    ),
    "ceiling-overlapping": About(
        packages=("redis[hiredis]>=5.2,<6", "uvloop", "msgpack"),
        settings="the same, reading and committing at the same time, calls packed by hiredis",
    ),
    "llama": About(
        packages=("llama-index-workflows==2.26.1",),
        settings="in the producer's process, num_workers 100 in fans, else 4 (default)",
        has_workers=False,
    ),
    "dramatiq": About(
        packages=("dramatiq[redis]==2.*", "hiredis"),
        settings="Redis broker, 8 threads, results and group callbacks on, pipelines for chains",
    ),
    "arq": About(
        packages=("arq==0.28.*", "hiredis", "uvloop"),
        settings="max_jobs 200, poll_delay 10 ms (default 500), results polled each 1 ms, uvloop",
    ),
    "saq": About(
        packages=("saq[redis,hiredis]==0.26.*", "typing_extensions", "uvloop"),
        settings="concurrency 100, waits by pub/sub (its `apply` sleeps 1 s), uvloop",
    ),
    "taskiq": About(
        packages=("taskiq==0.13.*", "taskiq-redis", "uvloop"),
        settings="RedisStreamBroker, 100 tasks at once, results polled each 1 ms, uvloop",
    ),
    "streaq": About(
        packages=("streaq",),
        settings="concurrency 32 (more was slower), enqueue_many, results polled each 1 ms",
    ),
    "docket": About(
        packages=("pydocket",),
        settings="concurrency 40 (its pool refuses more than 100 connections), minimum_check_interval 5 ms",
    ),
    "celery": About(
        packages=("celery[redis]==5.*", "hiredis"),
        settings="prefork 2, prefetch multiplier 64, no gossip, mingle or heartbeat; chains, chords",
    ),
    "dbos": About(
        packages=("dbos==3.4.*",),
        settings="SQLite with its default durability, in the producer's process",
        has_workers=False,
        kinds=NO_FAN,
    ),
    "redflow": About(
        packages=("redflow[fast]",),
        settings="one workflow per run, steps by step.run, concurrency 20 (its pool is limited)",
        kinds=NO_FAN,
    ),
}

#: What `make bench QUICK=1` measures.
QUICK_PEERS = ("stepfleet", "stepfleet-memory", "ceiling", "llama", "dramatiq", "arq")

LOG = ("--log-level", "warning")
TASKIQ = ("--max-async-tasks", "100", "--log-level", "WARNING")

_MODULES = {
    "stepfleet": "fleet",
    "stepfleet-memory": "workflow",
    "llama": "workflow",
    "ceiling-overlapping": "on_ceiling",
}


def module_of(peer: str) -> str:
    return "benchmarks.peers." + _MODULES.get(peer, f"on_{peer}")


def worker_commands(peer: str, python: Path, count: int) -> list[list[str]]:
    """Return what starts `count` worker processes of the peer."""
    programs = python.parent
    module = module_of(peer)
    match peer:
        case "stepfleet":
            return [[str(programs / "workflow-worker"), "benchmarks.flows:workflows", *LOG]] * count
        case "ceiling-overlapping":
            return [[str(python), "-m", module, "overlapping"]] * count
        case "dramatiq":
            return [[str(programs / "dramatiq"), module, "-p", str(count), "-t", "8"]]
        case "taskiq":
            return [
                [
                    str(programs / "taskiq"),
                    "worker",
                    f"{module}:broker",
                    "--workers",
                    str(count),
                    *TASKIQ,
                ]
            ]
        case "celery":
            celery = [str(programs / "celery"), "-A", f"{module}:app", "worker", "-l", "ERROR"]
            quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
            return [
                [*celery, *quiet, "-P", "prefork", "-c", "2", "-n", f"w{n}@h"] for n in range(count)
            ]
        case _:
            return [[str(python), "-m", module]] * count


def own_python() -> Path:
    return Path(sys.executable)
