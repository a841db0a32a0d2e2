"""`stepfleet workers` and `stepfleet queues`: who works, and what waits for whom. Layer: cli."""

from __future__ import annotations

from collections.abc import Sequence

import click

from stepfleet.cli.reach import Reach, json_option, reaches_fleet, repeat, watch_option
from stepfleet.cli.showing import Row, ago, show
from stepfleet.storage.inspector import Queue, WorkerRow, is_system


@click.command("workers", short_help="List workers.")
@json_option
@watch_option
@reaches_fleet
async def workers(reach: Reach, *, as_json: bool, watch: float | None) -> None:
    """List workers: live ones, silent ones (their lease ran out), dead ones (others took their work)."""
    async with reach.inspector() as inspector:

        async def render() -> None:
            now_ms = await inspector.now_ms()
            rows = [_worker(row, now_ms, as_json=as_json) for row in await inspector.workers()]
            show(rows, as_json=as_json, empty="no worker is there")

        await repeat(render, watch, clear=not as_json)


@click.command("queues", short_help="List what waits and what runs, by step.")
@click.option("--all", "everything", is_flag=True, help="Empty ones and the system's too.")
@json_option
@watch_option
@reaches_fleet
async def queues(reach: Reach, *, everything: bool, as_json: bool, watch: float | None) -> None:
    """List, for each event type of each step: what no worker has taken, what runs, and the oldest age.

    QUEUED are the runs that wait for a place of the step (max_concurrency). Deliveries that wait for a
    num_workers slot are in no stream: `stepfleet why RUN` tells them. Runs that wait for their turn
    (num_concurrent_runs): `stepfleet runs list --status queued`.
    """
    async with reach.inspector() as inspector:

        async def render() -> None:
            workers = await inspector.workers()
            rows = [
                _queue(queue, workers, as_json=as_json)
                for queue in await inspector.queues()
                if everything or queue.backlog or queue.in_flight or queue.queued
            ]
            show(rows, as_json=as_json, empty="nothing waits and nothing runs")

        await repeat(render, watch, clear=not as_json)


def _worker(row: WorkerRow, now_ms: int, *, as_json: bool) -> Row:
    about = row.about
    return {
        "worker": row.consumer,
        "state": row.state,
        "last_sign_ms" if as_json else "last_sign": (
            row.silent_ms if as_json else ago(row.silent_ms)
        ),
        "running": about.get("running"),
        "concurrency": about.get("concurrency"),
        "up_ms" if as_json else "up": _up(about.get("started"), now_ms, as_json=as_json),
        "version": about.get("version"),
        "workflows": sorted(about.get("workflows", {})),
    }


def _up(started: int | None, now_ms: int, *, as_json: bool) -> int | str | None:
    if not started:
        return None
    up = max(0, now_ms - started)
    return up if as_json else ago(up)


def _queue(queue: Queue, workers: Sequence[WorkerRow], *, as_json: bool) -> Row:
    is_served = is_system(queue) or any(row.serves(*queue[:3]) for row in workers)
    return {
        "workflow": queue.workflow,
        "event": queue.event_type,
        "step": queue.step or None,
        "backlog": queue.backlog,
        "in_flight": queue.in_flight,
        "queued": queue.queued,
        "oldest_ms" if as_json else "oldest": queue.oldest_ms if as_json else ago(queue.oldest_ms),
        "served": is_served if as_json else ("yes" if is_served else "by no live worker"),
    }
