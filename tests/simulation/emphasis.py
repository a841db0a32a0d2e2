"""What a seed dwells on: where everything goes wrong at once, one fault hides what another one does."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final, NamedTuple

from tests.simulation.network import Weather


def any_weather(chosen: Random) -> Weather:
    """Returns a while in which anything may happen to commands, or nothing."""
    return Weather(
        *(
            chosen.choice((0.0, 0.0, 0.01, 0.05, 0.2)) if chosen.random() < 0.5 else 0.0
            for _ in range(5)
        )
    )


def lost_replies(chosen: Random) -> Weather:
    """Returns a while in which much is carried out and not answered, or carried out at the second try."""
    return Weather(
        lost_command=chosen.choice((0.0, 0.1, 0.3)),
        lost_reply=chosen.choice((0.0, 0.1, 0.3)),
        slow=chosen.choice((0.0, 0.1, 0.3)),
        slow_by=0.2,
    )


class Emphasis(NamedTuple):
    """What goes wrong in a seed, and what its runs have more of."""

    name: str
    #: What may go wrong beside commands, each in half of the seeds.
    may: tuple[str, ...] = ()
    #: What does, in each of the seeds.
    does: tuple[str, ...] = ()
    #: How often it does, as a multiple of the other seeds.
    often: float = 1.0
    #: What happens to commands; None: nothing.
    weather: Callable[[Random], Weather] | None = None
    #: Seconds for which things go wrong: from, to.
    lasts: tuple[float, float] = (3, 25)
    #: Seconds after the last fault in which every run has to end.
    patience: float = 240.0
    #: How many workers there are, and how many steps one of them runs at once.
    workers: tuple[int, ...] = (1, 2, 3)
    places: tuple[int, ...] = (1, 2, 5, 20)
    #: Seconds between their looks at what others left.
    sweep: float = 1.0
    #: How many clients follow the same runs and answer the same questions.
    clients: tuple[int, ...] = (1, 2)
    #: What every job does beside its program, one behind the other.
    words: tuple[str, ...] = ()


#: All that comes and goes.
ALL: Final = ("pauses", "kills", "partitions", "outages", "drains", "blocks", "jumps")

EVERYTHING: Final = Emphasis("everything", may=ALL, weather=any_weather)
#: Workers that are taken for dead go on with what others have taken over.
RETURNS: Final = Emphasis(
    "returns", does=("pauses", "partitions"), lasts=(10, 25), workers=(2, 3), words=("sleep",)
)
CLOCKS: Final = Emphasis(
    "clocks",
    does=("jumps",),
    often=6.0,
    lasts=(10, 20),
    workers=(3, 4),
    sweep=0.3,
    patience=480.0,
    words=("sleep", "sleep", "sleep"),
)
#: Long enough for a loop that is blocked until its work counts as lost.
BLOCKS: Final = Emphasis("blocks", does=("blocks",), lasts=(30, 45), words=("sleep",))
#: Commits follow soon on others that are not answered yet.
REPLIES: Final = Emphasis(
    "replies",
    weather=lost_replies,
    lasts=(10, 25),
    clients=(2,),
    words=(
        "edit",
        "publish",
        "nap",
        "set",
        "publish",
        "nap",
        "ask",
        "edit",
        "ask",
        "publish",
        "nap",
    ),
)
#: A job kills whatever runs it, and nothing else does.
POISON: Final = Emphasis("poison", may=("drains",), workers=(1, 2), places=(2, 5, 20))
#: Redis loses the last seconds of its data.
LOSSES: Final = Emphasis("losses", does=("losses",), lasts=(5, 12))

#: Of one seed after the other.
TURNS: Final = (
    *(EVERYTHING, RETURNS, EVERYTHING, CLOCKS, EVERYTHING),
    *(BLOCKS, EVERYTHING, REPLIES, POISON, LOSSES),
)


def emphasis_of(seed: int) -> Emphasis:
    """Returns what a seed dwells on."""
    return TURNS[seed % len(TURNS)]
