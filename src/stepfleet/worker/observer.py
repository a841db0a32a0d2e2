"""What a worker tells of its work to whoever measures it. Nobody listens unless it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from stepfleet.core.commit import Word
from stepfleet.core.delivery import Delivery
from stepfleet.core.outcome import Outcome


class Observer(Protocol):
    """Counts what happens to deliveries; called in the event loop, so it may not wait."""

    def ran(self, delivery: Delivery, outcome: Outcome, *, waited_s: float, ran_s: float) -> None:
        """A step was executed: how long its delivery was in the stream before, and how long it ran."""
        ...

    def settled(
        self, delivery: Delivery, outcome: Outcome, words: Sequence[Word], answer: str
    ) -> None:
        """Redis has answered to what was decided: with `applied`, `gone` and so on."""
        ...

    def reclaimed(self, delivery: Delivery) -> None:
        """A delivery was taken over from a worker that died or left."""
        ...

    def unreadable(self, workflow: str, step: str) -> None:
        """An entry of a stream that is no delivery became a dead letter."""
        ...

    def lease_lost(self) -> None:
        """Others have buried this worker and took its deliveries."""
        ...
