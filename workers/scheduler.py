"""The scheduler of a fleet: starts runs by the clock, and for services that enqueue with arq.

Run it as a process that comes back by itself, beside another one on another host:

    python workers/scheduler.py

`arq workers.scheduler.WorkerSettings` runs the same, but ends when Redis restarts. The schedules are
those of `[tool.stepfleet.schedules]` in pyproject.toml; which Redis it is, the settings say.
"""

from __future__ import annotations

import asyncio

from stepfleet.instrumentation import configure_logging
from stepfleet.scheduling import run_scheduler, worker_settings
from stepfleet.settings import Settings

WorkerSettings = worker_settings()

if __name__ == "__main__":
    settings = Settings()
    configure_logging(settings.log_format, settings.log_level)
    asyncio.run(run_scheduler(WorkerSettings))
