"""Two namespaces on one server do not see each other, whatever somebody writes into one of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio

from stepfleet import StartEvent, StopEvent, Workflow, step
from stepfleet.codec import Codec, TypeRegistry
from stepfleet.connect import fleet_of
from stepfleet.core.delivery import Record
from stepfleet.errors import RunNotFound, StoreRefused
from stepfleet.settings import Settings
from stepfleet.storage.keys import GROUP
from stepfleet.wire import encode_record
from tests.conformance.place import Place
from tests.support.least_privilege import urls_of_roles
from tests.support.wait import eventually


class Echo(Workflow):
    @step
    async def answer(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.get("word"))


@pytest_asyncio.fixture(params=["redis", "valkey"])
async def two(
    request: pytest.FixtureRequest, server_urls: dict[str, str]
) -> AsyncIterator[tuple[Place, Place]]:
    """Two namespaces of one server, each with workers for the same workflow."""
    if request.param not in server_urls:
        pytest.skip(f"no {request.param} server on this machine")
    places = tuple(Place(server_urls[request.param], f"t{uuid4().hex[:12]}") for _ in range(2))
    for place in places:
        await place.serve(Echo)
    yield places[0], places[1]
    for place in places:
        await place.close()


async def test_a_run_is_seen_in_its_own_namespace_only(two: tuple[Place, Place]) -> None:
    mine, other = two
    assert await (await mine.client.start(Echo, run_id="same", word="mine")) == "mine"
    with pytest.raises(RunNotFound):
        await other.client.handler("same").status()
    assert await (await other.client.start(Echo, run_id="same", word="other")) == "other"
    assert await mine.client.handler("same", workflow=Echo) == "mine"


async def test_a_forged_entry_reaches_nothing_of_another_namespace(
    two: tuple[Place, Place],
) -> None:
    mine, other = two
    await (await other.client.start(Echo, run_id="victim", word="kept"))
    before = await other.call("HGETALL", other.keys.run("victim"))
    stream = mine.keys.stream("Echo", "StartEvent", "answer")
    type_id, payload = Codec(TypeRegistry()).encode_event(StartEvent())
    record = encode_record(Record("victim", type_id, payload))
    # Ids are names behind the own prefix: one that spells another prefix is none of its keys.
    for run_id in ("victim", other.keys.run("victim"), f"x}}:{{{other.namespace}:0}}:run:victim"):
        await mine.call("XADD", stream, "*", "r", run_id, "i", "d1", "d", record)

    async def taken() -> bool:
        pending = await mine.call("XPENDING", stream, GROUP)
        return await mine.call("XLEN", stream) == 0 and pending[0] == 0

    await eventually(taken, 20.0)
    assert await other.call("HGETALL", other.keys.run("victim")) == before
    assert await (await mine.client.start(Echo, word="still here")) == "still here"


async def test_the_worker_of_one_namespace_cannot_reach_another(two: tuple[Place, Place]) -> None:
    mine, other = two
    urls = urls_of_roles(mine.url, mine.namespace)
    for role in urls:
        link = fleet_of(urls[role], Settings(namespace=mine.namespace)).link("test")
        try:
            assert await link.call("HGETALL", mine.keys.run("nothing")) == []
            with pytest.raises(StoreRefused, match="permission"):
                await link.call("HGETALL", other.keys.run("nothing"))
            with pytest.raises(StoreRefused, match="permission"):
                await link.call("KEYS", "*")
        finally:
            await link.close()
