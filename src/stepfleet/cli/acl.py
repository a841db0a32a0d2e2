"""`stepfleet acl`: least-privilege users for workers, producers and viewers. Layer: cli."""

from __future__ import annotations

from typing import Final

import click

from stepfleet.cli.reach import json_option
from stepfleet.cli.showing import tell
from stepfleet.settings import Settings

#: What every connection does.
_CONNECT: Final = (
    "auth",
    "client|id",
    "client|setname",
    "client|unblock",
    "hello",
    "ping",
    "select",
)
#: What looks at runs; inside scripts and outside.
_READ: Final = (
    *("exists", "get", "hexists", "hget", "hgetall", "hkeys", "hlen", "hmget", "hvals"),
    *("lindex", "llen", "lrange", "pttl", "scard", "smembers", "time", "type", "xlen", "xpending"),
    *(
        "xrange",
        "xread",
        "xrevrange",
        "zcard",
        "zcount",
        "zrange",
        "zrangebyscore",
        "zrevrange",
        "zscan",
        "zscore",
    ),
)
#: What commits do. A script may call only what its user may call.
_COMMIT: Final = (
    *("del", "evalsha", "hdel", "hincrby", "hset", "hsetnx", "lpop", "lrem", "ltrim"),
    *("persist", "pexpire", "rename", "rpush", "sadd", "script|load", "set", "srem", "xack"),
    *("xadd", "xdel", "zadd", "zrem", "zremrangebyrank", "zremrangebyscore"),
)
#: What only workers do.
_WORK: Final = (
    *("info", "xclaim", "xgroup|create", "xgroup|delconsumer", "xinfo|consumers", "xreadgroup"),
)
#: What `stepfleet` does beside looking: its commands read all keys and delete runs.
_OPERATE: Final = ("config|get", "info", "scan", "unlink", "xinfo|groups")

ROLES: Final = {
    "worker": (*_CONNECT, *_READ, *_COMMIT, *_WORK),
    "producer": (*_CONNECT, *_READ, *_COMMIT),
    "viewer": (*_CONNECT, *_READ, "info", "scan"),
    "operator": (*_CONNECT, *_READ, *_COMMIT, *_OPERATE),
}


@click.command("acl", short_help="Print least-privilege users for Redis.")
@click.option("--namespace", metavar="NAME", help="The fleet on that server. [default]")
@click.option(
    "--role", "roles", multiple=True, type=click.Choice(list(ROLES)), help="Only this one."
)
@json_option
def acl(namespace: str | None, roles: tuple[str, ...], *, as_json: bool) -> None:
    """Print a user for each role, for `redis-cli` or an ACL file: put passwords in place of <...>.

    A user reaches the keys of one namespace only, and no command beyond those that its role calls.
    """
    name = Settings(namespace=namespace).namespace
    for role in roles or ROLES:
        command = user(role, name, password=f"<password of {role}>")
        tell({"role": role, "command": command}, command, as_json=as_json)


def user(role: str, namespace: str, *, password: str) -> str:
    """Return the command that makes the user of a role, named `stepfleet-<role>`."""
    commands = " ".join(f"+{command}" for command in sorted(set(ROLES[role])))
    return (
        f"ACL SETUSER stepfleet-{role} reset on >{password} ~{{{namespace}:*}}:* "
        f"resetchannels -@all {commands}"
    )
