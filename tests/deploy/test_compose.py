"""The compose file is valid, and its worker gets the time that a drain needs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from stepfleet.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"


def test_the_file_follows_the_compose_specification() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    done = subprocess.run(
        [checker, "--builtin-schema", "vendor.compose-spec", COMPOSE],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def seconds(key: str) -> int:
    match = re.search(rf'{key}: "?(\d+)s?"?$', COMPOSE.read_text(), flags=re.MULTILINE)
    assert match is not None, key
    return int(match[1])


def test_a_worker_is_not_killed_while_it_drains() -> None:
    drain = seconds("STEPFLEET_DRAIN_TIMEOUT")

    assert Settings(drain_timeout=drain).drain_timeout.total_seconds() == drain
    assert seconds("stop_grace_period") >= drain + 10


def test_redis_keeps_its_data_and_is_not_published() -> None:
    text = COMPOSE.read_text()

    assert '--appendonly, "yes"' in text
    assert "--maxmemory-policy, noeviction" in text
    assert "redis-data:/data" in text
    assert "ports:" not in text


def test_what_the_services_run_exists() -> None:
    text = COMPOSE.read_text()

    assert (ROOT / "workers" / "Containerfile").is_file()
    modules = set(re.findall(r"examples\.[a-z_.]+", text))
    assert modules == {"examples.hello.workflow", "examples.hello.start"}
    missing = [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").is_file()]
    assert missing == []
