"""A branch and a loop: an even number is halved, an odd one tripled plus one, until one is left."""

from __future__ import annotations

from stepfleet import Event, StartEvent, StopEvent, Workflow, step


class Begin(StartEvent):
    number: int


class Even(Event):
    path: list[int]


class Odd(Event):
    path: list[int]


class CollatzFlow(Workflow):
    @step
    async def begin(self, ev: Begin) -> Even | Odd | StopEvent:
        return self._next([ev.number])

    @step
    async def halve(self, ev: Even) -> Even | Odd | StopEvent:
        return self._next([*ev.path, ev.path[-1] // 2])

    @step
    async def triple(self, ev: Odd) -> Even | Odd | StopEvent:
        return self._next([*ev.path, 3 * ev.path[-1] + 1])

    def _next(self, path: list[int]) -> Even | Odd | StopEvent:
        if path[-1] == 1:
            return StopEvent(path)
        return Even(path=path) if path[-1] % 2 == 0 else Odd(path=path)
