"""`workflow-worker --reload`: new code for what begins, old code for what runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepfleet import SyncClient
from stepfleet.cli.reloading import snapshot
from stepfleet.embedded.supervisor import die_with_parent
from tests.support.wait import wait_until

#: Seconds for anything to happen on a busy machine.
PATIENCE = 60.0

FLOW = """
import asyncio
from pathlib import Path
from stepfleet import StartEvent, StopEvent, Workflow, step


class Flow(Workflow):
    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        Path(ev.name).touch()
        while not Path("go").exists() and {waits}:
            await asyncio.sleep(0.02)
        return StopEvent("{version}")


FLOWS = {{"Flow": Flow(timeout=None)}}
"""


class Reloading:
    """A worker with --reload in a folder with one module."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self._log = folder / "log"
        self.write("old", waits=True)
        options = ["--redis-url", url, "--namespace", folder.name, "--drain-timeout", "200s"]
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stepfleet.cli.worker", "flow:FLOWS", "--reload", *options],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=die_with_parent(),
            )

    def write(self, version: str, *, waits: bool = False) -> None:
        (self.folder / "flow.py").write_text(FLOW.format(version=version, waits=waits))

    def says(self, text: str, times: int = 1) -> None:
        def said() -> bool:
            assert self.process.poll() is None, self.log()
            return self.log().count(text) >= times

        wait_until(said, PATIENCE)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def leave(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE)


@pytest.fixture
def reloading(server_urls: dict[str, str], tmp_path: Path) -> Iterator[Reloading]:
    program = Reloading(tmp_path, next(iter(server_urls.values())))
    yield program
    program.process.kill()
    program.process.wait()


@pytest.fixture
def client(server_urls: dict[str, str], tmp_path: Path) -> Iterator[SyncClient]:
    url = next(iter(server_urls.values()))
    with SyncClient(url, namespace=tmp_path.name) as client:
        yield client


@pytest.mark.timeout(240)
def test_a_step_that_runs_ends_on_the_old_code_and_the_next_one_is_of_the_new(
    reloading: Reloading, client: SyncClient
) -> None:
    reloading.says("worker is ready")
    old = client.start("Flow", name="first")
    wait_until((reloading.folder / "first").exists, PATIENCE)

    reloading.write("new")
    reloading.says("starting the new code: flow.py")
    reloading.says("draining: up to")  # from here on it takes nothing new

    assert client.start("Flow", name="second").result(timeout=PATIENCE) == "new"
    assert old.status().status == "running"
    (reloading.folder / "go").touch()
    assert old.result(timeout=PATIENCE) == "old"
    reloading.says("ended: exit_code=0")

    # code that does not start changes nothing
    (reloading.folder / "flow.py").write_text("class Flow(\n")
    reloading.says("the new code does not start (exit code 3): the old code goes on")
    assert client.start("Flow", name="third").result(timeout=PATIENCE) == "new"
    reloading.write("newest")
    reloading.says("worker is ready", times=3)
    reloading.says("ended: exit_code=0", times=2)
    assert client.start("Flow", name="fourth").result(timeout=PATIENCE) == "newest"

    assert reloading.leave() == 0


def test_a_second_signal_hands_back_what_still_runs(
    reloading: Reloading, client: SyncClient
) -> None:
    reloading.says("worker is ready")
    client.start("Flow", name="first")
    wait_until((reloading.folder / "first").exists, PATIENCE)

    reloading.process.send_signal(signal.SIGINT)
    reloading.says("draining")
    reloading.process.send_signal(signal.SIGINT)

    assert reloading.process.wait(PATIENCE) == 130


def test_options_that_two_workers_cannot_share_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stepfleet.cli.worker", "a:b", "--reload", "--burst"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )

    assert done.returncode == 2
    assert "--reload and --burst exclude each other" in done.stderr


def test_only_the_project_s_own_python_files_are_looked_at(tmp_path: Path) -> None:
    for name in (".git/a.py", "venv/lib/b.py", "pkg/__pycache__/c.py", "pkg/d.py", "e.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "venv" / "pyvenv.cfg").touch()

    assert [os.path.relpath(path, tmp_path) for path in snapshot(tmp_path)] == ["pkg/d.py"]
