"""`stepfleet`: the development fleet of a folder, and the commands that need no server."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from stepfleet import Client
from stepfleet.cli.exits import CONFIG, CRASHED, HANDED_BACK, OK, UNAVAILABLE, USAGE
from stepfleet.cli.operator import commands as operator_commands
from stepfleet.cli.worker import command as worker_command
from stepfleet.embedded import supervisor
from stepfleet.embedded.server import DIRECTORY, dev_server_url
from tests.support.programs import OPERATOR, PATIENCE, ROOT, WORKER, Program
from tests.support.wait import wait_until

READY = "worker is ready"

FLOWS = """
import os
from stepfleet import StartEvent, StopEvent, Workflow, step

class Whoami(Workflow):
    @step
    async def answer(self, ev: StartEvent) -> StopEvent:
        if ev.get("die"):
            os._exit(9)
        return StopEvent(result=os.getpid())
"""

Run = Callable[..., Program]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A project with a short path, for the server's socket; its server ends with the test."""
    path = Path(tempfile.mkdtemp(prefix="sf-"))
    (path / "flows.py").write_text(FLOWS)
    yield path
    with contextlib.suppress(OSError, ValueError):
        end(int((path / DIRECTORY / supervisor.SUPERVISOR_LOCK).read_text()))
    shutil.rmtree(path)


@pytest.fixture
def run(folder: Path) -> Iterator[Run]:
    programs: list[Program] = []

    def start(module: str, *arguments: object) -> Program:
        programs.append(Program(module, *arguments, folder=folder))
        return programs[-1]

    yield start
    for program in programs:
        program.end()


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(pid), PATIENCE)


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def workers_of(dev: Program) -> list[int]:
    return [int(pid) for pid in re.findall(r"consumer=[^ ]*:(\d+):", dev.out)]


def client(folder: Path) -> Client:
    url = dev_server_url(folder)
    assert url is not None
    return Client(url)


async def test_dev_runs_workers_says_how_to_connect_and_drains_on_ctrl_c(
    run: Run, folder: Path
) -> None:
    dev = run(OPERATOR, "dev", "flows:Whoami")
    dev.says(READY, times=2)
    url = f"unix://{folder}/{DIRECTORY}/redis.sock"

    assert dev.out.startswith("stepfleet 0.1.0: 2 workers of flows:Whoami\n")
    assert f"\n  connect  export STEPFLEET_REDIS_URL={url}\n" in dev.out
    assert re.search(r"^worker-1 \| \d\d:\d\d:\d\d\.\d+ INFO  ", dev.out, re.MULTILINE)
    assert re.search(r"^worker-2 \| ", dev.out, re.MULTILINE)
    async with client(folder) as connected:
        assert await (await connected.start("Whoami")) in workers_of(dev)

    dev.press_ctrl_c()
    assert dev.code() == 0
    assert "stopping: the workers finish their steps" in dev.out
    assert dev.out.count("ended: exit_code=0") == 2
    assert not [pid for pid in workers_of(dev) if is_alive(pid)]
    assert dev.err == ""


def test_workers_do_not_outlive_a_dev_that_was_killed(run: Run) -> None:
    dev = run(OPERATOR, "dev", "flows:Whoami", "--workers", 1)
    dev.says(READY)
    (worker,) = workers_of(dev)

    dev.end()

    wait_until(lambda: not is_alive(worker), PATIENCE)


async def test_a_worker_that_dies_is_started_again(run: Run, folder: Path) -> None:
    dev = run(OPERATOR, "dev", "flows:Whoami", "--workers", 1)
    dev.says(READY)
    async with client(folder) as connected:
        await connected.start("Whoami", die=True)
        dev.says("worker-1 | ended (exit code 9), starts again in 1 s")
        dev.says(READY, times=2)
        assert await (await connected.start("Whoami")) == workers_of(dev)[1]

    os.kill(workers_of(dev)[1], signal.SIGKILL)
    dev.says("worker-1 | ended (SIGKILL), starts again in ")


def test_a_wrong_target_is_said_once_and_ends_dev(run: Run) -> None:
    dev = run(OPERATOR, "dev", "flows:Whoamy", "--workers", 3)

    assert dev.code() == 3
    message = "workflow-worker: module flows has no Whoamy; did you mean flows:Whoami?\n"
    assert dev.out.endswith(f"\nworker-1 | {message}")
    assert dev.out.count("Whoamy;") == 1


async def test_workers_with_embedded_share_the_server_of_their_folder(
    run: Run, folder: Path
) -> None:
    first, second = (run(WORKER, "flows:Whoami", "--embedded") for _ in range(2))
    first.says(READY)
    second.says(READY)
    first.send()
    assert first.code() == 0

    async with client(folder) as connected:
        assert await (await connected.start("Whoami")) == second.pid


def test_a_worker_finds_the_server_of_its_folder_without_a_url(run: Run) -> None:
    keeper = run(WORKER, "flows:Whoami", "--embedded")
    keeper.says(READY)

    worker = run(WORKER, "flows:Whoami")

    worker.says(READY)


def test_the_version_is_shown_short_and_long(run: Run) -> None:
    short, long = run(OPERATOR, "--version"), run(OPERATOR, "version")

    assert short.code() == 0
    assert short.out == "stepfleet 0.1.0\n"
    assert long.code() == 0
    names = [line.split()[0] for line in long.out.splitlines()]
    assert names == ["stepfleet", "Python", "redis-py", "server"]


def test_an_unknown_command_exits_2(run: Run) -> None:
    program = run(OPERATOR, "devv")

    assert program.code() == 2
    assert "No such command 'devv'" in program.err


def test_the_reference_names_every_command_option_and_exit_code() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    options = [
        name
        for command in (worker_command, *operator_commands.commands.values())
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden
        for name in option.opts
    ]
    codes = [OK, CRASHED, USAGE, CONFIG, UNAVAILABLE, HANDED_BACK, "130, 143"]
    names = [f"`stepfleet {name}" for name in operator_commands.commands]

    assert [name for name in [*options, *names] if name not in page] == []
    assert [code for code in codes if f"\n| {code} | " not in page] == []
