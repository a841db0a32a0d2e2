"""Schedules and arq jobs start runs, once each: with real arq workers, killed and restarted, and Redis too.

Runs where arq is installed (`make test-redis5`): arq pins an older redis-py.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from arq.connections import RedisSettings, create_pool

from stepfleet import Client
from stepfleet.errors import SettingsError
from stepfleet.scheduling import (
    TRY_TIMEOUT,
    Schedule,
    deserialize,
    queue_name,
    schedules_of,
    serialize,
)
from tests.support.programs import PATIENCE, ROOT, WORKER, Program
from tests.support.servers import RedisServer, available_binaries
from tests.support.wait import eventually, wait_until

BINARY = next(iter(available_binaries().values()))
EVERY_SECOND = f"""
[tool.stepfleet.schedules.tick]
workflow = "Report"
fields = {{day = "every"}}
second = {list(range(60))}
"""
NOTHING = ""
#: Seconds after which arq runs the job of a killed process again, and some for a loaded machine.
TAKEN_OVER = TRY_TIMEOUT + 10 + 10

Start = Callable[[], Program]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(BINARY, tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def worker(server: RedisServer, tmp_path: Path) -> Iterator[Program]:
    worker = Program(
        WORKER, "tests.scheduling.flows:FLOWS", folder=tmp_path, STEPFLEET_REDIS_URL=server.url
    )
    wait_until(lambda: "worker is ready" in worker.out, PATIENCE)
    yield worker
    worker.end()


@pytest.fixture
def scheduler(server: RedisServer, tmp_path: Path) -> Iterator[Callable[[str], Program]]:
    schedulers: list[Program] = []

    def start(project: str) -> Program:
        (tmp_path / "pyproject.toml").write_text(project)
        (tmp_path / "scheduler.py").write_text((ROOT / "workers/scheduler.py").read_text())
        program = Program(
            "scheduler",
            folder=tmp_path,
            STEPFLEET_REDIS_URL=server.url,
            STEPFLEET_LOG_FORMAT="console",
        )
        schedulers.append(program)
        wait_until(lambda: "Starting worker" in program.out, PATIENCE)
        return program

    yield start
    for program in schedulers:
        program.end()


async def pool_of(server: RedisServer) -> Any:
    return await create_pool(
        RedisSettings.from_dsn(server.url),
        job_serializer=serialize,
        job_deserializer=deserialize,
        default_queue_name=queue_name("default"),
    )


def slots_of(server: RedisServer) -> list[datetime]:
    """Returns the slots whose runs are recorded, in order."""
    with redis.Redis(port=server.port, decode_responses=True) as raw:
        found = [re.fullmatch(r".*:run:tick-(\d{8}T\d{6}Z)", str(key)) for key in raw.keys("*")]
    texts = sorted(match[1] for match in found if match)
    return [datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) for text in texts]


@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("worker")
def test_two_schedulers_of_which_one_is_killed_start_one_run_for_every_second(
    server: RedisServer, scheduler: Callable[[str], Program], seconds: int
) -> None:
    first, second = scheduler(EVERY_SECOND), scheduler(EVERY_SECOND)
    wait_until(lambda: len(slots_of(server)) >= seconds // 2, PATIENCE + seconds)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    wait_until(lambda: len(slots_of(server)) >= seconds, TAKEN_OVER + seconds)

    def gapless() -> bool:
        slots = slots_of(server)[:seconds]
        return all(b - a == timedelta(seconds=1) for a, b in itertools.pairwise(slots))

    wait_until(gapless, TAKEN_OVER)
    assert second.process.poll() is None

    async def results() -> set[Any]:
        async with Client(server.url) as client, asyncio.timeout(PATIENCE):
            ids = [f"tick-{slot:%Y%m%dT%H%M%SZ}" for slot in slots_of(server)[:seconds]]
            return set(await asyncio.gather(*(client.handler(run_id) for run_id in ids)))

    assert asyncio.run(results()) == {"every"}


@pytest.mark.usefixtures("worker")
def test_a_scheduler_goes_on_by_itself_when_redis_restarts(
    server: RedisServer, scheduler: Callable[[str], Program]
) -> None:
    program = scheduler(EVERY_SECOND)
    wait_until(lambda: slots_of(server), PATIENCE)
    server.kill()
    wait_until(lambda: "begins anew" in program.out, PATIENCE)
    server.start()
    restarted = datetime.now(UTC)
    wait_until(lambda: any(slot > restarted for slot in slots_of(server)), PATIENCE)
    program.process.terminate()
    assert program.code(TAKEN_OVER) == 0


@pytest.mark.usefixtures("worker")
async def test_a_job_of_another_service_starts_one_run_also_deferred_and_also_twice(
    server: RedisServer, scheduler: Callable[[str], Program]
) -> None:
    await asyncio.to_thread(scheduler, NOTHING)
    pool = await pool_of(server)
    fields = {"day": "monday"}
    await pool.enqueue_job("start_workflow", "Report", "monday", fields, _job_id="a")
    await pool.enqueue_job("start_workflow", "Report", "monday", fields, _job_id="b")
    due = datetime.now(UTC) + timedelta(seconds=2)
    later = ("Report", "later", {"day": "later"})
    await pool.enqueue_job("start_workflow", *later, _defer_until=due)
    async with Client(server.url) as client, asyncio.timeout(PATIENCE):

        async def is_recorded(run_id: str) -> bool:
            (record,) = await client.connection().reader.runs([run_id])
            return record is not None

        for run_id in ("monday", "later"):
            while not await is_recorded(run_id):  # noqa: ASYNC110 - another process records it
                await asyncio.sleep(0.05)
            assert await client.handler(run_id) == run_id
        status = await client.handler("later").status()
    assert status.started >= due
    await pool.aclose()


async def test_a_job_that_comes_before_any_worker_is_tried_again(
    server: RedisServer, scheduler: Callable[[str], Program], tmp_path: Path
) -> None:
    program = await asyncio.to_thread(scheduler, NOTHING)
    pool = await pool_of(server)
    await pool.enqueue_job("start_workflow", "Report", "early", {"day": "early"})
    await eventually(lambda: "a run is not started yet" in program.out, PATIENCE)
    assert "no worker has announced a workflow 'Report'" in program.out
    worker = Program(
        WORKER, "tests.scheduling.flows:FLOWS", folder=tmp_path, STEPFLEET_REDIS_URL=server.url
    )
    try:
        await eventually(lambda: "a run is started: run_id=early" in program.out, PATIENCE)
        async with Client(server.url) as client, asyncio.timeout(PATIENCE):
            assert await client.handler("early") == "early"
    finally:
        worker.end()
        await pool.aclose()


def test_jobs_are_msgpack_and_an_exception_becomes_its_text() -> None:
    job = {"t": None, "f": "start_workflow", "a": ("Report", "id", {"n": 1}), "k": {}, "et": 1}
    assert deserialize(serialize(job)) == {**job, "a": ["Report", "id", {"n": 1}]}
    assert deserialize(serialize({"r": ValueError("wet")})) == {"r": "wet"}
    with pytest.raises(ValueError, match="."):
        deserialize(b"\x80\x04\x95pickle")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"hour": 2}, "schedule 'nightly': workflow is missing: workflow = \"OrderFlow\""),
        (
            {"workflow": "F", "hours": 2},
            "schedule 'nightly': unknown key hours: did you mean hour?",
        ),
        ({"workflow": "F", "hour": 24}, "schedule 'nightly': hour = 24 is not 0 to 23"),
        ({"workflow": "F", "minute": [0, "x"]}, "schedule 'nightly': minute = 'x' is not 0 to 59"),
        ({"workflow": "F", "weekday": "someday"}, "weekday = 'someday' is none of mon, tues"),
    ],
)
def test_a_wrong_schedule_is_named_with_its_cure(table: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        schedules_of({"nightly": table})
    assert message in str(caught.value)


def test_a_name_that_cannot_be_part_of_a_run_id_is_refused() -> None:
    with pytest.raises(SettingsError, match="schedule 'at night': a name has 1 to 100 of"):
        Schedule(name="at night", workflow="F")


def test_the_run_id_is_made_of_the_time_at_which_the_job_was_due() -> None:
    schedule = Schedule(name="nightly", workflow="F", hour=2, minute=30)
    job = schedule.job()
    job.calculate_next(datetime(2026, 3, 1, 12, tzinfo=UTC))
    assert job.next_run is not None
    assert schedule.run_id(job.next_run) == "nightly-20260302T023000Z"


def test_without_arq_the_error_names_the_extra(tmp_path: Path) -> None:
    script = tmp_path / "without.py"
    script.write_text(
        "import sys\nsys.modules['arq'] = None\nimport stepfleet\nimport stepfleet.scheduling\n"
    )
    program = Program("without", folder=tmp_path)
    assert program.code() == 1
    assert "ImportError: stepfleet.scheduling needs arq" in program.err
    assert "pip install 'stepfleet[arq]'" in program.err
