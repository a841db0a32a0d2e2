"""How many of the steps that run now will end soon: so many deliveries more are read ahead of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from stepfleet.core.commit import Route

#: Seconds within which a step has to be likely to end for a delivery to be read ahead of its place: a read
#: and a commit take a few milliseconds, and so long a delivery may wait here that another worker could start.
SOON: Final = 0.02
#: Seconds from which on nothing is read ahead of a step, however many of it run: those that began together end
#: together, and so long a delivery would wait behind them.
LONG: Final = 5 * SOON
#: Part of the difference by which an estimate follows shorter executions; a longer one counts at once.
FOLLOWS: Final = 0.1


@dataclass(slots=True)
class Pace:
    """The executions of one step in this process."""

    running: int = 0
    #: What they take of late; at first nobody knows.
    seconds: float = float("inf")

    def lasts(self, seconds: float) -> None:
        """Note that one that has not ended takes so long already."""
        self.seconds = max(self.seconds, seconds)

    def ended(self, seconds: float | None) -> None:
        """Note that one runs no more, and after how many seconds; None: it was not executed."""
        self.running -= 1
        if seconds is None:
            return
        if seconds >= self.seconds or self.seconds == float("inf"):
            self.seconds = seconds
        else:
            self.seconds += (seconds - self.seconds) * FOLLOWS


class Paces:
    """The pace of every step that ran in this process."""

    def __init__(self) -> None:
        self._paces: dict[Route, Pace] = {}

    def of(self, route: Route) -> Pace:
        """Return the pace of a step."""
        pace = self._paces.get(route)
        if pace is None:
            pace = self._paces[route] = Pace()
        return pace

    def soon(self) -> int:
        """Return about how many of the running executions end within `SOON`."""
        expected = 0.0
        for pace in self._paces.values():
            if pace.running and pace.seconds < LONG:
                expected += pace.running * min(1.0, SOON / max(pace.seconds, SOON))
        return int(expected)
