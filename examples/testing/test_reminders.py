"""Tests of a workflow that takes nine days; stepfleet's fixtures need nothing but pytest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from examples.testing.reminders import DAY, FLOWS, InvoiceFlow, Paid, Reminder
from stepfleet.testing.server import ServerForTests

Run = Callable[[Any], Any]


def test_who_does_not_pay_is_reminded_twice(stepfleet_virtual_time: Run) -> None:
    async def scenario() -> tuple[str, list[int], float]:
        handler = InvoiceFlow(timeout=None).run(number=1)
        reminders = [e.count async for e in handler.stream_events() if isinstance(e, Reminder)]
        return await handler, reminders, asyncio.get_running_loop().time()

    result, reminders, seconds = stepfleet_virtual_time(scenario())

    assert (result, reminders) == ("handed on", [0, 1, 2])
    assert round(seconds / DAY, 3) == 9


def test_who_pays_on_the_fifth_day_is_done(stepfleet_virtual_time: Run) -> None:
    async def scenario() -> str:
        handler = InvoiceFlow(timeout=None).run(number=1)
        await asyncio.sleep(5 * DAY)
        await handler.send_event(Paid(amount=40))
        return await handler

    assert stepfleet_virtual_time(scenario()) == "paid 40"


def test_a_payment_counts_though_a_worker_dies(stepfleet_server: ServerForTests) -> None:
    async def scenario() -> str:
        async with stepfleet_server.client() as client:
            handler = await client.start(FLOWS["InvoiceFlow"], number=1)
            async for _ in handler.stream_events():
                break  # it waits for the payment
            stepfleet_server.kill_worker()
            await handler.send_event(Paid(amount=40))
            stepfleet_server.start_worker("examples.testing.reminders:FLOWS")
            return await handler

    stepfleet_server.start_worker("examples.testing.reminders:FLOWS")
    assert asyncio.run(scenario()) == "paid 40"
