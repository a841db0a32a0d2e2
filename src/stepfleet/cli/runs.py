"""`stepfleet runs`: list, show, events, cancel, resume, delete. Layer: cli."""

from __future__ import annotations

import sys
from typing import Any, Final

import click

from stepfleet.cli.exits import CRASHED, OK
from stepfleet.cli.reach import (
    Reach,
    confirm,
    handler_of,
    json_option,
    reaches_fleet,
    recorded,
    repeat,
    watch_option,
    yes_option,
)
from stepfleet.cli.showing import Row, ago, as_line, moment, show, tell
from stepfleet.codec.shown import fields_of, type_of
from stepfleet.handler import RunStatus
from stepfleet.storage.inspector import DAMAGED
from stepfleet.storage.reader import RunRecord

#: How a run can stand.
STATUSES: Final = (
    *("queued", "running", "completed", "failed", "cancelled", "timed_out"),
    "damaged",
)


@click.group("runs", short_help="List, show, follow, cancel, resume and delete runs.")
def runs() -> None:
    """Look at runs and act on them."""


@runs.command("list", short_help="List runs: live ones by deadline, then the last to end.")
@click.option("--status", "statuses", multiple=True, type=click.Choice(STATUSES))
@click.option("--workflow", metavar="NAME", help="Only runs of this workflow.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True)
@json_option
@watch_option
@reaches_fleet
async def list_runs(
    reach: Reach,
    *,
    statuses: tuple[str, ...],
    workflow: str | None,
    limit: int,
    as_json: bool,
    watch: float | None,
) -> None:
    """List runs: live ones by deadline, then ended ones, the last to end first."""
    async with reach.inspector() as inspector:

        async def render() -> None:
            now_ms = await inspector.now_ms()
            rows: list[Row] = []
            async for run_id, record in inspector.runs():
                if statuses and record.stands not in statuses:
                    continue
                if workflow is not None and record.workflow != workflow:
                    continue
                rows.append(_row(run_id, record, now_ms, as_json=as_json))
                if len(rows) > limit:
                    break
            show(rows, as_json=as_json, empty="no such run is recorded", limit=limit)

        await repeat(render, watch, clear=not as_json)


@runs.command("show", short_help="Show one run.")
@click.argument("run_id", metavar="RUN")
@json_option
@watch_option
@reaches_fleet
async def show_run(reach: Reach, *, run_id: str, as_json: bool, watch: float | None) -> None:
    """Show what is recorded of one run. `stepfleet why RUN` says what it waits for."""
    async with reach.client() as client:

        async def render() -> None:
            row = _details(await handler_of(client, run_id).status())
            if as_json:
                click.echo(as_line(row))
                return
            width = max(map(len, row))
            for name, value in row.items():
                if value is not None:
                    click.echo(f"{name.replace('_', ' '):{width}}  {value}")

        await repeat(render, watch, clear=not as_json)


@runs.command("events", short_help="Print the public events of a run.")
@click.argument("run_id", metavar="RUN")
@click.option("--after", type=click.IntRange(0), default=0, help="Only those behind this sequence.")
@click.option("-f", "--follow", is_flag=True, help="Wait for more, until the run ends.")
@json_option
@reaches_fleet
async def show_events(
    reach: Reach, *, run_id: str, after: int, follow: bool, as_json: bool
) -> None:
    """Print the public events of a run: sequence, type, fields."""
    async with reach.client() as client:
        handler = handler_of(client, run_id)
        status = await handler.status()
        if status.last_sequence <= after and not (follow and status.ended is None):
            return
        async for event in handler.stream_events(after=after):
            seq, kind, fields = handler.last_sequence, type_of(event), fields_of(event)
            if as_json:
                click.echo(as_line({"seq": seq, "type": kind, "fields": fields}))
            else:
                click.echo(f"{seq:>6}  {kind}  {as_line(fields)}")
            sys.stdout.flush()
            if not follow and handler.last_sequence >= status.last_sequence:
                return


@runs.command("cancel", short_help="Cancel a live run.")
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
@yes_option
@json_option
@reaches_fleet
async def cancel(reach: Reach, *, run_ids: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Cancel live runs; their pending work is kept, so that they can be resumed."""
    async with reach.client() as client:
        for run_id in run_ids:
            handler = handler_of(client, run_id)
            status = await handler.status()
            if status.ended is not None:
                row = {"run": run_id, "done": False, "status": status.status}
                tell(row, f"{run_id}: has already ended ({status.status})", as_json=as_json)
                continue
            confirm(f"Cancel {run_id}, a run of {status.workflow}?", yes=yes)
            await handler.cancel_run()
            now = (await handler.status()).status
            tell({"run": run_id, "done": True, "status": now}, f"{run_id}: {now}", as_json=as_json)


@runs.command("resume", short_help="Go on from a cancelled or dead-lettered run.")
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
@json_option
@reaches_fleet
async def resume(reach: Reach, *, run_ids: tuple[str, ...], as_json: bool) -> None:
    """Start new runs that go on from the work that cancelled or dead-lettered runs left."""
    async with reach.client() as client:
        for run_id in run_ids:
            handler = await handler_of(client, run_id).resume()
            row = {"run": run_id, "goes_on_as": handler.run_id}
            tell(row, f"{run_id}: goes on as {handler.run_id}", as_json=as_json)


@runs.command("delete", short_help="Delete an ended run and its keys.")
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
@yes_option
@json_option
@reaches_fleet
async def delete(reach: Reach, *, run_ids: tuple[str, ...], yes: bool, as_json: bool) -> int:
    """Delete ended runs now, before their retention passes: result, events, store and parked work."""
    code = OK
    async with reach.inspector() as inspector:
        for run_id in run_ids:
            record = await recorded(inspector, run_id)
            is_live = record is not DAMAGED and record.ended_ms is None
            if record is DAMAGED or (is_live and await inspector.damaged(run_id)):
                confirm(f"Delete {run_id}, which is damaged?", yes=yes)
                await inspector.delete_damaged(run_id)
                row = {"run": run_id, "done": True, "status": record.status}
                tell(row, f"{run_id}: deleted", as_json=as_json)
                continue
            if is_live:
                cure = f"`stepfleet runs cancel {run_id}` first"
                click.echo(f"{run_id}: is {record.stands}: {cure}", err=True)
                if as_json:
                    click.echo(as_line({"run": run_id, "done": False, "status": record.stands}))
                code = CRASHED
                continue
            confirm(f"Delete {run_id}, a run of {record.workflow} ({record.status})?", yes=yes)
            await inspector.delete(run_id)
            row = {"run": run_id, "done": True, "status": record.status}
            tell(row, f"{run_id}: deleted", as_json=as_json)
    return code


def _row(run_id: str, record: RunRecord, now_ms: int, *, as_json: bool) -> Row:
    end = record.ended_ms if record.ended_ms is not None else now_ms
    took = max(0, end - record.started_ms) if record.started_ms else None
    return {
        "run": run_id,
        "workflow": record.workflow,
        "status": record.stands,
        "started": moment(record.started_ms),
        "took_ms" if as_json else "took": took if as_json else ago(took),
        "failed_step": record.step,
    }


def _details(status: RunStatus) -> dict[str, Any]:
    row = status._asdict()
    for name in ("started", "ended"):
        row[name] = None if row[name] is None else row[name].isoformat(timespec="milliseconds")
    return row
