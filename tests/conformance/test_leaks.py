"""What a run leaves behind: nothing, once its retention has passed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import pytest
import pytest_asyncio

from stepfleet import Context, Event, HumanResponseEvent, StartEvent, StopEvent, Workflow, step
from tests.conformance.conftest import PLACES, place_url
from tests.conformance.place import Place
from tests.support.wait import eventually

#: How long ended runs are kept here.
RETENTION = timedelta(seconds=1)


@pytest_asyncio.fixture(params=PLACES)
async def forgetful(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """A place that forgets a run one second after its end."""
    place = Place(place_url(request), f"t{uuid4().hex[:12]}", retention=RETENTION)
    yield place
    await place.close()


class Item(Event):
    n: int


class Everything(Workflow):
    """Uses every kind of key: buffers, holds, store, lock, stream, early effects, waiter, inbox."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
        for n in range(9):
            ctx.send_event(Item(n=n))
        ctx.write_event_to_stream(Item(n=-1))
        await ctx.store.set("a.b", 1)

    @step(num_workers=2)
    async def join(self, ctx: Context, ev: Item) -> StopEvent | None:
        ctx.collect_events(ev, [Item] * 100, buffer_id="never complete")
        async with ctx.store.edit_state() as state:
            state.last = ev.n
        if not ctx.collect_events(ev, [Item] * 9):
            return None
        answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=Item(n=-2))
        return StopEvent(result=answer.response)


@pytest.mark.parametrize("ending", ["completed", "cancelled", "timed_out"])
async def test_after_its_retention_no_key_of_a_run_is_left(forgetful: Place, ending: str) -> None:
    flow = await forgetful.serve(Everything, timeout=3.0 if ending == "timed_out" else 30)
    handler = flow.run()
    async for event in handler.stream_events():
        if isinstance(event, Item) and event.n == -2:
            await handler.send_event(Item(n=50), step="join")
            if ending == "completed":
                await handler.send_event(HumanResponseEvent(response="yes"))
            elif ending == "cancelled":
                await handler.cancel_run()
    assert (await handler.status()).status == ending
    assert len(await forgetful.run_keys()) > 2

    left: list[str] = []

    async def forgotten() -> bool:
        # The lock of an edit that was cancelled in its middle goes with its lease.
        left[:] = [key for key in await forgetful.run_keys() if not key.endswith(":lock")]
        return not left

    try:
        await eventually(forgotten, 20.0)
    except AssertionError:
        pytest.fail(f"left: {left}")
    assert not await forgetful.call("ZRANGE", forgetful.keys.live, 0, -1)
    assert await forgetful.call("LLEN", forgetful.keys.tidy) == 0
