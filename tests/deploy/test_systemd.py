"""The systemd unit, and what a worker tells systemd."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepfleet.cli.notify import notify
from stepfleet.cli.serving import HEALTH_S
from stepfleet.settings import Settings
from tests.support.fleet import TestFleet

UNIT = Path(__file__).parents[2] / "workers" / "systemd" / "workflow-worker@.service"
ENVIRONMENT = UNIT.with_name("worker.env.example")


def values(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z_]+)=(.*)$", text, flags=re.MULTILINE))


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield channel


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        assert values(UNIT.read_text())["Type"] == "notify"
        return
    # What is not on this machine is replaced: the program.
    unit = tmp_path / UNIT.name
    unit.write_text(
        UNIT.read_text().replace("/srv/stepfleet/.venv/bin/workflow-worker", "/bin/true")
    )
    done = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_waits_longer_than_a_drain_and_a_silence() -> None:
    unit, environment = values(UNIT.read_text()), values(ENVIRONMENT.read_text())

    drain = Settings(drain_timeout=environment["STEPFLEET_DRAIN_TIMEOUT"]).drain_timeout
    assert int(unit["TimeoutStopSec"]) >= drain.total_seconds() + 10
    assert int(unit["WatchdogSec"]) >= 5 * HEALTH_S
    assert (unit["Restart"], unit["RestartPreventExitStatus"]) == ("on-failure", "3")


def test_a_worker_says_that_it_is_ready_alive_and_stopping(
    systemd: socket.socket, tmp_path: Path
) -> None:
    with TestFleet(tmp_path) as fleet:
        (worker,) = fleet.start()
        told = [systemd.recv(64) for _ in range(2)]
        assert told == [b"READY=1", b"WATCHDOG=1"]
        assert worker.leave() == 0

    systemd.setblocking(False)
    while (last := systemd.recv(64)) == b"WATCHDOG=1":
        pass
    assert last == b"STOPPING=1"


def test_a_name_in_the_abstract_namespace_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("\0stepfleet-notify-test")
        monkeypatch.setenv("NOTIFY_SOCKET", "@stepfleet-notify-test")
        channel.settimeout(60)

        notify("READY=1")

        assert channel.recv(64) == b"READY=1"


def test_a_process_that_systemd_did_not_start_tells_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)

    notify("READY=1")
