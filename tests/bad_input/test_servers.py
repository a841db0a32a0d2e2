"""Servers that a worker cannot use, and places that it cannot write to: one line, a code, nothing begun."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis
import trustme

from stepfleet.cli.doctor import findings
from stepfleet.cli.exits import CONFIG, OK, REACH, UNAVAILABLE
from stepfleet.cli.probe import judge, refused
from stepfleet.connect import fleet_of
from stepfleet.errors import IncompatibleServer, StoreRefused
from stepfleet.settings import Settings
from stepfleet.storage.inspector import Inspector
from tests.support.programs import OPERATOR, PATIENCE, WORKER, Program
from tests.support.servers import RedisServer, SentinelServer, available_binaries, free_port
from tests.support.wait import wait_until

BINARY = next(iter(available_binaries().values()))
FLOW = """
import logging
from stepfleet import StartEvent, StopEvent, Workflow, step

logging.getLogger("shop").warning("bücher → 12 €")


class Flow(Workflow):
    @step
    async def one(self, ev: StartEvent) -> StopEvent:
        return StopEvent()
"""

Serve = Callable[..., RedisServer]
Run = Callable[..., Program]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    servers: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        server = RedisServer(BINARY, tmp_path / f"redis-{len(servers)}", options=options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    (tmp_path / "app.py").write_text(FLOW)
    programs: list[Program] = []

    def start(
        url: str,
        *arguments: object,
        program: str = WORKER,
        stays: bool = False,
        **settings: object,
    ) -> Program:
        of_worker = ("app:Flow",) if stays else ("app:Flow", "--burst")
        words = (*of_worker, *arguments) if program == WORKER else arguments
        programs.append(Program(program, *words, "--redis-url", url, folder=tmp_path, **settings))
        return programs[-1]

    yield start
    for program in programs:
        program.end()


def keys(server: RedisServer, **options: Any) -> int:
    with redis.Redis(port=server.port, **options) as raw:
        return int(raw.dbsize())  # pyright: ignore[reportArgumentType]


# -- TLS ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    own = authority.issue_cert("redis.internal", "127.0.0.1")
    own.private_key_pem.write_to_path(str(folder / "key.pem"))
    own.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    return folder


@pytest.fixture
def tls_port(serve: Serve, certificates: Path) -> int:
    port = free_port()
    serve(
        *("--tls-port", str(port), "--tls-auth-clients", "no"),
        *("--tls-cert-file", str(certificates / "cert.pem")),
        *("--tls-key-file", str(certificates / "key.pem")),
        *("--tls-ca-cert-file", str(certificates / "ca.pem")),
    )
    return port


def test_a_worker_and_the_operator_reach_a_server_by_tls(
    run: Run, tls_port: int, certificates: Path
) -> None:
    url = f"rediss://127.0.0.1:{tls_port}?ssl_ca_certs={certificates}/ca.pem"

    assert run(url).code() == OK
    assert run(url, "workers", program=OPERATOR).code() == OK


@pytest.mark.parametrize("program", [WORKER, OPERATOR])
def test_a_tls_url_of_a_plain_server_is_called_that(run: Run, serve: Serve, program: str) -> None:
    server = serve()
    url = f"rediss://:hush@127.0.0.1:{server.port}"
    arguments = () if program == WORKER else ("runs", "list")
    done = run(url, *arguments, program=program)

    assert done.code() == CONFIG
    name = "workflow-worker" if program == WORKER else "stepfleet"
    assert done.err == (
        f"{name}: Redis at rediss://:***@127.0.0.1:{server.port} refuses: the server speaks no TLS: say "
        "redis:// instead of rediss://, or give it a tls-port\n"
    )
    assert keys(server) == 0


def test_a_plain_url_of_a_tls_server_is_called_that(run: Run, tls_port: int) -> None:
    done = run(f"redis://127.0.0.1:{tls_port}")

    assert done.code() == CONFIG
    assert done.err == (
        f"workflow-worker: Redis at redis://127.0.0.1:{tls_port} refuses: the server speaks TLS: say "
        "rediss:// instead of redis://\n"
    )


def test_a_certificate_that_nobody_vouches_for_is_refused(run: Run, tls_port: int) -> None:
    done = run(f"rediss://127.0.0.1:{tls_port}")

    assert done.code() == CONFIG
    reason = (
        r"\((unable to get local issuer certificate|self-signed certificate in certificate chain)\)"
    )
    assert re.fullmatch(
        rf"workflow-worker: Redis at rediss://127.0.0.1:{tls_port} refuses: the server's certificate is not "
        rf"trusted {reason}: name the authority behind it in the URL, such as "
        r"\?ssl_ca_certs=/etc/ssl/redis-ca.pem\n",
        done.err,
    )


def test_a_certificate_of_another_server_is_refused(
    run: Run, tls_port: int, certificates: Path
) -> None:
    url = f"rediss://localhost:{tls_port}?ssl_ca_certs={certificates}/ca.pem"
    done = run(url)

    assert done.code() == CONFIG
    assert done.err == (
        f"workflow-worker: Redis at {url} refuses: the server's certificate is for another name (Hostname "
        "mismatch, certificate is not valid for 'localhost'): say the name that it is for\n"
    )


# -- who may do what ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "arguments", "code"),
    [(WORKER, (), UNAVAILABLE), (OPERATOR, ("queues",), UNAVAILABLE)],
)
def test_a_server_that_is_away_is_named_with_its_place(
    run: Run, program: str, arguments: tuple[str, ...], code: int
) -> None:
    port = free_port()
    url = f"redis://u:hush@127.0.0.1:{port}"
    done = run(url, *arguments, program=program, STEPFLEET_CONNECT_TIMEOUT="2s")

    assert done.code() == code
    reason = f"Error 111 connecting to 127.0.0.1:{port}. Connect call failed ('127.0.0.1', {port})"
    place = f"Redis at redis://u:***@127.0.0.1:{port}"
    assert (
        done.err
        == {
            WORKER: f"workflow-worker: {place} does not answer: {reason} (tried for 2 s): {REACH}\n",
            OPERATOR: f"stepfleet: {place} does not answer: {reason}: {REACH}\n",
        }[program]
    )


@pytest.mark.parametrize("program", [WORKER, OPERATOR])
def test_a_missing_right_is_named_with_the_command_that_prints_it(
    run: Run, serve: Serve, program: str
) -> None:
    server = serve()
    missing = "xgroup|create" if program == WORKER else "scan"
    with redis.Redis(port=server.port) as raw:
        rights = ("on", ">hush", "~*", "&*", "+@all", f"-{missing}")
        raw.execute_command("ACL", "SETUSER", "half", *rights)
    arguments = () if program == WORKER else ("queues",)
    done = run(f"redis://half:hush@127.0.0.1:{server.port}", *arguments, program=program)

    assert done.code() == CONFIG
    name, role = ("workflow-worker", "worker") if program == WORKER else ("stepfleet", "operator")
    assert done.err == (
        f"{name}: Redis at redis://half:***@127.0.0.1:{server.port} refuses: this user has no permissions "
        f"to run the '{missing}' command; `stepfleet acl --role {role}` prints a user with the rights\n"
    )
    with redis.Redis(port=server.port) as raw:
        assert list(raw.scan_iter("*:s:*")) == list(raw.scan_iter("*:run:*")) == []


async def test_the_doctor_names_what_this_user_may_not_do(serve: Serve) -> None:
    server = serve()
    with redis.Redis(port=server.port) as raw:
        rights = ("on", ">hush", "~*", "&*", "+@all", "-zscan", "-evalsha")
        raw.execute_command("ACL", "SETUSER", "half", *rights)
    settings = Settings()
    fleet = fleet_of(f"redis://half:hush@127.0.0.1:{server.port}", settings)
    link = fleet.link("test")
    found = [one async for one in findings(Inspector(link, fleet.keys), "redis://h")]
    await link.close()

    (rights_of_user,) = [one for one in found if one.about == "rights"]
    assert rights_of_user == (
        "warning",
        "rights",
        "this user may not call ZSCAN, EVALSHA",
        "`stepfleet acl` prints users with the rights that each role needs",
    )


# -- Sentinels ---------------------------------------------------------------------------------------


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[SentinelServer]:
    """A Sentinel with a password, and what it watches, which has another one."""
    if "redis" not in available_binaries():
        lacking = pytest.fail if os.environ.get("CI") else pytest.skip
        lacking("Sentinels are redis-server's: apt-get install redis-server")
    server = RedisServer(available_binaries()["redis"], tmp_path / "master", password="hush")
    sentinel = SentinelServer(
        tmp_path / "sentinel",
        master="orders",
        port_of_master=server.port,
        password="psst",
        password_of_master="hush",
    )
    try:
        server.start()
        sentinel.start()
        yield sentinel
    finally:
        sentinel.kill()
        server.kill()


def test_a_worker_and_the_operator_reach_a_server_behind_sentinels_that_have_a_password(
    run: Run, watched: SentinelServer
) -> None:
    url = f"redis+sentinel://:hush@127.0.0.1:{watched.port}/orders?sentinel_password=psst"

    worker = run(url, stays=True, STEPFLEET_LEASE="1s")
    worker.says("worker is ready")
    with redis.Redis(port=watched.port_of_master, password="hush") as raw:

        def lease() -> float:
            ((_, end),) = cast(Any, raw).zrange("{default:0}:leases", 0, -1, withscores=True)
            return end

        first = lease()
        wait_until(lambda: lease() > first, PATIENCE)  # its thread has found the master too
    listed = run(url, "workers", program=OPERATOR)
    assert listed.code() == OK
    assert "Flow" in listed.out
    worker.send()
    assert worker.code() == OK
    assert "psst" not in worker.out + worker.err + listed.out + listed.err


@pytest.mark.parametrize("given", ["", "?sentinel_password=wrong"])
@pytest.mark.parametrize("program", [WORKER, OPERATOR])
def test_a_sentinel_that_wants_another_password_is_named_with_where_it_stands(
    run: Run, watched: SentinelServer, program: str, given: str
) -> None:
    place = f"127.0.0.1:{watched.port}/orders"
    arguments = () if program == WORKER else ("queues",)
    done = run(f"redis+sentinel://:hush@{place}{given}", *arguments, program=program)

    assert done.code() == CONFIG
    name = "workflow-worker" if program == WORKER else "stepfleet"
    shown = f"redis+sentinel://:***@{place}{'?sentinel_password=***' if given else ''}"
    assert done.err.startswith(
        f"{name}: Redis at {shown} refuses: the Sentinel 127.0.0.1:{watched.port} refuses: "
    )
    assert done.err.endswith(
        "; its own password is ?sentinel_password=... in the URL, its user ?sentinel_username=...\n"
    )


def test_a_master_that_no_sentinel_knows_is_named(run: Run, watched: SentinelServer) -> None:
    url = f"redis+sentinel://:hush@127.0.0.1:{watched.port}/shop?sentinel_password=psst"
    done = run(url, STEPFLEET_CONNECT_TIMEOUT="1s")

    assert done.code() == UNAVAILABLE
    assert "no Sentinel names a master called shop that is up" in done.err


# -- servers that would lose work --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"),
            "has maxmemory-policy allkeys-lru: when its memory is full it would throw away runs that "
            "are not done. Set maxmemory-policy to noeviction",
        ),
        (
            ("--cluster-enabled", "yes", "--cluster-port", str(free_port())),
            "is a node of a cluster, which is not supported: give the URL of a server with "
            "cluster-enabled no",
        ),
        (
            ("--replicaof", "127.0.0.1", "1"),
            "is a replica, which takes no writes: give the URL of its primary, 127.0.0.1:1",
        ),
    ],
)
def test_a_server_that_cannot_keep_work_is_refused(
    run: Run, serve: Serve, options: tuple[str, ...], message: str
) -> None:
    server = serve(*options)
    done = run(server.url)

    assert done.code() == CONFIG
    assert re.fullmatch(
        rf"workflow-worker: (Redis|Valkey) [\d.]+ at {server.url} {re.escape(message)}\n", done.err
    )
    assert keys(server) == 0


def test_a_server_that_is_too_old_is_refused() -> None:
    with pytest.raises(IncompatibleServer) as caught:
        judge({"redis_version": "6.0.16"}, url="redis://h")

    assert str(caught.value) == (
        "Redis 6.0.16 at redis://h is too old: Redis 6.2 or newer, or Valkey, is needed"
    )


@pytest.mark.parametrize(("ahead_s", "side"), [(31.0, "ahead of"), (-3600.0, "behind")])
def test_a_clock_that_differs_is_one_warning(ahead_s: float, side: str) -> None:
    info = {"redis_version": "7.0.0", "maxmemory_policy": "noeviction", "aof_enabled": "1"}

    assert judge(info, url="redis://h", ahead_s=ahead_s / 2 if ahead_s > 0 else 1).warnings == ()
    assert judge(info, url="redis://h", ahead_s=ahead_s).warnings == (
        f"its clock is {abs(ahead_s):.0f} s {side} this machine's: leases and time-outs follow it, times in "
        "logs and traces do not; let both take their time from NTP",
    )


# -- this machine ------------------------------------------------------------------------------------


def test_a_health_file_that_cannot_be_written_is_refused_before_anything_is_read(
    run: Run, serve: Serve, tmp_path: Path
) -> None:
    server = serve()
    done = run(server.url, "--health-file", "no/such/folder")

    assert done.code() == CONFIG
    assert done.err == (
        "workflow-worker: the health file cannot be written: [Errno 2] No such file or directory: "
        "'no/such/folder'\n"
    )
    assert keys(server) == 0


def test_a_port_that_is_taken_is_refused_before_anything_is_read(run: Run, serve: Serve) -> None:
    server = serve()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(server.url, "--metrics-port", port)

        assert done.code() == CONFIG
    assert done.err == (
        f"workflow-worker: metrics_port = {port} at metrics_address = 127.0.0.1 cannot be served: [Errno "
        f"98] error while attempting to bind on address ('127.0.0.1', {port}): address already in use\n"
    )
    assert keys(server) == 0


def test_two_workers_of_one_host_and_folder_are_two_consumers(run: Run, serve: Serve) -> None:
    server = serve()
    both = [run(server.url, stays=True) for _ in range(2)]
    wait_until(lambda: all("worker is ready" in one.out for one in both), PATIENCE)

    with redis.Redis(port=server.port) as raw:
        assert raw.hlen("{default:0}:workers") == 2


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_terminal_without_the_letters_of_a_line_gets_it_with_escapes(
    run: Run, serve: Serve, log_format: str
) -> None:
    own = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = run(serve().url, "--log-format", log_format, **own)

    assert done.code() == OK
    assert done.err == ""
    assert "b\\xfccher \\u2192 12 \\u20ac" in done.out.replace("\\\\", "\\")


@pytest.mark.parametrize("program", [WORKER, OPERATOR])
@pytest.mark.parametrize("protected", [True, False])
def test_a_password_that_is_missing_or_too_much_is_said_with_its_cure(
    serve: Serve, run: Run, program: str, *, protected: bool
) -> None:
    server = serve()
    if protected:
        with redis.Redis(port=server.port) as raw:
            raw.config_set("requirepass", "hush")
    url = f"redis://{'' if protected else ':hush@'}127.0.0.1:{server.port}"
    done = run(url, *(() if program == WORKER else ("queues",)), program=program)

    assert done.code() == CONFIG
    cure = (
        "Authentication required; this server wants a password: put it into the URL, before an @ and the host\n"
        if protected
        else "; this server has no password: take it out of the URL\n"
    )
    assert done.err.endswith(cure)
    assert done.err.count("\n") == 1
    assert "hush" not in done.err


def test_a_refusal_that_is_no_missing_right_has_no_such_cure() -> None:
    assert str(refused(StoreRefused("OOM"), url="redis://h")) == "Redis at redis://h refuses: OOM"
