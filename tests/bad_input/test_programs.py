"""What a program or a step gives wrongly: the exact words of the error, and nothing that is half done.

Every test runs in memory and on servers; the fixture sees to it that no key and no run is left.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.context import PickleSerializer
from stepfleet.errors import (
    ContextSerdeError,
    DefinitionError,
    EncodeError,
    RunConflictError,
    RunNotFound,
    TooLargeError,
    WorkflowRuntimeError,
    WorkflowValidationError,
)
from tests.conformance.conftest import fleet, place
from tests.conformance.place import Place

__all__ = ["fleet", "place"]


class Item(Event):
    n: int = 0


class Other(Event):
    pass


class Echo(Workflow):
    @step
    async def answer(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.get("word"))


#: What `Emitting` sends next.
MAKE: list[Callable[[], Event]] = []


class Emitting(Workflow):
    """Sends what it is told to make, and tells what becomes of that."""

    @step
    async def emit(self, ctx: Context, ev: StartEvent) -> Item | StopEvent | None:
        try:
            ctx.send_event(MAKE[-1]())
        except EncodeError as error:
            return StopEvent(result=str(error))
        return None

    @step
    async def take(self, ev: Item) -> StopEvent:
        return StopEvent(result="arrived")


class Sentence:
    """Gives its error's class and words."""

    def __init__(self, kind: type[BaseException], words: str) -> None:
        self.kind, self.words = kind, words

    async def of(self, ask: Callable[[], Awaitable[Any]]) -> None:
        with pytest.raises(self.kind) as caught:
            await ask()
        assert str(caught.value) == self.words


async def runs_of(place: Place) -> list[str]:
    return [key for key in await place.run_keys() if key.count(":") == 3]


# -- B13, B20, B21, B22: starting and reaching runs ---------------------------------------------------


async def test_a_name_that_nobody_announced(fleet: Place) -> None:
    await fleet.serve(Echo)
    words = (
        f"no worker has announced a workflow 'Nothing' in namespace '{fleet.namespace}' (live workers "
        "serve: Echo); start a workflow-worker for it, or pass the workflow's class"
    )
    await Sentence(DefinitionError, words).of(lambda: fleet.client.start("Nothing"))
    assert await fleet.run_keys() == []


async def test_a_workflow_that_no_worker_can_import_waits_for_one_that_can(
    fleet: Place, caplog: pytest.LogCaptureFixture
) -> None:
    class Local(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    with caplog.at_level(logging.WARNING, "stepfleet"):
        handler = await fleet.client.start(Local, run_id="local")
    (line,) = [one.getMessage() for one in caplog.records if one.name.startswith("stepfleet")]
    assert line == (
        "no live worker serves this workflow, the run waits for one: workflow=Local run_id=local "
        f"namespace={fleet.namespace}"
    )
    await handler.cancel_run()


@pytest.mark.parametrize(
    "run_id", ["", "a:b", "../x", "*\n", "{other:0}:run:x", "ä😀", "x" * 10_000]
)
async def test_a_run_id_that_is_none(place: Place, run_id: str) -> None:
    flow = await place.serve(Echo)
    words = f"run_id {run_id[:140]!r} is not 1 to 128 characters of A-Z a-z 0-9 _ . -"
    await Sentence(ValueError, words).of(lambda: place.client.start(flow, run_id=run_id))
    with pytest.raises(ValueError, match="is not 1 to 128") as caught:
        flow.run(run_id=run_id)
    assert str(caught.value) == words
    with pytest.raises(ValueError, match="is no id") as caught:
        place.client.handler(run_id)
    assert str(caught.value) == f"{run_id[:140]!r} is no id of a run"
    assert await place.run_keys() == []


async def test_the_id_of_a_run_with_other_arguments(fleet: Place) -> None:
    await fleet.serve(Echo)
    assert await (await fleet.client.start(Echo, run_id="order-1", word="a")) == "a"
    words = (
        "run order-1 exists and was started with other arguments: choose another run_id, or attach to "
        "it with client.handler()"
    )
    await Sentence(RunConflictError, words).of(
        lambda: fleet.client.start(Echo, run_id="order-1", word="b")
    )
    assert await runs_of(fleet) == [fleet.keys.run("order-1")]
    assert await fleet.client.handler("order-1", workflow=Echo) == "a"


async def test_a_run_that_is_not_recorded(place: Place) -> None:
    await place.serve(Emitting)
    handler = place.client.handler("nothing", workflow=Emitting)
    words = (
        "no run 'nothing' is recorded in this namespace: it was never started here, or its retention "
        "has passed"
    )
    for ask in (handler.status, handler.cancel_run, lambda: handler.send_event(Item())):
        await Sentence(RunNotFound, words).of(ask)
    assert await place.run_keys() == []


async def test_an_event_after_the_end_or_for_a_step_that_does_not_take_it(place: Place) -> None:
    class Asked(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item | None:
            return None

        @step
        async def take(self, ev: Item) -> StopEvent:
            return StopEvent(result=ev.n)

    handler = (await place.serve(Asked, disable_validation=True)).run(run_id="r")
    unknown = Sentence(WorkflowRuntimeError, "Step nowhere does not exist")
    await unknown.of(lambda: handler.send_event(Item(), step="nowhere"))
    wrong = f"Step take does not accept event of type {Other}; it accepts Item"
    await Sentence(WorkflowRuntimeError, wrong).of(lambda: handler.send_event(Other(), step="take"))
    await handler.send_event(Item(n=7))
    assert await handler == 7
    ended = Sentence(WorkflowRuntimeError, "run r has ended: it takes no more events")
    await ended.of(lambda: handler.send_event(Item(n=8)))
    assert await handler == 7


# -- B14, B16, B19: values that cannot travel ---------------------------------------------------------


class Lock:
    pass


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: Item(conn=Lock()),  # type: ignore[call-arg]
            f"Item.conn: a value of type {__name__}.Lock cannot travel; send a value that describes it, or "
            "declare the field with Field(exclude=True, default=…), or let the step take it as a Resource",
        ),
        (
            lambda: Item(text="x" * 1024 * 1024),  # type: ignore[call-arg]
            "Item: it takes 1048595 bytes, over the limit of 1048576 bytes (setting `event_limit`); keep "
            "large content elsewhere and send a reference",
        ),
    ],
)
async def test_a_value_that_cannot_travel_is_refused_in_the_step_that_emits_it(
    place: Place, make: Callable[[], Event], words: str
) -> None:
    MAKE.append(make)
    flow = await place.serve(Emitting)
    assert await flow.run() == words


async def test_a_start_event_that_is_too_deep_starts_nothing(place: Place) -> None:
    flow = await place.serve(Echo)
    value: Any = 0
    for _ in range(65):
        value = [value]
    with pytest.raises(TooLargeError) as caught:
        await place.client.start(flow, word=value)
    assert str(caught.value).startswith("StartEvent.word")
    assert "nested more than 64 levels deep (setting `depth_limit`)" in str(caught.value)
    assert await place.run_keys() == []


def test_a_serializer_of_pickles() -> None:
    with pytest.raises(ContextSerdeError) as caught:
        PickleSerializer()
    assert str(caught.value) == (
        "PickleSerializer is refused: whoever can write a pickle chooses the code that runs when it is "
        "read. Use JsonSerializer(), which writes models, dataclasses, enums, dates, sets and bytes; "
        "keep live objects out of events and state."
    )


# -- B12, B25: definitions ---------------------------------------------------------------------------


def test_a_step_without_a_return_annotation() -> None:
    with pytest.raises(WorkflowValidationError) as caught:

        class Flow(Workflow):  # pyright: ignore[reportUnusedClass]
            @step
            async def one(self, ev: StartEvent):  # type: ignore[no-untyped-def]
                return StopEvent()

    assert str(caught.value) == (
        "Return types of workflows step functions must be annotated with their type. Step 'one' has none: "
        "say what it returns, such as `-> StopEvent | None`."
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_workers": 0}, "num_workers must be an integer greater than 0, not 0"),
        (
            {"max_concurrency": -1},
            "max_concurrency must be an integer greater than 0 or None, not -1",
        ),
        (
            {"timeout": -2},
            "timeout must be a number of seconds or a timedelta greater than 0, or None, not -2",
        ),
    ],
)
def test_a_number_out_of_its_range_at_a_step(options: dict[str, Any], words: str) -> None:
    with pytest.raises(WorkflowValidationError) as caught:

        class Flow(Workflow):  # pyright: ignore[reportUnusedClass]
            @step(**options)
            async def one(self, ev: StartEvent) -> StopEvent:
                return StopEvent()

    assert str(caught.value) == words


def test_a_number_out_of_its_range_at_a_workflow() -> None:
    with pytest.raises(WorkflowValidationError) as caught:
        Echo(timeout=0)
    assert str(caught.value) == (
        "timeout must be a number of seconds or a timedelta greater than 0, or None, not 0"
    )
    with pytest.raises(WorkflowValidationError) as caught:
        Echo(num_concurrent_runs=0)
    assert str(caught.value) == (
        "num_concurrent_runs must be an integer greater than 0 or None, not 0"
    )


# -- B26: the store ----------------------------------------------------------------------------------


async def test_the_store_used_in_wrong_ways(place: Place) -> None:
    class Flow(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            words: list[str] = []

            async def told(ask: Callable[[], Awaitable[Any]]) -> None:
                try:
                    await ask()
                except (ValueError, RuntimeError) as error:
                    words.append(str(error))

            await ctx.store.set("a", {"b": [1]})
            await told(lambda: ctx.store.get("nope"))
            await told(lambda: ctx.store.set("", 1))
            await told(lambda: ctx.store.set("a.b.x", 1))
            await told(lambda: ctx.store.set("a.b.0.c", 1))
            async with ctx.store.edit_state() as state:
                await told(lambda: ctx.store.set("a", 2))
                state["a"]["b"].append(2)
            return StopEvent(result=[words, await ctx.store.get("a.b")])

    flow = await place.serve(Flow)
    assert await flow.run() == [
        [
            "Path 'nope' not found in state",
            "Path cannot be empty",
            "Path 'a.b.x' has no list index 'x'",
            "Path 'a.b.0.c' goes through a int, which has no parts",
            "writer called inside edit_state: mutate the yielded state instead",
        ],
        [1, 2],
    ]
