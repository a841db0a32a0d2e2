"""The server of a project folder: real processes share it, die, and find their data again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import pytest
import redis

from stepfleet.embedded import server as embedded
from stepfleet.embedded.server import (
    attach,
    dev_server_url,
    embedded_server,
    find_server_binary,
)
from stepfleet.errors import SettingsError, StoreError
from tests.support.servers import available_binaries
from tests.support.wait import wait_until

BINARIES = available_binaries()
#: long enough to attach again within it, short enough to wait for
SHORT = timedelta(seconds=0.5)
#: the users of a test that must not end their server
LONG = timedelta(seconds=60)
#: seconds for anything to happen on a loaded machine
PATIENCE = 60.0

USER = """
import sys
from datetime import timedelta
from pathlib import Path
from stepfleet.embedded.server import attach

with attach(Path(sys.argv[1]), linger=timedelta(seconds=float(sys.argv[2]))) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


class User:
    """A process that uses the server of a folder until it is told to leave, or is killed."""

    def __init__(self, folder: Path, linger: timedelta) -> None:
        arguments = [os.fspath(folder), str(linger.total_seconds())]
        self._process = subprocess.Popen(
            [sys.executable, "-c", USER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def url(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the process ended without a server"
        return line

    def leave(self) -> None:
        self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(params=sorted(BINARIES), autouse=True)
def binary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = BINARIES[request.param]
    monkeypatch.setenv("STEPFLEET_REDIS_SERVER", os.fspath(path))
    return path


@pytest.fixture
def folder() -> Iterator[Path]:
    """A project folder with a short path; whatever runs for it at the end of the test is ended."""
    path = Path(tempfile.mkdtemp(prefix="sf-"))
    yield path
    _end_servers_below(path)
    shutil.rmtree(path)


@pytest.fixture
def use(folder: Path) -> Iterator[Callable[..., User]]:
    with contextlib.ExitStack() as stack:

        def start(where: Path = folder, *, linger: timedelta = LONG) -> User:
            user = User(where, linger)
            stack.callback(user.kill)
            return user

        yield start


@pytest.fixture
def server_that_survives_its_supervisor(
    folder: Path, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server as on a system without PDEATHSIG."""
    wrapper = folder / "survivor"
    forget = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 0)"
    program = f"{forget}; os.execv(sys.argv[1], sys.argv[1:])"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{program}" "{binary}" "$@"\n')
    wrapper.chmod(0o700)
    monkeypatch.setenv("STEPFLEET_REDIS_SERVER", os.fspath(wrapper))


def test_a_server_starts_and_only_its_owner_can_reach_it(folder: Path) -> None:
    with embedded_server(folder, linger=SHORT) as url:
        assert url == f"unix://{folder}/.stepfleet/redis.sock"
        assert _info(url)["tcp_port"] == 0
        for path, mode in ((folder / ".stepfleet", 0o700), (_socket_of(url), 0o700)):
            assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_server_never_drops_keys_and_writes_everything_to_its_append_only_file(
    folder: Path,
) -> None:
    expected = {
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
    }
    with embedded_server(folder, linger=SHORT) as url, _client(url) as client:
        assert {name: client.config_get(name)[name] for name in expected} == expected


def test_two_processes_of_a_folder_share_one_server(use: Callable[..., User]) -> None:
    first, second = use(), use()
    assert _info(first.url())["run_id"] == _info(second.url())["run_id"]


def test_a_server_survives_the_kill_of_the_process_that_started_it(
    use: Callable[..., User], folder: Path
) -> None:
    first = use(linger=timedelta(0))
    url = first.url()
    second = use()
    assert second.url() == url
    before = _info(url)["run_id"]
    first.kill()
    # The supervisor looks every 10 ms when it does not linger: this many PINGs span several looks.
    for _ in range(300):
        assert _info(url)["run_id"] == before
    assert _processes_of(folder)


@pytest.mark.parametrize("goes", [User.leave, User.kill], ids=["leaves", "is-killed"])
def test_the_server_shuts_down_after_its_last_user_and_keeps_the_data(
    use: Callable[..., User], folder: Path, goes: Callable[[User], None]
) -> None:
    first, last = use(linger=SHORT), use(linger=SHORT)
    url = first.url()
    assert last.url() == url
    with _client(url) as client:
        client.set("kept", "yes")
    pid = _info(url)["process_id"]
    first.leave()
    goes(last)
    wait_until(lambda: not _processes_of(folder), PATIENCE)
    assert not _is_alive(pid)
    assert dev_server_url(folder) is None
    assert not _socket_of(url).exists()
    with embedded_server(folder, linger=SHORT) as again, _client(again) as client:
        assert client.get("kept") == "yes"


def test_a_server_lingers_so_that_a_restarted_process_finds_it_running(folder: Path) -> None:
    with embedded_server(folder, linger=LONG) as url:
        before = _info(url)["run_id"]
    assert dev_server_url(folder) == url
    with embedded_server(folder) as url:
        assert _info(url)["run_id"] == before


def test_kill_of_the_supervisor_ends_its_server_and_the_next_attach_finds_the_data(
    use: Callable[..., User], folder: Path
) -> None:
    url = use().url()
    with _client(url) as client:
        client.set("kept", "yes")
    old = _info(url)
    _kill_supervisor_of(folder)
    wait_until(lambda: not _is_alive(old["process_id"]), PATIENCE)
    assert use().url() == url
    assert _info(url)["run_id"] != old["run_id"]
    with _client(url) as client:
        assert client.get("kept") == "yes"


def test_a_killed_server_is_started_again_by_the_next_attach(folder: Path) -> None:
    with attach(folder, linger=LONG) as first, _client(first.url) as client:
        client.set("kept", "yes")
        os.kill(_info(first.url)["process_id"], signal.SIGKILL)
        with attach(folder, linger=SHORT) as second, _client(second.url) as client:
            assert client.get("kept") == "yes"


def test_a_terminated_supervisor_shuts_its_server_down(folder: Path) -> None:
    with attach(folder, linger=LONG) as first:
        os.kill(_supervisor_of(folder), signal.SIGTERM)
        wait_until(lambda: not _processes_of(folder), PATIENCE)
        assert "ready to exit" in (folder / ".stepfleet" / "server.log").read_text()
        assert not _socket_of(first.url).exists()


def test_concurrent_attaches_make_one_server(use: Callable[..., User], folder: Path) -> None:
    users = [use() for _ in range(6)]
    servers = {_info(user.url())["run_id"] for user in users}
    assert len(servers) == 1
    assert len(_processes_of(folder)) == 2, "a supervisor and a server"


def test_an_attach_during_the_shutdown_gets_a_server_that_lives(folder: Path) -> None:
    for times in range(1, 21):
        with embedded_server(folder, linger=timedelta(0)) as url, _client(url) as client:
            assert client.incr("times") == times


def test_the_socket_of_a_long_path_is_in_a_short_private_directory(folder: Path) -> None:
    deep = folder / ("long-and-deep" * 10)
    deep.mkdir()
    with embedded_server(deep, linger=SHORT) as url, _client(url) as client:
        client.set("kept", "yes")
        directory = _socket_of(url).parent
        assert len(url) < 108
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert dev_server_url(deep) == url
        with embedded_server(deep) as same:
            assert same == url
        assert list((deep / ".stepfleet").rglob("*.aof"))
    wait_until(lambda: not directory.exists(), PATIENCE)
    with embedded_server(deep, linger=SHORT) as again, _client(again) as client:
        assert client.get("kept") == "yes"


def test_the_short_directory_of_a_killed_supervisor_is_cleared_by_the_next_attach(
    folder: Path,
) -> None:
    deep = folder / ("long-and-deep" * 10)
    deep.mkdir()
    with embedded_server(deep, linger=LONG) as first:
        _kill_supervisor_of(deep)
        with embedded_server(deep, linger=SHORT) as second:
            assert second != first
            assert not _socket_of(first).parent.exists()


def test_a_folder_name_may_have_characters_that_mean_something_in_a_url(folder: Path) -> None:
    odd = folder / "50% #1?"
    odd.mkdir()
    with embedded_server(odd, linger=SHORT) as url, _client(url) as client:
        assert client.ping()


def test_what_a_crash_has_left_does_not_stop_the_next_attach(folder: Path) -> None:
    directory = folder / ".stepfleet"
    directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(directory / "redis.sock"))
    (directory / "url").write_text(f"unix://{directory}/redis.sock\n")
    (directory / "supervisor.lock").write_text(f"{os.getpid()}\n")
    assert dev_server_url(folder) is None
    with embedded_server(folder, linger=SHORT) as url, _client(url) as client:
        assert client.ping()


def test_an_orphaned_server_is_shut_down_before_another_opens_its_data(
    folder: Path, server_that_survives_its_supervisor: None
) -> None:
    with attach(folder, linger=LONG) as first, _client(first.url) as client:
        client.set("kept", "yes")
        orphan = _info(first.url)["process_id"]
        _kill_supervisor_of(folder)
        assert _is_alive(orphan)
        with attach(folder, linger=SHORT) as second, _client(second.url) as client:
            assert not _is_alive(orphan)
            assert client.get("kept") == "yes"


def test_no_server_opens_the_data_while_a_frozen_orphan_has_it_open(
    use: Callable[..., User], folder: Path, server_that_survives_its_supervisor: None
) -> None:
    with attach(folder, linger=LONG) as first, _client(first.url) as client:
        client.set("kept", "yes")
        orphan = _info(first.url)["process_id"]
    os.kill(orphan, signal.SIGSTOP)
    old = _supervisor_of(folder)
    _kill_supervisor_of(folder)
    user = use()
    wait_until(lambda: _supervisor_of(folder) != old, PATIENCE)
    with pytest.raises(AssertionError):
        wait_until(lambda: dev_server_url(folder), 0.5)
    os.kill(orphan, signal.SIGCONT)
    with _client(user.url()) as client:
        assert not _is_alive(orphan)
        assert client.get("kept") == "yes"


def test_the_supervisor_has_a_session_of_its_own(folder: Path) -> None:
    with embedded_server(folder, linger=SHORT):
        assert os.getsid(_supervisor_of(folder)) != os.getsid(0)


def test_no_url_is_given_where_no_server_was_started(folder: Path) -> None:
    assert dev_server_url(folder) is None
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "mode"),
    [("stepfleet-public", 0o755), ("someone-elses", 0o700)],
    ids=["open to others", "not made by a supervisor"],
)
def test_a_recorded_socket_that_no_supervisor_has_made_is_not_used(
    folder: Path, name: str, mode: int
) -> None:
    other = folder / name
    other.mkdir(mode=mode)
    with embedded_server(folder, linger=LONG) as url:
        (other / "redis.sock").symlink_to(_socket_of(url))
        record = folder / ".stepfleet" / "url"
        record.write_text(f"unix://{other}/redis.sock")
        assert dev_server_url(folder) is None
        record.write_text(url)
        assert dev_server_url(folder) == url


def test_a_server_that_does_not_start_fails_the_attach_with_the_end_of_its_log(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = folder / "broken-server"
    broken.write_text("#!/bin/sh\necho the disk is on fire\nexit 3\n")
    broken.chmod(0o700)
    monkeypatch.setenv("STEPFLEET_REDIS_SERVER", os.fspath(broken))
    with pytest.raises(StoreError, match=r"(?s)did not start.*the disk is on fire.*code 3"):
        attach(folder)


def test_a_folder_that_does_not_exist_is_a_settings_error(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing/\.stepfleet cannot hold the server's data"):
        attach(folder / "missing")


def test_without_any_server_the_error_names_three_cures(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STEPFLEET_REDIS_SERVER")
    monkeypatch.setenv("PATH", os.fspath(folder))
    monkeypatch.setattr(embedded, "bundled_server", lambda: None)
    with pytest.raises(SettingsError) as caught:
        attach(folder)
    for cure in ("stepfleet[embedded]", "on PATH", "STEPFLEET_REDIS_SERVER"):
        assert cure in str(caught.value)


def test_a_named_server_that_cannot_be_run_is_an_error_and_not_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STEPFLEET_REDIS_SERVER", "/nowhere/redis-server")
    with pytest.raises(SettingsError, match="STEPFLEET_REDIS_SERVER=/nowhere/redis-server"):
        find_server_binary()


def test_the_server_is_the_named_one_else_the_bundled_one_else_one_on_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, bundled = folder / "named", folder / "bundled"
    on_path = [folder / name for name in ("valkey-server", "redis-server")]
    for program in (named, bundled, *on_path):
        program.touch(mode=0o700)
    monkeypatch.setenv("STEPFLEET_REDIS_SERVER", os.fspath(named))
    monkeypatch.setenv("PATH", os.fspath(folder))
    monkeypatch.setattr(embedded, "bundled_server", lambda: bundled if bundled.exists() else None)
    for expected in (named, bundled, *on_path):
        assert find_server_binary() == expected
        monkeypatch.delenv("STEPFLEET_REDIS_SERVER", raising=False)
        expected.unlink()


def _client(url: str) -> Any:
    return cast(Any, redis.Redis).from_url(url, decode_responses=True, socket_timeout=5.0)


def _info(url: str) -> dict[str, Any]:
    with _client(url) as client:
        return client.info("server")


def _socket_of(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


def _supervisor_of(folder: Path) -> int:
    # It is empty for a moment while the next supervisor writes it.
    text = wait_until((folder / ".stepfleet" / "supervisor.lock").read_text, PATIENCE)
    return int(text)


def _kill_supervisor_of(folder: Path) -> None:
    supervisor = _supervisor_of(folder)
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not _is_alive(supervisor), PATIENCE)


def _is_alive(pid: int) -> bool:
    """A zombie is dead: it waits only for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _processes_of(folder: Path) -> list[int]:
    """The supervisor and the server of a folder, told by the directory they work in."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            directory = (entry / "cwd").readlink()
            if directory.name == ".stepfleet" and directory.is_relative_to(folder):
                found.append(int(entry.name))
    return [pid for pid in found if _is_alive(pid)]


def _end_servers_below(folder: Path) -> None:
    for pid in _processes_of(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not _processes_of(folder), PATIENCE)
