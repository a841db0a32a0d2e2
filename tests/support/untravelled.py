"""A workflow with everything in it that does not travel; `tests/unit/test_check.py` says where."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, Field, PrivateAttr

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step

calls = 0


class Inner(BaseModel):
    lock: threading.Thread = None  # type: ignore[assignment]
    model_config = {"arbitrary_types_allowed": True}


class Fields(Event):
    call: Callable[[int], int] | None = None
    inner: list[Inner] = []
    anything: Any = None
    hidden: threading.Event | None = Field(default=None, exclude=True)
    _private: int = PrivateAttr(0)


class Flow(Workflow):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen = 0
        self.names: dict[str, list[str]] = {}

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Fields:
        self.seen += 1
        self.names["a"] = []
        self.names["a"].append("b")
        global calls  # noqa: PLW0603
        calls += 1
        from tests.support.flows import Item

        ctx.send_event(Item(number=1))
        return Fields(call=lambda number: number)

    @step
    async def last(self, ev: Fields) -> StopEvent:
        return StopEvent(result=(number for number in [self.seen]))


class Fine(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        seen = list(ev.items())
        seen.append(("more", 1))
        return StopEvent(result=seen)


def inside() -> Workflow:
    secret = {"key": 1}

    class Local(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=secret)

    return Local()


class WithArguments(Fine):
    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(**options)


def with_arguments() -> Workflow:
    return WithArguments(object())
