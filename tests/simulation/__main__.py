"""`make simulate`: many seeds on several processes, one seed with its trace, or the table of mutants."""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from tests.simulation.mutants import MUTANTS, Caught, catch
from tests.simulation.simulation import Report, simulate

#: Where the traces of failing seeds go.
TRACES = Path(".simulation")
#: Where the table of mutants stands, and between which lines.
PAGE = Path("docs/explanation/simulation.md")
BEGIN, END = "<!-- made by make simulate MUTANTS=1 -->", "<!-- end -->"


def main() -> int:
    """Returns 1 when an invariant did not hold."""
    parser = argparse.ArgumentParser(prog="make simulate")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, help="run this one only, and print its trace")
    parser.add_argument("--mutants", action="store_true", help="make the table of mutants")
    arguments = parser.parse_args()
    if arguments.mutants:
        return _mutants(arguments.processes)
    if arguments.seed is not None:
        return _replay(arguments.seed)
    return _many(range(arguments.start, arguments.start + arguments.seeds), arguments.processes)


def _replay(seed: int) -> int:
    report = simulate(seed, keep_trace=True)
    print(*report.trace, sep="\n")
    print(f"seed {seed}: digest {report.digest}, runs {report.statuses}")
    for name, text in report.violations:
        print(f"VIOLATED {name}: {text}")
    return 1 if report.violations else 0


def _many(seeds: range, processes: int) -> int:
    began, totals, failed = time.monotonic(), Counter[str](), list[int]()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for report in pool.imap_unordered(simulate, seeds, chunksize=5):
            _count(report, totals)
            if report.violations:
                failed.append(report.seed)
                show(report)
    seconds = time.monotonic() - began
    for line in summary(totals, len(seeds), seconds, processes):
        print(line)
    print(f"seeds that failed: {sorted(failed) or 'none'}")
    return 1 if failed else 0


def _mutants(processes: int) -> int:
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        caught = []
        for one in pool.imap(catch, range(len(MUTANTS)), chunksize=1):
            caught.append(one)
            print(_row(one), flush=True)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    head = ["| mutant | caught at seed | by |", "| --- | --- | --- |"]
    table = "\n".join([*head, *map(_row, caught)])
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")
    return 0 if all(one.seed is not None for one in caught) else 1


def _row(caught: Caught) -> str:
    seed = "not caught" if caught.seed is None else caught.seed
    return f"| {caught.name} | {seed} | {caught.invariant} |"


def show(report: Report) -> None:
    """Prints what is wrong with a seed, and writes its trace."""
    TRACES.mkdir(exist_ok=True)
    path = TRACES / f"seed-{report.seed}.txt"
    path.write_text("\n".join(simulate(report.seed, keep_trace=True).trace) + "\n")
    for name, text in report.violations:
        print(f"seed {report.seed} VIOLATED {name}: {text[:600]}", flush=True)
    print(f"  trace: {path}; replay: make simulate SEED={report.seed}", flush=True)


def _count(report: Report, totals: Counter[str]) -> None:
    totals.update({"commits": report.commits, "executions": report.executions})
    totals.update({"repeated": report.repeated, "seconds": round(report.virtual_seconds)})
    totals.update({f"fault {name}": count for name, count in report.faults.items()})
    totals.update({f"run {name}": count for name, count in report.statuses.items()})
    totals.update({f"answer {name}": count for name, count in report.answers.items()})


def summary(totals: Counter[str], seeds: int, seconds: float, processes: int) -> Iterable[str]:
    """Returns the figures of many seeds, as lines."""
    yield (
        f"{seeds} seeds in {seconds:.0f} s on {processes} processes: {seeds / seconds:.1f} seeds/s; "
        f"{totals['seconds'] / 3600:.1f} virtual hours"
    )
    yield (
        f"{totals['executions']} executions ({totals['repeated']} repeated), "
        f"{totals['commits']} commits"
    )
    for what in ("run", "answer", "fault"):
        parts = [
            f"{name.partition(' ')[2]} {count}"
            for name, count in sorted(totals.items())
            if name.startswith(f"{what} ")
        ]
        yield f"{what}s: {', '.join(parts)}"
    packages = ", ".join(f"{name} {version(name)}" for name in ("redis", "fakeredis", "lupa"))
    yield f"Python {platform.python_version()}, {packages}"


if __name__ == "__main__":
    sys.exit(main())
