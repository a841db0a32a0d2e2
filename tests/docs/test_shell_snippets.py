"""What the pages tell people to type exists: programs, recipes, options, extras, modules, settings."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from stepfleet.cli.operator import commands as operator_commands
from stepfleet.cli.worker import command as worker_command
from stepfleet.settings import Settings
from tests.docs.pages import ROOT, Block, blocks, name_of, pages

#: Programs of other projects that the pages use; what they do with their options is not ours.
FOREIGN = {
    "pytest",
    "cd",
    "uvicorn",
    "flask",
    "git",
    "source",
    "curl",
    "pre-commit",
    "kubectl",
    "systemctl",
    "sudo",
    "kill",
}

#: Variables of other programs.
FOREIGN_VARIABLES = {"REDIS_URL", "STEPFLEET_REDIS_SERVER"}


def shell_blocks() -> list[Block]:
    return [block for page in pages() for block in blocks(page) if block.language in ("sh", "bash")]


def command_lines(text: str) -> list[list[str]]:
    joined = text.replace("\\\n", " ").splitlines()
    lines = [shlex.split(line, comments=True) for line in joined]
    return [part for line in lines for part in split_at_and(line) if part]


def split_at_and(words: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "|", "&"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def problem_with(words: list[str]) -> str:
    words = list(words)
    if words[0] == "export":
        return next((p for word in words[1:] if (p := problem_with_variable(word))), "")
    while words and re.match(r"[A-Z_]+=", words[0]):
        if problem := problem_with_variable(words.pop(0)):
            return problem
    if not words:
        return ""
    program, arguments = Path(words[0]).name, words[1:]
    if program in FOREIGN:
        return ""
    check = CHECKS.get(program)
    return f"{program}: not a program that the pages may use" if not check else check(arguments)


def problem_with_variable(assignment: str) -> str:
    name = assignment.partition("=")[0]
    field = name.removeprefix("STEPFLEET_").lower()
    if name in FOREIGN_VARIABLES or (name.startswith("STEPFLEET_") and field in SETTINGS):
        return ""
    return f"{name}: not a variable that anything reads"


SETTINGS = set(Settings.model_fields)


def problem_with_make(arguments: list[str]) -> str:
    recipes = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wanted = [word for word in arguments if "=" not in word]
    return next((f"make {word}: no such recipe" for word in wanted if word not in recipes), "")


def problem_with_options(program: str, command: click.Command, arguments: list[str]) -> str:
    known = {name for option in command.params for name in option.opts} | {"--help"}
    used = [word.partition("=")[0] for word in arguments if word.startswith("-")]
    return next((f"{program} {name}: no such option" for name in used if name not in known), "")


def problem_with_worker(arguments: list[str]) -> str:
    return problem_with_options("workflow-worker", worker_command, arguments)


def problem_with_operator(arguments: list[str]) -> str:
    name, *rest = arguments
    command = operator_commands.commands.get(name)
    if isinstance(command, click.Group):
        name, command, rest = f"{name} {rest[0]}", command.commands.get(rest[0]), rest[1:]
    if command is None:
        return f"stepfleet {name}: no such command"
    return problem_with_options(f"stepfleet {name}", command, rest)


def problem_with_python(arguments: list[str]) -> str:
    if arguments[:1] != ["-m"]:
        return ""  # a file of the page; test_snippets runs it
    try:
        found = importlib.util.find_spec(arguments[1])
    except ModuleNotFoundError:
        found = None
    return "" if found else f"python -m {arguments[1]}: no such module"


def problem_with_pip(arguments: list[str]) -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [e for word in arguments for e in re.findall(r"\[([\w,]+)\]", word)]
    extras = [extra for names in named for extra in names.split(",")]
    known = project["optional-dependencies"]
    return next((f"extra {extra}: not there" for extra in extras if extra not in known), "")


def problem_with_docker(arguments: list[str]) -> str:
    text = (ROOT / "docker-compose.yml").read_text()
    services = set(re.findall(r"^  ([\w-]+):$", text, re.MULTILINE))
    named = [w.partition("=")[0] for w in arguments if re.fullmatch(r"\w+=\d+", w)]
    if "run" in arguments:
        named.append(arguments[-1])
    files = [after for word, after in itertools.pairwise(arguments) if word == "-f"]
    missing = [name for name in named if name not in services]
    missing += [name for name in files if not (ROOT / name).exists()]
    return f"docker: {missing} is not there" if missing else ""


CHECKS: dict[str, Callable[[list[str]], str]] = {
    "make": problem_with_make,
    "workflow-worker": problem_with_worker,
    "stepfleet": problem_with_operator,
    "python": problem_with_python,
    "python3": problem_with_python,
    "pip": problem_with_pip,
    "docker": problem_with_docker,
}


def place_of(block: Block) -> str:
    return f"{name_of(block.page)}:{block.line}"


@pytest.mark.parametrize("block", shell_blocks(), ids=place_of)
def test_what_a_page_tells_people_to_type_exists(block: Block) -> None:
    lines = command_lines(block.text)

    assert lines
    assert [problem for words in lines if (problem := problem_with(words))] == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("make tset", "make tset: no such recipe"),
        ("workflow-worker a:b --nope 3", "workflow-worker --nope: no such option"),
        ("stepfleet dve a:b", "stepfleet dve: no such command"),
        ("stepfleet dev a:b --worker 3", "stepfleet dev --worker: no such option"),
        ("STEPFLEET_REDIS=x make test", "STEPFLEET_REDIS: not a variable that anything reads"),
        (
            "export STEPFLEET_LEASE=3 STEPFLEET_X=1",
            "STEPFLEET_X: not a variable that anything reads",
        ),
        ("python -m examples.nope.start", "python -m examples.nope.start: no such module"),
        (".venv/bin/pip install '.[nope]'", "extra nope: not there"),
        ("docker compose up --scale nope=3", "docker: ['nope'] is not there"),
        ("stepflete runs", "stepflete: not a program that the pages may use"),
        ("make test && make docs", ""),
    ],
)
def test_the_check_finds_what_does_not_exist(line: str, found: str) -> None:
    problems = [problem_with(words) for words in command_lines(line)]

    assert [problem for problem in problems if problem] == ([found] if found else [])


def test_every_page_with_commands_is_looked_at() -> None:
    looked_at = {name_of(block.page) for block in shell_blocks()}

    assert {"README.md", "docs/tutorial.md", "examples/hello/README.md"} <= looked_at
