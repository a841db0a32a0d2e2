"""Every example prints its expected.txt: in one process, and on a fleet of two workers that share each run."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from tests.support.servers import RedisServer, available_binaries
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

#: Example -> (its workflow, the steps that only the second worker runs).
WORKFLOWS = {
    "hello": ("JokeFlow", ["judge"]),
    "branches": ("CollatzFlow", ["triple"]),
    "streaming": ("ImportFlow", ["add_up"]),
    "human_in_the_loop": ("OrderFlow", ["order"]),
    "fan_in": ("CountFlow", ["count"]),
}

#: seconds for a start.py on a loaded machine; they take less than two
PATIENCE_S = 100.0


def environment(**extra: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("STEPFLEET_", "REDIS_"))}
    return {**inherited, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1", **extra}


def start(example: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", f"examples.{example}.start"],
        cwd=ROOT,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def expected(example: str) -> str:
    return (EXAMPLES / example / "expected.txt").read_text()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A server and two workers; between them they run every step, and no step is run by both."""

    url: str
    workers: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    server = RedisServer(next(iter(available_binaries().values())), folder / "server")
    server.start()
    steps = ",".join(step for _, names in WORKFLOWS.values() for step in names)
    workers = (
        worker(server.url, folder / "first.log", "--exclude-steps", steps),
        worker(server.url, folder / "second.log", "--steps", steps),
    )
    try:
        wait_until(lambda: registered(server.url) == 2, PATIENCE_S)
        yield Fleet(url=server.url, workers=workers)
    finally:
        for process in workers:
            process.kill()
            process.wait()
        server.kill()


def worker(url: str, log: Path, *options: str) -> subprocess.Popen[bytes]:
    targets = [f"examples.{name}.workflow:{flow}" for name, (flow, _) in WORKFLOWS.items()]
    command = [sys.executable, "-c", "from stepfleet.cli.worker import main; main()"]
    with log.open("wb") as output:
        return subprocess.Popen(
            [*command, *targets, *options],
            cwd=ROOT,
            env=environment(STEPFLEET_REDIS_URL=url),
            stdout=output,
            stderr=output,
        )


def registered(url: str) -> int:
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        return int(client.hlen("{default:0}:workers"))  # pyright: ignore[reportArgumentType]


def test_every_example_is_run_here_or_in_a_file_of_its_own() -> None:
    folders = {path.parent.name for path in EXAMPLES.glob("*/workflow.py")}

    assert folders - {"demo", "tracing"} == set(WORKFLOWS)


@pytest.mark.parametrize("example", WORKFLOWS)
def test_an_example_runs_in_one_process(example: str) -> None:
    done = start(example)

    assert done.stderr == ""
    assert done.stdout == expected(example)


@pytest.mark.parametrize("example", WORKFLOWS)
def test_an_example_runs_on_two_workers_that_share_its_steps(example: str, fleet: Fleet) -> None:
    done = start(example, STEPFLEET_REDIS_URL=fleet.url)

    assert done.stderr == ""
    assert done.stdout == expected(example)
    assert [process.poll() for process in fleet.workers] == [None, None]


@pytest.mark.parametrize("example", WORKFLOWS)
def test_an_example_says_what_it_is_and_how_it_is_run(example: str) -> None:
    text = (EXAMPLES / example / "README.md").read_text()

    assert text.startswith(f"# {example}\n")
    assert f"python -m examples.{example}.start" in text
    assert "expected.txt" in text
