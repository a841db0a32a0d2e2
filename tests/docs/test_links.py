"""Links and paths on the pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import MARKS, ROOT, anchors, blocks, links, name_of, pages

DOCS = ROOT / "docs"


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert [problem for link in links(page) if (problem := problem_with(page, link))] == []


def problem_with(page: Path, link: str) -> str:
    if link.startswith("https://"):
        return ""
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return f"{link}: no such file"
    if page.is_relative_to(DOCS) and not target.is_relative_to(DOCS):
        return f"{link}: leaves the site"
    if anchor and anchor not in anchors(target):
        return f"{link}: no such heading"
    return ""


def test_the_check_finds_a_missing_file_and_a_missing_heading() -> None:
    page = DOCS / "index.md"

    assert problem_with(page, "nowhere.md") == "nowhere.md: no such file"
    assert problem_with(page, "glossary.md#nowhere") == "glossary.md#nowhere: no such heading"
    assert problem_with(page, "../README.md") == "../README.md: leaves the site"
    assert problem_with(page, "glossary.md#words") == ""


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_block_of_a_page_has_a_mark_that_is_known(page: Path) -> None:
    found = list(blocks(page))

    assert [block.line for block in found if block.mark not in MARKS] == []
    assert page.read_text().count("\n```") == 2 * len(found)


def test_every_page_of_the_site_is_in_its_navigation_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"[\w/-]+\.md", navigation)
    there = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}

    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_no_page_has_a_line_that_is_hard_to_read_in_an_editor(page: Path) -> None:
    lines = page.read_text().splitlines()
    prose = [line for line in lines if not line.startswith("|")]

    assert [line for line in prose if len(line) > 120] == []
