"""`stepfleet check`: what of a workflow will not travel to other hosts, before anything runs. Layer: cli."""

from __future__ import annotations

from pathlib import Path

import click

from stepfleet.cli.exits import CRASHED, OK
from stepfleet.cli.reach import json_option
from stepfleet.cli.showing import as_line
from stepfleet.cli.target import load_targets
from stepfleet.cli.travel import findings


@click.command("check", short_help="Say what of a workflow will not travel to other hosts.")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@json_option
def check(targets: tuple[str, ...], *, as_json: bool) -> int:
    """Look at the workflows of each TARGET (module:object); exits with 1 when something is found.

    Nothing is run and no server is needed. Each finding has its file, line and cure.
    """
    found = 0
    for name, workflow in load_targets(targets).items():
        for finding in findings(workflow, name):
            found += 1
            shown = finding._replace(file=_shown(finding.file))
            if as_json:
                click.echo(as_line({"workflow": name, **shown._asdict()}))
            else:
                click.echo(f"{shown.file}:{shown.line}: {shown.where} {shown.problem}")
                click.echo(f"    -> {shown.cure}")
    if not found and not as_json:
        click.echo("Everything that can be seen before a run travels.")
    return CRASHED if found else OK


def _shown(file: str) -> str:
    """Return a file as one would type it here."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
