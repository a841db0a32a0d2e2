"""The code blocks of the four pages from which users come, moved over by changing their import lines."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
#: Pages as they were found.
SOURCES = HERE / "sources"
#: Where the blocks of a page are read from.
PAGES = {
    "introduction": SOURCES / "introduction.txt",
    "workflows_0_10": SOURCES / "workflows_0_10.txt",
    "tutorial": HERE / "tutorial_indented.txt",
    "compendium": SOURCES / "compendium.txt",
}

#: Blocks that have a test, as page and number.
tested: set[tuple[str, int]] = set()

_BLOCK = re.compile(r"^([ ]*)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_IMPORT = re.compile(r"^(\s*from )(?:llama_index\.core\.workflow|workflows)\b", re.MULTILINE)


def blocks(page: str) -> list[str]:
    """Returns the Python blocks of a page, as they stand there."""
    text = PAGES[page].read_text()
    found = [match for match in _BLOCK.finditer(text) if match[2] in ("", "python")]
    return [textwrap.dedent(match[3]) for match in found]


def moved(code: str) -> str:
    """Returns a block with other import lines."""
    return _IMPORT.sub(r"\1stepfleet", code)


def of(**pages: list[int]) -> Callable[[Any], Any]:
    """Gives a test the code of blocks, one after the other."""
    wanted = [(page, number) for page, numbers in pages.items() for number in numbers]
    tested.update(wanted)
    return pytest.mark.parametrize(
        "code",
        [pytest.param(moved(blocks(page)[n]), id=f"{page}-{n}") for page, n in wanted],
    )


def in_class(code: str, rest: str = "") -> str:
    """Returns steps that stand in a page by themselves as those of a workflow, with further ones."""
    body = textwrap.indent(textwrap.dedent(rest) + code, "    ")
    return f"class Flow(Workflow):\n{body}"


def compiled(code: str) -> CodeType:
    """Returns the code of a block, which may await at its top."""
    return compile(code, "block.py", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


async def awaited(code: str, **names: Any) -> dict[str, Any]:
    """Runs a block inside an event loop and returns its names."""
    module = _module("block", names)
    answer = eval(compiled(code), vars(module))
    if inspect.isawaitable(answer):
        await answer
    return vars(module)


def program(code: str, **names: Any) -> dict[str, Any]:
    """Runs a block as a program of its own, which starts its event loop, and returns its names."""
    module = _module("__main__", names)
    eval(compiled(code), vars(module))
    return vars(module)


def _module(name: str, names: dict[str, Any]) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(names)
    if name != "__main__":
        sys.modules[name] = module
    return module
