"""`stepfleet`: what an operator sees of a fleet of processes, and what each command does to it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis
from click.testing import CliRunner, Result
from redis.exceptions import NoPermissionError

from stepfleet import Client
from stepfleet.cli.acl import ROLES, user
from stepfleet.cli.exits import CRASHED, OK, UNAVAILABLE
from stepfleet.cli.operator import commands
from stepfleet.errors import DeadLettered, DecodeError, RunNotFound, StoreRefused
from tests.support.programs import OPERATOR, PATIENCE, WORKER, Program
from tests.support.servers import RedisServer, available_binaries, free_port
from tests.support.wait import wait_until

BINARY = next(iter(available_binaries().values()))
FLOWS = "tests.support.operated:FLOWS"
LEASE = 1

Start = Callable[..., Program]
Operator = Callable[..., Result]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(BINARY, tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def start_worker(server: RedisServer, tmp_path: Path) -> Iterator[Start]:
    workers: list[Program] = []

    def start(*arguments: object, **more: object) -> Program:
        settings = {"STEPFLEET_REDIS_URL": server.url, "STEPFLEET_SWEEP": "0.5s", **more}
        worker = Program(WORKER, "--lease", f"{LEASE}s", *arguments, folder=tmp_path, **settings)
        workers.append(worker)
        wait_until(lambda: "worker is ready" in worker.out, PATIENCE)
        return worker

    yield start
    for worker in workers:
        worker.end()


@pytest.fixture
def operator(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Operator:
    monkeypatch.setenv("STEPFLEET_REDIS_URL", server.url)

    def run(line: str, **more: Any) -> Result:
        return CliRunner().invoke(commands, line.split(), standalone_mode=False, **more)

    return run


def started(server: RedisServer, *names: str) -> None:
    """Starts a run of each workflow, with the workflow's name as its id: a second one is `Name-2`."""

    async def main() -> None:
        async with Client(server.url) as client:
            for name in names:
                await client.start(name.partition("-")[0], run_id=name)

    asyncio.run(main())


def ended(server: RedisServer, run_id: str) -> Any:
    async def main() -> Any:
        async with Client(server.url) as client, asyncio.timeout(PATIENCE):
            return await client.handler(run_id)

    return asyncio.run(main())


def says(operator: Operator, line: str, *parts: str) -> None:
    """Asserts that a command comes to say all of this."""
    seen = ""

    def said() -> bool:
        nonlocal seen
        seen = operator(line).output
        return all(part in seen for part in parts)

    try:
        wait_until(said, PATIENCE)
    except AssertionError:
        pytest.fail(f"`{line}` says:\n{seen}\nand not {parts}")


def rows_of(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.output.splitlines()]


# -- why ---------------------------------------------------------------------------------------------


def test_why_names_the_step_that_no_live_worker_serves(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    start_worker(FLOWS, "--exclude-steps", "work")
    started(server, "Slow")
    says(
        operator,
        "why Slow",
        "2 Item for step work wait: no live worker serves step work of workflow Slow",
        "Start a workflow-worker",
    )


def test_why_names_a_paused_worker_that_holds_slots(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    worker = start_worker(FLOWS)
    started(server, "Slow")
    says(
        operator, "why Slow", "2 of its slots are taken", "has been running for", f":{worker.pid}:"
    )
    worker.process.send_signal(signal.SIGSTOP)
    says(
        operator,
        "why Slow",
        "which has given no sign of life for",
        f":{worker.pid}:",
        "3 events wait for a slot: step work has num_workers=2, and 2 of its slots are taken",
    )
    says(operator, "workers", "silent")
    cure = (
        ", and no live worker serves step work of workflow Slow. Start a workflow-worker with it."
    )
    assert operator("why Slow").output.count(cure) == 2
    other = start_worker(FLOWS, "--exclude-steps", "work")
    says(operator, "why Slow", "for this type, though some have the workflow")
    other.end()


def test_why_says_that_another_worker_will_take_over_what_a_paused_one_holds(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    paused = start_worker(FLOWS, "--lease", "5m")
    started(server, "Slow")
    says(operator, "why Slow", "2 of its slots are taken", f":{paused.pid}:")
    start_worker(FLOWS)
    (name,) = (
        row["worker"]
        for row in rows_of(operator("workers --json"))
        if f":{paused.pid}:" in row["worker"]
    )
    with redis.Redis(port=server.port) as raw:
        paused.process.send_signal(signal.SIGSTOP)
        # The last sign of life was four minutes ago: it has one left.
        raw.zadd("{default:0}:leases", {name: int(time.time() * 1000) + 60_000})
    says(
        operator,
        "why Slow",
        "which has given no sign of life for 4m",
        ": another worker that serves the step takes it over when the lease of that one has run out",
    )


def test_why_names_the_runs_that_have_the_places_over_all_runs(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    worker = start_worker(FLOWS)
    started(server, "Narrow", "Narrow-2", "Narrow-3")
    says(
        operator,
        "why Narrow-3",
        "1 event waits: step squeeze has max_concurrency=1 over all runs, and this run has place 2 in its "
        "queue. The places are taken by Narrow (for ",
        f":{worker.pid}:",
        "): `stepfleet why Narrow`.",
    )
    worker.process.send_signal(signal.SIGSTOP)
    says(operator, "why Narrow-3", "which has given no sign of life for ")


def test_a_run_that_waits_for_its_turn_is_queued_and_why_names_the_one_before_it(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    start_worker(FLOWS)
    started(server, "Lonely", "Lonely-2", "Lonely-3")
    assert operator("why Lonely-3").output == (
        "The run waits for its turn: workflow Lonely has num_concurrent_runs=1, and this run has place 2 in "
        "the queue. It goes on when one of these ends: Lonely (`stepfleet why Lonely`).\n"
    )
    queued = rows_of(operator("runs list --status queued --json"))
    assert [(row["run"], row["status"]) for row in queued] == [
        ("Lonely-2", "queued"),
        ("Lonely-3", "queued"),
    ]
    running = rows_of(operator("runs list --status running --json"))
    assert [row["run"] for row in running] == ["Lonely"]


def test_why_names_the_event_that_a_step_takes_from_outside(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    start_worker(FLOWS)
    started(server, "Asking")
    says(
        operator,
        "why Asking",
        "Nothing of the run is pending",
        "Its steps accept HumanResponseEvent (step take).",
    )


def test_why_names_an_event_that_the_live_workers_have_no_code_for(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    worker = start_worker(FLOWS, "--exclude-steps", "work")
    started(server, "Slow")
    says(operator, "why Slow", "2 Item for step work wait")
    worker.process.send_signal(signal.SIGKILL)
    about = {"workflows": {"Slow": "newer"}, "streams": {"Slow": ["Renamed:work"]}}
    with redis.Redis(port=server.port) as raw:
        raw.delete("{default:0}:workers", "{default:0}:leases")
        raw.hset("{default:0}:workers", "newer:1:a", msgpack.packb(about))
        raw.zadd("{default:0}:leases", {"newer:1:a": 2e12})
    says(operator, "why Slow", "no live worker serves step work of workflow Slow for this type")


def test_names_that_are_no_text_end_no_command(server: RedisServer, operator: Operator) -> None:
    strange = b"\x93\xff"
    with redis.Redis(port=server.port) as raw:
        raw.hset("{default:0}:workers", strange, strange)
        raw.zadd("{default:0}:leases", {strange: 5, b"ever": float("inf"), b"never": float("-inf")})
        raw.hset("{default:0}:workers", "ever", b"")
        raw.hset("{default:0}:workers", "never", b"")
        raw.zadd("{default:0}:live", {strange: 5})
        raw.xadd("{default:0}:dead", {strange: strange, "run": strange})
        raw.xadd(b"{default:0}:s:" + strange, {"r": strange})
    for line in ("workers", "queues --all", "runs list", "dead list", "doctor"):
        failure = operator(line).exception
        assert failure is None or isinstance(failure, SystemExit), line


def test_why_names_what_a_worker_handed_back_as_waiting(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    worker = start_worker(FLOWS)
    started(server, "Slow")
    says(operator, "why Slow", "has been running for", f":{worker.pid}:")
    worker.process.send_signal(signal.SIGTERM)
    worker.process.send_signal(signal.SIGINT)
    worker.code()
    says(operator, "why Slow", "2 Item for step work wait: no live worker serves step work")
    assert "returned" not in operator("why Slow").output


def test_why_says_what_a_join_lacks_when_a_branch_returned_none(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    start_worker(FLOWS)
    started(server, "Joining")
    says(
        operator,
        "why Joining",
        "Step join has collected 2 Done of 3, and lacks 1 Done. Nothing that is pending can bring it",
        "returned None",
    )


def test_why_says_what_a_step_lacks_that_joins_events_of_several_types(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    start_worker(FLOWS)
    started(server, "Pairing")
    says(
        operator,
        "why Pairing",
        "Step join has collected 1 Done of 2, and lacks 1 Proof. Nothing that is pending can bring it",
    )
    assert "Nothing of the run is pending" not in operator("why Pairing").output


def test_why_says_what_the_list_of_a_step_has_brought_and_what_is_pending_of_it(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    start_worker(FLOWS)
    started(server, "Listing")
    says(
        operator,
        "why Listing",
        "Step join waits until the list that step spread has returned is done: it has 2 events, and",
        "1 event is not.",
    )


def test_why_names_the_event_that_a_human_owes(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    start_worker(FLOWS)
    started(server, "Human")
    says(
        operator,
        "why Human",
        "Step ask waits for an event of type HumanResponseEvent (waiter approval), for 59m",
    )


def test_why_names_the_run_that_a_step_waits_for(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    start_worker(FLOWS)
    started(server, "Parent")
    says(
        operator,
        "why Parent",
        "Step delegate has been running for",
        "A run that its steps started goes on: Parent~",
    )
    sentences = rows_of(operator("why Parent --json"))
    (child,) = (row["text"] for row in sentences if row["kind"] == "child")
    says(operator, child.split("`")[1].removeprefix("stepfleet "), "Step ask waits for an event")


def test_why_names_a_back_off_and_its_attempt(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    start_worker(FLOWS)
    started(server, "Failing")
    says(
        operator,
        "why Failing",
        "Step fall waits 9m",
        "for its next attempt (attempt 2); the last one failed with ValueError: the floor is wet.\n",
    )


def test_why_names_the_dead_letter_of_a_poison_event_which_can_be_shown_and_requeued(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    start_worker(FLOWS)  # takes over what the dead leave, and serves another workflow
    started_by_hand = [start_worker("tests.support.operated:DEADLY") for _ in range(3)]

    async def poisoned() -> None:
        async with Client(server.url) as client, asyncio.timeout(PATIENCE):
            with pytest.raises(DeadLettered):
                await (await client.start("Deadly", run_id="deadly"))

    # Each of the three dies of it; the fourth finds that it was lost three times.
    with ThreadPoolExecutor(max_workers=1) as thread:
        end = thread.submit(lambda: asyncio.run(poisoned()))
        for worker in started_by_hand:
            assert worker.code() == 137
        fourth = start_worker("tests.support.operated:DEADLY")
        end.result(PATIENCE)
    fourth.end()
    says(
        operator,
        "why deadly",
        "it has failed in step kill with DeadLettered: ",
        "is a dead letter",
        "died 3 times",
        "`stepfleet dead requeue ",
    )
    (letter,) = rows_of(operator("dead list --json"))
    assert (letter["run"], letter["workflow"], letter["step"]) == ("deadly", "Deadly", "kill")
    says(
        operator,
        f"dead show {letter['id']}",
        "StartEvent",
        "event fields",
        "its worker died 3 times",
    )
    assert "lost          3\n" in operator(f"dead show {letter['id']}").output
    goes_on = f"{letter['id']}: deadly goes on as deadly~1\n"
    assert operator(f"dead requeue {letter['id']} -y").output == goes_on
    assert isinstance(operator(f"dead requeue {letter['id']} -y").exception, RunNotFound)
    assert operator("dead list --json").output == ""
    start_worker("tests.support.operated:DEADLY", MENDED=1)
    assert ended(server, "deadly~1") == "mended"
    says(operator, "runs show deadly", "deadly~1")
    says(operator, "why deadly", "It goes on as deadly~1: `stepfleet why deadly~1`.")


def test_a_dead_letter_can_be_dropped_and_one_that_nobody_can_read_is_shown(
    server: RedisServer, operator: Operator
) -> None:
    with redis.Redis(port=server.port, decode_responses=True) as raw:
        fields: Any = {"run": "r", "label": "E:s", "reason": "torn", "record": b"\xc1"}
        letter = raw.xadd("{default:0}:dead", fields)
    says(operator, f"dead show {letter}", "torn", "event is unreadable  a delivery is not readable")
    assert operator(f"dead drop {letter} -y").output == f"{letter}: deleted\n"
    assert operator("dead list --json").output == ""
    assert isinstance(operator(f"dead drop {letter} -y").exception, RunNotFound)


def test_why_says_of_an_ended_run_how_it_ended(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    start_worker(FLOWS)
    started(server, "Quick")
    assert ended(server, "Quick") == "quick"
    assert operator("why Quick").output == "The run waits for nothing: it has completed.\n"


# -- runs --------------------------------------------------------------------------------------------


def test_runs_are_listed_shown_followed_cancelled_and_deleted(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    start_worker(FLOWS)
    started(server, "Quick", "Human")
    assert ended(server, "Quick") == "quick"
    by_id = {row["run"]: row for row in rows_of(operator("runs list --json"))}
    assert all(row["took_ms"] >= 0 for row in by_id.values())
    assert {name: row["status"] for name, row in by_id.items()} == {
        "Quick": "completed",
        "Human": "running",
    }
    assert [row["run"] for row in rows_of(operator("runs list --status running --json"))] == [
        "Human"
    ]
    assert operator("runs list --workflow Other").stderr == "no such run is recorded\n"
    says(operator, "runs show Quick", "workflow       Quick", "status         completed")
    events = rows_of(operator("runs events Quick --follow --json"))
    assert [(row["seq"], row["type"]) for row in events] == [(1, "Done"), (2, "StopEvent")]
    assert events[0]["fields"] == {"n": 1}
    refused = operator("runs delete Human -y")
    assert (refused.return_value, refused.stderr) == (
        CRASHED,
        "Human: is running: `stepfleet runs cancel Human` first\n",
    )
    assert operator("runs cancel Human -y").output == "Human: cancelled\n"
    assert operator("runs cancel Human -y").output == "Human: has already ended (cancelled)\n"
    says(operator, "why Human", "`stepfleet runs resume Human` goes on from what was pending.")
    again = rows_of(operator("runs cancel Human -y --json"))
    assert again == [{"run": "Human", "done": False, "status": "cancelled"}]
    with redis.Redis(port=server.port) as raw:
        assert operator("runs delete Human -y").output == "Human: deleted\n"
        deleted = rows_of(operator("runs delete Quick -y --json"))
        assert deleted == [{"run": "Quick", "done": True, "status": "completed"}]
        assert list(raw.scan_iter("*:run:*")) == []
    assert operator("runs list --json").output == ""


def test_a_list_that_was_cut_says_so(server: RedisServer, operator: Operator) -> None:
    with redis.Redis(port=server.port) as raw:
        for n in range(3):
            raw.xadd("{default:0}:dead", {"run": f"r{n}"})
            raw.hset(f"{{default:0}}:run:r{n}", mapping={"status": "running", "workflow": "Flow"})
            raw.zadd("{default:0}:live", {f"r{n}": n})
    for line in ("runs list", "dead list"):
        cut, whole = operator(f"{line} --limit 2 --json"), operator(f"{line} --limit 3 --json")
        assert cut.stdout.count("\n") == 2
        assert cut.stderr == "There are more than these 2: --limit shows them.\n"
        assert (whole.stdout.count("\n"), whole.stderr) == (3, "")


def test_destructive_commands_ask_and_do_nothing_without_an_answer(
    server: RedisServer, start_worker: Start, tmp_path: Path
) -> None:
    start_worker(FLOWS)
    started(server, "Human")
    refused = Program(
        OPERATOR, "runs", "cancel", "Human", folder=tmp_path, STEPFLEET_REDIS_URL=server.url
    )
    assert refused.code() == 2
    assert "Cancel Human, a run of Human? Nobody is here to ask: say -y" in refused.err
    shown = Program(
        OPERATOR, "runs", "show", "Human", folder=tmp_path, STEPFLEET_REDIS_URL=server.url
    )
    assert shown.code() == OK
    assert "running" in shown.out


def test_a_run_that_is_not_there_and_a_redis_that_is_away_are_one_line_on_stderr(
    server: RedisServer, tmp_path: Path
) -> None:
    asked = Program(OPERATOR, "why", "nobody", folder=tmp_path, STEPFLEET_REDIS_URL=server.url)
    assert asked.code() == CRASHED
    assert asked.err == (
        "stepfleet: no run 'nobody' is recorded in namespace default: it was never started here, or its "
        "retention has passed\n"
    )
    away = f"redis://:geheim@127.0.0.1:{free_port()}"
    unheard = Program(OPERATOR, "runs", "list", folder=tmp_path, STEPFLEET_REDIS_URL=away)
    assert unheard.code() == UNAVAILABLE
    assert unheard.err.count("\n") == 1
    assert "geheim" not in unheard.err
    assert (
        "start that server, or name another one by --redis-url or STEPFLEET_REDIS_URL"
        in unheard.err
    )


def test_a_disk_without_room_for_the_output_is_one_line_on_stderr() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", OPERATOR, "version"],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == CRASHED
    assert done.stderr == b"stepfleet: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_standard_stream_that_is_closed_ends_no_command(server: RedisServer, closed: str) -> None:
    line = f"{sys.executable} -m {OPERATOR} dead list --redis-url {server.url} {closed}"
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, timeout=PATIENCE, check=False, text=True
    )
    assert (done.returncode, done.stdout) == (OK, "")
    assert done.stderr in ("", "there are no dead letters\n")


def test_a_reader_that_has_read_enough_ends_a_command_quietly(server: RedisServer) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(
            [sys.executable, "-m", OPERATOR, "doctor", "--redis-url", server.url],
            stdout=writes,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (CRASHED, b"")


@pytest.mark.parametrize(
    "line",
    [f"runs {name}" for name in ("show", "events", "cancel -y", "resume", "delete -y")] + ["why"],
)
def test_what_can_be_no_id_of_a_run_is_said(operator: Operator, line: str) -> None:
    failure = operator(f"{line} no-id!").exception

    assert isinstance(failure, RunNotFound)
    assert "'no-id!'" in str(failure)


def test_what_can_be_no_id_of_a_dead_letter_is_said(operator: Operator) -> None:
    failure = operator("dead show no-id").exception

    assert isinstance(failure, RunNotFound)
    assert str(failure).startswith("'no-id' is no id of a dead letter: `stepfleet dead list`")


def test_a_damaged_run_is_said_with_its_cure(server: RedisServer, operator: Operator) -> None:
    cure = "`stepfleet doctor` names what is wrong, `stepfleet runs delete bad` removes the run"
    with redis.Redis(port=server.port) as raw:
        raw.set("{default:0}:run:bad", "x")
        raw.zadd("{default:0}:live", {"bad": 1})
        assert [row["run"] for row in rows_of(operator("runs list --status damaged --json"))] == [
            "bad"
        ]
        said = f"The record of the run cannot be read: {cure}.\n"
        assert operator("why bad").output == said
        raw.delete("{default:0}:run:bad")
        raw.hset("{default:0}:run:bad", mapping={"status": "running", "workflow": "Quick"})
        raw.set("{default:0}:run:bad:open", "x")
    failure = operator("why bad").exception
    assert isinstance(failure, DecodeError)
    assert str(failure).startswith("a key has a wrong type: `stepfleet doctor` names what is dam")
    with redis.Redis(port=server.port) as raw:
        raw.hset("{default:0}:run:bad2", mapping={"status": "running", "workflow": "Quick"})
        raw.hset("{default:0}:run:bad2:open", "d", "x")
    assert operator("runs delete bad2 -y").return_value == CRASHED
    assert operator("runs delete bad -y").output == "bad: deleted\n"
    with redis.Redis(port=server.port) as raw:
        assert sorted(raw.scan_iter("*:run:*")) == [
            b"{default:0}:run:bad2",
            b"{default:0}:run:bad2:open",
        ]


def test_a_wrong_password_is_one_error_of_the_doctor(
    server: RedisServer, operator: Operator
) -> None:
    url = f"redis://nobody:hush@127.0.0.1:{server.port}"
    result = operator(f"doctor --redis-url {url}")
    assert result.output == ""
    assert isinstance(result.exception, StoreRefused)
    assert "refuses: invalid username-password pair" in str(result.exception)


# -- the fleet ---------------------------------------------------------------------------------------


def test_queues_tell_what_waits_what_runs_and_whether_somebody_serves_it(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    start_worker(FLOWS)
    started(server, "Slow")

    def row() -> dict[str, Any]:
        rows = rows_of(operator("queues --json"))
        return next((row for row in rows if row["step"] == "work"), {})

    wait_until(lambda: row().get("in_flight") == 2, PATIENCE)
    assert row() | {"oldest_ms": 0} == {
        "workflow": "Slow",
        "event": "Item",
        "step": "work",
        "backlog": 0,
        "in_flight": 2,
        "queued": 0,
        "oldest_ms": 0,
        "served": True,
    }
    assert row()["oldest_ms"] > 0


def test_queues_tell_how_many_runs_wait_for_a_place_of_a_step(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    start_worker(FLOWS)
    started(server, "Narrow", "Narrow-2", "Narrow-3", "Slow")

    def queued() -> dict[str, int]:
        return {row["step"]: row["queued"] for row in rows_of(operator("queues --json"))}

    wait_until(lambda: queued() == {"squeeze": 2, "work": 0}, PATIENCE)


def test_the_doctor_finds_an_orphan_a_wrong_type_and_a_step_that_nobody_serves(
    server: RedisServer, start_worker: Start, operator: Operator
) -> None:
    healthy = operator("doctor --json")
    assert healthy.return_value == OK
    assert {row["level"] for row in rows_of(healthy)} <= {"ok", "warning"}
    worker = start_worker(FLOWS)
    started(server, "Slow")
    says(operator, "queues", "Item")
    worker.end()
    with redis.Redis(port=server.port) as raw:
        raw.hset("{default:0}:run:gone:store", "k", "v")
        raw.set("{default:0}:s:Other:Event:step", "no stream")
    says(operator, "doctor", "for Slow.work, which no live worker serves")
    ill = operator("doctor --json")
    assert ill.return_value == CRASHED
    errors = {row["about"]: row for row in rows_of(ill) if row["level"] == "error"}
    assert errors.keys() == {"queues", "keys"}
    assert all(row["cure"] for row in errors.values())
    assert "{default:0}:run:gone:store" in ill.output
    assert "{default:0}:s:Other:Event:step" in ill.output


@pytest.mark.parametrize(
    "line",
    [name for name in commands.commands if name not in ("dev", "k8s", "runs", "dead")]
    + [f"runs {name}" for name in ("list", "show", "events", "cancel", "resume", "delete")]
    + [f"dead {name}" for name in ("list", "show", "requeue", "drop")],
)
def test_every_command_has_json_and_what_changes_can_be_watched(line: str) -> None:
    shown = CliRunner().invoke(commands, [*line.split(), "--help"]).output

    assert "--json" in shown
    by_itself = {"runs list", "runs show", "workers", "queues", "why", "dead list", "doctor"}
    assert ("--watch" in shown) == (line in by_itself)
    asks = {"runs cancel", "runs delete", "dead requeue", "dead drop"}
    assert ("--yes" in shown) == (line in asks)


def test_watch_shows_again_and_again(server: RedisServer, tmp_path: Path) -> None:
    watching = Program(
        OPERATOR,
        *("queues", "--all", "--json", "--watch", "0.2"),
        folder=tmp_path,
        STEPFLEET_REDIS_URL=server.url,
        PYTHONUNBUFFERED=1,
    )
    with redis.Redis(port=server.port) as raw:
        raw.xadd("{default:0}:s:Some:Event:step", {"a": "b"})
        wait_until(lambda: watching.out.count("Some") >= 3, PATIENCE)
    watching.press_ctrl_c()
    assert watching.code() == 130


# -- rights ------------------------------------------------------------------------------------------


def test_a_worker_and_a_producer_get_by_with_the_rights_of_their_roles(
    server: RedisServer, start_worker: Start, tmp_path: Path
) -> None:
    with redis.Redis(port=server.port) as raw:
        for role in ROLES:
            assert raw.execute_command(*user(role, "default", password="word").split()) == b"OK"
        raw.execute_command("ACL", "SETUSER", "default", "off")
    address = f"127.0.0.1:{server.port}"
    worker = Program(
        WORKER,
        FLOWS,
        folder=tmp_path,
        STEPFLEET_REDIS_URL=f"redis://stepfleet-worker:word@{address}",
    )
    try:
        wait_until(lambda: "worker is ready" in worker.out, PATIENCE)
        assert "NOPERM" not in worker.out

        async def main() -> Any:
            async with Client(f"redis://stepfleet-producer:word@{address}") as client:
                return await (await client.start("Quick", run_id="quick"))

        assert asyncio.run(main()) == "quick"
        viewer = f"redis://stepfleet-viewer:word@{address}"
        runner = CliRunner()
        for line in ("runs list", "workers", "queues", "why quick", "runs show quick", "dead list"):
            shown = runner.invoke(commands, [*line.split(), "--redis-url", viewer])
            assert shown.exit_code == OK, (line, shown.output, shown.exception)
        with redis.Redis.from_url(viewer) as raw, pytest.raises(NoPermissionError):
            raw.delete("{default:0}:run:quick")
        with redis.Redis.from_url(viewer) as raw, pytest.raises(NoPermissionError):
            raw.hgetall("{other:0}:run:quick")
        operating = f"redis://stepfleet-operator:word@{address}"
        line = ["runs", "delete", "quick", "-y", "--redis-url", operating]
        assert runner.invoke(commands, line).output == "quick: deleted\n"
    finally:
        worker.end()
