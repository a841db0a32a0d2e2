"""`make bench`: everything side by side in interleaved rounds, then the report.

    make bench                          all of it, at least five rounds, writes docs/benchmarks.md
    make bench QUICK=1                  under three minutes, prints the report
    make bench ONLY=W1,W3 PEERS=arq,saq  only these workloads, only these peers (stepfleet is always there)
    make bench ROUNDS=7                 another number of rounds

What is measured already on this commit is not measured again: a run that was interrupted goes on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environments import ROOT, python_of
from benchmarks.peers import PEERS, QUICK_PEERS
from benchmarks.processes import DidNotRun, NotStarted, Session, megabytes, session
from benchmarks.report import write
from benchmarks.workloads import WORKLOADS
from benchmarks.workloads.measure import QUICK, Measure

ROUNDS = int(os.environ.get("ROUNDS") or (2 if QUICK else 5))
RESULTS = ROOT / "benchmarks" / "results"
#: These are measured with `appendfsync everysec` too.
DURABLE = ("stepfleet", "ceiling")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is started together."""

    peer: str
    server: str = "none"
    workers: int = 1
    target: str = "workflows"


Task = tuple[str, Measure]


class Results:
    """The results as lines of JSON, written as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self._known = {self._key(row) for row in self.rows}

    @staticmethod
    def _key(row: dict[str, Any]) -> tuple[Any, ...]:
        names = ("round", "peer", "server", "workers", "target", "workload", "measure")
        return tuple(row[name] for name in names)

    def has(self, row: dict[str, Any]) -> bool:
        return self._key(row) in self._known

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._known.add(self._key(row))
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def chosen(variable: str, everything: tuple[str, ...], always: tuple[str, ...] = ()) -> list[str]:
    """Return what an environment variable names, in the order of everything there is."""
    named = [one for one in os.environ.get(variable, "").replace(",", " ").split() if one]
    unknown = sorted(set(named) - set(everything))
    if unknown:
        sys.exit(f"{variable}={','.join(unknown)}: there is {', '.join(everything)}")
    wanted = {*named, *always} if named else set(everything)
    return [one for one in everything if one in wanted]


def plan(peers: list[str], workloads: list[str]) -> dict[Setup, list[Task]]:
    """Return what is measured in one round, by what has to be started for it."""
    planned: dict[Setup, list[Task]] = {}
    for peer in peers:
        for workload in workloads:
            for measure in WORKLOADS[workload].MEASURES:
                if not applies(measure, peer):
                    continue
                for setup in setups(measure, peer, workload):
                    planned.setdefault(setup, []).append((workload, measure))
    return planned


def applies(measure: Measure, peer: str) -> bool:
    if QUICK and not measure.quick:
        return False
    if measure.peers is not None:
        return peer in measure.peers
    return measure.kind in PEERS[peer].kinds


def setups(measure: Measure, peer: str, workload: str) -> list[Setup]:
    if not PEERS[peer].has_workers:
        return [Setup(peer=peer)] if 1 in measure.workers else []
    if not measure.with_workers:
        return [Setup(peer=peer, workers=0)]
    counts = measure.workers[:1] if QUICK else measure.workers
    # what grows needs a server of its own: parked runs stay there
    target = "growth" if workload == "growth" and measure.target == "workflows" else measure.target
    if measure.is_alone:
        target = "alone"
    one = [Setup(peer=peer, workers=count, target=target) for count in counts]
    if peer in DURABLE and not QUICK and workload != "growth" and not measure.is_alone:
        one.append(Setup(peer=peer, server="everysec", workers=counts[0]))
    return one


def measured(opened: Session, workload: str, measure: Measure) -> dict[str, Any]:
    """Return the figures of one measure with what it cost."""
    question = {"workload": workload, "measure": measure.name}
    before, began = opened.counters(), time.monotonic()
    answer = opened.ask(question, measure.seconds)
    after, seconds = opened.counters(), time.monotonic() - began
    if "wrong" in answer:
        return answer
    figures = answer["figures"]
    grown = {name: after[name] - before[name] for name in after}
    ours = sum(grown[f"{who} seconds"] for who in ("Redis", "worker", "producer"))
    figures["foreign cores"] = max(0.0, (grown["machine seconds"] - ours) / seconds)
    if steps := figures.get("steps"):
        for who in ("worker", "Redis", "producer"):
            figures[f"{who} us per step"] = grown[f"{who} seconds"] / steps * 1e6
        for what in ("calls", "commands", "bytes in", "bytes out"):
            figures[f"{what} per step"] = grown[what] / steps
    if items := figures.get("items"):
        figures["Redis bytes per item"] = grown["Redis bytes"] / items
    if opened.workers:
        figures["worker MB"] = megabytes(opened.worker_pids())
        figures["worker CPU %"] = grown["worker seconds"] / seconds * 100
    return {"figures": figures}


def run_setup(setup: Setup, tasks: list[Task], number: int, results: Results) -> None:
    """Measure one peer once; what it cannot do is recorded with its reason."""
    row = {"round": number, **setup.__dict__}
    rows = [(task, {**row, "workload": task[0], "measure": task[1].name}) for task in tasks]
    # a measure may rest on those before it, so either all of a setup are repeated or none
    if all(results.has(row) for _, row in rows):
        return
    while rows:
        try:
            python = python_of(setup.peer)
            with session(python=python, **_for_session(setup)) as opened:
                while rows:
                    (workload, measure), row = rows[0]
                    record(results, {**row, **measured(opened, workload, measure)})
                    rows.pop(0)
        except NotStarted as error:
            for _, row in rows:
                record(results, {**row, "error": str(error)})
            return
        except DidNotRun as error:  # the rest is measured with new processes
            record(results, {**rows.pop(0)[1], "error": str(error)})


def record(results: Results, row: dict[str, Any]) -> None:
    if not results.has(row):
        results.add(row)
    print(_line(row), flush=True)


def _for_session(setup: Setup) -> dict[str, Any]:
    target = "workflows" if setup.target in ("growth", "alone") else setup.target
    return {**setup.__dict__, "target": target}


def _line(row: dict[str, Any]) -> str:
    what = f"round {row['round']}  {row['peer']:16} {row['workers']}  {row['server']:8} "
    figures = row.get("figures", {})
    names = ("per second", "p50 ms", "starts per second", "share of ideal", "worker us per step")
    shown = ", ".join(f"{name} {figures[name]:,.2f}" for name in names if name in figures)
    reason = row.get("wrong") or row.get("error")
    return f"{what}{row['workload']:6} {row['measure']}: {reason or shown or 'done'}"


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends with it
    everything = QUICK_PEERS if QUICK and not os.environ.get("PEERS") else tuple(PEERS)
    peers = chosen("PEERS", everything, ("stepfleet", "ceiling"))
    workloads = chosen("ONLY", tuple(WORKLOADS))
    path = RESULTS / ("quick.jsonl" if QUICK else f"{commit()}.jsonl")
    if QUICK:
        path.unlink(missing_ok=True)
    results = Results(path)
    began = time.monotonic()
    planned = plan(peers, workloads)
    for number in range(1, ROUNDS + 1):
        for setup, tasks in planned.items():
            run_setup(setup, tasks, number, results)
    print(f"measured in {time.monotonic() - began:,.0f} s: {path.relative_to(ROOT)}", flush=True)
    write(results.rows, quick=QUICK)
    return failures(results.rows)


def failures(rows: list[dict[str, Any]]) -> int:
    """Return 1 if a result was wrong, or stepfleet itself did not run; a peer that did not is reported only."""
    bad = [row for row in rows if "wrong" in row or ("error" in row and "stepfleet" in row["peer"])]
    for row in bad:
        print("FAILED", _line(row), file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
