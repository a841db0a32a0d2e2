"""Which event types can occur side by side: at the top of a run, or in the scope of a returned list. Pure.

A step that returns `list[E]` opens a scope. Its members, and what follows from them one by one, are
on the level of that scope. A step that takes a list takes events out of a scope: what it returns is
one level higher, beside what the list was returned for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from stepfleet.collect import Collect
from stepfleet.events import Event


class Leveled(Protocol):
    """A step, as far as levels need to know it."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def bare(self) -> tuple[type[Event], ...]:
        """What it returns by itself."""
        ...

    @property
    def listed(self) -> tuple[type[Event], ...]:
        """What it returns in lists."""
        ...

    @property
    def collects(self) -> Collect | None:
        """How many events it takes, None when it takes no list."""
        ...

    def accepts_type(self, event_type: type[Event], /) -> bool:
        """Tell whether the step takes events of exactly this type."""
        ...


def level_of(
    steps: Mapping[str, Leveled], seeds: Iterable[type[Event]], opened: frozenset[str] = frozenset()
) -> frozenset[type[Event]]:
    """Return the types on the level that begins with some; `opened` are the steps whose scopes it is in."""
    found: set[type[Event]] = set()
    pending = list(seeds)
    while pending:
        event_type = pending.pop()
        if event_type in found:
            continue
        found.add(event_type)
        for step in steps.values():
            if step.collects is None and step.accepts_type(event_type):
                pending += _brought_back(steps, step, opened)
    return frozenset(found)


def scope_level(
    steps: Mapping[str, Leveled], source: Leveled, opened: frozenset[str] = frozenset()
) -> frozenset[type[Event]]:
    """Return the types in the scope of the list that a step returns.

    Types that it returns by themselves count as well: where they lead is on both levels.
    """
    return level_of(steps, (*source.bare, *source.listed), opened | {source.name})


def collectors_in(steps: Mapping[str, Leveled], level: Iterable[type[Event]]) -> Iterator[Leveled]:
    """Yield the steps that take lists of a type on this level."""
    types = tuple(level)
    for step in steps.values():
        if step.collects is not None and any(map(step.accepts_type, types)):
            yield step


def _brought_back(
    steps: Mapping[str, Leveled], step: Leveled, opened: frozenset[str]
) -> Iterator[type[Event]]:
    """Yield the types that running a step brings to the level that it runs on."""
    yield from step.bare
    if step.listed and step.name not in opened:
        for collector in collectors_in(steps, scope_level(steps, step, opened)):
            yield from _brought_back(steps, collector, opened | {step.name})
