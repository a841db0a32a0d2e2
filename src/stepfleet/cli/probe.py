"""The first look at a server: wait until it answers, refuse one that would lose work, warn of less.

Layer: cli.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from stepfleet.errors import ConnectionLost, IncompatibleServer, StoreRefused
from stepfleet.storage.link import Link

logger = logging.getLogger("stepfleet.probe")

#: The oldest server with every command that the scripts use.
OLDEST: Final = (6, 2)
#: Seconds that the clocks of server and machine may differ before it is worth a word.
SKEW_S: Final = 30.0
#: Seconds between two tries to reach the server: from, to.
BACK_OFF: Final = (0.1, 2.0)


#: What a server says to a connection that it does not know -> what to do.
_SIGN_IN: Final = {
    "Authentication required": "this server wants a password: put it into the URL, before an @ and the host",
    "username-password pair": "mend user and password in the URL, and escape the characters / ? # @ in them",
    "without any password configured": "this server has no password: take it out of the URL",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that answers and may be used."""

    #: Its name and version: `Redis 7.0.15`.
    product: str
    #: What an operator should know, a sentence each.
    warnings: tuple[str, ...] = ()


async def wait_for_server(link: Link, *, url: str, patience: float) -> Server:
    """Return the server behind `link` as soon as it answers; `url` is for messages, without password.

    Raises:
        ConnectionLost: it did not answer within `patience` seconds.
        StoreRefused: it does not accept the user or password.
        IncompatibleServer: it is too old, a replica, in a cluster, or set up to throw work away.
    """
    last: ConnectionLost | None = None
    pause = BACK_OFF[0]
    try:
        async with asyncio.timeout(patience):
            while True:
                try:
                    return await look(link, url=url)
                except ConnectionLost as error:
                    if last is None:
                        logger.warning("%s; waiting for up to %g s", error, patience)
                    last = error
                await asyncio.sleep(pause * (0.5 + secrets.randbelow(50) / 100))
                pause = min(pause * 2, BACK_OFF[1])
    except TimeoutError:
        reason = str(last or f"Redis at {url} does not answer")
        raise ConnectionLost(f"{reason} (tried for {patience:g} s)") from last


async def look(link: Link, *, url: str) -> Server:
    """Return the server behind `link` if it answers now.

    Raises:
        ConnectionLost, StoreRefused, IncompatibleServer: as `wait_for_server`.
    """
    try:
        await link.call("PING")
    except StoreRefused as error:
        raise refused(error, url=url) from error
    except ConnectionLost as error:
        raise unanswered(error, url=url) from error
    try:
        reply: bytes = await link.call("INFO")
        seconds, _ = await link.call("TIME")
    except StoreRefused as error:
        return Server(
            product="a server that does not show its INFO",
            warnings=(f"version, maxmemory-policy and appendonly could not be checked: {error}",),
        )
    return judge(_fields(reply), url=url, ahead_s=int(seconds) - time.time())


def unanswered(error: ConnectionLost, *, url: str) -> ConnectionLost:
    """Return a loss that names the server."""
    reason = str(error.__cause__ or "").rstrip(".") or "no reply"
    return ConnectionLost(f"Redis at {url} does not answer: {reason}")


def refused(error: StoreRefused, *, url: str, role: str = "worker") -> StoreRefused:
    """Return a refusal that names the server, and the cure for a wrong password or a missing right."""
    reason = str(error)
    text = f"Redis at {url} refuses: {reason}"
    if "permission" in text:
        text += f"; `stepfleet acl --role {role}` prints a user with the rights"
    elif "the Sentinel" not in reason:  # that has a cure of its own
        cure = next((cure for said, cure in _SIGN_IN.items() if said in reason), "")
        text = f"{text.rstrip('.')}; {cure}" if cure else text
    return StoreRefused(text)


def judge(info: Mapping[str, str], *, url: str, ahead_s: float = 0.0) -> Server:
    """Return the server that says `info` of itself; its clock is `ahead_s` ahead of this machine's.

    Raises:
        IncompatibleServer: it is too old, a replica, in a cluster, or set up to throw work away.
    """
    product = _product(info)
    version = info.get("redis_version", "")
    if _numbers(version) and _numbers(version) < OLDEST:
        raise IncompatibleServer(
            f"{product} at {url} is too old: Redis {OLDEST[0]}.{OLDEST[1]} or newer, or Valkey, is "
            "needed"
        )
    if info.get("redis_mode") == "cluster":
        raise IncompatibleServer(
            f"{product} at {url} is a node of a cluster, which is not supported: give the URL of a server "
            "with cluster-enabled no"
        )
    if info.get("role") == "slave":
        primary = f"{info.get('master_host')}:{info.get('master_port')}"
        raise IncompatibleServer(
            f"{product} at {url} is a replica, which takes no writes: give the URL of its primary, {primary}"
        )
    policy = info.get("maxmemory_policy")
    if info.get("maxmemory", "0") != "0" and policy not in ("noeviction", None):
        raise IncompatibleServer(
            f"{product} at {url} has maxmemory-policy {policy}: when its memory is full it would "
            "throw away runs that are not done. Set maxmemory-policy to noeviction"
        )
    warnings: list[str] = []
    if info.get("aof_enabled") == "0":
        warnings.append(
            "appendonly is off: when Redis crashes, what happened since its last snapshot is lost"
        )
    if abs(ahead_s) > SKEW_S:
        side = "ahead of" if ahead_s > 0 else "behind"
        warnings.append(
            f"its clock is {abs(ahead_s):.0f} s {side} this machine's: leases and time-outs follow it, times "
            "in logs and traces do not; let both take their time from NTP"
        )
    unknown = _unknown(info)
    if unknown:
        warnings.append(f"{', '.join(unknown)} could not be checked: INFO does not show it")
    return Server(product=product, warnings=tuple(warnings))


def _fields(reply: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _product(info: Mapping[str, str]) -> str:
    if version := info.get("valkey_version"):
        return f"Valkey {version}"
    return f"Redis {info.get('redis_version', 'of an unknown version')}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _unknown(info: Mapping[str, str]) -> list[str]:
    shown = {
        "redis_version": "the version",
        "maxmemory_policy": "maxmemory-policy",
        "aof_enabled": "appendonly",
    }
    return [name for field, name in shown.items() if field not in info]
