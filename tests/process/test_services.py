"""Services on a fleet: the FastAPI example with curl, the Flask example, and the client that waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from examples.fastapi_service.report import ReportFlow, Written
from examples.human_in_the_loop.workflow import Approval, ApprovalNeeded, OrderFlow
from stepfleet import StopEvent, SyncClient
from stepfleet.embedded.supervisor import die_with_parent
from stepfleet.errors import RunNotFound, WorkflowCancelledByUser, WorkflowRuntimeError
from tests.support.browser import Page, find_browser
from tests.support.fleet import TestFleet
from tests.support.servers import free_port
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]

#: Seconds for anything to happen on a loaded machine.
PATIENCE = 60.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestFleet]:
    target = "tests.support.served:FLOWS"
    with TestFleet(tmp_path_factory.mktemp("fleet"), target=target) as fleet:
        fleet.start()
        yield fleet


class Service:
    """A web service in a process of its own."""

    def __init__(self, url: str, *arguments: str, log: Path) -> None:
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments, "--port", str(self.port)],
                cwd=ROOT,
                env={**os.environ, "STEPFLEET_REDIS_URL": url},
                stdout=output,
                stderr=output,
                preexec_fn=die_with_parent(),
            )

        def answers() -> bool:
            assert self.process.poll() is None, log.read_text()
            try:
                self.call("GET", "/")
            except urllib.error.HTTPError:
                return True
            except OSError:
                return False
            return True

        wait_until(answers, PATIENCE)

    def call(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            self.base + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text.startswith(b"{") else text.decode()


@pytest.fixture(scope="module")
def reports(fleet: TestFleet) -> Iterator[Service]:
    service = Service(
        fleet.url, "uvicorn", "examples.fastapi_service.app:app", log=fleet.directory / "uvicorn"
    )
    yield service
    service.process.terminate()
    assert service.process.wait(PATIENCE) in (0, -15)


def curl(*arguments: str) -> str:
    done = subprocess.run(
        ["curl", "--silent", "--no-buffer", "--max-time", "100", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def sequences(frames: str) -> list[int]:
    return [int(line[4:]) for line in frames.splitlines() if line.startswith("id: ")]


def first_lines(url: str, wanted: int) -> list[int]:
    """Reads a stream with curl until it has given so many events, and leaves."""
    with subprocess.Popen(
        ["curl", "--silent", "--no-buffer", url], stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        seen: list[int] = []
        for line in reader.stdout:
            seen += sequences(line)
            if len(seen) == wanted:
                break
        reader.kill()
    return seen


def test_curl_reads_a_run_to_its_end(reports: Service) -> None:
    run = reports.call("POST", "/runs", {"title": "A", "pages": 3, "pause": 0.01})["run"]

    frames = curl(f"{reports.base}/runs/{run}/events")

    assert sequences(frames) == [1, 2, 3, 4]
    last = frames.rstrip().splitlines()[-1]
    assert json.loads(last[6:]) == {"type": "StopEvent", "value": {"result": "A: 3 pages"}}
    assert reports.call("GET", f"/runs/{run}") == {"status": "completed", "error": None}


def test_a_reader_that_comes_back_misses_nothing_and_sees_nothing_twice(reports: Service) -> None:
    body = {"title": "B", "pages": 24, "pause": 0.4}
    run = reports.call("POST", "/runs", body)["run"]
    url = f"{reports.base}/runs/{run}/events"

    seen = first_lines(url, 5)
    assert reports.call("GET", f"/runs/{run}")["status"] == "running"
    seen += sequences(curl("--header", f"Last-Event-ID: {seen[-1]}", url))

    assert seen == list(range(1, 26))
    code = ("--output", "/dev/null", "--write-out", "%{http_code}")
    assert curl(*code, "--header", "Last-Event-ID: 25", url) == "204"


def test_what_is_asked_wrongly_is_answered_with_a_reason(reports: Service) -> None:
    code = ("--write-out", " %{http_code}")
    unknown = curl(*code, f"{reports.base}/runs/nobody/events")
    header = curl(*code, "--header", "Last-Event-ID: x", f"{reports.base}/runs/nobody/events")

    assert unknown.endswith(" 404")
    assert "no run 'nobody' is recorded" in unknown
    assert header.endswith(" 400")
    assert "is no sequence" in header


def test_an_order_may_be_repeated_but_not_changed(reports: Service) -> None:
    body = {"title": "C", "pages": 1, "pause": 0, "id": "report-c"}

    first, again = reports.call("POST", "/runs", body), reports.call("POST", "/runs", body)

    assert first == again == {"run": "report-c"}
    with pytest.raises(urllib.error.HTTPError, match="409"):
        reports.call("POST", "/runs", {**body, "pages": 2})


@pytest.mark.slow
def test_a_page_that_is_reloaded_in_the_middle_shows_every_event_once(
    reports: Service, tmp_path: Path
) -> None:
    browser = find_browser()
    if browser is None:
        pytest.skip("no Chromium on this machine (Debian: chromium)")
    shown = (
        "[...document.querySelectorAll('#events li')].map((item) => Number(item.dataset.sequence))"
    )
    run = reports.call("POST", "/runs", {"title": "E", "pages": 60, "pause": 0.05})["run"]

    with Page(browser, tmp_path / "profile") as page:
        page.open(f"{reports.base}/#{run}")
        wait_until(lambda: len(page.ask(shown) or []) >= 10, 30)
        before = page.ask(shown)
        assert reports.call("GET", f"/runs/{run}")["status"] == "running"
        page.reload()
        wait_until(
            lambda: page.ask("document.querySelector('#state').textContent") == "E: 60 pages", 40
        )
        after = page.ask(shown)

    assert before == list(range(1, len(before) + 1))
    assert len(before) < 61
    assert after == list(range(1, 62))


def test_the_flask_example_asks_and_takes_the_answer(fleet: TestFleet) -> None:
    log = fleet.directory / "flask"
    shop = Service(fleet.url, "flask", "--app", "examples.flask_service.app", "run", log=log)
    try:
        assert shop.call("POST", "/orders", {"item": "pencil", "price": 2, "id": "p"}) == {
            "order": "p",
            "result": "pencil: ordered",
        }
        asked = shop.call("POST", "/orders", {"item": "desk", "price": 400, "id": "d"})
        assert asked == {"order": "d", "question": "Buy a desk for 400?"}
        assert shop.call("GET", "/orders/d")["status"] == "running"
        answer = shop.call("POST", "/orders/d/answer", {"granted": True})
        assert answer == {"order": "d", "result": "desk: ordered"}
        shop.call("POST", "/orders", {"item": "yacht", "price": 9000, "id": "y"})
        assert shop.call("DELETE", "/orders/y") == {"order": "y", "status": "cancelled"}
    finally:
        shop.process.kill()
        shop.process.wait()


# -- the client that waits ---------------------------------------------------------------------------


@pytest.fixture
def client(fleet: TestFleet) -> Iterator[SyncClient]:
    with SyncClient(fleet.url) as client:
        yield client


def test_a_run_is_started_streamed_and_awaited_without_a_loop(client: SyncClient) -> None:
    handler = client.start(ReportFlow, title="D", pages=2, pause=0)

    events = list(handler.stream_events())

    assert [type(event) for event in events] == [Written, Written, StopEvent]
    assert handler.last_sequence == 3
    assert [
        event.page for event in handler.stream_events(after=1) if isinstance(event, Written)
    ] == [2]
    assert handler.result(timeout=PATIENCE) == "D: 2 pages"
    assert client.handler(handler.run_id).status().status == "completed"


def test_a_question_is_answered_from_another_handler(client: SyncClient) -> None:
    handler = client.start(OrderFlow, item="desk", price=400)
    question = next(handler.stream_events())

    client.handler(handler.run_id, workflow=OrderFlow).send_event(Approval(granted=False))

    assert isinstance(question, ApprovalNeeded)
    assert handler.result(timeout=PATIENCE) == "desk: refused"


def test_a_wait_has_a_limit_and_a_cancelled_run_says_so(client: SyncClient) -> None:
    handler = client.start(OrderFlow, item="desk", price=400)

    with pytest.raises(TimeoutError):
        handler.result(timeout=0.2)
    handler.cancel_run()

    assert handler.status().status == "cancelled"
    with pytest.raises(WorkflowCancelledByUser):
        handler.result(timeout=PATIENCE)


def test_many_threads_share_a_client(client: SyncClient) -> None:
    def one(number: int) -> str:
        handler = client.start(ReportFlow, title=str(number), pages=number % 3 + 1, pause=0)
        assert len(list(handler.stream_events())) == number % 3 + 2
        return handler.result(timeout=PATIENCE)

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(one, range(24)))

    assert results == [f"{number}: {number % 3 + 1} pages" for number in range(24)]
    assert sum(thread.name == "stepfleet-client" for thread in threading.enumerate()) == 1


def test_errors_reach_the_caller_and_a_closed_client_says_so(fleet: TestFleet) -> None:
    with SyncClient(fleet.url) as client:
        handler = client.handler("nobody")
        with pytest.raises(RunNotFound):
            handler.status()
        with pytest.raises(ValueError, match="is no id"):
            client.handler("a b")

    with pytest.raises(WorkflowRuntimeError, match="was closed"):
        handler.status()
    assert not any(thread.name == "stepfleet-client" for thread in threading.enumerate())


def test_a_program_ends_without_closing_and_its_children_have_their_own(fleet: TestFleet) -> None:
    program = f"""
import os
from examples.fastapi_service.report import ReportFlow
from stepfleet import SyncClient

client = SyncClient({fleet.url!r})
print(client.start(ReportFlow, title="parent", pages=1, pause=0).result(), flush=True)
if (child := os.fork()) == 0:
    print(client.start(ReportFlow, title="child", pages=1, pause=0).result(), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(client.start(ReportFlow, title="again", pages=1, pause=0).result(timeout=60))
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.stdout.split("\n") == ["parent: 1 pages", "child: 1 pages", "again: 1 pages", ""]
    assert done.stderr == ""
