"""Starting, awaiting, attaching to and asking about runs, through any client."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from stepfleet import Context, Event, Start, StartEvent, StopEvent, Workflow, step
from stepfleet.errors import (
    ConnectionLost,
    DefinitionError,
    RunConflictError,
    RunError,
    RunFailed,
    RunNotFound,
    WorkflowRuntimeError,
)
from tests.conformance.place import Place
from tests.support.wait import eventually


class Item(Event):
    n: int


class Report(StopEvent):
    text: str


class Order(StartEvent):
    number: int
    note: str = "none"


class Add(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.n + 1)


class Reporting(Workflow):
    @step
    async def begin(self, ev: Order) -> Report:
        return Report(text=f"{ev.number} {ev.note}")


class Waiting(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> None:
        await ctx.store.set("begun", True)

    @step
    async def end(self, ev: Item) -> StopEvent:
        return StopEvent(result=ev.n)


async def waiting(place: Place) -> Waiting:
    return await place.serve(Waiting, disable_validation=True)


async def test_a_handler_is_awaited_often_and_by_many(place: Place) -> None:
    flow = await place.serve(Add)
    handler = flow.run(n=1)
    results = await asyncio.gather(*[asyncio.create_task(_await(handler)) for _ in range(10)])
    assert results == [2] * 10
    assert await handler == 2
    stop = await handler.stop_event_result()
    assert (type(stop), stop.result) == (StopEvent, 2)


async def _await(handler: Any) -> Any:
    return await handler


async def test_a_handler_knows_when_its_run_is_done(place: Place) -> None:
    flow = await waiting(place)
    handler = flow.run()
    assert not handler.is_done()
    assert handler.get_stop_event() is None
    assert (
        str(handler)
        == f"WorkflowHandler(workflow={handler_name(handler)}, run_id={handler.run_id}, result=None)"
    )
    await handler.send_event(Item(n=3))
    await handler
    assert handler.is_done()
    stop = handler.get_stop_event()
    assert stop is not None
    assert stop.result == 3
    assert "result=3" in str(handler)


def handler_name(handler: Any) -> str:
    return str(handler).partition("workflow=")[2].partition(",")[0]


async def test_giving_up_waiting_does_not_end_the_run(place: Place) -> None:
    flow = await waiting(place)
    handler = flow.run()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await handler
    assert (await handler.status()).status == "running"
    await handler.send_event(Item(n=4))
    assert await handler == 4


async def test_a_run_whose_handler_is_dropped_goes_on(place: Place) -> None:
    flow = await place.serve(Add)
    run_id = flow.run(n=5).run_id

    async def result() -> Any:
        try:
            return await place.client.handler(run_id)
        except RunNotFound:
            return None

    assert await eventually(result, 20.0) == 6


async def test_many_runs_at_once_keep_their_results_apart(place: Place) -> None:
    flow = await place.serve(Add)
    handlers = [flow.run(n=n) for n in range(100)]
    assert await asyncio.gather(*handlers) == [n + 1 for n in range(100)]


async def test_the_status_tells_what_is_recorded(place: Place) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    flow = await waiting(place)
    handler = flow.run()
    await eventually(lambda: handler.ctx.store.get("begun", False), 20.0)
    await eventually(lambda: idle(handler), 20.0)
    live = await handler.status()
    assert (live.run_id, live.status, live.ended) == (handler.run_id, "running", None)
    assert live.workflow.startswith("Waiting")
    assert before < live.started < datetime.now(UTC) + timedelta(seconds=2)
    await handler.send_event(Item(n=1))
    await handler
    ended = await handler.status()
    assert (ended.status, ended.pending, ended.last_sequence) == ("completed", 0, 1)
    assert ended.ended is not None
    assert ended.ended >= live.started


async def idle(handler: Any) -> bool:
    return (await handler.status()).pending == 0


async def test_another_client_attaches_by_the_id_with_classes(place: Place) -> None:
    flow = await place.serve(Reporting)
    handler = flow.run(number=7)
    await handler
    other = place.new_client().handler(handler.run_id, workflow=Reporting)
    report = await other
    assert type(report) is Report
    assert report.text == "7 none"
    typed = place.new_client(types=[Report]).handler(handler.run_id)
    assert type(await typed) is Report


async def test_without_classes_a_result_of_an_own_type_names_the_cure(place: Place) -> None:
    flow = await place.serve(Reporting)
    handler = flow.run(number=7)
    await handler
    stranger = place.new_client().handler(handler.run_id)
    with pytest.raises(RunFailed, match=r"Report.*workflow=.*types=\[Report\]"):
        await stranger
    shown = [event async for event in stranger.stream_events()]
    assert shown[-1].text == "7 none"
    assert "Report" in repr(shown[-1])


async def test_an_attached_client_sends_events_and_cancels(place: Place) -> None:
    flow = await waiting(place)
    handler = flow.run()
    await handler.status()
    other = place.new_client().handler(handler.run_id, workflow=flow)
    await other.ctx.store.set("by", "other")
    if not place.in_memory:
        await other.send_event(Item(n=8))
    else:
        await handler.send_event(Item(n=8))
    assert await other == 8
    assert await handler.ctx.store.get("by") == "other"


async def test_an_id_that_names_no_run_is_an_error(place: Place) -> None:
    handler = place.client.handler("nothing")
    for ask in (lambda: handler.status(), lambda: _await(handler), lambda: handler.cancel_run()):
        with pytest.raises(RunNotFound, match="no run 'nothing' is recorded"):
            await ask()


@pytest.mark.parametrize("run_id", ["", "a b", "x" * 129, "a~b", "ä", "a/b", "{x}", 5])
async def test_run_ids_are_checked(place: Place, run_id: Any) -> None:
    flow = await place.serve(Add)
    with pytest.raises(ValueError, match="is not 1 to 128 characters"):
        flow.run(n=1, run_id=run_id)
    with pytest.raises(ValueError, match="is not 1 to 128 characters"):
        await place.client.start(flow, n=1, run_id=run_id)


@pytest.mark.parametrize("run_id", ["", "x:events", "a b", None])
async def test_only_what_can_be_an_id_is_attached_to(place: Place, run_id: Any) -> None:
    with pytest.raises(ValueError, match="is no id of a run"):
        place.client.handler(run_id)


async def test_a_second_run_under_the_id_of_a_live_one_is_an_error(place: Place) -> None:
    flow = await waiting(place)
    handler = flow.run(run_id="mine")
    assert handler.run_id == "mine"
    await handler.status()
    with pytest.raises(RuntimeError, match="^Workflow run with run_id 'mine' already exists"):
        await flow.run(run_id="mine")
    await handler.send_event(Item(n=1))
    assert await handler == 1


async def test_an_exception_of_the_library_has_one_root(place: Place) -> None:
    with pytest.raises(RunError):
        await place.client.handler("nothing")


# -- a fleet: clients that start runs by class, by name, with ids --------------------------------------


async def test_start_with_an_id_is_idempotent(fleet: Place) -> None:
    await fleet.serve(Reporting)
    first = await fleet.client.start(Reporting, run_id="order-1", number=1)
    again = await fleet.new_client().start(Reporting, run_id="order-1", number=1)
    assert (await first).text == (await again).text == "1 none"
    later = await fleet.client.start(Reporting, run_id="order-1", start_event=Order(number=1))
    assert (await later).text == "1 none"


async def test_start_with_the_id_of_other_arguments_is_a_conflict(fleet: Place) -> None:
    await fleet.serve(Reporting)
    await (await fleet.client.start(Reporting, run_id="order-1", number=1))
    with pytest.raises(RunConflictError, match="run order-1 exists and was started with other"):
        await fleet.client.start(Reporting, run_id="order-1", number=2)


async def test_many_runs_start_in_one_go(fleet: Place) -> None:
    await fleet.serve(Reporting)
    handlers = await fleet.client.start_many(
        Reporting,
        [
            {"number": 1},
            Start(run_id="two", fields={"number": 2, "note": "x"}),
            Start(start_event=Order(number=3)),
        ],
    )
    assert handlers[1].run_id == "two"
    assert [(await handler).text for handler in handlers] == ["1 none", "2 x", "3 none"]


async def test_a_start_that_cannot_be_built_does_not_keep_the_others_from_being_recorded(
    fleet: Place,
) -> None:
    await fleet.serve(Reporting)
    with pytest.raises(WorkflowRuntimeError, match="a start event of type .Order"):
        await fleet.client.start_many(Reporting, [{}, Start(run_id="two", fields={"number": 2})])
    assert (await fleet.client.handler("two", workflow=Reporting)).text == "2 none"


async def test_a_run_starts_by_the_name_of_its_workflow(fleet: Place) -> None:
    flow = await fleet.serve(Waiting, disable_validation=True)
    handler = await fleet.new_client().start("Waiting")
    with pytest.raises(WorkflowRuntimeError, match="Step nowhere does not exist"):
        await (
            fleet.new_client(types=[Item])
            .handler(handler.run_id)
            .send_event(Item(n=1), step="nowhere")
        )
    await fleet.new_client(types=[Item]).handler(handler.run_id).send_event(Item(n=6))
    assert await handler == 6
    assert flow is not None


async def test_a_name_that_nobody_announced_lists_what_is_served(fleet: Place) -> None:
    await fleet.serve(Add)
    with pytest.raises(DefinitionError, match=r"'Nothing'.*live workers serve: Add"):
        await fleet.client.start("Nothing")


async def test_a_start_event_that_no_step_accepts_is_refused(fleet: Place) -> None:
    await fleet.serve(Reporting)
    with pytest.raises(WorkflowRuntimeError, match="Failed creating a start event of type 'Order'"):
        await fleet.client.start(Reporting, note="no number")


async def test_a_run_that_no_worker_serves_waits_and_a_warning_says_so(
    fleet: Place, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        handler = await fleet.client.start(Add, n=1)
    assert (
        f"no live worker serves this workflow, the run waits for one: workflow=Add run_id={handler.run_id}"
        in caplog.text
    )
    assert not handler.is_done()
    await fleet.serve(Add)
    assert await handler == 2
    caplog.clear()
    await (await fleet.new_client().start(Add, n=1))
    assert "no live worker" not in caplog.text


class Greeting(Workflow):
    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(**options)
        self.name = name

    @step
    async def greet(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=f"hello {self.name}")


async def test_other_constructor_arguments_than_the_workers_have_are_refused(fleet: Place) -> None:
    flow = await fleet.serve(Greeting, name="ada")
    assert await flow.run() == "hello ada"
    with pytest.raises(DefinitionError, match="constructed here with other arguments"):
        await Greeting(name="grace", runtime=fleet.client).run()


async def test_the_timeout_of_the_callers_instance_counts(fleet: Place) -> None:
    await fleet.serve(Waiting, disable_validation=True, timeout=60)
    flow = Waiting(runtime=fleet.client, timeout=0.2, disable_validation=True)
    with pytest.raises(RunError, match=r"timed out after 0\.2 seconds"):
        await flow.run()


async def test_a_run_that_nobody_has_taken_does_not_expire(fleet: Place) -> None:
    handler = await fleet.client.start(Add(timeout=0.1), n=1)
    await asyncio.sleep(0.3)
    await fleet.serve(Add)
    assert await handler == 2


async def test_a_client_is_closed_and_its_runs_go_on(fleet: Place) -> None:
    await fleet.serve(Add)
    async with fleet.new_client() as client:
        run_id = (await client.start(Add, n=1)).run_id
    assert await fleet.client.handler(run_id) == 2


async def test_whoever_still_awaits_a_run_of_a_closed_client_is_told(fleet: Place) -> None:
    async with fleet.new_client() as client:
        handler = await client.start(Add(timeout=None), run_id="left", n=1)
        awaiting = asyncio.ensure_future(handler)
        await eventually(lambda: "left" in client.connection().awaited.runs, 20.0)
    with pytest.raises(ConnectionLost, match="the client was closed before run left ended"):
        await awaiting
    await fleet.serve(Add)
    assert await fleet.client.handler("left") == 2


async def test_a_thousand_handlers_share_a_handful_of_connections(fleet: Place) -> None:
    async with fleet.new_client() as client:
        handlers = await client.start_many(Add, [{"n": n} for n in range(1_000)])
        awaiting = [asyncio.ensure_future(handler) for handler in handlers]
        await eventually(lambda: len(client.connection().awaited.runs) == 1_000, 20.0)
        listed = await fleet.call("CLIENT", "LIST")
        assert listed.count(b"name=stepfleet-client") <= 2 * 4  # the test has a client of its own
        await fleet.serve(Add)
        assert await asyncio.gather(*awaiting) == list(range(1, 1_001))
