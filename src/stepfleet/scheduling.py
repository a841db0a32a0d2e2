"""Runs that begin by the clock, or by a job of arq: the bridge to arq, which the extra `arq` installs.

arq starts runs and does nothing else here: steps, retries and deadlines belong to the workers of the
fleet. A job that arq runs twice is harmless, since the id of the run is made from the schedule and
the time at which the job was due, and `Client.start` with an id is idempotent.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Final, cast

import msgpack

from stepfleet.client import Start
from stepfleet.connect import Client, resolve_url
from stepfleet.errors import (
    ConnectionLost,
    DefinitionError,
    SettingsError,
    StoreRefused,
)
from stepfleet.settings import Settings

try:
    from arq import Retry, cron, func
    from arq.connections import RedisSettings
    from arq.cron import CronJob
    from arq.worker import create_worker
except ImportError as error:  # pragma: no cover - tested in a process of its own
    raise ImportError(
        "stepfleet.scheduling needs arq, which is an extra: pip install 'stepfleet[arq]'"
    ) from error

logger = logging.getLogger("stepfleet.scheduling")

#: The cron keywords of arq, with the range of each.
CRON_FIELDS: Final = {
    "month": (1, 12),
    "day": (1, 31),
    "weekday": (0, 6),
    "hour": (0, 23),
    "minute": (0, 59),
    "second": (0, 59),
}
WEEKDAYS: Final = ("mon", "tues", "wed", "thurs", "fri", "sat", "sun")
#: Times that arq tries to start a run. A start fails only while Redis is away or no worker has ever
#: announced the workflow.
TRIES: Final = 10
#: Seconds that one try may take. With arq a job of a killed process runs again this plus 10 s later.
TRY_TIMEOUT: Final = 10
#: Seconds between looks for due jobs: what a start is late by at most.
POLL: Final = 0.2
#: Seconds between two tries, times the number of tries so far, and at most.
BACK_OFF: Final = (1.0, 30.0)
#: Seconds before a scheduler that has lost Redis begins anew.
RESTART: Final = 1.0

#: Where the shared client stands in arq's context.
_CLIENT: Final = "stepfleet_client"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Runs of one workflow at the times that arq's cron keywords name; None stands for every one.

    Raises:
        SettingsError: a keyword is out of its range, or the name cannot be part of a run id.
    """

    #: Part of the run ids: `<name>-20261121T020000Z`.
    name: str
    #: The workflow's name, as its workers announce it.
    workflow: str
    #: Fields of the start event: what msgpack can hold.
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    month: int | Sequence[int] | None = None
    day: int | Sequence[int] | None = None
    #: 0 is Monday; or `mon` to `sun`, as arq spells them.
    weekday: int | str | Sequence[int] | None = None
    hour: int | Sequence[int] | None = None
    minute: int | Sequence[int] | None = None
    second: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
        if not 1 <= len(self.name) <= 100 or set(self.name) - set(allowed):
            raise SettingsError(
                f"schedule {self.name[:120]!r}: a name has 1 to 100 of A-Z a-z 0-9 _ . -"
            )
        if not self.workflow:
            raise SettingsError(f"schedule {self.name!r}: workflow names no workflow")
        for keyword, (low, high) in CRON_FIELDS.items():
            value = getattr(self, keyword)
            if keyword == "weekday" and isinstance(value, str):
                if value.lower() not in WEEKDAYS:
                    raise SettingsError(
                        f"schedule {self.name!r}: weekday = {value!r} is none of {', '.join(WEEKDAYS)}"
                    )
                continue
            numbers: Sequence[Any] = () if value is None else [value]
            if isinstance(value, list | tuple | set | frozenset):
                numbers = list(cast("Sequence[Any]", value))
            for number in numbers:
                if type(number) is not int or not low <= number <= high:
                    raise SettingsError(
                        f"schedule {self.name!r}: {keyword} = {number!r} is not {low} to {high}"
                    )

    def run_id(self, due: datetime) -> str:
        """Return the id of the run that is due at a time."""
        return f"{self.name}-{due.astimezone(UTC):%Y%m%dT%H%M%SZ}"

    def job(self) -> CronJob:
        """Return arq's job for this schedule."""

        async def start_scheduled(ctx: dict[Any, Any]) -> str:
            return await start_workflow(
                ctx, self.workflow, self.run_id(_due(ctx)), dict(self.fields)
            )

        return cron(
            start_scheduled,
            name=f"schedule:{self.name}",
            **{keyword: getattr(self, keyword) for keyword in CRON_FIELDS},
            microsecond=0,
            unique=True,
            timeout=TRY_TIMEOUT,
            max_tries=TRIES,
        )


def schedules_of(tables: Mapping[str, Mapping[str, Any]]) -> list[Schedule]:
    """Return the schedules of `[tool.stepfleet.schedules]`.

    Raises:
        SettingsError: a key is unknown or missing, or a value is out of its range.
    """
    known = [field.name for field in fields(Schedule) if field.name != "name"]
    schedules: list[Schedule] = []
    for name, table in tables.items():
        for key in table:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
                raise SettingsError(f"schedule {name!r}: unknown key {key}: {hint}")
        if not isinstance(table.get("workflow"), str):
            raise SettingsError(f'schedule {name!r}: workflow is missing: workflow = "OrderFlow"')
        schedules.append(Schedule(name=name, **table))
    return schedules


async def start_workflow(
    ctx: dict[Any, Any], name: str, run_id: str, fields: Mapping[str, Any] | None = None
) -> str:
    """Start a run; a function for arq, so that `enqueue_job("start_workflow", ...)` starts one.

    The run begins once for each `run_id`, however often the job runs. While Redis is away, or
    before any worker has announced the workflow, arq tries again later.

    Args:
        ctx: arq's context.
        name: the workflow, as its workers announce it.
        run_id: the id of the run: 1 to 128 of `A-Z a-z 0-9 _ . -`.
        fields: fields of the start event.

    Returns:
        The run id.

    Raises:
        RunConflictError: the id belongs to a run with other arguments: not tried again.
        ValueError: the run id is none.
        arq.Retry: try again later.
    """
    try:
        async with _client_of(ctx) as client:
            await client.start_many(name, [Start(run_id=run_id, fields=dict(fields or {}))])
    except (ConnectionLost, StoreRefused, DefinitionError) as error:
        tries = int(ctx.get("job_try", 1))
        pause = min(BACK_OFF[0] * tries, BACK_OFF[1])
        logger.warning(
            "a run is not started yet: run_id=%s workflow=%s try=%s next_try_in=%gs error=%s",
            run_id,
            name,
            tries,
            pause,
            error,
        )
        raise Retry(defer=pause) from error
    logger.info("a run is started: run_id=%s workflow=%s", run_id, name)
    return run_id


async def startup(ctx: dict[Any, Any]) -> None:
    """Open the client that the jobs of an arq worker share: its `on_startup`."""
    ctx[_CLIENT] = Client()


async def shutdown(ctx: dict[Any, Any]) -> None:
    """Close the shared client: the `on_shutdown` of an arq worker."""
    client: Client | None = ctx.pop(_CLIENT, None)
    if client is not None:
        await client.close()


def serialize(value: Any) -> bytes:
    """Return a job or result of arq as msgpack; an exception becomes its text."""
    return msgpack.packb(value, default=str)


def deserialize(data: bytes) -> Any:
    """Return what `serialize` wrote.

    Raises:
        ValueError: the bytes are no msgpack. Never is anything imported or called.
    """
    return msgpack.unpackb(data, strict_map_key=False)


def worker_settings(
    schedules: Sequence[Schedule] | None = None, *, redis_url: str | None = None
) -> type:
    """Return a `WorkerSettings` for the `arq` program: `start_workflow`, and the schedules.

    Args:
        schedules: None for those of `[tool.stepfleet.schedules]` in pyproject.toml.
        redis_url: None for the one that the settings name.

    Raises:
        SettingsError: no Redis is named anywhere, or a schedule is wrong.
    """
    settings = Settings()
    jobs = [
        schedule.job()
        for schedule in (schedules_of(settings.schedules) if schedules is None else schedules)
    ]
    return type(
        "WorkerSettings",
        (),
        {
            "functions": [func(start_workflow, timeout=TRY_TIMEOUT, max_tries=TRIES)],
            "cron_jobs": jobs,
            "redis_settings": RedisSettings.from_dsn(resolve_url(redis_url, settings)),
            "queue_name": queue_name(settings.namespace),
            "health_check_key": f"{queue_name(settings.namespace)}:health",
            "on_startup": startup,
            "on_shutdown": shutdown,
            "job_serializer": serialize,
            "job_deserializer": deserialize,
            "poll_delay": POLL,
            "job_timeout": TRY_TIMEOUT,
            "job_completion_wait": TRY_TIMEOUT,
            "keep_result": 0,
            "timezone": UTC,
        },
    )


def queue_name(namespace: str) -> str:
    """Return the name of the queue in which a fleet's scheduler finds jobs of other services."""
    return f"stepfleet:{namespace}:schedule"


async def run_scheduler(settings_class: type) -> None:
    """Run an arq worker until SIGTERM; one that ends otherwise, as when Redis restarts, begins anew.

    What is due while no scheduler runs is not made up for: run two of them.
    """
    while True:
        worker = create_worker(settings_class)
        try:
            await worker.async_run()
        except asyncio.CancelledError:
            return  # arq's answer to a signal
        except Exception as error:
            logger.warning("the scheduler begins anew: error=%s", error)
            logger.debug("the scheduler ended", exc_info=True)
        finally:
            with suppress(Exception):
                await worker.close()
        await asyncio.sleep(RESTART)


def _due(ctx: Mapping[Any, Any]) -> datetime:
    """Return when a cron job was due: arq writes it into the job's id."""
    milliseconds = int(str(ctx["job_id"]).rpartition(":")[2])
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


@asynccontextmanager
async def _client_of(ctx: Mapping[Any, Any]) -> AsyncGenerator[Client]:
    shared: Client | None = ctx.get(_CLIENT)
    if shared is not None:
        yield shared
        return
    async with Client() as client:
        yield client
