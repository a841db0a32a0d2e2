"""`stepfleet`: the operator's tool. Each command is a click command in a module of its own.

A command returns its exit code, or None for 0; errors that its user can mend are raised, and
`exits.run_program` says them. Layer: cli.
"""

from __future__ import annotations

import platform
from importlib.metadata import version as version_of
from typing import Final

import click

from stepfleet import __version__
from stepfleet.cli.acl import acl
from stepfleet.cli.check import check
from stepfleet.cli.dead import dead
from stepfleet.cli.dev import dev
from stepfleet.cli.doctor import doctor
from stepfleet.cli.exits import run_program
from stepfleet.cli.fleet_views import queues, workers
from stepfleet.cli.k8s import k8s
from stepfleet.cli.reach import json_option
from stepfleet.cli.runs import runs
from stepfleet.cli.showing import tell
from stepfleet.cli.why import why
from stepfleet.embedded.server import find_server_binary
from stepfleet.errors import SettingsError

PROGRAM: Final = "stepfleet"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def commands() -> None:
    """Develop and operate workflows whose steps run on a fleet of workers."""


@commands.command("version", short_help="Show versions, for a bug report.")
@json_option
def show_version(*, as_json: bool) -> None:
    """Show the versions of stepfleet and of what it runs on."""
    try:
        server = str(find_server_binary())
    except SettingsError:
        server = "none found"
    row = {
        "stepfleet": __version__,
        "Python": f"{platform.python_version()} ({platform.platform()})",
        "redis-py": version_of("redis"),
        "server": server,
    }
    tell(row, "\n".join(f"{name:9} {text}" for name, text in row.items()), as_json=as_json)


for command in (dev, check, runs, workers, queues, why, dead, doctor, acl, k8s):
    commands.add_command(command)


def main() -> None:
    """Run `stepfleet` and exit with its code."""
    run_program(PROGRAM, commands)
