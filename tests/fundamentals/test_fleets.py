"""Running on a fleet: clients, ids and workers on a real server, one idea per test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio

from stepfleet import Client, StartEvent, StopEvent, Workflow, step
from stepfleet.errors import RunConflictError, RunNotFound
from tests.conformance.place import Place


class Order(StartEvent):
    number: int


class Receipt(StopEvent):
    text: str


class Shop(Workflow):
    @step
    async def sell(self, ev: Order) -> Receipt:
        return Receipt(text=f"order {ev.number}")


@pytest_asyncio.fixture
async def fleet(server_urls: dict[str, str]) -> AsyncIterator[Place]:
    """Two workers that serve `Shop`."""
    if not server_urls:
        pytest.skip("no Redis server on this machine")
    place = Place(next(iter(server_urls.values())), f"t{uuid4().hex[:12]}")
    await place.serve(Shop)
    yield place
    await place.close()


@pytest.fixture
def client(fleet: Place) -> Client:
    return Client(fleet.url, namespace=fleet.namespace)


async def test_a_client_starts_runs_of_a_class(client: Client) -> None:
    """`start` returns when the run is recorded: from then on it survives its caller."""
    async with client:
        handler = await client.start(Shop, number=1)
        assert (await handler).text == "order 1"


async def test_a_workflow_runs_on_the_fleet_of_its_runtime(client: Client) -> None:
    """A client is a runtime: the same `run()` that works in one process submits to the fleet."""
    async with client:
        assert (await Shop(runtime=client).run(number=2)).text == "order 2"


async def test_an_id_makes_a_start_repeatable(client: Client) -> None:
    """The same arguments name the same run, other arguments are a conflict."""
    async with client:
        await client.start(Shop, run_id="order-3", number=3)
        again = await client.start(Shop, run_id="order-3", number=3)
        assert (await again).text == "order 3"
        with pytest.raises(RunConflictError):
            await client.start(Shop, run_id="order-3", number=4)


async def test_any_process_attaches_to_a_run_by_its_id(fleet: Place, client: Client) -> None:
    """`workflow=` gives it the classes of the run's events."""
    async with client:
        await client.start(Shop, run_id="order-5", number=5)
    async with Client(fleet.url, namespace=fleet.namespace) as other:
        assert (await other.handler("order-5", workflow=Shop)).text == "order 5"
        with pytest.raises(RunNotFound):
            await other.handler("order-6")


async def test_a_run_starts_by_the_name_of_its_workflow(client: Client) -> None:
    """A program without the class only needs its name; it reads results as plain fields."""
    async with client:
        handler = await client.start("Shop", number=7)
        [last] = [event async for event in handler.stream_events()]
        assert last.text == "order 7"


async def test_many_runs_start_in_few_calls(client: Client) -> None:
    """`start_many` takes the fields of each start event."""
    async with client:
        handlers = await client.start_many(Shop, [{"number": n} for n in range(20)])
        assert [(await handler).text for handler in handlers] == [f"order {n}" for n in range(20)]
