"""One worker process from its first look at Redis to its exit code: signals, health file, drain.

Layer: cli.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from stepfleet.cli.exits import CRASHED, HANDED_BACK, OK, forced_by, leave_within
from stepfleet.cli.notify import notify
from stepfleet.cli.probe import refused, wait_for_server
from stepfleet.client import Client
from stepfleet.core.plan import Plan
from stepfleet.errors import SettingsError, StoreRefused
from stepfleet.settings import Settings
from stepfleet.storage.fleet import Fleet
from stepfleet.telemetry.endpoint import health, readiness, serving
from stepfleet.worker.worker import Worker, WorkerOptions
from stepfleet.workflow import Workflow

if TYPE_CHECKING:  # an extra
    from stepfleet.telemetry.metrics import Metrics

logger = logging.getLogger("stepfleet.worker")

#: Seconds between two touches of the health file; it is stale after a few of them.
HEALTH_S: Final = 3.0
#: Seconds for the process to end after its last delivery: a thread of a step cannot be stopped.
LEAVING_S: Final = 3.0
#: Seconds between two looks at the parent.
WATCH_S: Final = 0.5
#: Objects after which Python looks for cyclic garbage: in the young ones, and how often in older ones.
COLLECT_AFTER: Final = (50_000, 20, 20)

_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one process serves, where, and how."""

    fleet: Fleet
    #: The server's URL for messages, without its password.
    shown_url: str
    settings: Settings
    plans: Mapping[str, tuple[Plan, Workflow]]
    #: Steps to run; None: all.
    steps: frozenset[str] | None = None
    exclude_steps: frozenset[str] = frozenset()
    burst: bool = False
    health_file: Path | None = None


def stop_means_leave() -> None:
    """Make SIGTERM and SIGINT end the process with 0 as long as it has taken no work."""

    def leave(number: int, frame: object) -> NoReturn:
        sys.exit(OK)

    for number in _STOPPING:
        signal.signal(number, leave)


def stop_with(parent: int, *, drain_s: float) -> None:
    """Drain when the parent process dies, and leave even if the drain does not end."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(drain_s + LEAVING_S + WATCH_S)
        os._exit(CRASHED)

    threading.Thread(target=watch, name="stepfleet-parent", daemon=True).start()


async def serve(job: Job) -> int:
    """Run the steps of the job's workflows until a signal, or until nothing is left; return the exit code.

    Raises:
        ConnectionLost: Redis did not answer in time at the start.
        StoreRefused, IncompatibleServer: it answers, and cannot be used.
        SettingsError: the health file cannot be written.
    """
    signals = _Signals()
    _collect_seldom()
    try:
        await _probe(job)
    except asyncio.CancelledError:
        if signals.count == 0:
            raise
        return OK
    client = Client(job.fleet, patience=None)
    metrics = _metrics(job)
    worker = Worker(job.fleet, job.plans, options=_options(job), runtime=client, observer=metrics)
    signals.control(worker)
    ready = asyncio.Event()
    async with _health(job.health_file, worker, ready), _served(job, worker, metrics, ready):
        try:
            handed_back = await worker.run(burst=job.burst, on_ready=ready.set)
        except StoreRefused as error:
            raise refused(error, url=job.shown_url) from error
    await client.close()
    code = _code(worker, handed_back, signals)
    logger.info("ended: exit_code=%d", code)
    signals.no_more()
    leave_within(LEAVING_S, code)
    return code


def _collect_seldom() -> None:
    """Let Python look for cyclic garbage seldom: with its defaults that took a third of the time under load."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def _metrics(job: Job) -> Metrics | None:
    if not job.settings.metrics_port:
        return None
    try:
        # An extra: it is loaded only when somebody asks for it.
        from stepfleet.telemetry.metrics import Metrics as MetricsOfWorker  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError(f"metrics_port = {job.settings.metrics_port}: {error}") from error
    return MetricsOfWorker(job.fleet)


@asynccontextmanager
async def _served(
    job: Job, worker: Worker, metrics: Metrics | None, ready: asyncio.Event
) -> AsyncGenerator[None]:
    """Serve metrics and health over HTTP, if there is a port for it."""
    if metrics is None:
        yield
        return
    pages = {
        "/metrics": partial(metrics.answer, worker),
        "/healthz": partial(health, worker),
        "/readyz": partial(readiness, worker, ready),
    }
    async with serving(job.settings.metrics_address, job.settings.metrics_port, pages):
        yield


async def _probe(job: Job) -> None:
    link = job.fleet.link("probe")
    try:
        patience = job.settings.connect_timeout.total_seconds()
        server = await wait_for_server(link, url=job.shown_url, patience=patience)
    finally:
        await link.close()
    namespace = job.settings.namespace
    logger.info("using %s: url=%s namespace=%s", server.product, job.shown_url, namespace)
    for warning in server.warnings:
        logger.warning("%s", warning)


def _options(job: Job) -> WorkerOptions:
    settings = job.settings
    return WorkerOptions(
        concurrency=settings.concurrency,
        threads=settings.threads,
        lease=settings.lease,
        sweep=settings.sweep,
        max_deliveries=settings.max_deliveries,
        drain_timeout=settings.drain_timeout,
        steps=job.steps,
        exclude_steps=job.exclude_steps,
    )


def _code(worker: Worker, handed_back: int, signals: _Signals) -> int:
    if worker.crashed:
        return CRASHED
    if signals.count > 1:
        return forced_by(signals.last)
    return HANDED_BACK if handed_back else OK


class _Signals:
    """The first signal drains, the second hands back what still runs, the third leaves at once."""

    def __init__(self) -> None:
        self.count = 0
        self.last = 0
        self._worker: Worker | None = None
        self._starting = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in _STOPPING:
            loop.add_signal_handler(number, self._arrived, number)

    def control(self, worker: Worker) -> None:
        """Stop this worker from now on, instead of the start."""
        self._worker = worker
        if self.count:
            worker.stop()

    def no_more(self) -> None:
        """Let further ones change nothing: the process leaves, with the exit code that it has logged."""
        loop = asyncio.get_running_loop()
        for number in _STOPPING:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    def _arrived(self, number: int) -> None:
        self.count, self.last = self.count + 1, number
        name = signal.Signals(number).name
        if self.count > 2:
            logger.error("%s for the third time: leaving at once", name)
            os._exit(forced_by(number))
        elif self._worker is None:
            logger.info("%s during the start: leaving", name)
            if self._starting is not None:
                self._starting.cancel()
        elif self.count == 1:
            logger.info("%s: draining, a second signal hands back what still runs", name)
            notify("STOPPING=1")
            self._worker.stop()
        else:
            logger.warning("%s again: handing back what still runs", name)
            self._worker.stop_now()


@asynccontextmanager
async def _health(path: Path | None, worker: Worker, ready: asyncio.Event) -> AsyncGenerator[None]:
    """Give signs of life from the worker's first read to its end, while healthy: a fresh file, systemd."""
    if path is not None:
        _remove_stale(path)
    keeping = asyncio.create_task(_give_signs(path, worker, ready), name="stepfleet-health")
    try:
        yield
    finally:
        keeping.cancel()
        if path is not None:
            _remove(path)


async def _give_signs(path: Path | None, worker: Worker, ready: asyncio.Event) -> None:
    await ready.wait()
    notify("READY=1")
    while True:
        if worker.healthy():
            notify("WATCHDOG=1")
            if path is not None:
                _touch(path)
        await asyncio.sleep(HEALTH_S)


def _touch(path: Path) -> None:
    try:
        path.touch()
    except OSError as error:
        logger.warning("the health file cannot be written: error=%s", error)


def _remove_stale(path: Path) -> None:
    """Remove what an earlier process has left, and find out whether one can write here.

    Not by the file itself: whoever looks for it would find it before the worker is ready.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.unlink(missing_ok=True)
        beside.touch()
        beside.unlink()
    except OSError as error:
        reason = OSError(error.errno, error.strerror, os.fspath(path))
        raise SettingsError(f"the health file cannot be written: {reason}") from error


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
