"""The table of keys is what the code names, and what Redis holds."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from fakeredis import FakeServer
from fakeredis.aioredis import FakeRedis

from stepfleet import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from stepfleet.embedded.memory import MemoryRuntime, memory_fleet
from stepfleet.storage.keys import SYSTEM, Keys, run_of
from tests.docs.pages import ROOT
from tests.support.wait import eventually

PAGE = ROOT / "docs" / "explanation" / "keyspace.md"

#: What `storage` adds to names of `Keys` by itself.
QUEUE = ":queue"


class Row(NamedTuple):
    key: str
    type: str
    owner: str
    holds: str
    goes: str


def table() -> list[Row]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `T:")]
    return [Row(*(cell.strip(" `") for cell in line.strip("|").split("|"))) for line in lines]


def keys_of_the_code() -> set[str]:
    """Ask `Keys` for each of its names, with `<parameter>` for what a name is made of."""
    keys = Keys("ns")
    named: set[str] = set()
    for name, value in vars(keys).items():
        if isinstance(value, str) and value.startswith(f"{keys.tag}:") and not name.startswith("_"):
            named.add(value)
    for name, method in inspect.getmembers(keys, inspect.ismethod):
        if not name.startswith("_"):
            made = method(**{p: f"<{p}>" for p in inspect.signature(method).parameters})
            named |= {made} if isinstance(made, str) else set(made)
    named.add(keys.stream("<workflow>", SYSTEM, ""))
    named.add(f"{keys.gauge('<workflow>', '<step>')}{QUEUE}")
    return {name.replace(keys.tag, "T", 1) for name in named}


def test_the_page_lists_every_key_that_the_code_names_and_no_other() -> None:
    listed = [row.key for row in table()]

    assert sorted(listed) == sorted(keys_of_the_code())


def test_a_key_of_a_run_has_the_type_that_the_page_says() -> None:
    of_runs = [row for row in table() if row.key.startswith("T:run:")]

    assert len(of_runs) > 20
    assert {row.key: run_of(row.key) for row in of_runs} == {
        row.key: ("<run_id>", row.type) for row in of_runs
    }


def test_every_key_has_a_type_an_owner_and_an_end() -> None:
    rows = table()

    assert {row.type for row in rows} <= {"string", "hash", "list", "set", "zset", "stream"}
    assert [row.key for row in rows if not (row.owner and row.holds and row.goes)] == []


# -- what Redis holds ------------------------------------------------------------------------------


class Question(InputRequiredEvent):
    pass


class Answer(HumanResponseEvent):
    pass


class Part(Event):
    number: int


class Note(Event):
    pass


class Rich(Workflow, types=[Note]):
    """Uses what makes keys: the store, a fan-out wider than its slots, a join, a wait, publishing."""

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Part | None:
        await ctx.store.set("parts", 5)
        async with ctx.store.edit_state() as state:
            state["edited"] = True
        for number in range(5):
            ctx.send_event(Part(number=number))
        return None

    @step(num_workers=2, max_concurrency=1)
    async def join(self, ctx: Context, ev: Part) -> Question | None:
        ctx.write_event_to_stream(Note())
        return Question() if ctx.collect_events(ev, [Part] * 5) is not None else None

    @step
    async def end(self, ctx: Context, ev: Answer) -> StopEvent:
        await ctx.wait_for_event(Note, waiter_event=Note())
        return StopEvent("done")


def pattern(key: str) -> re.Pattern[str]:
    escaped = re.escape(key).replace("T:", r"\{memory:0\}:", 1)
    return re.compile(re.sub(r"<\w+>", "[A-Za-z0-9_.~-]+(?::[A-Za-z0-9_.-]+)?", escaped))


def row_of(key: str, rows: Iterable[Row]) -> Row | None:
    # The most words written out wins: `open` is no buffer, and `__sys` no event type.
    fitting = [row for row in rows if pattern(row.key).fullmatch(key)]
    return max(fitting, key=lambda row: len(re.sub(r"<\w+>", "", row.key)), default=None)


async def held_types(redis: Any, seen: dict[str, str]) -> None:
    for name in await redis.keys("*"):
        type_ = (await redis.type(name)).decode()
        if type_ != "none":
            seen[name.decode()] = type_


async def test_every_key_that_a_run_makes_is_on_the_page_with_its_type() -> None:
    server = FakeServer(version=(7,))
    redis = FakeRedis(server=server)
    runtime = MemoryRuntime(memory_fleet(server=server))
    seen: dict[str, str] = {}

    async def waits() -> bool:
        await held_types(redis, seen)
        return any(key.endswith(":wait") for key in seen)

    handler = Rich(runtime=runtime).run()
    async for event in handler.stream_events():
        await held_types(redis, seen)
        if isinstance(event, Question):
            await handler.send_event(Answer())
            await eventually(waits, 10)
            await handler.send_event(Note())
    assert await handler == "done"
    await held_types(redis, seen)
    await redis.aclose()

    rows = table()
    wrong = {k: t for k, t in seen.items() if (row := row_of(k, rows)) is None or row.type != t}
    assert wrong == {}
    made = {row.key for key in seen if (row := row_of(key, rows)) is not None}
    assert sorted(EXPECTED - made) == [], sorted(seen)


#: Keys that this workflow certainly makes; the others live too shortly, or need a fleet.
EXPECTED = {
    "T:leases",
    "T:workers",
    "T:live",
    "T:ended",
    "T:ends",
    "T:s:<workflow>:<event_type>:<step>",
    "T:s:<workflow>:__sys",
    "T:wf:<workflow>",
    "T:lim:<workflow>:<step>",
    "T:run:<run_id>",
    "T:run:<run_id>:open",
    "T:run:<run_id>:buf:<name>",
    "T:run:<run_id>:wait",
    "T:run:<run_id>:store",
    "T:run:<run_id>:events",
    "T:run:<run_id>:ops",
    "T:run:<run_id>:keys",
}
