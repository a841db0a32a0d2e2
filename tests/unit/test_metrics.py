"""What a worker counts for Prometheus, and its small HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client import Counter as UsersCounter

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.client import Client
from stepfleet.clock import Clock
from stepfleet.core.commit import DeadLetter
from stepfleet.core.delivery import Delivery, Record
from stepfleet.core.outcome import Lost
from stepfleet.embedded.memory import memory_fleet
from stepfleet.errors import RunFailed, SettingsError
from stepfleet.planning import make_plan
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from stepfleet.storage.fleet import Fleet
from stepfleet.telemetry.endpoint import HEAD, Page, health, readiness, serving
from stepfleet.telemetry.metrics import SAMPLED_S, Metrics
from stepfleet.worker.worker import STUCK, Worker, WorkerOptions


class Draft(Event):
    text: str


class Press(Workflow):
    @step(retry_policy=retry_policy(wait=wait_fixed(0), stop=stop_after_attempt(3)))
    async def write(self, ctx: Context, ev: StartEvent) -> Draft:
        if ctx.retry_info().retry_number < 1:
            raise OSError("the pen is dry")
        return Draft(text="news")

    @step
    async def print_it(self, ev: Draft) -> StopEvent:
        return StopEvent(result=ev.text)


class Burned(Workflow):
    @step
    async def burn(self, ev: StartEvent) -> StopEvent:
        raise ValueError("ash")


@asynccontextmanager
async def working(
    flow: Workflow, metrics: Metrics, fleet: Fleet, **options: Any
) -> AsyncGenerator[Worker]:
    name = type(flow).__name__
    plan = make_plan(flow, name, limits=fleet.limits, open_types=True)
    worker = Worker(fleet, {name: (plan, flow)}, options=WorkerOptions(**options), observer=metrics)
    ready = asyncio.Event()
    running = asyncio.create_task(worker.run(on_ready=ready.set))
    await ready.wait()
    try:
        yield worker
    finally:
        worker.stop()
        await running


def figure(metrics: Metrics, name: str, step: str = "", *, of: str = "Press") -> float | None:
    labels = {"namespace": "memory"} | ({"workflow": of, "step": step} if step else {})
    return metrics.registry.get_sample_value(name, labels)


async def test_a_run_is_counted_by_step() -> None:
    fleet = memory_fleet()
    metrics = Metrics(fleet)
    async with working(Press(), metrics, fleet) as worker, Client(fleet) as client:
        assert await (await client.start(Press, run_id="r1")) == "news"
        text = (await metrics.text(worker)).decode()
    steps = "workflow_steps_{}_total"
    assert figure(metrics, steps.format("succeeded"), "write") == 1
    assert figure(metrics, steps.format("failed"), "write") == 1
    assert figure(metrics, steps.format("retried"), "write") == 1
    assert figure(metrics, steps.format("succeeded"), "print_it") == 1
    assert figure(metrics, steps.format("failed"), "print_it") is None
    for name in ("duration", "queue_wait"):
        count = figure(metrics, f"workflow_step_{name}_seconds_count", "write")
        assert count == 2
        total = figure(metrics, f"workflow_step_{name}_seconds_sum", "write")
        assert total is not None
        assert 0 <= total < 60
    assert figure(metrics, "workflow_queue_depth", "write") == 0
    assert figure(metrics, "workflow_queue_workers", "write") == 1
    assert figure(metrics, "workflow_worker_healthy") == 1
    assert figure(metrics, "workflow_worker_slots") == 100
    assert figure(metrics, "workflow_dead_letters") == 0
    assert figure(metrics, "workflow_leases_lost_total") == 0
    assert figure(metrics, "workflow_fleet_up") == 1
    assert "r1" not in text  # no label may have as many values as there are runs


async def test_the_last_failure_is_not_a_retry() -> None:
    fleet = memory_fleet()
    metrics = Metrics(fleet)
    async with working(Burned(), metrics, fleet), Client(fleet) as client:
        with pytest.raises((ValueError, RunFailed)):
            await (await client.start(Burned))
    assert figure(metrics, "workflow_steps_failed_total", "burn", of="Burned") == 1
    assert figure(metrics, "workflow_steps_retried_total", "burn", of="Burned") is None


async def test_what_is_lost_is_counted() -> None:
    metrics = Metrics(memory_fleet())
    plan = make_plan(Press(), "Press", limits=memory_fleet().limits, open_types=True)
    delivery = Delivery("r", "d", plan.routes[0], "1-0", Record("r", "t", b""))
    metrics.reclaimed(delivery)
    metrics.lease_lost()
    metrics.settled(delivery, Lost(), [DeadLetter(())], "applied")
    metrics.settled(delivery, Lost(), [DeadLetter(())], "gone")
    metrics.unreadable("Press", "write")
    assert figure(metrics, "workflow_steps_reclaimed_total", "write") == 1
    assert figure(metrics, "workflow_leases_lost_total") == 1
    assert figure(metrics, "workflow_steps_dead_lettered_total", "write") == 2
    assert figure(metrics, "workflow_steps_fenced_total", "write") == 1


async def test_what_waits_and_how_long_is_seen_by_a_worker_that_leaves_it_to_others() -> None:
    fleet = memory_fleet()
    metrics = Metrics(fleet)
    only = frozenset({"print_it"})
    async with working(Press(), metrics, fleet, steps=only) as worker, Client(fleet) as client:
        await client.start(Press)
        await metrics.text(worker)
    assert figure(metrics, "workflow_queue_depth", "write") == 1
    assert figure(metrics, "workflow_queue_in_flight", "write") == 0
    assert figure(metrics, "workflow_queue_workers", "write") == 0
    assert figure(metrics, "workflow_queue_workers", "print_it") == 1


async def test_many_scrapes_look_at_redis_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Hands()
    made: list[str] = []
    plain = memory_fleet()

    def link(name: str) -> Any:
        made.append(name)
        return plain.link(name)

    fleet = replace(plain, link=link, clock=clock)
    metrics = Metrics(fleet)
    worker = Worker(fleet, {}, observer=metrics)
    await asyncio.gather(*(metrics.text(worker) for _ in range(20)))
    assert made.count("metrics") == 1
    clock.now += SAMPLED_S + 1
    await metrics.text(worker)
    assert made.count("metrics") == 2


async def test_the_figures_of_the_steps_themselves_are_shown_too() -> None:
    users = UsersCounter("pages_printed", "Of the workflow's author.")
    try:
        users.inc(7)
        fleet = memory_fleet()
        metrics = Metrics(fleet)
        text = await metrics.text(Worker(fleet, {}, observer=metrics))
        assert b"pages_printed_total 7.0" in text
    finally:
        REGISTRY.unregister(users)


# -- the HTTP server ---------------------------------------------------------------------------------


class Hands(Clock):
    """A clock that stands until it is moved."""

    now = 0.0

    def steady(self) -> float:
        return self.now


async def ask(port: int, request: bytes) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


async def get(port: int, path: str) -> tuple[int, bytes]:
    return await ask(port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


async def hello() -> Page:
    return Page(200, b"hello\n")


async def broken() -> Page:
    raise RuntimeError("a defect")


async def test_pages_are_served_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async with serving("127.0.0.1", 0, {"/hello": hello, "/broken": broken}) as port:
        assert await get(port, "/hello") == (200, b"hello\n")
        assert await get(port, "/hello?now=1") == (200, b"hello\n")
        assert await ask(port, b"HEAD /hello HTTP/1.1\r\n\r\n") == (200, b"")
        assert (await get(port, "/other"))[0] == 404
        assert (await ask(port, b"POST /hello HTTP/1.1\r\n\r\n"))[0] == 405
        assert (await get(port, "/broken"))[0] == 503
        assert await ask(port, b"x" * (2 * HEAD)) == (0, b"")
        assert await get(port, "/hello") == (200, b"hello\n")
    assert "a page failed" in caplog.text


async def test_a_port_that_is_taken_is_named() -> None:
    async with serving("127.0.0.1", 0, {}) as port:
        with pytest.raises(SettingsError, match=rf"metrics_port = {port} .* cannot be served"):
            async with serving("127.0.0.1", port, {}):
                pass


async def test_health_turns_bad_when_a_worker_reads_no_more() -> None:
    clock = Hands()
    worker = Worker(replace(memory_fleet(), clock=clock), {})
    ready = asyncio.Event()
    assert (await health(worker)).status == 200
    assert await readiness(worker, ready) == Page(503, b"starting\n")
    ready.set()
    assert (await readiness(worker, ready)).status == 200
    clock.now = STUCK + 1
    assert (await health(worker)).status == 503
    assert (await readiness(worker, ready)).status == 503
    clock.now = 0
    worker.stop()
    assert (await health(worker)).status == 200
    assert await readiness(worker, ready) == Page(503, b"draining\n")
