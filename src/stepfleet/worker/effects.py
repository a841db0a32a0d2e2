"""What the steps of a worker do to Redis before they are settled, and the deadlines of their runs.

Each such commit of an execution has a number, under which Redis applies it once, and is counted: a
delivery is settled only by a Redis that still has all of them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Final

from stepfleet.clock import Clock
from stepfleet.core.commit import (
    Answer,
    Commit,
    Count,
    Counted,
    EffectFence,
    Emit,
    Expectation,
    Recount,
    Route,
    SetTimer,
    Unapplied,
    Word,
)
from stepfleet.core.decide import effects_commit, lent_words
from stepfleet.core.delivery import Delivery
from stepfleet.core.history import emitted
from stepfleet.errors import StoreError
from stepfleet.instrumentation import step_log_context
from stepfleet.storage.committer import Committer
from stepfleet.worker.execution import Execution
from stepfleet.worker.held import Held, log_fields

logger = logging.getLogger("stepfleet.worker.effects")

#: Seconds that a first delivery runs before its run's deadline is armed by an effect: a shorter
#: one arms it for free.
ARM_AFTER: Final = 0.05
#: Seconds by which it may be armed earlier, so that one look arms all that began together.
ARM_EARLY: Final = 0.005

Answered = Callable[[Held, Answer | StoreError], None]


class Effects:
    """Sends them. `timeout_of` knows for how many seconds the runs of a workflow may take.

    `abandon` ends an execution whose delivery is not here any more; `timer_set` is told when something is
    due in so many seconds at the earliest.
    """

    def __init__(
        self,
        committer: Committer,
        clock: Clock,
        held: Mapping[tuple[Route, str], Held],
        *,
        timeout_of: Callable[[str], float | None],
        abandon: Callable[[Held, str], None],
        timer_set: Callable[[float], None],
    ) -> None:
        self._committer = committer
        self._clock = clock
        self._held = held
        self._timeout_of = timeout_of
        self._abandon = abandon
        self._timer_set = timer_set
        self._soon: Callable[[Execution], None] | None = None
        #: When deadlines are armed next.
        self._arming: asyncio.TimerHandle | None = None

    @property
    def soon(self) -> Callable[[Execution], None]:
        """What lets effects go out in the next turn of the loop, also from a step's thread."""
        if self._soon is None:
            self._soon = self._sender()
        return self._soon

    def _sender(self) -> Callable[[Execution], None]:
        loop, thread = asyncio.get_running_loop(), threading.get_ident()

        def soon(execution: Execution) -> None:
            inside = threading.get_ident() == thread
            (loop.call_soon if inside else loop.call_soon_threadsafe)(self.send, execution)

        return soon

    def send(self, execution: Execution) -> None:
        """Send what its step has sent and published so far."""
        delivery = execution.delivery
        held = self._held.get((delivery.route, delivery.entry))
        effects = execution.take_effects()
        if not effects or held is None:
            return
        held.armed = True
        words = effects_commit(delivery, effects, age_ms=self._age_ms(held))
        commit = _early(execution, words)
        if any(isinstance(word, Emit) for word in words):
            commit = emitted(commit, delivery.record, execution.plan, by=delivery.id)
        # What comes behind it in the stream of commits is answered behind it.
        execution.counted += 1
        self._committer.put(commit, partial(self._sent, held))

    def _sent(self, held: Held, answer: Answer | StoreError) -> None:
        if not isinstance(answer, Answer) or answer.word not in ("applied", "rewound"):
            held.uncounted = True
        self.answered(held, answer)

    async def write(
        self,
        held: Held,
        execution: Execution,
        words: Sequence[Word],
        expects: Sequence[Expectation],
    ) -> Answer:
        """Write to the store, behind the effects before it."""
        self.send(execution)
        words = [*effects_commit(execution.delivery, (), age_ms=self._age_ms(held)), *words]
        answer = await self._committer.commit(_early(execution, words, expects))
        if answer.word == "applied":
            execution.counted += 1
        elif answer.word == "gone":
            # Whatever its step makes of that: it may be here again before its outcome is.
            self.answered(held, answer)
        return answer

    def lend(self, held: Held, answered: Answered) -> None:
        """Give the slot of a step that waits for a run to others."""
        if held.execution is not None:
            self.send(held.execution)
        held.armed = True
        # Whoever dies meanwhile is not killed by this step: counted for that, it has what it had.
        times = max(1, held.delivery.deliveries - 1)
        self._put(held, lent_words(held.delivery, times=times, age_ms=self._age_ms(held)), answered)

    async def recount(self, held: Held) -> None:
        """Let what counted against a step before it waited count again."""
        self.answered(held, await self._committer.commit(_recounted(held.delivery)))

    def recount_soon(self, held: Held) -> None:
        """The same for a step that is about to be handed back: whoever takes it counts nothing."""
        self._committer.put(_recounted(held.delivery))

    def answered(self, held: Held, answer: Answer | StoreError) -> None:
        """End an execution of which Redis says that its delivery is not here any more."""
        if not isinstance(answer, Answer):
            return
        if answer.word == "applied":
            self.tell_of_timers(held.delivery)
        if answer.word not in ("gone", "over", "unknown-run"):
            return
        if answer.word == "gone" and not held.cancelled:
            with step_log_context(*log_fields(held.delivery)):
                logger.warning(
                    "another worker took this delivery, or its run was resumed: its execution here ends"
                )
        self._abandon(held, "gone" if answer.word == "gone" else "over")

    # -- deadlines ---------------------------------------------------------------------------------

    def arm_later(self) -> None:
        """Arm the deadlines of runs whose first step will have been running for a while."""
        if self._arming is None:
            self._arm_in(ARM_AFTER)

    def _arm_in(self, seconds: float) -> None:
        self._arming = asyncio.get_running_loop().call_later(seconds, self._arm)

    def _arm(self) -> None:
        self._arming, now = None, self._clock.steady()
        for held in self._held.values():
            if held.armed or not held.delivery.is_first:
                continue
            left = held.started + ARM_AFTER - now
            if left > ARM_EARLY:
                self._arm_in(left)  # the others are younger
                return
            held.armed = True
            words = effects_commit(held.delivery, (), age_ms=self._age_ms(held))
            self._put(held, words, self.answered)

    def tell_of_timers(self, delivery: Delivery, words: Sequence[Word] = ()) -> None:
        """Tell when something that this process has set is due: the next look at timers may be too late."""
        soonest = inf
        for word in words:
            if isinstance(word, SetTimer):
                soonest = min(soonest, word.delay_ms / 1000)
        if delivery.is_first:
            timeout = self._timeout_of(delivery.route.workflow)
            if timeout is not None:
                soonest = min(soonest, timeout)
        if soonest < inf:
            self._timer_set(soonest)

    def _put(self, held: Held, words: Sequence[Word], answered: Answered) -> None:
        delivery = held.delivery
        commit = Commit(delivery.run_id, EffectFence(delivery.route, delivery.entry), words)
        self._committer.put(commit, partial(answered, held))

    def _age_ms(self, held: Held) -> int:
        return int((self._clock.steady() - held.started) * 1000)


def _recounted(delivery: Delivery) -> Commit:
    recount = Recount(delivery.route, delivery.entry, delivery.deliveries)
    return Commit(delivery.run_id, EffectFence(delivery.route, delivery.entry), [recount])


def _early(
    execution: Execution, words: Sequence[Word], expects: Sequence[Expectation] = ()
) -> Commit:
    """Return a commit of a step that goes on: it is applied once, and missed if Redis loses it."""
    delivery, mine = execution.delivery, (execution.delivery.id, execution.token)
    call = execution.next_call()
    return Commit(
        delivery.run_id,
        EffectFence(delivery.route, delivery.entry),
        [*words, Count(*mine, call)],
        [Unapplied(*mine, call), *expects],
    )


def still_known(held: Held) -> list[Expectation]:
    """Return what shows that Redis has all that it confirmed of this execution.

    A server that comes back with an older state may have the delivery and not what its step has sent or
    stored since: settled now, the run would go on without that, or without a part of it.
    """
    execution = held.execution
    if execution is None or not execution.counted or held.uncounted:
        return []
    return [Counted(held.delivery.id, execution.token, execution.counted)]
