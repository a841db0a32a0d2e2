"""The users of `stepfleet acl` may call what the code calls."""

from __future__ import annotations

import re
from importlib.resources import files

from stepfleet.cli.acl import ROLES
from stepfleet.storage.scripts import PARTS, script

#: Called only by the operator's tool.
ERASE = "erase"


def commands_of(name: str) -> set[str]:
    """Finds the commands that a script calls; those with subcommands are named with them."""
    source = re.sub(r"--[^\n]*", "", script(name).source)
    source = re.sub(r"(rc, )'", "rc('", source)
    found = re.findall(r"\b(?:rc|write_all)\('([A-Z]+)'(?:, '([A-Z]+)')?", source)
    subcommands = {"XGROUP", "XINFO", "SCRIPT"}
    return {(f"{name}|{sub}" if name in subcommands else name).lower() for name, sub in found}


def test_a_worker_may_call_every_command_of_the_scripts() -> None:
    for name in PARTS.keys() - {ERASE}:
        assert commands_of(name), name
        assert commands_of(name) <= set(ROLES["worker"]), name


def test_a_producer_may_call_every_command_of_the_commit() -> None:
    # A producer owns no delivery and takes none, so what speaks of one never runs for it.
    assert commands_of("commit") - {"xclaim", "xreadgroup"} <= set(ROLES["producer"])
    assert not {"xreadgroup", "xclaim"} & set(ROLES["producer"])


def test_an_operator_may_erase_and_a_viewer_writes_nothing() -> None:
    assert commands_of(ERASE) <= set(ROLES["operator"])
    writing = {"set", "del", "unlink", "hset", "hdel", "xadd", "xdel", "zadd", "zrem", "evalsha"}
    assert not writing & set(ROLES["viewer"])


def test_every_command_that_python_sends_belongs_to_a_role() -> None:
    allowed = {command for role in ROLES.values() for command in role}
    for folder in ("storage", "worker"):
        for path in (files("stepfleet") / folder).iterdir():
            if path.name.endswith(".py"):
                sent = set(re.findall(r"\(\s*\"([A-Z]{3,})\",", path.read_text()))
                plain = {name.lower() for name in sent} - {
                    "xgroup",
                    "script",
                    "client",
                    "streams",
                    "maxlen",
                }
                assert plain <= allowed, path.name
