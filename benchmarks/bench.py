"""Measures stepfleet on this machine beside a hand-made loop: `make bench`, or `make bench QUICK=1`.

Everything runs in interleaved rounds on one Redis server without persistence; medians, minima and
maxima over the rounds are printed and written to `docs/benchmarks.md`. They hold for this machine only.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgpack
import redis.asyncio as redis

from benchmarks.ceiling import STREAMS
from benchmarks.flows import Chain, Fan, One
from stepfleet import Client
from stepfleet.embedded.server import find_server_binary

ROOT = Path(__file__).resolve().parent.parent
QUICK = bool(os.environ.get("QUICK"))
ROUNDS = 3 if QUICK else 7
CHAINS = 500


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Processes:
    """A server and workers that end with the benchmark."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []
        self.folder = tempfile.TemporaryDirectory()

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with Path(self.folder.name, f"{len(self._started)}.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        self._started.append(process)
        return process

    def stop(self) -> None:
        for process in reversed(self._started):
            process.kill()
            process.wait()
        self.folder.cleanup()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a process of the benchmark did not get ready")
        await asyncio.sleep(0.05)


async def chains_at_once(client: Client, flow: Any) -> float:
    began = time.perf_counter()
    handlers = await client.start_many(flow, [{"n": n} for n in range(CHAINS)])
    results = await asyncio.gather(*handlers)
    assert results == list(range(CHAINS))
    return CHAINS / (time.perf_counter() - began)


async def idle_latency(client: Client, flow: Any, times: int = 40) -> float:
    took: list[float] = []
    for n in range(times):
        began = time.perf_counter()
        handler = await client.start(flow, n=n)
        assert await handler == n
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


async def fan(client: Client, width: int) -> float:
    began = time.perf_counter()
    handler = await client.start(Fan, width=width)
    assert await handler == width
    return (time.perf_counter() - began) * 1000


async def ceiling_chains(server: redis.Redis) -> float:
    last = await last_result(server)
    began = time.perf_counter()
    pipeline = server.pipeline(transaction=False)
    for n in range(CHAINS):
        pipeline.xadd(STREAMS[0], {"d": msgpack.packb({"n": n})})
    await pipeline.execute()
    seen = 0
    while seen < CHAINS:
        for _, entries in await server.xread({STREAMS[3]: last}, count=1000, block=2000):
            seen, last = seen + len(entries), entries[-1][0]
    return CHAINS / (time.perf_counter() - began)


async def ceiling_latency(server: redis.Redis, times: int = 40) -> float:
    took: list[float] = []
    for n in range(times):
        last = await last_result(server)
        began = time.perf_counter()
        await server.xadd(STREAMS[0], {"d": msgpack.packb({"n": n})})
        await server.xread({STREAMS[3]: last}, block=2000)
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


async def last_result(server: redis.Redis) -> Any:
    rows = await server.xrevrange(STREAMS[3], count=1)
    return rows[0][0] if rows else "0-0"


async def costs(
    server: redis.Redis, worker_pid: int, work: Callable[[], Awaitable[Any]], steps: int
) -> dict[str, float]:
    """Counts what the work costs: it does not depend on how busy the machine is."""
    server_pid = int((await server.info("server"))["process_id"])
    before, cpu, server_cpu = (
        await server.info("all"),
        cpu_seconds(worker_pid),
        cpu_seconds(server_pid),
    )
    await work()
    after = await server.info("all")

    def calls(info: dict[str, Any], *names: str) -> int:
        return sum(
            int(stats["calls"])
            for name, stats in info.items()
            if re.fullmatch(r"cmdstat_(" + "|".join(names) + ")", name)
        )

    outer = ("evalsha", "xreadgroup", "xread")
    return {
        "Redis calls per step, producer included": (calls(after, *outer) - calls(before, *outer))
        / steps,
        "Redis commands per step, inside scripts too": (calls(after, ".*") - calls(before, ".*"))
        / steps,
        "bytes to Redis per step": (
            after["total_net_input_bytes"] - before["total_net_input_bytes"]
        )
        / steps,
        "bytes from Redis per step": (
            after["total_net_output_bytes"] - before["total_net_output_bytes"]
        )
        / steps,
        "worker CPU per step, us": (cpu_seconds(worker_pid) - cpu) / steps * 1e6,
        "Redis CPU per step, us": (cpu_seconds(server_pid) - server_cpu) / steps * 1e6,
    }


async def main() -> None:
    processes = Processes()
    try:
        port = free_port()
        url = f"redis://127.0.0.1:{port}"
        processes.start(
            str(find_server_binary()), "--port", str(port), "--bind", "127.0.0.1", "--save", ""
        )
        server = redis.Redis.from_url(url)

        async def answers() -> bool:
            try:
                return bool(await server.ping())
            except redis.ConnectionError:
                return False

        await until(answers)
        worker = processes.start(
            str(Path(sys.executable).with_name("workflow-worker")),
            "benchmarks.flows:workflows",
            "--redis-url",
            url,
            "--log-level",
            "warning",
        )
        processes.start(sys.executable, "-m", "benchmarks.ceiling", url)

        async def both_ready() -> bool:
            return bool(await server.exists("{default:0}:leases")) and bool(
                await server.exists(STREAMS[2])
            )

        await until(both_ready)
        async with Client(url) as client:
            rows = await measured(client, server)
            counted = await costs(
                server, worker.pid, lambda: chains_at_once(client, Chain), CHAINS * 3
            )
        report(rows, counted, (await server.info("server"))["redis_version"])
        await server.aclose()
    finally:
        processes.stop()


async def measured(client: Client, server: redis.Redis) -> dict[str, list[float]]:
    rows: dict[str, list[float]] = {}
    for number in range(ROUNDS + 1):
        figures = {
            "500 chains of 3 steps at once, chains/s": await chains_at_once(client, Chain),
            "the same, hand-made loop": await ceiling_chains(server),
            "one chain of 3 steps, idle, ms": await idle_latency(client, Chain),
            "the same, hand-made loop, ms": await ceiling_latency(server),
            "500 one-step runs at once, runs/s": await chains_at_once(client, One),
            "one step, idle, ms": await idle_latency(client, One),
            "1 -> 100 -> 1, ms": await fan(client, 100),
            "1 -> 1,000 -> 1, ms": await fan(client, 1_000),
        }
        if number:  # the first round warms up
            for name, figure in figures.items():
                rows.setdefault(name, []).append(figure)
    return rows


def report(rows: dict[str, list[float]], counted: dict[str, float], server: str) -> None:
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`; absolute figures hold for the machine below only: compare within one",
        "table. One worker process, one producer, one server without persistence, all on the same cores.",
        "The hand-made loop (`benchmarks/ceiling.py`) has no fence, slots, retries or recovery.",
        "",
        f"- machine: {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        f"- redis-server {server}, redis-py {version('redis')}, {ROUNDS} rounds after one to warm up",
        "",
        "| measure | median | min | max |",
        "| --- | --- | --- | --- |",
    ]
    for name, figures in rows.items():
        median, low, high = statistics.median(figures), min(figures), max(figures)
        lines.append(f"| {name} | {median:,.2f} | {low:,.2f} | {high:,.2f} |")
    lines += ["", "Counted over 500 chains at once:", "", "| cost | figure |", "| --- | --- |"]
    lines += [f"| {name} | {figure:,.3f} |" for name, figure in counted.items()]
    text = "\n".join(lines) + "\n"
    print(text)
    if not QUICK:
        (ROOT / "docs" / "benchmarks.md").write_text(text)


if __name__ == "__main__":
    asyncio.run(main())
