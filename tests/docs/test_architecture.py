"""The architecture page names what there is: modules, values, scripts, folders of tests."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "explanation" / "architecture.md"
SOURCE = ROOT / "src" / "stepfleet"
LUA = SOURCE / "storage" / "lua"

#: Packages of which the page names every module.
EXPLAINED = ("core", "storage", "worker")


def flow() -> list[list[str]]:
    section = PAGE.read_text().partition("## The flow")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[1:] if not row[0].startswith("---")]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def exists(dotted: str) -> bool:
    """Tell whether a module of stepfleet, or a name in one, is there."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(["stepfleet", *parts[:cut]]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name, None)
        return found is not None
    return False


def test_every_module_in_the_flow_is_there() -> None:
    named = [name for row in flow() for name in code(row[1])]

    assert len(named) > 20
    assert [name for name in named if not exists(name)] == []


def test_every_script_on_the_page_is_there_and_every_script_is_on_the_page() -> None:
    named = set(re.findall(r"`(\w+)\.lua`", PAGE.read_text()))
    parts = importlib.import_module("stepfleet.storage.scripts").PARTS

    assert [name for name in named if not (LUA / f"{name}.lua").is_file()] == []
    assert set(parts) <= named


def test_every_folder_of_tests_in_the_flow_has_tests() -> None:
    named = {name for row in flow() for name in code(row[4])}

    assert named
    assert [name for name in named if not list((ROOT / name).glob("test_*.py"))] == []


@pytest.mark.parametrize("package", EXPLAINED)
def test_the_page_names_every_module_of_a_package(package: str) -> None:
    text = PAGE.read_text()
    modules = [p.stem for p in (SOURCE / package).glob("*.py") if p.stem != "__init__"]

    assert [name for name in modules if f"`{package}.{name}" not in text] == []


def test_every_layer_on_the_page_is_there() -> None:
    section = PAGE.read_text().partition("## Layers")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in code(row.split("|")[1])]

    assert [n for n in named if n != "stepfleet" and not exists(n)] == []


def test_every_decision_is_listed_with_its_title() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "index.md").read_text()
    listed = dict(re.findall(r"\((\d{4}-[\w-]+\.md)\) \| (.+) \|", index))
    records = {path.name: title(path) for path in folder.glob("0*.md")}

    assert listed == records


def title(record: Path) -> str:
    first, *rest = record.read_text().splitlines()
    for heading in ("## Context", "## Decision", "## Consequences"):
        assert heading in rest, f"{record.name} has no {heading}"
    return first.removeprefix(f"# {record.name[:4]}: ")


def test_the_check_finds_a_module_that_is_not_there() -> None:
    assert exists("core.commit.Emit")
    assert not exists("core.commit.Emitt")
    assert not exists("core.nowhere")
