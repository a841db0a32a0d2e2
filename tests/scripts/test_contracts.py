"""What holds for every script, by its text alone."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from stepfleet.storage.scripts import PARTS, script
from tests.scripts.rig import Rig

LUA = files("stepfleet.storage") / "lua"

#: What Redis 6.2, Valkey and the in-process server offer alike.
GLOBALS = {
    *("redis", "KEYS", "ARGV", "math", "string", "table", "error", "pcall", "ipairs"),
    *("pairs", "setmetatable", "tonumber", "tostring", "type", "unpack"),
}


def code(source: str) -> str:
    """Removes comments and the contents of strings."""
    source = re.sub(r"--[^\n]*", "", source)
    return re.sub(r"'[^'\n]*'", "''", source)


def test_every_lua_file_is_part_of_a_script() -> None:
    parts = {part for names in PARTS.values() for part in names}
    assert parts == {file.name.removesuffix(".lua") for file in LUA.iterdir()}


@pytest.mark.parametrize("name", PARTS)
def test_a_script_says_its_contract_first(name: str) -> None:
    source = (LUA / f"{name}.lua").read_text()
    header = source.partition("\n\nlocal")[0]
    assert source.startswith(f"-- {name}.lua: ")
    for word in ("KEYS", "ARGV", "Returns"):
        assert re.search(rf"^-- {word} ", header, re.MULTILINE), (
            f"{name}.lua does not say its {word}"
        )


@pytest.mark.parametrize("part", sorted({part for names in PARTS.values() for part in names}))
def test_no_line_of_a_script_is_longer_than_120(part: str) -> None:
    lines = (LUA / f"{part}.lua").read_text().splitlines()
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("name", PARTS)
def test_every_name_of_a_script_is_local_or_known_to_every_server(name: str) -> None:
    """A script that sets a global is refused by Redis and poisons the in-process server for good."""
    text = code(script(name).source)
    local = set(re.findall(r"\blocal function (\w+)", text))
    for names in re.findall(r"\blocal ([\w\s,]+?)(?:=|\n|$)", text):
        local |= {word.strip() for word in names.split(",")}
    for names in re.findall(r"\bfor ([\w\s,]+?)(?:=|\bin\b)", text):
        local |= {word.strip() for word in names.split(",")}
    for names in re.findall(r"\bfunction\b[^(\n]*\(([^)]*)\)", text):
        local |= {word.strip() for word in names.split(",")}
    assigned = {
        word.strip()
        for names in re.findall(r"^[ \t]*([a-z_]\w*(?:, [a-z_]\w*)*) = ", text, re.MULTILINE)
        for word in names.split(",")
    }
    fields = set(re.findall(r"[{,]\s*(\w+) = ", text))
    assert assigned - local - fields == set()
    called = set(re.findall(r"(?<![.\w:'])([A-Za-z_]\w*)\s*\(", text)) - {
        "function",
        "return",
        "if",
    }
    keywords = {"and", "or", "not", "while", "until", "elseif", "in"}
    assert called - local - keywords <= GLOBALS


@pytest.mark.parametrize("name", PARTS)
def test_no_script_uses_what_some_server_lacks(name: str) -> None:
    text = code(script(name).source)
    found = re.findall(r"\b(cjson|cmsgpack|struct|bit|loadstring|os|redis\.(?!call\b)\w+)\b", text)
    # Who calls it says whether the server has that.
    assert found == (["cmsgpack"] if name == "commit" else [])
    assert not script(name).source.startswith("#!")


@pytest.mark.parametrize("name", PARTS)
def test_every_server_loads_every_script(rig: Rig, name: str) -> None:
    sha = rig.client.script_load(script(name).source)
    assert (sha if isinstance(sha, str) else sha.decode()) == script(name).sha


def test_no_word_is_written_twice() -> None:
    """The rarer words are added to the others when one of them is needed first."""
    often, rarely = ((LUA / f"{name}.lua").read_text() for name in ("words", "further_words"))
    entry = r"(?:(\w+)|\['([\w-]+)'\]) = "
    made = rf"^  {entry}function\(\) return \{{"
    words = re.findall(made, often, re.M) + re.findall(rf"^    {entry}", rarely, re.M)
    names = [one or other for one, other in words]
    assert {"early", "end", "count"} <= set(names)
    assert [name for name in names if names.count(name) > 1] == []
