"""`stepfleet doctor`: what is wrong with a fleet and its server, each finding with its cure. Layer: cli."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Final, NamedTuple

import click

from stepfleet.cli.exits import CRASHED, OK
from stepfleet.cli.probe import look
from stepfleet.cli.reach import Reach, json_option, reaches_fleet, repeat, watch_option
from stepfleet.cli.sentences import waiting
from stepfleet.cli.showing import ago, tell
from stepfleet.errors import IncompatibleServer, StoreRefused
from stepfleet.storage.inspector import Inspector

#: Milliseconds that this machine's clock may differ from Redis' before it is worth a word: time-outs
#: and leases use Redis' clock, log lines and traces this machine's.
SKEW_MS: Final = 5_000
#: Share of maxmemory from which on it is worth a word.
FULL: Final = 0.8
#: Milliseconds that an entry may wait for a worker before it is worth a word.
OLD_MS: Final = 60_000
#: Orphaned keys that are named one by one.
NAMED: Final = 5


#: What is said of a server -> what to do.
_CURES: Final = {
    "too old": "upgrade it: workers refuse to start on it",
    "cluster": "use a server with cluster-enabled no: workers refuse to start on this one",
    "replica": "use the URL of its primary: workers refuse to start on this one",
    "could not be checked": "let this user call INFO, or look at the server's configuration",
    "maxmemory-policy": "CONFIG SET maxmemory-policy noeviction, and the same in its configuration file",
    "appendonly": "CONFIG SET appendonly yes, and in its configuration file appendonly yes and "
    "appendfsync everysec",
}


#: What INFO says of a file -> its name, and what to do when it could not be written.
_DISK: Final = (
    (
        "aof_last_write_status",
        "the append-only file",
        "make room or mend the disk, as the log of Redis says; a sync that failed is not tried again: "
        "CONFIG SET appendonly no, then yes, writes the file anew",
    ),
    (
        "rdb_last_bgsave_status",
        "the last snapshot",
        "make room or mend the disk, as the log of Redis says, then BGSAVE; or CONFIG SET "
        'save "" where an append-only file keeps everything',
    ),
)


class Finding(NamedTuple):
    """Something that was looked at."""

    #: ok, warning or error.
    level: str
    about: str
    text: str
    cure: str = ""


@click.command("doctor", short_help="Look for what is wrong, and say its cure.")
@json_option
@watch_option
@reaches_fleet
async def doctor(reach: Reach, *, as_json: bool, watch: float | None) -> int:
    """Look at server, workers, queues and keys.

    Exits with 1 when it finds an error, with 0 when it finds warnings only.
    """
    worst = OK
    async with reach.inspector() as inspector:
        # One error instead of one for each part.
        await inspector.link.call("PING")

        async def render() -> None:
            nonlocal worst
            async for finding in findings(inspector, reach.shown_url):
                if finding.level == "error":
                    worst = CRASHED
                cure = f"\n         -> {finding.cure}" if finding.cure else ""
                text = f"{finding.level:7}  {finding.about}: {finding.text}{cure}"
                tell(finding._asdict(), text, as_json=as_json)

        await repeat(render, watch, clear=not as_json)
    return worst


async def findings(inspector: Inspector, shown_url: str) -> AsyncGenerator[Finding]:
    """Give everything that was looked at, fine or not.

    Raises:
        ConnectionLost: Redis does not answer.
    """
    for part in (_server, _memory, _disk, _rights, _clock, _workers, _queues, _keys):
        try:
            async for finding in part(inspector, shown_url):
                yield finding
        except StoreRefused as error:
            about = part.__name__.removeprefix("_")
            cure = "give this user the rights of `stepfleet acl --role operator`"
            if "WRONGTYPE" in str(error):
                cure = "see below which keys are of a wrong type"
            yield Finding("warning", about, f"could not be looked at: {error}", cure)


async def _server(inspector: Inspector, shown_url: str) -> AsyncGenerator[Finding]:
    try:
        server = await look(inspector.link, url=shown_url)
    except IncompatibleServer as error:
        yield Finding("error", "server", str(error), _cure(str(error)))
        return
    yield Finding("ok", "server", f"{server.product} at {shown_url}")
    for warning in server.warnings:
        if "clock" not in warning:  # looked at below, more closely
            yield Finding("warning", "server", warning, _cure(warning))


def _cure(text: str) -> str:
    return next((cure for word, cure in _CURES.items() if word in text), "")


async def _memory(inspector: Inspector, _: str) -> AsyncGenerator[Finding]:
    info = await _info(inspector, "memory")
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not limit:
        yield Finding(
            "warning",
            "memory",
            "maxmemory is not set: a full machine kills Redis instead of refusing new runs",
            "set maxmemory below the machine's memory, with maxmemory-policy noeviction",
        )
    elif used > FULL * limit:
        yield Finding(
            "error",
            "memory",
            f"{used / limit:.0%} of maxmemory is used: new runs will be refused when it is full",
            "raise maxmemory, shorten STEPFLEET_RETENTION, or delete ended runs",
        )
    else:
        yield Finding("ok", "memory", f"{used / limit:.0%} of maxmemory is used")


async def _disk(inspector: Inspector, _: str) -> AsyncGenerator[Finding]:
    info = await _info(inspector, "persistence")
    fine = True
    for field, file, cure in _DISK:
        if info.get(field) == "err":
            fine = False
            text = f"{file} could not be written: Redis refuses writes (MISCONF) until it can"
            yield Finding("error", "disk", text, cure)
    if fine:
        yield Finding("ok", "disk", "what Redis wrote last was kept")


async def _rights(inspector: Inspector, _: str) -> AsyncGenerator[Finding]:
    """Ask for the commands whose absence would show only later, with keys that are not there."""
    keys = inspector.keys
    probes = {
        "XPENDING": ("XPENDING", keys.dead, "no-such-group"),
        "ZSCAN": ("ZSCAN", keys.timers, "0", "COUNT", 1),
        "HGETALL": ("HGETALL", keys.workers),
        "EVALSHA": ("EVALSHA", "0" * 40, 0),
    }
    replies = await inspector.link.calls(list(probes.values()))
    missing = [
        name
        for name, reply in zip(probes, replies, strict=True)
        if isinstance(reply, StoreRefused) and "permission" in str(reply)
    ]
    if missing:
        yield Finding(
            "warning",
            "rights",
            f"this user may not call {', '.join(missing)}",
            "`stepfleet acl` prints users with the rights that each role needs",
        )
    else:
        yield Finding("ok", "rights", "this user may call what is needed")


async def _clock(inspector: Inspector, _: str) -> AsyncGenerator[Finding]:
    skew = await inspector.now_ms() - int(time.time() * 1000)
    if abs(skew) > SKEW_MS:
        yield Finding(
            "warning",
            "clock",
            f"Redis is {ago(abs(skew))} {'ahead of' if skew > 0 else 'behind'} this machine: leases and "
            "time-outs are right, times in logs and traces differ",
            "let both take their time from NTP",
        )
    else:
        yield Finding("ok", "clock", f"Redis and this machine differ by {ago(abs(skew))}")


async def _workers(inspector: Inspector, _: str) -> AsyncGenerator[Finding]:
    rows = await inspector.workers()
    live = [row for row in rows if row.state == "live"]
    silent = [row.consumer for row in rows if row.state == "silent"]
    if not live:
        yield Finding("warning", "workers", "no worker is live", "start a workflow-worker")
    else:
        yield Finding("ok", "workers", f"{len(live)} live")
    if silent:
        yield Finding(
            "warning",
            "workers",
            f"silent since their lease ran out: {', '.join(silent)}",
            "others take their work over; if they are stopped or cut off, end them",
        )
    versions = {str(row.about.get("version")) for row in live}
    if len(versions) > 1:
        yield Finding(
            "warning",
            "workers",
            f"live workers have different versions of stepfleet: {', '.join(sorted(versions))}",
            "fine during a roll-out",
        )


async def _queues(inspector: Inspector, _: str) -> AsyncGenerator[Finding]:
    rows = await inspector.workers()
    fine = True
    for queue in await inspector.queues():
        name = f"{queue.workflow}.{queue.step}"
        there = queue.backlog + queue.in_flight
        if there and queue.step and not any(row.serves(*queue[:3]) for row in rows):
            fine = False
            yield Finding(
                "error",
                "queues",
                f"{waiting(there, queue.event_type)} for {name}, which no live worker serves",
                f"start a workflow-worker with {queue.workflow}"
                + (
                    ", in the code that those runs began with, or without --steps and --exclude-steps"
                    if any(row.has(queue.workflow) for row in rows)
                    else ""
                ),
            )
        elif queue.backlog and (queue.oldest_ms or 0) > OLD_MS:
            fine = False
            yield Finding(
                "warning",
                "queues",
                f"{waiting(queue.backlog, queue.event_type)} for {name}, the oldest for "
                f"{ago(queue.oldest_ms)}",
                "start more workers, or raise --concurrency",
            )
    for stuck in await inspector.stuck():
        fine = False
        yield Finding(
            "error",
            "queues",
            f"{_deliveries(stuck.deliveries)} of {stuck.stream}, taken by {stuck.consumer}, which has no lease",
            "a live worker of that workflow takes them over within two leases: start one",
        )
    dead = 0
    async for _letter in inspector.dead():
        dead += 1
    if dead:
        count = "1 dead letter" if dead == 1 else f"{dead} dead letters"
        cure = "`stepfleet dead list` shows why; when that is mended `stepfleet dead requeue ID` goes on"
        yield Finding("warning", "queues", count, cure)
    if fine:
        yield Finding("ok", "queues", "everything that waits is served")


def _deliveries(count: int) -> str:
    return "1 delivery" if count == 1 else f"{count} deliveries"


async def _keys(inspector: Inspector, _: str) -> AsyncGenerator[Finding]:
    orphans, wrong = await inspector.orphans(), await inspector.wrong_types()
    damaged, unreadable = await inspector.damaged(), await inspector.unreadable()
    for run_id, reason in list(damaged.items())[:NAMED]:
        yield Finding(
            "error",
            "keys",
            f"run {run_id} is damaged: {reason}",
            f"`stepfleet runs delete {run_id}` removes it; find out what else writes under this namespace",
        )
    for run_id, key, entry in unreadable[:NAMED]:
        yield Finding(
            "error",
            "keys",
            f"readers of the events of run {run_id} stop at entry {entry} of {key}, which is no public event",
            f"`redis-cli XDEL '{key}' {entry}` takes it out; find out what else writes under this namespace",
        )
    if orphans:
        names = ", ".join(orphan.key for orphan in orphans[:NAMED])
        more = f" and {len(orphans) - NAMED} more" if len(orphans) > NAMED else ""
        yield Finding(
            "error",
            "keys",
            f"keys of runs that are not there, and that never expire: {names}{more}",
            "delete them with UNLINK; if they come again, report it",
        )
    if wrong:
        yield Finding(
            "error",
            "keys",
            f"keys of a wrong type: {', '.join(wrong[:NAMED])}",
            "UNLINK them: workers make them anew, without what they held; something else writes under this "
            "namespace: give it another one",
        )
    if not orphans and not wrong and not damaged and not unreadable:
        yield Finding("ok", "keys", "no orphans, nothing damaged")


async def _info(inspector: Inspector, section: str) -> dict[str, str]:
    reply: bytes = await inspector.link.call("INFO", section)
    lines = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in lines if colon}
