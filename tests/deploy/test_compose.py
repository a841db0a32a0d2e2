"""The compose file is valid, and its worker gets the time that a drain needs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

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


def services() -> dict[str, Any]:
    return YAML(typ="safe").load(COMPOSE.read_text())["services"]


def test_redis_keeps_its_data_and_is_not_published() -> None:
    redis = services()["redis"]

    assert "--appendonly yes" in " ".join(redis["command"])
    assert "--maxmemory-policy noeviction" in " ".join(redis["command"])
    assert redis["volumes"] == ["redis-data:/data"]
    assert "ports" not in redis


def test_only_the_service_is_reached_from_this_machine_and_only_from_it() -> None:
    published = {name: one["ports"] for name, one in services().items() if "ports" in one}

    assert published == {"service": ["127.0.0.1:8000:8000"]}


def test_all_but_redis_wait_for_it_and_can_write_nothing() -> None:
    for name, one in services().items():
        if name != "redis":
            assert one["depends_on"] == {"redis": {"condition": "service_healthy"}}, name
            assert (one["read_only"], one["init"]) == (True, True), name
            assert one["environment"]["STEPFLEET_REDIS_URL"] == "redis://redis:6379/0", name


def test_what_an_image_is_built_with_is_an_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    builds = [one["build"].get("args", {}) for one in services().values() if "build" in one]
    extras = {args["EXTRAS"].strip("[]") for args in builds if "EXTRAS" in args}

    assert extras == {"arq", "server"}
    assert extras <= project["optional-dependencies"].keys()


def test_what_the_services_run_exists() -> None:
    text = COMPOSE.read_text()

    assert (ROOT / "workers" / "Containerfile").is_file()
    assert (ROOT / services()["scheduler"]["entrypoint"][1]).is_file()
    modules = set(re.findall(r"examples\.[a-z_.]+(?=[:,\]])", text))
    assert len(modules) == 4
    missing = [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").is_file()]
    assert missing == []
