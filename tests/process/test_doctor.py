"""`stepfleet doctor`: each illness of a server or fleet is found, by name and with its cure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from stepfleet.cli import doctor, probe
from stepfleet.cli.doctor import Finding, findings
from stepfleet.cli.probe import Server
from stepfleet.connect import fleet_of
from stepfleet.settings import Settings
from stepfleet.storage.inspector import Inspector
from stepfleet.wire import PublicEntry, encode_public
from stepfleet.worker.worker import VERSION
from tests.support.servers import RedisServer, available_binaries
from tests.support.wait import eventually

BINARY = next(iter(available_binaries().values()))

Raw = Any


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    options = ("--maxmemory", "200mb")
    server = RedisServer(BINARY, tmp_path_factory.mktemp("redis"), options=options)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def raw(server: RedisServer) -> Iterator[Raw]:
    with redis.Redis(port=server.port) as raw:
        names = ("appendonly", "maxmemory", "maxmemory-policy")
        before = {name: cast(Any, raw).config_get(name)[name] for name in names}
        yield raw
        for name, value in before.items():
            raw.config_set(name, value)
        raw.flushall()


async def found(server: RedisServer, level: str = "") -> list[Finding]:
    fleet = fleet_of(server.url, Settings())
    link = fleet.link("test")
    try:
        all_ = [one async for one in findings(Inspector(link, fleet.keys), server.url)]
    finally:
        await link.close()
    assert all(one.cure for one in all_ if one.level != "ok"), all_
    return [one for one in all_ if level in ("", one.level)]


def worker(raw: Raw, name: str = "h:1:a", *, version: str = VERSION, ends_in_s: float = 60) -> None:
    import msgpack

    about = {
        "version": version,
        "streams": {"Flow": ["Event:one"]},
        "workflows": {"Flow": "digest"},
    }
    raw.hset("{default:0}:workers", name, msgpack.packb(about))
    raw.zadd("{default:0}:leases", {name: int((time.time() + ends_in_s) * 1000)})


def stream(raw: Raw, *, age_s: float = 0, step: str = "one") -> str:
    name = f"{{default:0}}:s:Flow:Event:{step}"
    raw.xgroup_create(name, "workers", id="0", mkstream=True)
    raw.xadd(name, {"r": "x"}, id=f"{int((time.time() - age_s) * 1000)}-0")
    return name


async def test_a_healthy_fleet_is_all_fine(server: RedisServer, raw: Raw) -> None:
    worker(raw)
    all_ = await found(server)
    assert {one.level for one in all_} == {"ok"}
    looked_at = {one.about for one in all_}
    assert looked_at == {"server", "memory", "disk", "rights", "clock", "workers", "queues", "keys"}


def no_log(raw: Raw) -> None:
    raw.config_set("appendonly", "no")


def evicts(raw: Raw) -> None:
    raw.config_set("maxmemory-policy", "allkeys-lru")


def unlimited(raw: Raw) -> None:
    raw.config_set("maxmemory", "0")


def full(raw: Raw) -> None:
    raw.config_set("maxmemory", int(raw.info("memory")["used_memory"] * 1.05))


def silent(raw: Raw) -> None:
    worker(raw, "h:2:b", ends_in_s=-5)


def mixed(raw: Raw) -> None:
    worker(raw, "h:2:b", version="0.0.1")


def unserved(raw: Raw) -> None:
    stream(raw, step="two")


def other_code(raw: Raw) -> None:
    raw.xadd("{default:0}:s:Flow:Older:one", {"r": "x"})


def old(raw: Raw) -> None:
    stream(raw, age_s=120)


def stuck(raw: Raw) -> None:
    raw.xreadgroup("workers", "h:9:z", {stream(raw): ">"})


def dead(raw: Raw) -> None:
    raw.xadd("{default:0}:dead", {"run": "r"})


def orphan(raw: Raw) -> None:
    raw.hset("{default:0}:run:gone:store", "k", "v")


def strange(raw: Raw) -> None:
    raw.set("{default:0}:s:Flow:Event:one", "no stream")


def damaged(raw: Raw) -> None:
    raw.set("{default:0}:run:bad", "no hash")


def lost(raw: Raw) -> None:
    runs = {"bad": 1, "idle": 0, "holds": 2, "strange": "x"}
    for run_id, slots in runs.items():
        fields = {"status": "running", "workflow": "Flow", "s:one": slots}
        raw.hset(f"{{default:0}}:run:{run_id}", mapping=fields)
    raw.sadd("{default:0}:run:holds:keys", "{default:0}:run:holds:hold:one")
    raw.rpush("{default:0}:run:holds:hold:one", "x", "y")


def unreadable(raw: Raw) -> None:
    raw.hset("{default:0}:run:r", mapping={"status": "running", "workflow": "Flow"})
    for seq, data in enumerate((encode_public(PublicEntry("event", "E", b"\x80")), b"x"), 1):
        raw.xadd("{default:0}:run:r:events", {"d": data}, id=f"{seq}-0")


@pytest.mark.parametrize(
    ("make_ill", "expected"),
    [
        (no_log, ("warning", "server", "appendonly is off", "appendonly yes")),
        (evicts, ("error", "server", "has maxmemory-policy allkeys-lru", "CONFIG SET")),
        (unlimited, ("warning", "memory", "maxmemory is not set", "set maxmemory below")),
        (full, ("error", "memory", "of maxmemory is used", "raise maxmemory")),
        (silent, ("warning", "workers", "ran out: h:2:b", "others take their work over")),
        (mixed, ("warning", "workers", f"0.0.1, {VERSION}", "fine during a roll-out")),
        (
            unserved,
            ("error", "queues", "Flow.two, which no live worker", "workflow-worker with Flow"),
        ),
        (
            other_code,
            (
                "error",
                "queues",
                "1 Older waits for Flow.one, which no",
                "code that those runs began",
            ),
        ),
        (old, ("warning", "queues", "the oldest for 2m", "start more workers")),
        (
            stuck,
            (
                "error",
                "queues",
                "1 delivery of {default:0}:s:Flow:Event:one, taken by h:9:z, which has no lease",
                "start one",
            ),
        ),
        (dead, ("warning", "queues", "1 dead letter", "`stepfleet dead list`")),
        (orphan, ("error", "keys", "{default:0}:run:gone:store", "UNLINK")),
        (
            strange,
            (
                "error",
                "keys",
                "keys of a wrong type: {default:0}:s:Flow:Event:one (string instead of stream)",
                "something else writes",
            ),
        ),
        (damaged, ("error", "keys", "run bad is damaged", "`stepfleet runs delete bad`")),
        (
            lost,
            (
                "error",
                "keys",
                "run bad is damaged: {default:0}:run:bad:open is missing",
                "`stepfleet runs delete bad`",
            ),
        ),
        (
            unreadable,
            (
                "error",
                "keys",
                "events of run r stop at entry 2-0 of {default:0}:run:r:events, which is no public event",
                "`redis-cli XDEL '{default:0}:run:r:events' 2-0` takes it out",
            ),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_an_illness_is_found_with_its_cure(
    server: RedisServer,
    raw: Raw,
    make_ill: Callable[[Raw], None],
    expected: tuple[str, str, str, str],
) -> None:
    worker(raw)
    make_ill(raw)
    (ill,) = [one for one in await found(server) if one.level != "ok"]

    level, about, text, cure = expected
    assert (ill.level, ill.about) == (level, about)
    assert text in ill.text
    assert cure in ill.cure


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        *(("timers", "zset"), ("live", "zset"), ("ends", "stream"), ("tidy", "list")),
        *(("wf:Flow", "hash"), ("lim:Flow:one", "hash"), ("lim:Flow:one:queue", "list")),
        *(("runs:Flow", "set"), ("runs:Flow:queue", "list"), ("s:Flow:__sys", "stream")),
    ],
)
async def test_a_shared_key_of_a_wrong_type_is_found(
    server: RedisServer, raw: Raw, key: str, kind: str
) -> None:
    worker(raw)
    raw.set(f"{{default:0}}:{key}", "x")
    assert [one.text for one in await found(server, "error")] == [
        f"keys of a wrong type: {{default:0}}:{key} (string instead of {kind})"
    ]


async def test_what_cannot_be_looked_at_for_a_wrong_type_says_where_to_look(
    server: RedisServer, raw: Raw
) -> None:
    raw.set("{default:0}:workers", "x")
    parts = [one for one in await found(server, "warning") if one.about in ("workers", "queues")]
    assert [one.cure for one in parts] == ["see below which keys are of a wrong type"] * 2
    (wrong,) = await found(server, "error")
    assert wrong.text == "keys of a wrong type: {default:0}:workers (string instead of hash)"


async def test_a_snapshot_that_failed_is_found(server: RedisServer, raw: Raw) -> None:
    worker(raw)
    in_the_way = Path(raw.config_get("dir")["dir"]) / "dump.rdb"
    in_the_way.mkdir()
    raw.bgsave()
    await eventually(lambda: raw.info("persistence")["rdb_last_bgsave_status"] == "err", 20.0)
    (ill,) = [one for one in await found(server) if one.level != "ok"]

    assert ill[:3] == (
        "error",
        "disk",
        "the last snapshot could not be written: Redis refuses writes (MISCONF) until it can",
    )
    assert "then BGSAVE" in ill.cure
    in_the_way.rmdir()
    raw.bgsave()
    await eventually(lambda: raw.info("persistence")["rdb_last_bgsave_status"] == "ok", 20.0)
    assert await found(server, "error") == []


async def test_nobody_works(server: RedisServer, raw: Raw) -> None:
    (ill,) = await found(server, "warning")

    assert ill == ("warning", "workers", "no worker is live", "start a workflow-worker")


async def test_clocks_that_differ(
    server: RedisServer, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(raw)
    real = time.time()
    monkeypatch.setattr(doctor.time, "time", lambda: real - 3600.0)
    (ill,) = await found(server, "warning")

    assert ill.about == "clock"
    assert ill.text.startswith("Redis is 1h00m ahead of this machine")
    assert ill.cure == "let both take their time from NTP"


@pytest.mark.parametrize(
    "warning",
    [
        *probe.judge({"redis_version": "7.0.0"}, url="redis://h").warnings,
        "version, maxmemory-policy and appendonly could not be checked: no permissions",
    ],
)
async def test_what_cannot_be_looked_at_has_a_cure_too(
    server: RedisServer, raw: Raw, monkeypatch: pytest.MonkeyPatch, warning: str
) -> None:
    worker(raw)

    async def look(*_: Any, **__: Any) -> Server:
        return Server(product="Redis", warnings=(warning,))

    monkeypatch.setattr(doctor, "look", look)
    (ill,) = await found(server, "warning")

    assert ill.text == warning
    assert ill.cure.startswith("let this user call INFO")
