"""`workflow-worker`: arguments -> settings -> wiring -> documented exit code. The composition root of a worker.

Exit codes: 0 drained or burst done; 1 crashed; 2 usage; 3 a setting, target or workflow is wrong;
69 Redis cannot be reached; 75 the drain limit passed and deliveries were handed back; 130/143
forced by a second SIGINT/SIGTERM.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import click

from stepfleet import __version__
from stepfleet.cli.target import load_targets
from stepfleet.client import Client
from stepfleet.connect import fleet_of, resolve_url
from stepfleet.embedded.server import embedded_server
from stepfleet.errors import ConnectionLost, DefinitionError, StoreError
from stepfleet.instrumentation import configure_logging
from stepfleet.planning import make_plan
from stepfleet.settings import Settings
from stepfleet.worker.worker import Worker, WorkerOptions

logger = logging.getLogger("stepfleet.worker")

#: Exit codes; `docs/reference/cli.md` lists them.
OK, CRASHED, USAGE, CONFIG, UNAVAILABLE, HANDED_BACK = 0, 1, 2, 3, 69, 75


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("targets", nargs=-1, metavar="TARGET...")
@click.option(
    "--redis-url", help="Redis server; else STEPFLEET_REDIS_URL, REDIS_URL, pyproject.toml."
)
@click.option("--namespace", help="The fleet on that server.")
@click.option("--concurrency", type=int, help="Steps that run at once in this process. [100]")
@click.option("--threads", type=int, help="Threads for steps that are not async. [16]")
@click.option("--steps", help="Run only these steps: a,b")
@click.option("--exclude-steps", help="Run all steps but these: c,d")
@click.option(
    "--lease",
    help="Silence after which others take this worker's deliveries: 15, 15s, 500ms. [15s]",
)
@click.option("--drain-timeout", help="How long steps may finish after SIGTERM. [30s]")
@click.option(
    "--embedded", is_flag=True, help="Start or share a Redis server of this folder (.stepfleet/)."
)
@click.option("--burst", is_flag=True, help="Work until nothing is left, then exit.")
@click.option("--check", is_flag=True, help="Check targets, settings and Redis, then exit.")
@click.option(
    "--health-file", type=click.Path(path_type=Path), help="Touched while the worker is healthy."
)
@click.option("--log-format", type=click.Choice(["auto", "console", "json"]))
@click.option("--log-level", help="debug, info, warning, error")
@click.version_option(__version__, prog_name="workflow-worker")
def command(targets: tuple[str, ...], **given: Any) -> int:
    """Run the steps of workflows. TARGET is module:object: a Workflow class, an instance, a {name: Workflow}
    mapping, or a function without arguments that returns one of these.
    """
    try:
        settings = _settings(given)
        configure_logging(settings.log_format, settings.log_level)
        workflows = load_targets(targets or settings.workflows)
        if not workflows:
            raise click.UsageError(
                'no TARGET: give module:object, or [tool.stepfleet] workflows = {name = "module:object"} in pyproject.toml'
            )
        for workflow in workflows.values():
            workflow.validate()
        if given["embedded"]:
            with embedded_server(Path.cwd()) as url:
                return asyncio.run(_serve(url, settings, workflows, given))
        return asyncio.run(
            _serve(resolve_url(given["redis_url"], settings), settings, workflows, given)
        )
    except DefinitionError as error:
        click.echo(f"workflow-worker: {error}", err=True)
        return CONFIG
    except ConnectionLost as error:
        click.echo(f"workflow-worker: {error}", err=True)
        return UNAVAILABLE
    except StoreError as error:
        click.echo(f"workflow-worker: Redis refuses: {error}", err=True)
        return CONFIG


def main() -> None:
    """Run `workflow-worker` and exit with its code."""
    sys.exit(command.main(standalone_mode=False) if "--standalone" in sys.argv else _exit_code())


def _exit_code() -> int:
    try:
        return int(command.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130


def _settings(given: dict[str, Any]) -> Settings:
    names = (
        "namespace",
        "concurrency",
        "threads",
        "lease",
        "drain_timeout",
        "log_format",
        "log_level",
    )
    return Settings(**{name: given[name] for name in names})


def _names(listed: str | None) -> frozenset[str] | None:
    return (
        None
        if listed is None
        else frozenset(name.strip() for name in listed.split(",") if name.strip())
    )


async def _serve(
    url: str, settings: Settings, workflows: dict[str, Any], given: dict[str, Any]
) -> int:
    fleet = fleet_of(url, settings)
    client = Client(fleet, patience=None)
    served = {
        name: (make_plan(workflow, name, limits=fleet.limits, open_types=False), workflow)
        for name, workflow in workflows.items()
    }
    options = WorkerOptions(
        concurrency=settings.concurrency,
        threads=settings.threads,
        lease=settings.lease,
        sweep=settings.sweep,
        max_deliveries=settings.max_deliveries,
        drain_timeout=settings.drain_timeout,
        steps=_names(given["steps"]),
        exclude_steps=_names(given["exclude_steps"]) or frozenset(),
    )
    worker = Worker(fleet, served, options=options, runtime=client)
    if given["check"]:
        return OK
    loop = asyncio.get_running_loop()
    signals = 0

    def stop(number: int) -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            logger.info("%s: draining", signal.Signals(number).name)
            worker.stop()
        else:
            logger.warning("%s again: leaving at once", signal.Signals(number).name)
            worker.stop_now()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    handed_back = await worker.run(burst=given["burst"])
    await client.close()
    return HANDED_BACK if handed_back else OK
