"""What a worker has read and cannot run: alarms for kept places, entries that are no delivery, damaged runs.

None of it is held: what a worker that dies leaves of it is read, and settled, by the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from stepfleet.core import endings
from stepfleet.core.commit import (
    Admit,
    Answer,
    Commit,
    ControlFence,
    DeadLetter,
    EntryFence,
    Note,
    Route,
    Save,
    SetTimer,
    StrayFence,
    Wake,
)
from stepfleet.core.decide import UNREADABLE_DELAY_MS
from stepfleet.core.delivery import Delivery
from stepfleet.core.plan import Plan
from stepfleet.errors import DeadLettered, NewerVersionError, StoreError
from stepfleet.storage.committer import Committer
from stepfleet.storage.consumer import Alarm, Unreadable
from stepfleet.storage.reader import damage
from stepfleet.wire import Promotion, encode_timer
from stepfleet.worker.observer import Observer

logger = logging.getLogger("stepfleet.worker.strays")


class Strays:
    """Settles them. `plan_of` returns the plan of a workflow that this process serves."""

    def __init__(
        self,
        committer: Committer,
        plan_of: Callable[[str], Plan | None],
        observer: Observer | None,
    ) -> None:
        self._committer = committer
        self._plan_of = plan_of
        self._observer = observer

    def wake(self, alarm: Alarm) -> None:
        """Let the next delivery have the place that was kept for a run."""
        plan = self._plan_of(alarm.route.workflow)
        routes = plan.routes if plan else ()
        fence = EntryFence(alarm.route, alarm.entry, "")
        if plan is not None and not alarm.step:
            admits = [Admit(route) for route in {r.step: r for r in routes}.values()]
            self._committer.put(Commit(alarm.run_id, fence, admits))
            return
        route = next((route for route in routes if route.step == alarm.step), None)
        if route is None:
            # Newer code has this step. The alarm stays pending, and leaves with this process.
            logger.warning(
                "run_id=%s step=%s: this code has no such step", alarm.run_id, alarm.step
            )
            return
        self._committer.put(
            Commit(alarm.run_id, fence, [Wake(route)]),
            lambda answer: self._woken(alarm, route, answer),
        )

    def _woken(self, alarm: Alarm, route: Route, answer: Answer | StoreError) -> None:
        if isinstance(answer, Answer) and answer.word == "broken":
            # The place that was kept for a damaged run goes to the next one.
            fence = StrayFence(alarm.route, alarm.entry)
            self._committer.put(Commit(alarm.run_id, fence, [Wake(route)]))

    def bury(self, arrival: Unreadable) -> None:
        """Put an entry that is no delivery of this version where it belongs."""
        if isinstance(arrival.error, NewerVersionError):
            self._put_back(arrival)
            return
        logger.error("run_id=%s: dead letter: %s", arrival.run_id, arrival.error)
        # First the end of its run: a worker that dies between the two leaves the entry to another
        # one, which does the same again. The other way round a run would be left that nothing ends.
        self._fail(arrival)
        about = ("run", arrival.run_id, "workflow", arrival.route.workflow)
        what = ("label", arrival.route.label, "delivery", arrival.id)
        why = ("reason", str(arrival.error), "record", arrival.raw)
        fence = StrayFence(arrival.route, arrival.entry)
        self._committer.put(Commit(arrival.run_id, fence, [DeadLetter((*about, *what, *why))]))
        if self._observer is not None:
            self._observer.unreadable(arrival.route.workflow, arrival.route.step)

    def _fail(self, arrival: Unreadable) -> None:
        """End the run of an entry that cannot be read, and keep the entry with what else was pending."""
        plan = self._plan_of(arrival.route.workflow)
        if plan is None or not arrival.run_id:
            return
        step = arrival.route.step
        error = DeadLettered(f"an event for step {step!r} cannot be read: {arrival.error}")
        kept = Save(arrival.id, arrival.route.label, arrival.raw)

        def ended(answer: Answer | StoreError) -> None:
            if isinstance(answer, Answer) and answer.word == "over":
                self._committer.put(Commit(arrival.run_id, ControlFence(), [kept]))

        failed = endings.failed(arrival.run_id, plan.workflow, step, error, plan.codec)
        self._committer.put(failed._replace(words=[*failed.words, kept]), ended)

    def _put_back(self, arrival: Unreadable) -> None:
        """Let newer code have an entry: until then it comes back every few seconds."""
        logger.warning("run_id=%s: put back for newer code: %s", arrival.run_id, arrival.error)
        member = f"{arrival.run_id}/{arrival.id}/newer/{arrival.entry}"
        promotion = encode_timer(Promotion(arrival.route, arrival.id, arrival.raw))
        words = [
            SetTimer(member, UNREADABLE_DELAY_MS, promotion),
            Note(arrival.id, f"timer newer {arrival.entry} {arrival.route.label}"),
        ]
        fence = EntryFence(arrival.route, arrival.entry, arrival.id)
        self._committer.put(Commit(arrival.run_id, fence, words))

    def damaged(self, delivery: Delivery) -> Commit:
        """End a run whose work is lost to a damaged key.

        Return the commit that makes the delivery which came upon that a dead letter.
        """
        run_id, route = delivery.run_id, delivery.route
        plan = self._plan_of(route.workflow)
        if plan is not None:
            end = endings.damaged(run_id, route.workflow, route.step, damage(run_id), plan.codec)
            self._committer.put(end)
        reason = f"a key of the run is damaged: {damage(run_id)}"
        about = ("run", run_id, "label", route.label, "delivery", delivery.id)
        letter = DeadLetter((*about, "reason", reason))
        return Commit(run_id, StrayFence(route, delivery.entry), [letter])
