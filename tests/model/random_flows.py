"""Random workflows: from a seed, the same program for stepfleet and for the model that it follows.

A program is a row of stages, each of which takes a value on: a branch, a lap back, a fan-out with its
join, a question, a step that fails some times. Every step publishes what it did, in a way that does
not depend on the order in which parallel steps run.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, Final

#: Seeds of all programs, and of those that the quick tests run.
SEEDS: Final = range(200)
QUICK: Final = range(20)
#: Values stay below this.
MODULUS: Final = 1_000_003

Outcome = tuple[Any, Counter[str]]


def flows() -> dict[str, Any]:
    """Returns the workflows that worker processes load."""
    return _flows(SEEDS)


def quick_flows() -> dict[str, Any]:
    """Returns the workflows that the worker processes of the quick tests load."""
    return _flows(QUICK)


def _flows(seeds: range) -> dict[str, Any]:
    import stepfleet

    return {f"Random{seed}": program(seed, stepfleet) for seed in seeds}


async def outcome(workflow: Any) -> Outcome:
    """Runs a workflow, answers its questions, and returns what came out and what was published."""
    handler = workflow.run(value=1)
    published: Counter[str] = Counter()
    async for event in handler.stream_events():
        published[told(event)] += 1
        if type(event).__name__ == "Ask":
            handler.ctx.send_event(type(workflow).reply(key=event.key, value=len(event.key)))
    try:
        return await handler, published
    except Exception as error:
        return f"{type(error).__name__}: {error}", published


def told(event: Any) -> str:
    """Returns what is compared of a public event."""
    name = type(event).__name__
    if name == "WorkflowFailedEvent":
        return f"{name} {event.step_name} {event.attempts} {event.exception}"
    return f"{name} {event.model_dump()}"


def program(seed: int, api: ModuleType) -> type[Any]:
    """Returns the workflow of a seed, made of the classes of `stepfleet` or of `workflows`."""
    return _Program(seed, api).workflow()


class _Program:
    def __init__(self, seed: int, api: ModuleType) -> None:
        events, retry = _part(api, "events"), _part(api, "retry_policy")
        self.dice = random.Random(seed)
        self.name = f"Random{seed}"
        self.api = api
        self.start, self.stop, self.base = events.StartEvent, events.StopEvent, events.Event
        self.trace = self.event("Trace", step=str, value=int, attempt=int)
        self.ask = self.event("Ask", key=str)
        self.reply = self.event("Reply", key=str, value=int)
        self.policy = retry.retry_policy(wait=retry.wait_none(), stop=retry.stop_after_attempt(3))
        self.steps: dict[str, Any] = {"reply": self.reply}

    def workflow(self) -> type[Any]:
        length = self.dice.randint(1, 5)
        ways = [self.event(f"Way{n}", value=int, laps=list[int]) for n in range(length + 1)]
        self.simple("begin", self.start, ways[0])
        for n in range(length):
            stage = self.dice.choice(
                [self.branch, self.lap, self.fan_out, self.question, self.plain]
            )
            stage(n, ways)
        self.last(ways[-1])
        return type(self.name, (self.api.Workflow,), self.steps)

    # -- stages ------------------------------------------------------------------------------------

    def plain(self, n: int, ways: list[Any]) -> None:
        self.simple(f"plain{n}", ways[n], ways[n + 1], fails=self.dice.randint(0, 2))

    def branch(self, n: int, ways: list[Any]) -> None:
        sides = [self.event(f"Side{n}{side}", value=int, laps=list[int]) for side in "ab"]
        trace, name = self.trace, f"branch{n}"

        async def branch(self: Any, ctx: Any, ev: Any) -> Any:
            ctx.write_event_to_stream(trace(step=name, value=ev.value, attempt=0))
            return sides[ev.value % 2](value=ev.value, laps=ev.laps)

        self.add(name, branch, ways[n], sides[0] | sides[1])
        for side, letter in zip(sides, "ab", strict=True):
            self.simple(f"side{n}{letter}", side, ways[n + 1], fails=self.dice.randint(0, 1))

    def lap(self, n: int, ways: list[Any]) -> None:
        back, laps, forth = self.dice.randint(0, n), self.dice.randint(1, 2), ways[n + 1]
        back_to, trace, name = ways[back], self.trace, f"lap{n}"

        async def lap(self: Any, ctx: Any, ev: Any) -> Any:
            ctx.write_event_to_stream(trace(step=name, value=ev.value, attempt=0))
            counts = list(ev.laps)
            if counts[n] == laps:
                counts[n] = 0
                return forth(value=_next(ev.value, n), laps=counts)
            counts[n] += 1
            return back_to(value=_next(ev.value, n), laps=counts)

        self.add(name, lap, ways[n], back_to | forth)

    def fan_out(self, n: int, ways: list[Any]) -> None:
        width, workers = self.dice.randint(1, 8), self.dice.randint(1, 4)
        failing, trace, forth = self.dice.randint(0, 8), self.trace, ways[n + 1]
        item = self.event(f"Item{n}", value=int, number=int, laps=list[int])
        done = self.event(f"Done{n}", value=int, laps=list[int])

        async def split(self: Any, ctx: Any, ev: Any) -> None:
            for number in range(width):
                ctx.send_event(item(value=ev.value, number=number, laps=ev.laps))

        async def work(self: Any, ctx: Any, ev: Any) -> Any:
            attempt = ctx.retry_info().retry_number
            ctx.write_event_to_stream(trace(step=f"work{n}", value=ev.number, attempt=attempt))
            if ev.number == failing and attempt < 2:
                raise ValueError(f"item {ev.number} attempt {attempt}")
            return done(value=_next(ev.value, ev.number), laps=ev.laps)

        async def join(self: Any, ctx: Any, ev: Any) -> Any:
            found = ctx.collect_events(ev, [done] * width)
            if found is None:
                return None
            total = sum(one.value for one in found) % MODULUS
            ctx.write_event_to_stream(trace(step=f"join{n}", value=total, attempt=0))
            return forth(value=total, laps=ev.laps)

        self.add(f"split{n}", split, ways[n], item | None)
        self.add(f"work{n}", work, item, done, num_workers=workers, retry_policy=self.policy)
        self.add(f"join{n}", join, done, forth | None)

    def question(self, n: int, ways: list[Any]) -> None:
        ask, reply, trace, forth = self.ask, self.reply, self.trace, ways[n + 1]

        async def question(self: Any, ctx: Any, ev: Any) -> Any:
            key = f"{n}-{ev.value}-{'.'.join(map(str, ev.laps))}"
            answer = await ctx.wait_for_event(
                reply, waiter_event=ask(key=key), requirements={"key": key}
            )
            ctx.write_event_to_stream(trace(step=f"question{n}", value=answer.value, attempt=0))
            return forth(value=_next(ev.value, answer.value), laps=ev.laps)

        self.add(f"question{n}", question, ways[n], forth)

    def last(self, way: Any) -> None:
        fatal, stop = self.dice.random() < 0.1, self.stop

        async def end(self: Any, ctx: Any, ev: Any) -> Any:
            if fatal:
                raise LookupError(f"fatal at {ev.value}")
            return stop(result={"value": ev.value, "laps": ev.laps})

        self.add("end", end, way, self.stop, retry_policy=self.policy if fatal else None)

    # -- parts -------------------------------------------------------------------------------------

    def simple(self, name: str, accepts: Any, forth: Any, *, fails: int = 0) -> None:
        trace, first = self.trace, accepts is self.start

        async def simple(self: Any, ctx: Any, ev: Any) -> Any:
            attempt = ctx.retry_info().retry_number
            ctx.write_event_to_stream(trace(step=name, value=ev.value, attempt=attempt))
            if attempt < fails:
                raise ValueError(f"{name} attempt {attempt}")
            return forth(value=_next(ev.value, 7), laps=[0] * 5 if first else ev.laps)

        self.add(name, simple, accepts, forth, retry_policy=self.policy if fails else None)

    def event(self, name: str, **fields: Any) -> Any:
        return _event(self.base, name, tuple(fields.items()))

    def add(
        self, name: str, function: Callable[..., Any], accepts: Any, returns: Any, **options: Any
    ) -> None:
        function.__name__, function.__qualname__ = name, f"{self.name}.{name}"
        function.__annotations__ = {"ctx": self.api.Context, "ev": accepts, "return": returns}
        self.steps[name] = self.api.step(**options)(function)


@cache
def _event(base: type[Any], name: str, fields: tuple[tuple[str, Any], ...]) -> Any:
    """Returns an event class; many programs have the same ones, because classes are slow to make."""
    return type(name, (base,), {"__annotations__": dict(fields), "__module__": __name__})


def _part(api: ModuleType, name: str) -> Any:
    import importlib

    return importlib.import_module(f"{api.__name__}.{name}")


def _next(value: int, salt: int) -> int:
    return (value * 31 + salt * 17 + 1) % MODULUS
