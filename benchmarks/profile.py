"""Where the time of a step goes: `python -m benchmarks.profile` prints tables in Markdown.

Bursts of 500 chains (W1) on one worker. py-spy samples the worker and the producer, in an environment of
its own, `.venv-bench-profile`; a sample counts for the innermost module of stepfleet on its stack. Redis'
own counts say what its commands take. To look into other processes py-spy may need the rights of root.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.environments import ROOT, NotStarted, run
from benchmarks.peers import own_python
from benchmarks.processes import Session, session

PACKAGE = "py-spy==0.4.*"
SECONDS, RATE = 20, 400
#: Parts with a smaller share are shown together.
SMALL = 0.02
BURST = {"workload": "W1", "measure": "500 chains at once"}
STEPS = 1_500
#: Where a process begins: what has nothing else of ours on its stack is the event loop.
ROOTS = ("stepfleet/cli/worker", "benchmarks/driver")
#: Commands that are calls of their own; all others are inside of a script, and in its time too.
OUTSIDE = {"evalsha", "xread", "xreadgroup", "info", "ping"}


def sampler() -> Path:
    """Return py-spy, installed when it is missing."""
    folder = ROOT / ".venv-bench-profile"
    program = folder / "bin" / "py-spy"
    if not program.exists():
        run([sys.executable, "-m", "venv", str(folder)])
        run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", PACKAGE])
    return program


def record(program: Path, pid: int, output: Path) -> subprocess.Popen[str]:
    """Sample the stacks that hold the interpreter of a process."""
    options = ["--gil", "--format", "raw", "--rate", str(RATE), "--duration", str(SECONDS)]
    command = [str(program), "record", *options, "--pid", str(pid), "--output", str(output)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def part_of(stack: str) -> str:
    """Return the innermost module of stepfleet on a stack, or what else it was."""
    for frame in reversed(stack.split(";")):
        path = frame.partition("(")[2]
        if any(root in path for root in ROOTS):
            break
        if "benchmarks/flows" in path:
            return "the steps themselves"
        if "benchmarks/" in path:
            return "the benchmark"
        if "stepfleet/" in path:
            return path.rpartition("stepfleet/")[2].partition(".py")[0].replace("/", ".")
    return "the event loop"


def sampled(output: Path) -> Counter[str]:
    shares = Counter[str]()
    for line in output.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        shares[part_of(stack)] += int(count)
    return shares


def redis_time(opened: Session) -> Counter[str]:
    info: dict[str, Any] = opened.redis.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): one["usec"] for name, one in info.items()})


def table(title: str, unit: str, parts: Counter[str], form: str) -> list[str]:
    whole = sum(parts.values())
    rows = [(name, value) for name, value in parts.most_common() if value >= whole * SMALL]
    rows.append(("others", whole - sum(value for _, value in rows)))
    scale = whole if "%" in form else 1
    shown = [f"| {name} | {format(value / scale, form)} |" for name, value in rows]
    return ["", f"| {title} | {unit} |", "| --- | --- |", *shown]


def profile(opened: Session, program: Path, folder: Path) -> list[str]:
    """Return the report on bursts that go on as long as is sampled."""
    pids = {"worker": opened.workers[0].pid, "producer": opened.driver.pid}
    sampling = [record(program, pid, folder / who) for who, pid in pids.items()]
    redis_before, before, bursts = redis_time(opened), opened.counters(), 0
    while any(one.poll() is None for one in sampling):
        opened.ask(BURST, 60)
        bursts += 1
    after, redis_after = opened.counters(), redis_time(opened)
    for one in sampling:
        if one.returncode:
            sys.exit(one.communicate()[1])
    steps = bursts * STEPS
    used = ", ".join(
        f"{who} {(after[f'{who} seconds'] - before[f'{who} seconds']) * 1e6 / steps:.0f}"
        for who in ("worker", "Redis", "producer")
    )
    lines = [f"{steps:,} steps; µs per step while sampled: {used}"]
    for who in pids:
        lines += table(f"module in the {who}", "share", sampled(folder / who), ".0%")
    commands = Counter({name: took / steps for name, took in (redis_after - redis_before).items()})
    inside = sum(took for name, took in commands.items() if name not in OUTSIDE)
    commands["the scripts without their commands"] = commands.pop("evalsha") - inside
    return [*lines, *table("command", "µs of Redis per step", commands, ".2f")]


def main() -> None:
    try:
        program = sampler()
    except NotStarted as error:
        sys.exit(f"py-spy is {error}")
    setup: dict[str, Any] = {"server": "none", "workers": 1, "target": "workflows"}
    with (
        tempfile.TemporaryDirectory() as folder,
        session(peer="stepfleet", python=own_python(), **setup) as opened,
    ):
        for _ in range(10):  # until everything was used once
            opened.ask(BURST, 60)
        print("\n".join(profile(opened, program, Path(folder))))


if __name__ == "__main__":
    main()
