"""`Collect`: when a step that takes a list of events runs, and with how many of them. Pure.

A step that returns `list[E]` opens a scope. What follows from its members one by one stays in it,
until a step that takes `list[E]` collects it:

    async def fastest(self, found: Annotated[list[Found], Collect(Take(1))]) -> StopEvent: ...

Without a marker a `list[E]` parameter takes all.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cardinality:
    """How many events a step waits for: `All` or `Take`."""


@dataclass(frozen=True)
class All(Cardinality):
    """Every event of the scope: the step runs once, when nothing of the scope is pending any more."""


@dataclass(frozen=True)
class Take(Cardinality):
    """The first `n` events: the step runs once, with fewer when the scope ends before.

    The others run on, and what they bring is dropped.

    Raises:
        ValueError: `n` is no integer above zero.
    """

    n: int

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or isinstance(self.n, bool) or self.n < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError("Take(n) requires an integer n >= 1")


@dataclass(frozen=True)
class Collect:
    """Marks a `list[E]` parameter: `Annotated[list[E], Collect(Take(3))]`."""

    cardinality: Cardinality = field(default_factory=All)
