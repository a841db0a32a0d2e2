"""Users of `stepfleet acl` for tests: `make test-acl` runs the conformance suite as them."""

from __future__ import annotations

import os
import secrets
import shlex
from typing import Any, Final, cast
from urllib.parse import urlsplit, urlunsplit

import redis

from stepfleet.cli.acl import ROLES, user

#: Set (to anything): workers and clients connect as users with the least rights.
SWITCH: Final = "TEST_ACL"


def is_asked_for() -> bool:
    """Says whether the tests run as least-privilege users."""
    return bool(os.environ.get(SWITCH))


def urls_of_roles(url: str, namespace: str) -> dict[str, str]:
    """Makes a user for every role of a namespace; returns the URL with which each connects."""
    parts = urlsplit(url)
    urls: dict[str, str] = {}
    with cast(Any, redis.Redis).from_url(url) as admin:
        for role in ROLES:
            password = secrets.token_hex(8)
            words = shlex.split(user(role, namespace, password=password))
            words[2] = f"{namespace}-{role}"
            admin.execute_command(*words)
            place = f"{words[2]}:{password}@{parts.netloc}"
            urls[role] = urlunsplit(parts._replace(netloc=place))
    return urls


def server_options(namespace: str, password: str) -> list[str]:
    """Returns options with which a server begins, and begins again, with a user for every role."""
    options: list[str] = []
    for role in ROLES:
        _, _, name, *rules = shlex.split(user(role, namespace, password=password))
        options += ["--user", name, *rules]
    return options
