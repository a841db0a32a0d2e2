"""What a worker counts, and what it sees of the fleet, for Prometheus. Layer: above `worker`.

Needs prometheus-client, which the extra `prometheus` installs. No label has a run id: their number
has no bound.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Sequence
from typing import Final

from stepfleet.core.commit import DeadLetter, Emit, SetTimer, Word
from stepfleet.core.delivery import Delivery
from stepfleet.core.outcome import Failed, Outcome, Returned, Suspended
from stepfleet.errors import StoreError
from stepfleet.storage.fleet import Fleet
from stepfleet.storage.inspector import Inspector
from stepfleet.telemetry.endpoint import Page
from stepfleet.worker.worker import VERSION, Worker

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
except ImportError as error:  # pragma: no cover - tested in a process of its own
    raise ImportError(
        "metrics need prometheus-client, which is an extra: pip install 'stepfleet[prometheus]'"
    ) from error

#: Seconds for which one look at the streams is shown, however often it is asked for.
SAMPLED_S: Final = 5.0
#: Bounds of durations and waits, seconds: a step may take a millisecond or half an hour.
BUCKETS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
)
#: Media type of what `text` returns.
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_FLEET: Final = ("namespace",)
_STEP: Final = ("namespace", "workflow", "step")


class Metrics:
    """An `Observer` that keeps the figures of one worker process.

    What the steps themselves register with prometheus_client is shown beside them.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._namespace = fleet.keys.namespace
        self.registry = CollectorRegistry()
        self._sampled_at: float | None = None
        self._sampling = asyncio.Lock()
        self._define_counters()
        self._define_gauges()

    def _define_counters(self) -> None:
        registry = self.registry

        def counter(name: str, text: str) -> Counter:
            return Counter(f"workflow_steps_{name}", text, _STEP, registry=registry)

        self._succeeded = counter("succeeded", "Executions whose result was committed.")
        self._suspended = counter("suspended", "Executions that began to wait for an event.")
        self._failed = counter("failed", "Executions that raised, also those that are retried.")
        self._retried = counter("retried", "Failures after which a retry policy asks for more.")
        self._reclaimed = counter(
            "reclaimed", "Deliveries taken over from workers that died or left."
        )
        self._fenced = counter(
            "fenced", "Executions whose result was dropped: another worker has the delivery."
        )
        self._dead = counter("dead_lettered", "Deliveries that were given up.")
        self._duration = Histogram(
            "workflow_step_duration_seconds",
            "How long executions of a step took.",
            _STEP,
            buckets=BUCKETS,
            registry=registry,
        )
        self._wait = Histogram(
            "workflow_step_queue_wait_seconds",
            "From the entry in a stream to the start of its execution.",
            _STEP,
            buckets=BUCKETS,
            registry=registry,
        )
        self._leases_lost = Counter(
            "workflow_leases_lost",
            "Times that others took this worker's deliveries because its lease had run out.",
            _FLEET,
            registry=registry,
        )
        self._leases_lost.labels(self._namespace)  # shown as 0 from the start

    def _define_gauges(self) -> None:
        registry = self.registry

        def gauge(name: str, text: str, labels: Sequence[str]) -> Gauge:
            return Gauge(f"workflow_{name}", text, labels, registry=registry)

        self._backlog = gauge("queue_depth", "Deliveries that no worker has taken.", _STEP)
        self._in_flight = gauge(
            "queue_in_flight", "Deliveries that workers have taken and not committed.", _STEP
        )
        self._oldest = gauge(
            "queue_oldest_age_seconds", "Age of the oldest entry of the step's streams.", _STEP
        )
        self._serving = gauge("queue_workers", "Live workers that run the step.", _STEP)
        self._letters = gauge("dead_letters", "Dead letters that nobody has dealt with.", _FLEET)
        self._up = gauge("fleet_up", "Whether Redis answered to the last look at it.", _FLEET)
        self._healthy = gauge("worker_healthy", "Whether this worker reads.", _FLEET)
        self._used = gauge("worker_slots_used", "Deliveries that this worker owns.", _FLEET)
        self._slots = gauge("worker_slots", "Steps that this worker runs at once.", _FLEET)
        info = gauge("build_info", "The version that runs.", ("namespace", "version"))
        info.labels(self._namespace, VERSION).set(1)

    # -- what the worker tells -----------------------------------------------------------------------

    def ran(self, delivery: Delivery, outcome: Outcome, *, waited_s: float, ran_s: float) -> None:
        """Note the two durations of an execution."""
        labels = self._labels(delivery)
        self._duration.labels(*labels).observe(ran_s)
        self._wait.labels(*labels).observe(max(0.0, waited_s))

    def settled(
        self, delivery: Delivery, outcome: Outcome, words: Sequence[Word], answer: str
    ) -> None:
        """Count what became of a delivery."""
        labels = self._labels(delivery)
        if answer == "gone":
            self._fenced.labels(*labels).inc()
        if answer != "applied":
            return
        if isinstance(outcome, Returned):
            self._succeeded.labels(*labels).inc()
        elif isinstance(outcome, Suspended):
            self._suspended.labels(*labels).inc()
        elif isinstance(outcome, Failed):
            self._failed.labels(*labels).inc()
            if any(_is_retry(word, delivery) for word in words):
                self._retried.labels(*labels).inc()
        if any(isinstance(word, DeadLetter) for word in words):
            self._dead.labels(*labels).inc()

    def reclaimed(self, delivery: Delivery) -> None:
        """Count a delivery of another worker."""
        self._reclaimed.labels(*self._labels(delivery)).inc()

    def unreadable(self, workflow: str, step: str) -> None:
        """Count an entry that is no delivery."""
        self._dead.labels(self._namespace, workflow, step).inc()

    def lease_lost(self) -> None:
        """Count a burial of this worker."""
        self._leases_lost.labels(self._namespace).inc()

    def _labels(self, delivery: Delivery) -> tuple[str, str, str]:
        return self._namespace, delivery.route.workflow, delivery.route.step

    # -- what is seen of the fleet -------------------------------------------------------------------

    async def answer(self, worker: Worker) -> Page:
        """Return the page for a scraper."""
        return Page(200, await self.text(worker), CONTENT_TYPE)

    async def text(self, worker: Worker) -> bytes:
        """Return all figures as text; Redis is asked at most every `SAMPLED_S` seconds."""
        async with self._sampling:
            now = self._fleet.clock.steady()
            if self._sampled_at is None or now - self._sampled_at >= SAMPLED_S:
                self._sampled_at = now
                await self._sample(worker)
        self._healthy.labels(self._namespace).set(worker.healthy())
        self._used.labels(self._namespace).set(len(worker.processor.held))
        self._slots.labels(self._namespace).set(worker.concurrency)
        return generate_latest(self.registry) + generate_latest(REGISTRY)

    async def _sample(self, worker: Worker) -> None:
        """Look at the streams of this worker's workflows: three round trips, no scan."""
        link = self._fleet.link("metrics")
        inspector = Inspector(link, self._fleet.keys)
        try:
            queues = await inspector.queues_of(worker.streams())
            workers = await inspector.workers()
            letters = await link.call("XLEN", self._fleet.keys.dead)
        except StoreError:
            # The old figures would look like news.
            for gauge in (self._backlog, self._in_flight, self._oldest, self._serving):
                gauge.clear()
            self._letters.clear()
            self._up.labels(self._namespace).set(0)
            return
        finally:
            await link.close()
        serving = collections.Counter(
            served
            for row in workers
            if row.state == "live"
            for workflow, labels in row.about.get("streams", {}).items()
            for served in {(workflow, label.partition(":")[2]) for label in labels}
        )
        steps: dict[tuple[str, str], list[float]] = {}
        for queue in queues:
            figures = steps.setdefault((queue.workflow, queue.step), [0.0, 0.0, 0.0])
            figures[0] += queue.backlog
            figures[1] += queue.in_flight
            figures[2] = max(figures[2], (queue.oldest_ms or 0) / 1000)
        for (workflow, step), (backlog, in_flight, oldest) in steps.items():
            labels = (self._namespace, workflow, step)
            self._backlog.labels(*labels).set(backlog)
            self._in_flight.labels(*labels).set(in_flight)
            self._oldest.labels(*labels).set(oldest)
            self._serving.labels(*labels).set(serving[workflow, step])
        self._letters.labels(self._namespace).set(letters)
        self._up.labels(self._namespace).set(1)


def _is_retry(word: Word, delivery: Delivery) -> bool:
    """Tell whether a word brings a delivery that failed back, now or later."""
    return isinstance(word, SetTimer) or (
        isinstance(word, Emit) and word.deliveries[0][0] == delivery.id
    )
