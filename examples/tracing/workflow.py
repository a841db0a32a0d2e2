"""A digest of some pages. Each of its three steps runs in a process of its own, and all of it is one trace."""

from __future__ import annotations

import asyncio
from typing import Annotated

from examples.tracing.spans import trace_to_file
from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.collect import Collect
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed

trace_to_file()  # a worker imports this module before it runs the first step


class Pages(StartEvent):
    count: int


class Page(Event):
    number: int


class Summary(Event):
    text: str


class DigestFlow(Workflow):
    @step
    async def split(self, ev: Pages) -> list[Page]:
        await asyncio.sleep(0.02)
        return [Page(number=number) for number in range(1, ev.count + 1)]

    @step(retry_policy=retry_policy(wait=wait_fixed(0.05), stop=stop_after_attempt(3)))
    async def read(self, ctx: Context, ev: Page) -> Summary:
        await asyncio.sleep(0.03 * ev.number)
        if ev.number == 2 and ctx.retry_info().retry_number == 0:
            raise TimeoutError("the archive did not answer")
        return Summary(text=f"page {ev.number}")

    @step
    async def bind(self, summaries: Annotated[list[Summary], Collect()]) -> StopEvent:
        await asyncio.sleep(0.02)
        return StopEvent(result=", ".join(sorted(summary.text for summary in summaries)))
