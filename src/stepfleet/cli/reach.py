"""How a command of the operator reaches a fleet, and the options that all of them have. Layer: cli."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import click

from stepfleet.address import mask_url
from stepfleet.cli.probe import refused, unanswered
from stepfleet.connect import Client, fleet_of, resolve_url
from stepfleet.errors import ConnectionLost, DecodeError, RunNotFound, StoreRefused
from stepfleet.handler import WorkflowHandler
from stepfleet.settings import Settings
from stepfleet.storage.fleet import Fleet
from stepfleet.storage.inspector import Inspector
from stepfleet.storage.reader import RunRecord

P = ParamSpec("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """A fleet that was named on the command line; nothing is connected yet."""

    url: str
    settings: Settings
    fleet: Fleet

    @property
    def shown_url(self) -> str:
        """The URL without its password."""
        return mask_url(self.url)

    @asynccontextmanager
    async def inspector(self) -> AsyncGenerator[Inspector]:
        """Give an inspector with a connection of its own."""
        link = self.fleet.link("operator")
        try:
            yield Inspector(link, self.fleet.keys)
        finally:
            await link.close()

    def client(self) -> Client:
        """Return a client of the fleet, for `async with`."""
        return Client(self.url, namespace=self.settings.namespace)


def reaches_fleet(
    command: Callable[Concatenate[Reach, P], Awaitable[int | None]],
) -> Callable[..., Any]:
    """Give a command `--redis-url` and `--namespace`, and run it with the fleet that they name."""

    @click.option("--redis-url", metavar="URL", help="The Redis server. [STEPFLEET_REDIS_URL]")
    @click.option("--namespace", metavar="NAME", help="The fleet on that server. [default]")
    @wraps(command)
    def run(
        redis_url: str | None, namespace: str | None, *args: P.args, **options: P.kwargs
    ) -> int | None:
        settings = Settings(redis_url=redis_url, namespace=namespace)
        url = resolve_url(redis_url, settings)
        reach = Reach(url=url, settings=settings, fleet=fleet_of(url, settings))

        async def main() -> int | None:
            try:
                return await command(reach, *args, **options)
            except ConnectionLost as error:
                raise unanswered(error, url=reach.shown_url) from error
            except StoreRefused as error:
                if "WRONGTYPE" in str(error):
                    raise DecodeError(
                        "a key has a wrong type: `stepfleet doctor` names what is damaged, and its cure"
                    ) from error
                raise refused(error, url=reach.shown_url, role="operator") from error

        return asyncio.run(main())

    return run


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
watch_option = click.option(
    "--watch",
    type=click.FloatRange(0.2, 3600),
    metavar="SECONDS",
    help="Show it again and again, until Ctrl-C.",
)
yes_option = click.option("-y", "--yes", is_flag=True, help="Don't ask.")


async def repeat(
    render: Callable[[], Awaitable[None]], every: float | None, *, clear: bool
) -> None:
    """Call `render` once, or with `every` again each so many seconds."""
    while True:
        if every is not None and clear:
            click.clear()
        await render()
        if every is None:
            return
        await asyncio.sleep(every)


async def recorded(inspector: Inspector, run_id: str) -> RunRecord:
    """Return the record of a run, `DAMAGED` when it cannot be read.

    Raises:
        RunNotFound: no such run is recorded.
    """
    record = await inspector.record(run_id)
    if record is None:
        raise RunNotFound(
            f"no run {run_id!r} is recorded in namespace {inspector.keys.namespace}: it was never "
            "started here, or its retention has passed"
        )
    return record


def handler_of(client: Client, run_id: str) -> WorkflowHandler:
    """Attach to a run.

    Raises:
        RunNotFound: no run can have such an id.
    """
    try:
        return client.handler(run_id)
    except ValueError as error:
        raise RunNotFound(f"{error}: `stepfleet runs list` has them in its first column") from error


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is destroyed.

    Raises:
        click.Abort: the answer was no.
        click.UsageError: nobody is there to ask, and `-y` was not given.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Nobody is here to ask: say -y")
    if not click.confirm(question):
        click.echo("Nothing was done.", err=True)
        raise click.Abort
