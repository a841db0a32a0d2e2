"""The compose file's services as plain processes: Redis, workers, scheduler, web service, producer.

What each of them runs is read from docker-compose.yml and the Containerfile; only addresses differ.
Runs where arq is installed (`make test-redis5`), as the scheduler needs it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest
import redis
from ruamel.yaml import YAML

from stepfleet import SyncClient
from stepfleet.embedded.supervisor import die_with_parent
from tests.support.fleet import Ledger, Record
from tests.support.servers import free_port
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]
#: Seconds for anything to happen on a busy machine.
PATIENCE = 60.0
#: Orders that are under way at once.
WIDTH = 6
SCHEDULE = f"""
[tool.stepfleet.schedules.joke]
workflow = "JokeFlow"
fields = {{topic = "cats"}}
second = {list(range(60))}
"""

#: The kernel ties a child's life to the *thread* that started it: this one ends with the process.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="service-starter")


class Started(NamedTuple):
    """One process of a service."""

    process: subprocess.Popen[bytes]
    output: Path

    def log(self) -> str:
        """Returns what it wrote so far."""
        return self.output.read_text(errors="replace")

    def says(self, text: str) -> None:
        """Waits until it has written a text."""

        def said() -> bool:
            assert self.process.poll() is None, self.log()
            return text in self.log()

        wait_until(said, PATIENCE)

    def stop(self) -> int:
        """Asks it to end, and returns its exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE)


class Composed:
    """The services of the compose file, each as a process in a folder with what the image has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.app = folder / "app"
        self.redis_port, self.web_port = free_port(), free_port()
        self.url = f"redis://127.0.0.1:{self.redis_port}/0"
        self._services = YAML(typ="safe").load(ROOT / "docker-compose.yml")["services"]
        self._image = (ROOT / "workers" / "Containerfile").read_text()
        self._started: list[Started] = []
        for source, target in re.findall(r"^COPY (?!--from)(\S+) \./(\S+)$", self._image, re.M):
            if target.split("/")[0] in ("examples", "workers"):
                _copy(ROOT / source, self.app / target)
        (self.app / "pyproject.toml").write_text(SCHEDULE)
        self._ledger = folder / "executions"
        self._note_executions(self.app / "examples/fastapi_service/report.py")
        self.files = self._files()

    def start(self, name: str) -> Started:
        """Starts one more process of a service."""
        service = self._services[name]
        own: dict[str, str] = service.get("environment", {})
        entry = service.get("entrypoint", [] if name == "redis" else self._entrypoint())
        words = self._here([*entry, *service.get("command", [])])
        if name == "redis":
            words += ["--bind", "127.0.0.1", "--port", str(self.redis_port)]
            words += ["--dir", str(self._made("redis")), "--save", ""]
        if name == "service":
            words += ["--port", str(self.web_port)]
        program = Path(sys.executable).with_name(words[0])
        log = self.folder / f"{name}-{len(self._started)}.log"
        with log.open("wb") as output:
            process = _STARTER.submit(
                lambda: subprocess.Popen(
                    [str(program) if program.exists() else words[0], *words[1:]],
                    cwd=self.app,
                    env=self._environment(own),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    preexec_fn=die_with_parent(),
                )
            ).result()
        self._started.append(Started(process, log))
        return self._started[-1]

    def check(self, name: str) -> bool:
        """Returns whether the health check of a service passes."""
        kind, *words = self._services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        words = self._here([word.replace("8000", str(self.web_port)) for word in words])
        if words[0] == "redis-cli":
            words[1:1] = ["-p", str(self.redis_port)]
        if words[0] == "python":
            words[0] = sys.executable
        return subprocess.run(words, capture_output=True, timeout=20, check=False).returncode == 0

    def end(self) -> None:
        """Ends what still runs."""
        for one in self._started:
            one.process.kill()
            one.process.wait()

    def _entrypoint(self) -> list[str]:
        (text,) = re.findall(r"^ENTRYPOINT (.*)$", self._image, re.M)
        return json.loads(text)

    def _here(self, words: list[str]) -> list[str]:
        return [word.replace("0.0.0.0", "127.0.0.1") for word in words]

    def _environment(self, own: dict[str, str]) -> dict[str, str]:
        inherited = {name: text for name, text in os.environ.items() if "STEPFLEET" not in name}
        of_image = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        assert all(f"{name}={text}" in self._image for name, text in of_image.items())
        given = {name: text.replace("redis://redis:6379/0", self.url) for name, text in own.items()}
        # No lease runs out on a machine that is busy with other tests.
        return {**inherited, **of_image, **given, "STEPFLEET_LEASE": "30s"}

    def _made(self, name: str) -> Path:
        (self.folder / name).mkdir(exist_ok=True)
        return self.folder / name

    def _files(self) -> set[Path]:
        return set(self.app.rglob("*"))

    def executions(self) -> list[str]:
        """Returns what the steps of reports wrote down when they began: step and title."""
        return self._ledger.read_text().splitlines()

    def _note_executions(self, module: Path) -> None:
        code = module.read_text()
        for step, first in (("outline", "return Outlined("), ("write", "for page in")):
            assert code.count(first) == 1
            code = code.replace(first, f"_note('{step}', ev.title)\n        {first}")
        note = (
            "\n\ndef _note(*words):\n"
            f"    with open({str(self._ledger)!r}, 'a') as ledger:\n"
            "        ledger.write(' '.join(words) + '\\n')\n"
        )
        module.write_text(code + note)

    def nothing_was_written(self) -> bool:
        """Returns whether the processes left their folder alone: containers cannot write there."""
        return self._files() == self.files


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.mkdir(parents=True)
        shutil.copy(source, target)


class Orders:
    """Reports that are ordered from the web service and read as they are written, one after the other."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"
        self._on = True
        self.read: dict[str, list[int]] = {}
        self.titles: dict[str, str] = {}
        self.errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._order) for _ in range(WIDTH)]
        for thread in self._threads:
            thread.start()

    def _order(self) -> None:
        headers = {"Content-Type": "application/json"}
        try:
            while self._on:
                title = uuid4().hex
                body = json.dumps({"title": title, "pages": 2, "pause": 0.05}).encode()
                request = urllib.request.Request(f"{self._base}/runs", data=body, headers=headers)
                with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                    run = json.loads(answer.read())["run"]
                events = f"{self._base}/runs/{run}/events"
                with urllib.request.urlopen(events, timeout=PATIENCE) as stream:
                    ids = re.findall(r"^id: (\d+)$", stream.read().decode(), re.M)
                self.read[run], self.titles[run] = [int(one) for one in ids], title
        except BaseException as error:
            self.errors.append(error)

    def end(self) -> None:
        """Lets every order that has begun come to its end."""
        self._on = False
        for thread in self._threads:
            thread.join(PATIENCE)


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Composed]:
    composed = Composed(tmp_path)
    yield composed
    composed.end()


def slots(port: int) -> list[datetime]:
    """Returns the slots of the schedule whose runs are recorded."""
    with redis.Redis(port=port, decode_responses=True) as raw:
        names = [re.fullmatch(r".*:run:joke-(\d{8}T\d{6}Z)", name) for name in raw.scan_iter()]
    return sorted(datetime.strptime(name[1], "%Y%m%dT%H%M%S%z") for name in names if name)


@pytest.mark.timeout(300)
def test_the_composed_fleet_scales_to_four_workers_and_back_under_load(composed: Composed) -> None:
    composed.start("redis")
    wait_until(lambda: composed.check("redis"), PATIENCE)
    first, service = composed.start("worker"), composed.start("service")
    scheduler = composed.start("scheduler")
    first.says("worker is ready")
    wait_until(lambda: composed.check("service"), PATIENCE)
    scheduler.says("Starting worker for")

    orders = Orders(composed.web_port)
    try:
        wait_until(lambda: orders.errors or len(orders.read) > 2 * WIDTH, PATIENCE)
        more = [composed.start("worker") for _ in range(3)]
        for worker in more:
            worker.says("worker is ready")
        before = len(orders.read)
        wait_until(lambda: orders.errors or len(orders.read) > before + 4 * WIDTH, PATIENCE)
        codes = [worker.stop() for worker in more]
        before = len(orders.read)
        wait_until(lambda: orders.errors or len(orders.read) > before + 2 * WIDTH, PATIENCE)
        wait_until(lambda: len(slots(composed.redis_port)) >= 8, PATIENCE)
    finally:
        orders.end()
    assert orders.errors == []
    assert set(map(tuple, orders.read.values())) == {(1, 2, 3)}

    producer = composed.start("producer")
    assert producer.process.wait(PATIENCE) == 0, producer.log()
    assert "Why do pirates never finish the alphabet?" in producer.log()

    codes.append(scheduler.stop())
    due = slots(composed.redis_port)
    assert all(b - a == timedelta(seconds=1) for a, b in pairwise(due))
    with SyncClient(composed.url) as client:
        for slot in due:
            run = client.handler(f"joke-{slot:%Y%m%dT%H%M%SZ}")
            assert "cat" in run.result(timeout=PATIENCE)["joke"]
    codes.append(first.stop())
    assert codes == [0, 0, 0, 0, 0]
    # uvicorn ends by the signal that it got
    assert service.stop() in (0, -signal.SIGTERM)
    assert composed.nothing_was_written()

    executed = Counter(composed.executions())
    assert [one for one, count in executed.items() if count > 1] == []
    titles = set(orders.titles.values())
    assert executed.keys() == {
        f"{step} {title}" for step in ("outline", "write") for title in titles
    }
    record = Record(composed.folder / "redis")
    runs = {*orders.read, *(f"joke-{slot:%Y%m%dT%H%M%SZ}" for slot in due)}
    assert record.check_settled(Ledger(composed.folder / "nothing"), runs) == 2 * len(runs)
    assert record.reclaimed(runs) == []
    assert len({entry.settled_by for entry in record.of_runs(runs)}) == 4
