"""The report from the results: tables, plots and goals, as `docs/benchmarks.md`."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.environments import ROOT, NotStarted, versions
from benchmarks.goals import GOALS, Look, Medians
from benchmarks.peers import PEERS
from benchmarks.plots import bars
from benchmarks.workloads import WORKLOADS
from stepfleet.embedded.server import find_server_binary

#: Shown of a measure, in this order; costs are in a table of their own.
SHOWN = (
    *("per second", "p50 ms", "p99 ms", "starts per second", "share of ideal"),
    *("events read per second", "late p50 ms", "late p99 ms"),
    *("sets per second", "gets per second", "edits per second"),
    *("worker MB", "worker CPU %", "Redis bytes per item"),
)
COSTS = (
    *("worker us per step", "Redis us per step", "producer us per step"),
    *("calls per step", "commands per step", "bytes in per step", "bytes out per step"),
)
FOOTPRINT = ("worker MB", "worker CPU %", "Redis bytes per item")
#: The figure of a measure that is drawn and compared in ratios is the first of these that it has.
MAIN = ("per second", "p50 ms", "starts per second", "events read per second", "sets per second")

Series = dict[tuple[str, str, int, str, str, str, str], dict[int, float]]


def series_of(rows: list[dict[str, Any]]) -> Series:
    """Return every figure by its name, and by round."""
    series: Series = defaultdict(dict)
    for row in rows:
        for figure, value in row.get("figures", {}).items():
            setup = (row["peer"], row["server"], row["workers"], row["target"])
            series[*setup, row["workload"], row["measure"], figure][row["round"]] = value
    return series


def write(rows: list[dict[str, Any]], *, quick: bool) -> None:
    """Print the report of a quick run; write that of a full one with its plots."""
    series = series_of(rows)
    lines = [*head(rows, quick), *goals(series)]
    for name, module in WORKLOADS.items():
        if any(key[4] == name for key in series):
            lines += ["", f"## {module.TITLE}", ""]
            if not quick:
                lines += plot(name, series)
            lines += [*table(name, series, SHOWN), *cost_table(name, series)]
    lines += did_not_run(rows)
    text = "\n".join(lines) + "\n"
    if quick:
        print(text)
        return
    notes = (ROOT / "benchmarks" / "notes.md").read_text()
    (ROOT / "docs" / "benchmarks.md").write_text(f"{text}\n{notes}")
    print("docs/benchmarks.md is written")


def head(rows: list[dict[str, Any]], quick: bool) -> list[str]:
    told = subprocess.run(
        [str(find_server_binary()), "--version"], capture_output=True, text=True, check=False
    )
    model = next(
        (line.partition(":")[2].strip() for line in cpu_lines() if line.startswith("model name")),
        platform.machine(),
    )
    foreign = [row["figures"]["foreign cores"] for row in rows if "figures" in row]
    disturbed = sum(one > 0.15 for one in foreign)
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench" + (" QUICK=1" if quick else "") + "`. Absolute figures hold for",
        "the machine below only: compare within one table. Server, workers and producer share its cores.",
        "A round measures every peer once, on a server of its own; medians, minima and maxima are over",
        "the rounds. A ratio is stepfleet's figure by the other's in the same round.",
        "",
        f"- machine: {os.cpu_count()} cores, {model}, Python {platform.python_version()}",
        f"- server: {told.stdout.split(' sha=')[0].strip()}, without persistence unless said",
        f"- {len({row['round'] for row in rows})} rounds; in {disturbed} of {len(foreign)} measurements"
        " other processes used more than 0.15 cores",
        "",
        "| peer | rounds | versions | settings |",
        "| --- | --- | --- | --- |",
    ]
    for peer in dict.fromkeys(row["peer"] for row in rows):
        try:
            found = versions(peer)
        except (NotStarted, subprocess.SubprocessError) as error:
            found = str(error)
        rounds = len({row["round"] for row in rows if row["peer"] == peer})
        lines.append(f"| {peer} | {rounds} | {found} | {PEERS[peer].settings} |")
    return lines


def cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def goals(series: Series) -> list[str]:
    medians: Medians = {key: statistics.median(one.values()) for key, one in series.items()}
    look = Look(medians)
    lines = [
        *("", "## Goals", "", "A figure is compared as it is shown, with three digits.", ""),
        *("| measure | goal | figure | |", "| --- | --- | --- | --- |"),
    ]
    for goal in GOALS:
        figure = goal.figure(look)
        if figure is None:
            lines.append(f"| {goal.text} | {goal.direction} {goal.bound:,g} | not measured | |")
            continue
        shown = number(figure)
        is_reached = goal.reached(float(shown.replace(",", "")))
        told = "reached" if is_reached else f"**{figure / goal.bound:.2f} x the goal**"
        lines.append(f"| {goal.text} | {goal.direction} {goal.bound:,g} | {shown} | {told} |")
    return lines


def number(figure: float) -> str:
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:,.3g}"


def setup_name(key: tuple[Any, ...]) -> str:
    peer, server, workers, _ = key[:4]
    name = peer
    if workers != 1 and PEERS[peer].has_workers:
        name += f", {workers} workers" if workers else ", no worker"
    return name + (", everysec" if server == "everysec" else "")


def table(workload: str, series: Series, shown: tuple[str, ...]) -> list[str]:
    lines = [
        "| measure | peer | figure | median | min | max | stepfleet ÷ peer, per round |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key, rounds in sorted(series.items(), key=lambda one: order(one[0], shown)):
        peer, _, workers, target, name, measure, figure = key
        if name != workload or figure not in shown or (figure in FOOTPRINT and name != "W10"):
            continue
        values = list(rounds.values())
        ours = series.get(("stepfleet", "none", workers, target, name, measure, figure), {})
        ratios = [ours[n] / value for n, value in rounds.items() if n in ours and value]
        compared = ""
        if ratios and peer != "stepfleet":
            low, high = number(min(ratios)), number(max(ratios))
            compared = f"{number(statistics.median(ratios))} ({low} to {high})"
        told = [number(statistics.median(values)), number(min(values)), number(max(values))]
        lines.append(
            f"| {measure} | {setup_name(key)} | {figure} | {' | '.join(told)} | {compared} |"
        )
    return lines


def order(key: tuple[Any, ...], shown: tuple[str, ...]) -> tuple[Any, ...]:
    peer, server, workers, target, name, measure, figure = key
    names = [one.name for one in WORKLOADS[name].MEASURES]
    place = shown.index(figure) if figure in shown else len(shown)
    return (names.index(measure), place, server, workers, list(PEERS).index(peer), target)


def cost_table(workload: str, series: Series) -> list[str]:
    """What a step costs stepfleet, counted."""
    keys = {
        key[:6]: order(key, COSTS)
        for key in series
        if key[4] == workload and key[0] == "stepfleet" and key[6] == COSTS[0]
    }
    if not keys:
        return []
    lines = ["", "What a step of stepfleet costs (medians):", ""]
    lines += ["| measure | setup | " + " | ".join(COSTS) + " |", "| --- " * (len(COSTS) + 2) + "|"]
    for key in sorted(keys, key=lambda one: keys[one]):
        medians = [number(statistics.median(series[*key, cost].values())) for cost in COSTS]
        lines.append(f"| {key[5]} | {setup_name(key)} | " + " | ".join(medians) + " |")
    return lines


def plot(workload: str, series: Series) -> list[str]:
    """Draw the main figure of each measure, peer by peer, into docs/benchmarks/."""
    folder = ROOT / "docs" / "benchmarks"
    folder.mkdir(exist_ok=True)
    lines: list[str] = []
    for at, measure in enumerate(WORKLOADS[workload].MEASURES):
        found = {key: one for key, one in series.items() if key[4:6] == (workload, measure.name)}
        figure = next((one for one in MAIN if any(key[6] == one for key in found)), None)
        drawn = {
            setup_name(key): list(one.values()) for key, one in found.items() if key[6] == figure
        }
        if figure is None or len(drawn) < 2:
            continue
        file = folder / f"{workload.lower()}-{at + 1}.svg"
        file.write_text(bars(f"{measure.name}: {figure}", drawn))
        lines += [f"![{measure.name}: {figure}](benchmarks/{file.name})", ""]
    return lines


def did_not_run(rows: list[dict[str, Any]]) -> list[str]:
    reasons: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in rows:
        reason = row.get("error") or row.get("wrong")
        if reason:
            what = f"{row['peer']} | {row['workload']}: {row['measure']}"
            reasons[what, reason.replace("|", "/").replace("\n", " ")].append(row["round"])
    if not reasons:
        return []
    lines = ["", "## Did not run", "", "| peer | measure | rounds | reason |"]
    lines.append("| --- | --- | --- | --- |")
    for (what, reason), rounds in reasons.items():
        lines.append(f"| {what} | {', '.join(map(str, rounds))} | `{reason}` |")
    return lines


if __name__ == "__main__":  # python -m benchmarks.report RESULTS.jsonl: writes the page again
    text = Path(sys.argv[1]).read_text()
    write([json.loads(line) for line in text.splitlines()], quick=False)
