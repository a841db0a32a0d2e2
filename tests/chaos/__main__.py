"""`make chaos`: runs scenarios on real processes, and writes what they showed into docs/guarantees.md."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.chaos.catalogue import SCENARIOS
from tests.chaos.scenarios.scenario import Scenario
from tests.chaos.table import write


def main() -> int:
    """Returns 1 when a promise was broken, 3 when a program is missing."""
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("scenario", nargs="*", help="F1, F2 ...; all without it")
    names = parser.parse_args().scenario or list(SCENARIOS)
    if unknown := [name for name in names if name not in SCENARIOS]:
        parser.error(f"no scenario is called {unknown[0]}: there are {', '.join(SCENARIOS)}")
    wanted = [SCENARIOS[name] for name in names]
    if missing := sorted({package for one in wanted for package in one.missing()}):
        print(f"programs are missing: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 3
    return 1 if [one.name for one in wanted if not _ran(one)] else 0


def _ran(scenario: Scenario) -> bool:
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{scenario.name}-"))
    began = time.monotonic()
    try:
        figures = asyncio.run(scenario.run(folder))
    except BaseException:
        traceback.print_exc()
        print(f"{scenario.name} FAILED: its logs are in {folder}", flush=True)
        return False
    row = scenario.row(figures)
    write({scenario.name: row})
    print(f"{row}\n  ({time.monotonic() - began:.0f} s, logs in {folder})", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
