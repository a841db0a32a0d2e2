"""`stepfleet dead`: list, show, requeue and drop dead letters. Layer: cli."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import click

from stepfleet.cli.reach import (
    Reach,
    confirm,
    json_option,
    reaches_fleet,
    repeat,
    watch_option,
    yes_option,
)
from stepfleet.cli.showing import Row, as_line, moment, show, tell
from stepfleet.codec import Codec, TypeRegistry
from stepfleet.codec.shown import fields_of
from stepfleet.errors import DecodeError, RunNotFound
from stepfleet.storage.inspector import DeadLetter, Inspector
from stepfleet.wire import decode_record

_ID: Final = re.compile(r"\d+-\d+")


@click.group("dead", short_help="List, show, requeue and drop dead letters.")
def dead() -> None:
    """Look at dead letters: deliveries that killed their workers or cannot be read."""


@dead.command("list", short_help="List dead letters, the last first.")
@click.option("--run", "run_id", metavar="RUN", help="Only those of this run.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True)
@json_option
@watch_option
@reaches_fleet
async def list_dead(
    reach: Reach, *, run_id: str | None, limit: int, as_json: bool, watch: float | None
) -> None:
    """List dead letters, the last first."""
    async with reach.inspector() as inspector:

        async def render() -> None:
            rows: list[Row] = []
            async for letter in inspector.dead(run_id):
                rows.append(_row(letter))
                if len(rows) > limit:
                    break
            show(rows, as_json=as_json, empty="there are no dead letters", limit=limit)

        await repeat(render, watch, clear=not as_json)


@dead.command("show", short_help="Show one dead letter with its event.")
@click.argument("letter_id", metavar="ID")
@json_option
@reaches_fleet
async def show_dead(reach: Reach, *, letter_id: str, as_json: bool) -> None:
    """Show one dead letter: where it was, why it was given up, and its event as far as it is readable."""
    async with reach.inspector() as inspector:
        letter = await _letter(inspector, letter_id)
    row = {**_row(letter), **letter.fields, **_event(letter)}
    if as_json:
        click.echo(as_line(row))
        return
    width = max(map(len, row))
    for name, value in row.items():
        text = json.dumps(value, default=str) if isinstance(value, dict) else value
        click.echo(f"{name.replace('_', ' '):{width}}  {'-' if text is None else text}")


@dead.command("requeue", short_help="Go on from dead letters.")
@click.argument("letter_ids", metavar="ID...", nargs=-1, required=True)
@yes_option
@json_option
@reaches_fleet
async def requeue(reach: Reach, *, letter_ids: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Start new runs that go on from dead letters, once their cause is mended.

    The run that a dead letter ended goes on as `<id>~1`: with its store, the event that was given up, and
    everything else that was pending.
    """
    async with reach.inspector() as inspector, reach.client() as client:
        for letter_id in letter_ids:
            letter = await _letter(inspector, letter_id)
            run_id = letter.fields.get("run") or "an unknown run"
            confirm(f"Go on from {run_id} with the dead letter {letter_id}?", yes=yes)
            handler = await client.requeue(letter_id)
            row = {"id": letter_id, "run": run_id, "goes_on_as": handler.run_id}
            tell(row, f"{letter_id}: {run_id} goes on as {handler.run_id}", as_json=as_json)


@dead.command("drop", short_help="Delete dead letters.")
@click.argument("letter_ids", metavar="ID...", nargs=-1, required=True)
@yes_option
@json_option
@reaches_fleet
async def drop(reach: Reach, *, letter_ids: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete dead letters for good. What else their runs had parked stays as long as the runs."""
    async with reach.inspector() as inspector:
        for letter_id in letter_ids:
            letter = await _letter(inspector, letter_id)
            run_id = letter.fields.get("run") or "an unknown run"
            confirm(f"Delete the dead letter {letter_id} of {run_id}?", yes=yes)
            await inspector.drop(letter_id)
            row = {"id": letter_id, "run": letter.fields.get("run"), "done": True}
            tell(row, f"{letter_id}: deleted", as_json=as_json)


async def _letter(inspector: Inspector, letter_id: str) -> DeadLetter:
    if not _ID.fullmatch(letter_id):
        raise RunNotFound(
            f"{letter_id!r} is no id of a dead letter: `stepfleet dead list` has them in its first "
            "column"
        )
    letter = await inspector.letter(letter_id)
    if letter is None:
        raise RunNotFound(f"there is no dead letter {letter_id}: it was dropped or requeued")
    return letter


def _row(letter: DeadLetter) -> dict[str, Any]:
    event_type, _, step = letter.fields.get("label", "").partition(":")
    return {
        "id": letter.id,
        "since": moment(int(letter.id.partition("-")[0])),
        "run": letter.fields.get("run") or None,
        "workflow": letter.fields.get("workflow"),
        "step": step or None,
        "event": event_type or None,
        "reason": letter.fields.get("reason"),
    }


def _event(letter: DeadLetter) -> dict[str, Any]:
    try:
        record = decode_record(letter.record)
    except DecodeError as error:
        return {"event_is_unreadable": str(error)}
    codec = Codec(TypeRegistry(), generic=True)
    try:
        fields = fields_of(codec.decode_event(record.type_id, record.payload))
    except DecodeError as error:
        return {"attempt": record.attempt, "event_is_unreadable": str(error)}
    return {"attempt": record.attempt, "event_fields": fields}
