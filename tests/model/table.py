"""The table of features: read from the marks of the tests, written to docs/features.md.

`python -m tests.model.table` writes the page; `make features` runs the tests in the three places first.
"""

from __future__ import annotations

import importlib
import inspect
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType

from tests.model.features import FEATURES, SECTIONS

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "features.md"

_INTRODUCTION = """# Features of the programming model

stepfleet follows the programming model of llama-index-workflows. Each row is a feature of it, with the
tests that show it (`tests/model`). The same test files run in three places:

- **memory**: on `memory://`, in one process;
- **processes**: on a Redis server with two `workflow-worker` processes; a dash where no workflow runs;
- **model**: on llama-index-workflows 2.26.1 itself, so that no test asserts too little.

Where a test cannot be the same in all three, the row says why. `make features` runs all three and writes
this page; the test suite fails when the page is not current.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One test of a feature, as its marks describe it."""

    module: str
    name: str
    feature: str
    #: Whether it runs a workflow.
    runs: bool
    #: Why it runs in one process only.
    one_process: str | None
    #: Why it does not run on the model.
    differs: str | None


def shown() -> list[Shown]:
    """Returns every test of this folder."""
    return [test for path in sorted(HERE.glob("test_*.py")) for test in _tests_of(path)]


def page() -> str:
    """Returns the text of docs/features.md."""
    by_feature: dict[str, list[Shown]] = defaultdict(list)
    for test in shown():
        by_feature[test.feature].append(test)
    parts = [_INTRODUCTION]
    for number, title in SECTIONS.items():
        parts.append(f"## {number} {title}\n")
        parts.append(
            "| feature | tests | memory | processes | model |\n| --- | --- | --- | --- | --- |"
        )
        parts += [_row(feature, by_feature[f"{number}: {feature}"]) for feature in FEATURES[number]]
        parts.append("")
    return "\n".join(parts)


def _row(feature: str, tests: list[Shown]) -> str:
    cells = [
        feature.replace("|", r"\|"),
        _links(tests),
        "passes",
        _processes(tests),
        _reasons(test.differs for test in tests),
    ]
    return f"| {' | '.join(cells)} |"


def _links(tests: list[Shown]) -> str:
    modules = dict.fromkeys(test.module for test in tests)
    return ", ".join(
        f"`{module}` ({sum(test.module == module for test in tests)})" for module in modules
    )


def _processes(tests: list[Shown]) -> str:
    running = [test for test in tests if test.runs]
    return _reasons(test.one_process for test in running) if running else "-"


def _reasons(reasons: Iterator[str | None]) -> str:
    found = list(reasons)
    given = list(dict.fromkeys(reason for reason in found if reason))
    told = "; ".join(reason.replace("|", r"\|") for reason in given)
    if not given:
        return "passes"
    return f"passes; except: {told}" if None in found else f"differs: {told}"


def _tests_of(path: Path) -> Iterator[Shown]:
    module = importlib.import_module(f"tests.model.{path.stem}")
    for name, value in vars(module).items():
        if name.startswith("test_") and isinstance(value, FunctionType):
            own, of_module = getattr(value, "pytestmark", []), vars(module).get("pytestmark", [])
            marks = {mark.name: getattr(mark, "mark", mark) for mark in (*of_module, *own)}
            yield Shown(
                module=path.stem,
                name=name,
                feature=marks["feature"].args[0] if "feature" in marks else "",
                runs=inspect.iscoroutinefunction(value),
                one_process=_reason(marks.get("one_process")),
                differs=_reason(marks.get("differs")),
            )


def _reason(mark: object) -> str | None:
    args = getattr(mark, "args", ())
    return args[0] if args else None


if __name__ == "__main__":
    PAGE.write_text(page())
