"""`workflow-worker` as a process: exit codes, messages, signals, drain, health."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from stepfleet import Client
from stepfleet.cli import serving
from stepfleet.cli.exits import run_program
from stepfleet.cli.probe import judge
from stepfleet.cli.worker import PROGRAM, command
from stepfleet.clock import Clock
from stepfleet.embedded.memory import memory_fleet
from stepfleet.worker.worker import STUCK, Worker
from tests.support.fleet import LEDGER, Ledger
from tests.support.flows import FanOut, Sleep, Spin
from tests.support.programs import PATIENCE, WORKER, Program
from tests.support.servers import RedisServer, available_binaries, free_port
from tests.support.wait import eventually, wait_until

BINARY = next(iter(available_binaries().values()))
READY = "worker is ready"
FLOWS = "tests.support.flows:FLOWS"
#: seconds within which what was handed back runs elsewhere, also on a busy machine: far below ...
AT_ONCE = 60.0
#: ... the lease that others would have to wait for, and the time that a step or a drain would take
LONG = ("--lease", "10m", "--drain-timeout", "10m")
LONG_S = 600.0

PROJECT = """
import asyncio, logging, os, time
from pathlib import Path
from stepfleet import Event, StartEvent, StopEvent, Workflow, step

class Stubborn(Workflow):
    '''Blocks a thread for long, the first time that it runs.'''
    @step
    def think(self, ev: StartEvent) -> StopEvent:
        marker = Path("thought")
        if marker.exists():
            return StopEvent(result="thought")
        marker.touch()
        time.sleep(600)
        return StopEvent(result="late")

class Told(Event):
    pass

class Failing(Workflow):
    @step
    async def fall(self, ev: StartEvent) -> StopEvent:
        raise ValueError("the floor is wet")

class Unused(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> None:
        return None

class Telling(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Told:
        logging.getLogger("shop").info("in the step")
        await asyncio.create_task(self.more())
        return Told()

    async def more(self) -> None:
        logging.getLogger("shop").warning("in a task", extra={"size": 3})

    @step
    def finish(self, ev: Told) -> StopEvent:
        logging.getLogger("shop").info("in a thread")
        return StopEvent()

number = 7
"""

Run = Callable[..., Program]
#: From arguments to exit code, stdout and stderr.
Says = Callable[[str], tuple[object, str, str]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(BINARY, tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Servers of one test, for what cannot be shared."""
    servers: list[RedisServer] = []

    def make(*options: str, port: int | None = None) -> RedisServer:
        folder = tmp_path / f"redis-{len(servers)}"
        servers.append(RedisServer(BINARY, folder, port=port, options=options))
        return servers[-1]

    yield make
    for server in servers:
        server.kill()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def namespace(tmp_path: Path) -> str:
    return re.sub("[^A-Za-z0-9_.-]", "-", tmp_path.name)[-60:]


@pytest.fixture
def run(tmp_path: Path, ledger: Ledger, namespace: str) -> Iterator[Run]:
    """Starts `workflow-worker` in a folder with a project of its own."""
    (tmp_path / "project.py").write_text(PROJECT)
    programs: list[Program] = []

    def start(*arguments: object, **settings: object) -> Program:
        own = {LEDGER: ledger.path, "STEPFLEET_NAMESPACE": namespace}
        program = Program(WORKER, *arguments, folder=tmp_path, **(own | settings))
        programs.append(program)
        return program

    yield start
    for program in programs:
        program.end()


@pytest.fixture
def says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Says:
    """Gives `workflow-worker` arguments that it refuses; returns its exit code, stdout and stderr.

    In this process: there is no worker yet when it refuses, and a process takes most of a second.
    """
    (tmp_path / "project.py").write_text(PROJECT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [os.fspath(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "project", raising=False)
    monkeypatch.setattr("stepfleet.cli.worker.configure_logging", lambda *_: None)

    def said(arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", [PROGRAM, *arguments.split()])
        with pytest.raises(SystemExit) as end:
            run_program(PROGRAM, command)
        out, err = capsys.readouterr()
        return end.value.code, out, err

    return said


@pytest.fixture
def worker(run: Run, server: RedisServer) -> Run:
    """Starts a worker on the shared server and waits until it reads."""

    def start(*arguments: object, **settings: object) -> Program:
        program = run(*arguments, "--redis-url", server.url, **settings)
        program.says(READY)
        return program

    return start


@pytest.fixture
def client(server: RedisServer, namespace: str) -> Client:
    return Client(server.url, namespace=namespace)


def look(server: RedisServer, **options: Any) -> Any:
    return cast(Any, redis.Redis)(port=server.port, **options)


async def runs_now(ledger: Ledger, count: int = 1) -> None:
    await eventually(lambda: len(ledger.lines("start")) >= count, PATIENCE)


# -- what is wrong is said in one line ------------------------------------------------------------


NOWHERE = "redis://127.0.0.1:1"
NO_SERVER = (
    "no Redis URL is given. Give one of: the argument --redis-url redis://host:6379/0; "
    "STEPFLEET_REDIS_URL or REDIS_URL in the environment; redis_url in [tool.stepfleet] of "
    "pyproject.toml; or start a server for this folder with `stepfleet dev`"
)
NOT_A_WORKFLOW = (
    "target project:number is a int: a target is a Workflow class, an instance, a "
    "{name: Workflow} mapping, or a function without arguments that returns one of these"
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("project:Failing", NO_SERVER),
        (
            "projekt:Failing",
            "target projekt:Failing: there is no module projekt; did you mean project?",
        ),
        ("project:Faling", "module project has no Faling; did you mean project:Failing?"),
        ("project:number", NOT_A_WORKFLOW),
        (
            "project:Failing --redis-url memory://",
            "memory:// lives inside one process, so no worker can share it. Without a Redis "
            "server, use --embedded",
        ),
        (
            "project:Failing --redis-url http://u:hush@host",
            "redis_url = http://u:***@host from the argument: the URL starts with redis://, "
            "rediss://, redis+sentinel://, unix:// or memory://",
        ),
        (
            "project",
            "target project names a module but no object in it. Workflows in project: Stubborn, "
            "Failing, Unused, Telling. Say project:Stubborn",
        ),
        (
            "project:Failing --redis-url redis://u:hush@host:abc",
            "redis_url = redis://u:***@host:abc from the argument: the port or host cannot be read "
            "(escape / ? # @ in a password)",
        ),
        (
            "project:Failing --redis-url redis://u:hush@host/first",
            "redis_url = redis://u:***@host/first from the argument: the database behind the / is a "
            "number",
        ),
        (
            "project:Failing --concurrency 1000000000",
            "concurrency = 1000000000 from the argument: allowed is 1 to 10,000",
        ),
        (
            "project:Failing --concurrency abc",
            "concurrency = abc from the argument: allowed is 1 to 10,000",
        ),
        (
            "project:Failing --concurrency 0",
            "concurrency = 0 from the argument: allowed is 1 to 10,000",
        ),
        (
            "project:Failing --log-format xml",
            "log_format = xml from the argument: allowed is `auto`, `console`, `json`",
        ),
        (
            "project:Stubborn --steps think,thnk",
            "--steps thnk: there is no such step; did you mean think? The steps are think",
        ),
        (
            "project:Failing --exclude-steps zzz",
            "--exclude-steps zzz: there is no such step. The steps are fall",
        ),
        ("project:Failing --steps ,", "--steps names no step"),
        (
            "project:Failing --exclude-steps fall",
            "--steps and --exclude-steps leave no step to run",
        ),
    ],
)
def test_a_wrong_setting_or_target_is_one_line_and_exit_3(
    says: Says, arguments: str, message: str
) -> None:
    assert says(arguments) == (3, "", f"workflow-worker: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "",
            "no TARGET is given. Say module:object, such as app.flows:OrderFlow, or list them in "
            "pyproject.toml under [tool.stepfleet.workflows]",
        ),
        ("--embeded", "No such option '--embeded'. Did you mean '--embedded'?"),
        (
            f"project:Failing --embedded --redis-url {NOWHERE}",
            "--embedded and --redis-url exclude each other",
        ),
    ],
)
def test_wrong_usage_shows_the_usage_and_exits_2(says: Says, arguments: str, message: str) -> None:
    code, _, err = says(arguments)

    assert code == 2
    usage, help_line, _, error = err.splitlines()
    assert usage == "Usage: workflow-worker [OPTIONS] TARGET..."
    assert help_line == "Try 'workflow-worker --help' for help."
    assert error == f"Error: {message}"


def test_an_import_that_raises_shows_the_user_s_traceback_only(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("URL = 'redis://u:hush@host'\nraise OSError(URL)\n")

    program = run("broken:Flow")

    assert program.code() == 3
    assert program.err.splitlines() == [
        "workflow-worker: target broken:Flow: the import raised",
        "Traceback (most recent call last):",
        f'  File "{tmp_path}/broken.py", line 2, in <module>',
        "    raise OSError(URL)",
        "OSError: redis://u:***@host",
    ]


def test_a_workflow_that_cannot_work_exits_3_with_its_reason(run: Run) -> None:
    program = run("project:Unused", "--redis-url", NOWHERE)

    assert program.code() == 3
    assert program.err == (
        "workflow-worker: At least one Event of type StopEvent must be returned by any step. "
        "(Workflow 'Unused' has no @step that returns StopEvent.)\n"
    )


def test_an_unknown_setting_says_what_was_meant(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text("[tool.stepfleet]\nconcurency = 3\n")
    program = run("project:Failing", "--redis-url", NOWHERE)

    assert program.code() == 3
    assert program.err == (
        f"workflow-worker: unknown key of [tool.stepfleet] in {path} concurency: did you mean "
        "concurrency?\n"
    )


def test_the_version_is_one_line(run: Run) -> None:
    program = run("--version")

    assert program.code() == 0
    assert re.fullmatch(r"workflow-worker \d+\.\d+\.\d+\n", program.out)


# -- the server -----------------------------------------------------------------------------------


def test_a_server_that_stays_away_exits_69_after_the_connect_timeout(run: Run) -> None:
    url = f"redis://u:hush@127.0.0.1:{free_port()}"

    program = run("project:Failing", "--redis-url", url, STEPFLEET_CONNECT_TIMEOUT="2s")

    assert program.code() == 69
    shown = url.replace("hush", "***")
    assert program.err.startswith(f"workflow-worker: Redis at {shown} does not answer: Error 111 ")
    assert program.err.endswith(
        " (tried for 2 s): start that server, or name another one by --redis-url or STEPFLEET_REDIS_URL; "
        "`stepfleet dev` runs one for a folder\n"
    )
    assert program.err.count("\n") == 1
    assert "hush" not in program.out + program.err


async def test_a_server_that_comes_late_is_waited_for(
    run: Run, own_server: Callable[..., RedisServer], namespace: str
) -> None:
    server = own_server(port=free_port())
    program = run(FLOWS, "--redis-url", server.url)
    program.says("does not answer")
    program.says("waiting for up to 10 s")

    server.start()
    program.says(READY)

    async with Client(server.url, namespace=namespace) as client:
        assert await (await client.start(Sleep, seconds=0)) == program.pid


def test_a_wrong_password_is_not_an_outage(
    run: Run, own_server: Callable[..., RedisServer]
) -> None:
    server = own_server()
    server.start()
    look(server).config_set("requirepass", "right")
    url = f"redis://:hush@127.0.0.1:{server.port}"

    program = run("project:Failing", "--redis-url", url)

    assert program.code() == 3
    assert program.err == (
        f"workflow-worker: Redis at redis://:***@127.0.0.1:{server.port} refuses: invalid "
        "username-password pair or user is disabled; mend user and password in the URL, and escape the "
        "characters / ? # @ in them\n"
    )


def test_a_server_without_a_log_is_used_with_one_warning(
    run: Run, own_server: Callable[..., RedisServer]
) -> None:
    server = own_server("--appendonly", "no")
    server.start()

    program = run(FLOWS, "--redis-url", server.url, "--burst")

    assert program.code() == 0
    assert program.out.count("appendonly is off") == 1


def test_what_a_server_does_not_tell_is_named(run: Run, server: RedisServer) -> None:
    rights = ("on", ">hush", "~*", "&*", "+@all", "-info")
    look(server).execute_command("ACL", "SETUSER", "shy", *rights)

    program = run("--check", "--redis-url", f"redis://shy:hush@127.0.0.1:{server.port}")

    assert program.code() == 0
    assert "warning   version, maxmemory-policy and appendonly could not be checked" in program.out
    assert "hush" not in program.out


FINE = {
    "redis_version": "6.2.0",
    "maxmemory": "100",
    "maxmemory_policy": "noeviction",
    "aof_enabled": "1",
}


def test_the_oldest_supported_server_is_fine() -> None:
    server = judge(FINE, url="redis://h")

    assert (server.product, server.warnings) == ("Redis 6.2.0", ())


def test_a_valkey_is_called_by_its_own_version() -> None:
    info = FINE | {"redis_version": "7.2.4", "valkey_version": "9.1.2", "server_name": "valkey"}

    assert judge(info, url="redis://h").product == "Valkey 9.1.2"


def test_a_server_without_a_memory_limit_may_have_any_policy() -> None:
    info = FINE | {"maxmemory": "0", "maxmemory_policy": "allkeys-lru"}

    assert judge(info, url="redis://h").warnings == ()


def test_fields_that_a_hosted_server_hides_are_named() -> None:
    server = judge({"redis_version": "7.0.0"}, url="redis://h")

    assert server.warnings == (
        "maxmemory-policy, appendonly could not be checked: INFO does not show it",
    )


# -- stopping -------------------------------------------------------------------------------------


async def test_sigterm_lets_a_slow_step_finish(worker: Run, client: Client, ledger: Ledger) -> None:
    program = worker(FLOWS, "--log-format", "console")
    async with client:
        handler = await client.start(Sleep, seconds=4.0)
        await runs_now(ledger)
        program.send()
        program.says("draining")
        other = worker(FLOWS)

        assert await handler == program.pid
    assert program.code() == 0
    assert [execution.pid for execution in ledger.executions("sleep")] == [program.pid]
    assert other.pid != program.pid
    assert "SIGTERM: draining, a second signal hands back what still runs" in program.out
    waits_for = rf"draining: up to \d+ s for sleep \(run {handler.run_id}, \d+ s\)"
    assert re.search(waits_for, program.out)


async def test_beyond_the_drain_limit_another_worker_goes_on_at_once(
    worker: Run, client: Client, tmp_path: Path
) -> None:
    program = worker("project:Stubborn", *LONG, "--drain-timeout", "300ms")
    async with client:
        handler = await client.start("Stubborn")
        wait_until((tmp_path / "thought").exists, PATIENCE)
        other = worker("project:Stubborn", *LONG)
        program.send()

        async with asyncio.timeout(AT_ONCE):
            assert await handler == "thought"
    assert program.code() == 75
    assert "handed back: count=1" in program.out
    assert "took over deliveries of other workers: count=1" in other.out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_a_second_signal_hands_back_at_once(
    worker: Run, client: Client, ledger: Ledger, number: int, code: int
) -> None:
    program = worker(FLOWS, *LONG)
    async with client:
        await client.start(Sleep, seconds=LONG_S)
        await runs_now(ledger)
        program.send(number)
        program.says("draining: up to")
        program.send(number)

        assert program.code(AT_ONCE) == code
    assert "handed back: count=1" in program.out


async def test_a_signal_to_a_worker_that_has_ended_changes_nothing(worker: Run) -> None:
    program = worker(FLOWS)
    program.send()
    while "ended: exit_code=0" not in program.out:
        assert program.process.poll() is None
    while program.process.poll() is None:
        program.send()
    assert program.code() == 0


async def test_a_third_signal_waits_for_nothing(
    run: Run, own_server: Callable[..., RedisServer], ledger: Ledger, namespace: str
) -> None:
    server = own_server()
    server.start()
    program = run(FLOWS, *LONG, "--redis-url", server.url)
    program.says(READY)
    async with Client(server.url, namespace=namespace) as client:
        await client.start(Sleep, seconds=LONG_S)
        await runs_now(ledger)
    os.kill(server.pid, signal.SIGSTOP)  # so that handing back takes its time
    for line in ("draining: up to", "SIGTERM again", "third time"):
        program.send()
        program.says(line)

    assert program.code() == 143
    assert "handed back" not in program.out
    assert "third time" in program.out.splitlines()[-1]  # else it would say how it ended


def test_sigterm_while_waiting_for_redis_leaves(run: Run) -> None:
    program = run("project:Failing", "--redis-url", f"redis://127.0.0.1:{free_port()}")
    program.says("does not answer")
    program.send()

    assert program.code(AT_ONCE) == 0


def test_sigterm_while_importing_leaves(run: Run, tmp_path: Path) -> None:
    slow = "import time\nprint('importing', flush=True)\ntime.sleep(600)\n"
    (tmp_path / "slow.py").write_text(slow)
    program = run("slow:Flow")
    program.says("importing")
    program.send()

    assert program.code(AT_ONCE) == 0


def test_a_defect_of_the_worker_exits_1_with_its_traceback(
    run: Run, server: RedisServer, tmp_path: Path
) -> None:
    (tmp_path / "sabotage.py").write_text(
        "from project import Failing\n"
        "from stepfleet.worker.timers import Timers\n"
        "Timers.fire = None\n"
    )
    program = run("sabotage:Failing", "--redis-url", server.url)

    assert program.code() == 1
    assert "a loop of the worker ended: loop=stepfleet-timers" in program.out
    assert "TypeError" in program.out


# -- what runs ------------------------------------------------------------------------------------


async def test_burst_works_until_nothing_is_left(
    run: Run, server: RedisServer, client: Client
) -> None:
    async with client:
        handlers = [await client.start(FanOut, width=5) for _ in range(3)]
        program = run(FLOWS, "--burst", "--redis-url", server.url)
        assert program.code() == 0
        results = [await handler for handler in handlers]

    assert [result["numbers"] for result in results] == [[*range(5)]] * 3


async def test_steps_can_be_split_over_two_workers(
    worker: Run, client: Client, ledger: Ledger
) -> None:
    wide = worker(FLOWS, "--steps", "work")
    rest = worker(FLOWS, "--exclude-steps", "work,sleep")
    async with client:
        await (await client.start(FanOut, width=8))

    ran = {(execution.step, execution.pid) for execution in ledger.executions()}
    assert ran == {("split", rest.pid), ("work", wide.pid), ("join", rest.pid)}


async def test_the_targets_of_pyproject_are_served(
    worker: Run, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.stepfleet.workflows]\nthinker = "project:Stubborn"\n'
    )
    (tmp_path / "thought").touch()
    worker()
    async with client:
        assert await (await client.start("thinker")) == "thought"


async def test_log_lines_say_which_run_step_delivery_and_attempt(
    worker: Run, client: Client, tmp_path: Path
) -> None:
    program = worker("project:Failing")
    async with client:
        handler = await client.start("Failing")
        with pytest.raises(ValueError, match="the floor is wet"):
            await handler
    program.send()
    assert program.code() == 0

    lines = [json.loads(line) for line in program.out.splitlines()]
    (failure,) = [line for line in lines if line["msg"].startswith("the step failed")]
    assert failure["msg"] == "the step failed, and the run with it"
    assert (failure["workflow"], failure["run_id"]) == ("Failing", handler.run_id)
    assert (failure["step"], failure["attempt"]) == ("fall", 1)
    assert failure["delivery"]
    assert failure["error.type"] == "ValueError"
    places = [line for line in failure["traceback"].splitlines() if "File" in line]
    assert places == [f'  File "{tmp_path}/project.py", line 23, in fall']


async def test_lines_of_the_step_s_own_loggers_say_whose_they_are(
    worker: Run, client: Client
) -> None:
    program = worker("project:Telling", "--log-format", "json")
    async with client:
        handler = await client.start("Telling")
        await handler
    program.send()
    assert program.code() == 0

    lines = [json.loads(line) for line in program.out.splitlines()]
    told = {line["msg"]: line for line in lines if line["logger"] == "shop"}
    assert {name: line["step"] for name, line in told.items()} == {
        "in the step": "begin",
        "in a task": "begin",
        "in a thread": "finish",
    }
    for line in told.values():
        assert (line["workflow"], line["run_id"]) == ("Telling", handler.run_id)
        assert (line["attempt"], len(line["delivery"])) == (1, 22)
    assert told["in a task"]["size"] == 3
    assert told["in the step"]["delivery"] == told["in a task"]["delivery"]
    assert told["in the step"]["delivery"] != told["in a thread"]["delivery"]


def test_a_password_is_masked_through_an_outage(
    run: Run, own_server: Callable[..., RedisServer]
) -> None:
    server = own_server()
    server.start()
    look(server).execute_command("ACL", "SETUSER", "u", "on", ">hush", "~*", "&*", "+@all")
    url = f"redis://u:hush@127.0.0.1:{server.port}"
    program = run(FLOWS, "--redis-url", url, "--log-level", "debug")
    program.says(READY)
    server.kill()
    program.says("redis is away")
    program.send()

    assert program.code() == 0
    assert "redis://u:***@127.0.0.1" in program.out
    assert "hush" not in program.out + program.err


# -- health ---------------------------------------------------------------------------------------


def test_check_says_what_is_fine(run: Run, server: RedisServer, namespace: str) -> None:
    program = run("project:Failing", "--check", "--redis-url", server.url)

    assert program.code() == 0
    targets, settings, redis_line = program.out.splitlines()
    assert targets == "targets   Failing"
    assert settings == (
        f"settings  namespace {namespace}, concurrency 100, lease 15 s, drain timeout 30 s"
    )
    assert redis_line.startswith("redis     ")
    assert redis_line.endswith(f" at {server.url}")


def test_check_asks_a_server_that_is_away_once(run: Run) -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    program = run("--check", "--redis-url", url)

    assert program.code() == 69
    assert program.err.startswith(f"workflow-worker: Redis at {url} does not answer: ")


@pytest.mark.parametrize(("age", "code"), [(5.0, 0), (31.0, 1)])
def test_check_looks_at_the_age_of_the_health_file(
    run: Run, server: RedisServer, tmp_path: Path, age: float, code: int
) -> None:
    path = tmp_path / "health"
    path.touch()
    touched = path.stat().st_mtime - age
    os.utime(path, (touched, touched))

    program = run("--check", "--redis-url", server.url, "--health-file", path)

    assert program.code() == code
    if code:
        assert re.fullmatch(
            rf"workflow-worker: the health file {path} was last touched 3\d s ago\n", program.err
        )


async def test_the_health_file_is_fresh_while_the_event_loop_turns(
    worker: Run, client: Client, ledger: Ledger, tmp_path: Path
) -> None:
    path = tmp_path / "health"
    program = worker(FLOWS, "--health-file", path)
    wait_until(path.exists, PATIENCE)
    async with client:
        handler = await client.start(Spin, seconds=4.0)
        await runs_now(ledger)
        blocked_at = path.stat().st_mtime
        touched = {blocked_at}
        while not ledger.lines("end"):
            latest = path.stat().st_mtime
            if not ledger.lines("end"):
                touched.add(latest)
            await asyncio.sleep(0.05)
        await handler

    assert touched == {blocked_at}
    await eventually(lambda: path.stat().st_mtime > blocked_at, PATIENCE)
    program.send()
    assert program.code() == 0
    assert not path.exists()


async def test_the_health_file_is_never_there_before_the_worker_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    touch = Path.touch

    def noted(path: Path) -> None:
        made.append(path)
        touch(path)

    monkeypatch.setattr(Path, "touch", noted)
    health = tmp_path / "health"
    touch(health)  # by an earlier process
    ready = asyncio.Event()
    async with serving._health(health, Worker(memory_fleet("slow"), {}), ready):
        assert not health.exists()
        assert health not in made
        ready.set()
        await eventually(health.exists, PATIENCE)
    assert not health.exists()


class Hands(Clock):
    """A clock that stands until it is moved."""

    now = 0.0

    def steady(self) -> float:
        return self.now


async def test_a_worker_whose_reader_is_stuck_is_not_healthy() -> None:
    clock = Hands()
    worker = Worker(replace(memory_fleet("stuck"), clock=clock), {})
    assert worker.healthy()

    clock.now = STUCK - 1
    assert worker.healthy()
    clock.now = STUCK + 1

    assert not worker.healthy()
