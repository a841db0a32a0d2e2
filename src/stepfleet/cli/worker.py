"""`workflow-worker`: arguments -> settings and workflows -> one worker process -> exit code.

The composition root of a worker. `exits` names the exit codes, `serving` is the process's life.
"""

from __future__ import annotations

import asyncio
import difflib
import sys
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack

import click

from stepfleet import __version__
from stepfleet.address import mask_url
from stepfleet.cli.exits import CRASHED, OK, complain, run_program
from stepfleet.cli.probe import look
from stepfleet.cli.reloading import keep_reloading
from stepfleet.cli.serving import HEALTH_S, Job, serve, stop_means_leave, stop_with
from stepfleet.cli.target import load_targets
from stepfleet.connect import fleet_of, resolve_url
from stepfleet.core.plan import Plan
from stepfleet.embedded.server import embedded_server
from stepfleet.errors import SettingsError, WorkflowValidationError
from stepfleet.instrumentation import configure_logging
from stepfleet.planning import make_plan
from stepfleet.settings import Settings
from stepfleet.storage.fleet import Fleet
from stepfleet.workflow import Workflow, graph_of

PROGRAM: Final = "workflow-worker"

#: Seconds after which `--check` calls a health file stale: the process missed several touches.
STALE_S: Final = 10 * HEALTH_S

#: Options that are settings: their values are checked where all settings are.
_SETTINGS: Final = (
    "namespace",
    "concurrency",
    "threads",
    "lease",
    "drain_timeout",
    "metrics_port",
    "metrics_address",
    "log_format",
    "log_level",
)

_EPILOG: Final = """\b
Exit codes:
  0        drained, nothing left to do, or the check is fine
  1        crashed, or the health file of the check is stale
  2        wrong usage
  3        a setting, target, workflow or the server's configuration is wrong
  69       Redis cannot be reached
  75       the drain timeout passed; what still ran was handed back
  130/143  a second SIGINT/SIGTERM; what still ran was handed back

Every setting can also come from STEPFLEET_<NAME> or [tool.stepfleet] in pyproject.toml.
"""


class Given(TypedDict):
    """The options as they were given; None or False when they were not."""

    redis_url: str | None
    namespace: str | None
    concurrency: str | None
    threads: str | None
    steps: str | None
    exclude_steps: str | None
    lease: str | None
    drain_timeout: str | None
    embedded: bool
    burst: bool
    check: bool
    reload: bool
    health_file: Path | None
    metrics_port: str | None
    metrics_address: str | None
    log_format: str | None
    log_level: str | None
    parent: int | None


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.argument("targets", nargs=-1, metavar="TARGET...")
@click.option("--redis-url", metavar="URL", help="The Redis server. [STEPFLEET_REDIS_URL]")
@click.option("--namespace", metavar="NAME", help="The fleet on that server. [default]")
@click.option("--concurrency", metavar="N", help="Steps that this process runs at once. [100]")
@click.option("--threads", metavar="N", help="Threads for steps that are not async. [16]")
@click.option("--steps", metavar="A,B", help="Run only these steps.")
@click.option("--exclude-steps", metavar="A,B", help="Run all steps but these.")
@click.option(
    "--lease", metavar="TIME", help="Silence after which others take this worker's work. [15s]"
)
@click.option(
    "--drain-timeout", metavar="TIME", help="How long steps may finish after SIGTERM. [30s]"
)
@click.option("--embedded", is_flag=True, help="Use this folder's own server, started if need be.")
@click.option("--burst", is_flag=True, help="Work until nothing is left to do, then exit.")
@click.option("--check", is_flag=True, help="Check targets, settings and Redis, then exit.")
@click.option("--reload", is_flag=True, help="Start anew when a Python file changes here.")
@click.option(
    "--health-file",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="A file that is touched while the worker is healthy.",
)
@click.option(
    "--metrics-port", metavar="PORT", help="Serve /metrics, /healthz and /readyz here. [none]"
)
@click.option("--metrics-address", metavar="ADDRESS", help="And at this address. [127.0.0.1]")
@click.option("--log-format", metavar="auto|console|json", help="How log lines look. [auto]")
@click.option(
    "--log-level", metavar="LEVEL", help="debug, info, warning, error or critical. [info]"
)
@click.option("--parent", type=int, hidden=True, help="Drain when this process is gone.")
@click.version_option(__version__, message="%(prog)s %(version)s")
def command(targets: tuple[str, ...], **given: Unpack[Given]) -> int:
    """Run the steps of workflows.

    TARGET is module:object, found from the working directory. The object is a Workflow class, an
    instance, a {name: Workflow} mapping, or a function without arguments that returns one of these.
    Without TARGET, those of [tool.stepfleet.workflows] in pyproject.toml are run.
    """
    if given["embedded"] and given["redis_url"]:
        raise click.UsageError("--embedded and --redis-url exclude each other")
    options: Mapping[str, Any] = given
    settings = Settings(**{name: options[name] for name in _SETTINGS})
    configure_logging(settings.log_format, settings.log_level)
    if given["reload"]:
        _refuse_with_reload(given, settings)
        arguments = [argument for argument in sys.argv[1:] if argument != "--reload"]
        return asyncio.run(keep_reloading(arguments, Path.cwd()))
    if given["parent"] is not None:
        stop_with(given["parent"], drain_s=settings.drain_timeout.total_seconds())
    workflows = _workflows(targets, settings, may_be_none=given["check"])
    steps, excluded = _chosen_steps(given["steps"], given["exclude_steps"], workflows)
    with _server(given, settings) as url:
        fleet = fleet_of(url, settings)
        job = Job(
            shown_url=mask_url(url),
            fleet=fleet,
            settings=settings,
            plans=_plans(workflows, fleet),
            steps=steps,
            exclude_steps=excluded,
            burst=given["burst"],
            health_file=given["health_file"],
        )
        return asyncio.run(_check(job) if given["check"] else serve(job))


def main() -> None:
    """Run `workflow-worker` and exit with its code."""
    stop_means_leave()
    run_program(PROGRAM, command)


def _refuse_with_reload(given: Given, settings: Settings) -> None:
    for option in ("burst", "check", "health_file"):
        if given[option]:
            name = option.replace("_", "-")
            raise click.UsageError(f"--reload and --{name} exclude each other")
    if settings.metrics_port:
        raise click.UsageError(
            "--reload and a metrics port exclude each other: old and new code run at once for a while"
        )


def _workflows(
    targets: tuple[str, ...], settings: Settings, *, may_be_none: bool
) -> dict[str, Workflow]:
    workflows = load_targets(targets or settings.workflows)
    if not workflows and not may_be_none:
        raise click.UsageError(
            "no TARGET is given. Say module:object, such as app.flows:OrderFlow, or list them in "
            "pyproject.toml under [tool.stepfleet.workflows]"
        )
    for name, workflow in workflows.items():
        try:
            workflow.require_valid()
        except WorkflowValidationError as error:
            raise WorkflowValidationError(f"workflow {name}: {error}") from error
    return workflows


def _plans(workflows: Mapping[str, Workflow], fleet: Fleet) -> dict[str, tuple[Plan, Workflow]]:
    return {
        name: (make_plan(workflow, name, limits=fleet.limits, open_types=False), workflow)
        for name, workflow in workflows.items()
    }


def _chosen_steps(
    wanted: str | None, excluded: str | None, workflows: Mapping[str, Workflow]
) -> tuple[frozenset[str] | None, frozenset[str]]:
    known = _step_names(workflows)
    steps = None if wanted is None else _listed("--steps", wanted, known)
    without = frozenset[str]() if excluded is None else _listed("--exclude-steps", excluded, known)
    if known and not (known if steps is None else steps) - without:
        raise SettingsError("--steps and --exclude-steps leave no step to run")
    return steps, without


def _step_names(workflows: Mapping[str, Workflow]) -> frozenset[str]:
    graphs = (graph_of(workflow, name=name) for name, workflow in workflows.items())
    return frozenset(step for graph in graphs for step in graph.steps)


def _listed(option: str, text: str, known: Iterable[str]) -> frozenset[str]:
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise SettingsError(f"{option} names no step")
    for name in sorted(names - frozenset(known)):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        listed = ", ".join(sorted(known)) or "none"
        raise SettingsError(f"{option} {name}: there is no such step{hint} The steps are {listed}")
    return names


@contextmanager
def _server(given: Given, settings: Settings) -> Generator[str]:
    """Give the URL of the server to use, which stays there at least as long as the block."""
    if given["embedded"]:
        with embedded_server(Path.cwd()) as url:
            yield url
        return
    url = resolve_url(given["redis_url"], settings)
    if url.startswith("memory:"):
        raise SettingsError(
            "memory:// lives inside one process, so no worker can share it. Without a Redis "
            "server, use --embedded"
        )
    yield url


async def _check(job: Job) -> int:
    """Print a line for each thing that is fine; Redis is asked once, as whoever checks will ask again.

    Raises:
        ConnectionLost, StoreRefused, IncompatibleServer: what is wrong with Redis.
    """
    settings = job.settings
    click.echo(f"targets   {', '.join(job.plans) or 'none given'}")
    click.echo(
        f"settings  namespace {settings.namespace}, concurrency {settings.concurrency}, "
        f"lease {settings.lease.total_seconds():g} s, "
        f"drain timeout {settings.drain_timeout.total_seconds():g} s"
    )
    link = job.fleet.link("check")
    try:
        server = await look(link, url=job.shown_url)
    finally:
        await link.close()
    click.echo(f"redis     {server.product} at {job.shown_url}")
    for warning in server.warnings:
        click.echo(f"warning   {warning}")
    return OK if job.health_file is None else _check_health(job.health_file)


def _check_health(path: Path) -> int:
    try:
        age = time.time() - path.stat().st_mtime
    except OSError as error:
        complain(PROGRAM, f"the health file cannot be read: {error}")
        return CRASHED
    if age > STALE_S:
        complain(PROGRAM, f"the health file {path} was last touched {age:.0f} s ago")
        return CRASHED
    click.echo(f"health    {path} was touched {age:.0f} s ago")
    return OK


if __name__ == "__main__":
    main()
