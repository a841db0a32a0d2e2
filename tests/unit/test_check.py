"""`stepfleet check` finds what does not travel, with file, line and cure, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from stepfleet.cli.exits import CRASHED, OK
from stepfleet.cli.operator import commands
from tests.support import flows, untravelled

FILE = Path(untravelled.__file__)
SOURCE = FILE.read_text().splitlines()


def check(*arguments: str) -> Result:
    return CliRunner().invoke(commands, ["check", *arguments], standalone_mode=False)


def found(target: str) -> dict[tuple[str, str], str]:
    """Returns the problems of a target, by place and the text of their line."""
    answer = check("--json", f"tests.support.untravelled:{target}")
    assert answer.return_value == CRASHED
    rows = [json.loads(line) for line in answer.output.splitlines()]
    assert all(row["cure"] for row in rows)
    assert {Path(row["file"]).name for row in rows} == {FILE.name}
    return {(row["where"], SOURCE[row["line"] - 1].strip()): row["problem"] for row in rows}


@pytest.mark.parametrize(
    ("where", "line", "problem"),
    [
        ("Fields.call", "call: Callable[[int], int] | None = None", "is a function"),
        ("Inner.lock", "lock: threading.Thread = None  # type: ignore[assignment]", "is a Thread"),
        ("Fields._private", "_private: int = PrivateAttr(0)", "stays behind"),
        ("Flow.first", "self.seen += 1", "changes self.seen"),
        ("Flow.first", 'self.names["a"] = []', "changes self.names"),
        ("Flow.first", 'self.names["a"].append("b")', "changes self.names"),
        ("Flow.first", "global calls  # noqa: PLW0603", "changes the global calls"),
        ("Flow.first", "ctx.send_event(Item(number=1))", "imports Item itself"),
        ("Flow.first", "return Fields(call=lambda number: number)", "gives Fields.call a lambda"),
        (
            "Flow.last",
            "return StopEvent(result=(number for number in [self.seen]))",
            "gives StopEvent.result a generator",
        ),
    ],
)
def test_what_does_not_travel_is_found(where: str, line: str, problem: str) -> None:
    assert problem in found("Flow")[where, line]


def test_nothing_else_is_found() -> None:
    assert len(found("Flow")) == 10


def test_a_class_inside_a_function_and_what_it_uses_are_found() -> None:
    problems = found("inside")
    assert "no other process can import it" in problems["Local", "class Local(Workflow):"]
    assert "uses secret of the function around it" in problems["Local.only", "@step"]


def test_arguments_that_cannot_be_compared_are_found() -> None:
    (problem,) = found("with_arguments").values()
    assert "built with arguments that cannot be encoded" in problem


def test_a_workflow_that_travels_is_said_to() -> None:
    answer = check("tests.support.untravelled:Fine")
    assert answer.return_value == OK
    assert answer.output == "Everything that can be seen before a run travels.\n"
    assert check("--json", "tests.support.untravelled:Fine").output == ""


def test_workflows_that_run_on_fleets_have_nothing_to_find() -> None:
    answer = check(f"{flows.__name__}:FLOWS")
    assert (answer.output, answer.return_value) == (
        "Everything that can be seen before a run travels.\n",
        OK,
    )


def test_a_finding_reads_as_a_line_that_editors_open() -> None:
    lines = check("tests.support.untravelled:Flow").output.splitlines()
    assert lines[0].startswith("tests/support/untravelled.py:") or str(FILE) in lines[0]
    assert lines[1].startswith("    -> ")
