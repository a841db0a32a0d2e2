"""Section 1.2: `@step`, what signatures mean, and how many executions there are at once."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from stepfleet import Context, Workflow, step
from stepfleet.errors import WorkflowRuntimeError, WorkflowTimeoutError, WorkflowValidationError
from stepfleet.events import Event, StartEvent, StopEvent
from stepfleet.testing import WorkflowTestRunner


class A(Event):
    n: int = 0


class B(Event):
    n: int = 0


class Note(Event):
    text: str


# -- signatures ----------------------------------------------------------------------------------------


class AnyNames(Workflow):
    @step
    async def begin(self, whatever: StartEvent, c: Context) -> A:
        await c.store.set("k", 1)
        return A(n=1)

    @step()
    async def end(self, ctx: Context, a: A) -> StopEvent:
        return StopEvent(result=[a.n, await ctx.store.get("k")])


@pytest.mark.feature("1.2: parameters")
async def test_parameters_are_known_by_their_types() -> None:
    assert await AnyNames().run() == [1, 1]


class Unions(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> A | B | None:
        return A(n=ev.n) if ev.n % 2 else B(n=ev.n)

    @step
    async def end(self, ev: A | B) -> StopEvent | None:
        return StopEvent(result=f"{type(ev).__name__}{ev.n}")


@pytest.mark.feature("1.2: unions")
async def test_a_step_may_accept_and_return_one_of_several_types() -> None:
    assert await Unions().run(n=1) == "A1"
    assert await Unions().run(n=2) == "B2"


class Defaults(Workflow):
    @step
    async def only(self, ev: StartEvent, extra: int = 4) -> StopEvent:
        return StopEvent(result=extra)


@pytest.mark.feature("1.2: parameters")
async def test_a_parameter_of_another_type_keeps_its_default() -> None:
    assert await Defaults().run() == 4


@pytest.mark.feature("1.2: parameters")
def test_a_step_needs_an_event() -> None:
    with pytest.raises(
        WorkflowValidationError,
        match="Step signature must have at least one parameter annotated as type Event",
    ):

        class NoEvent(Workflow):
            @step
            async def only(self, ctx: Context) -> StopEvent:
                return StopEvent()


@pytest.mark.feature("1.2: return annotation")
def test_a_step_says_what_it_returns() -> None:
    with pytest.raises(
        WorkflowValidationError,
        match="Return types of workflows step functions must be annotated with their type",
    ):

        class NoReturn(Workflow):
            @step
            async def only(self, ev: StartEvent):
                return StopEvent()


@pytest.mark.feature("1.2: free functions")
def test_a_free_function_names_its_workflow() -> None:
    with pytest.raises(
        WorkflowValidationError,
        match="To decorate lonely please pass a workflow class to the @step decorator.",
    ):

        @step
        async def lonely(ev: StartEvent) -> StopEvent:
            return StopEvent()


@pytest.mark.feature("1.2: annotations")
def test_a_missing_name_in_an_annotation_is_named() -> None:
    with pytest.raises(
        WorkflowValidationError,
        match="Failed to resolve type annotations for .*only. Missing name: Nix.",
    ):

        class Missing(Workflow):
            @step
            async def only(self, ev: Nix) -> StopEvent:  # noqa: F821
                return StopEvent()


@pytest.mark.feature("1.2: annotations")
@pytest.mark.one_process(
    "workers import workflows, so classes inside of functions stay in one process"
)
async def test_classes_made_inside_of_functions_may_be_annotations() -> None:
    class Local(Event):
        n: int

    class Uses(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Local:
            return Local(n=2)

        @step
        async def end(self, ev: Local) -> StopEvent:
            return StopEvent(result=ev.n)

    assert await Uses().run() == 2


@pytest.mark.feature("1.2: num_workers")
@pytest.mark.parametrize("number", [0, -2, "1", 1.5])
def test_a_wrong_number_of_workers_is_refused(number: Any) -> None:
    with pytest.raises(
        WorkflowValidationError, match="num_workers must be an integer greater than 0"
    ):

        @step(num_workers=number)
        async def some(self: Any, ev: StartEvent) -> StopEvent:
            return StopEvent()


@pytest.mark.feature("1.2: skip_graph_checks")
def test_unknown_graph_checks_of_a_workflow_are_named() -> None:
    class Fine(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    with pytest.raises(
        WorkflowValidationError,
        match="Unknown graph check names: zz. "
        "Valid names are: dead_end, reachability, terminal_event",
    ):
        Fine(skip_graph_checks={"zz"})


@pytest.mark.feature("1.2: skip_graph_checks")
@pytest.mark.differs("the model ignores names of checks that a step does not know")
def test_unknown_graph_checks_of_a_step_are_named() -> None:
    with pytest.raises(
        WorkflowValidationError,
        match="Unknown graph check names: zz. Valid names are: dead_end, reachability",
    ):

        class Skips(Workflow):
            @step(skip_graph_checks=["zz"])
            async def only(self, ev: StartEvent) -> StopEvent:
                return StopEvent()


@pytest.mark.feature("1.2: generators")
def test_a_step_that_yields_is_refused() -> None:
    with pytest.raises(WorkflowValidationError, match="Async-iterator fan-out"):

        class Yields(Workflow):
            @step
            async def only(self, ev: StartEvent) -> A:
                yield A()


@pytest.mark.feature("1.2: direct calls")
def test_a_step_stays_a_function() -> None:
    class Calls(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=ev.n)

    stop = asyncio.run(Calls().only(StartEvent(n=2)))
    assert stop.result == 2


# -- num_workers -----------------------------------------------------------------------------------------


class Item(Event):
    n: int


class Span(Event):
    began: float
    ended: float


def most_at_once(spans: list[Span]) -> int:
    edges = sorted([(s.began, 1) for s in spans] + [(s.ended, -1) for s in spans])
    now = most = 0
    for _, change in edges:
        now += change
        most = max(most, now)
    return most


async def until_so_many_began(ctx: Context, count: int) -> None:
    """Keep an execution until so many have begun, so that they are there together."""
    async with ctx.store.edit_state() as state:
        state.began = state.get("began", 0) + 1
    while await ctx.store.get("began") < count:  # noqa: ASYNC110 - another process sets it
        await asyncio.sleep(0.02)


class Limited(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
        for n in range(9):
            ctx.send_event(Item(n=n))

    @step(num_workers=3)
    async def work(self, ctx: Context, ev: Item) -> Span:
        began = time.time()
        await until_so_many_began(ctx, 3)
        await asyncio.sleep(0.05)
        return Span(began=began, ended=time.time())

    @step
    async def end(self, ctx: Context, ev: Span) -> StopEvent | None:
        spans = ctx.collect_events(ev, [Span] * 9)
        return None if spans is None else StopEvent(result=most_at_once(spans))


class Unlimited(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
        for n in range(9):
            ctx.send_event(Item(n=n))

    @step
    async def work(self, ctx: Context, ev: Item) -> Span:
        began = time.time()
        await until_so_many_began(ctx, 4)
        await asyncio.sleep(0.05)
        return Span(began=began, ended=time.time())

    @step
    async def end(self, ctx: Context, ev: Span) -> StopEvent | None:
        spans = ctx.collect_events(ev, [Span] * 9)
        return None if spans is None else StopEvent(result=most_at_once(spans))


@pytest.mark.feature("1.2: num_workers")
async def test_a_step_runs_at_most_num_workers_times_at_once_in_a_run() -> None:
    assert await Limited().run() == 3
    assert await Unlimited().run() == 4


class OneByOne(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
        for n in range(6):
            ctx.send_event(Item(n=n))

    @step(num_workers=1)
    async def work(self, ctx: Context, ev: Item) -> StopEvent | None:
        seen = await ctx.store.get("seen", default=[])
        await ctx.store.set("seen", [*seen, ev.n])
        return StopEvent(result=[*seen, ev.n]) if ev.n == 5 else None


@pytest.mark.feature("1.2: num_workers")
async def test_with_one_worker_events_come_in_the_order_they_were_sent() -> None:
    assert await OneByOne().run() == [0, 1, 2, 3, 4, 5]


# -- plain functions ---------------------------------------------------------------------------------------


class Blocking(Workflow):
    @step
    def begin(self, ev: StartEvent) -> A:
        time.sleep(0.01)
        return A(n=ev.n)

    @step
    def end(self, ctx: Context, ev: A) -> StopEvent | None:
        found = ctx.collect_events(ev, [A])
        return None if found is None else StopEvent(result=found[0].n + 1)


@pytest.mark.feature("1.2: plain functions")
async def test_a_step_may_be_a_plain_function() -> None:
    assert await Blocking().run(n=1) == 2


class PlainSends(Workflow):
    @step
    def begin(self, ctx: Context, ev: StartEvent) -> A | None:
        ctx.write_event_to_stream(Note(text="hello"))
        ctx.send_event(A(n=3))

    @step
    def end(self, ev: A) -> StopEvent:
        return StopEvent(result=ev.n)


@pytest.mark.feature("1.2: plain functions")
@pytest.mark.differs(
    "there a plain function cannot send or publish: RuntimeError, no running event loop"
)
async def test_a_plain_function_may_send_and_publish() -> None:
    result = await WorkflowTestRunner(PlainSends()).run(expose_internal=False)
    assert result.result == 3
    assert [type(event) for event in result.collected] == [Note, StopEvent]


# -- subclasses --------------------------------------------------------------------------------------------


class A2(A): ...


class Exact(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> A:
        return A2(n=1)

    @step
    async def end(self, ev: A) -> StopEvent:
        return StopEvent(result=ev.n)


class Subclasses(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> A:
        return A2(n=1)

    @step(accept_event_subclasses=True)
    async def end(self, ev: A) -> StopEvent:
        return StopEvent(result=type(ev).__name__)


@pytest.mark.feature("1.2: accept_event_subclasses")
async def test_the_exact_type_of_an_event_decides() -> None:
    with pytest.raises(WorkflowTimeoutError):
        await Exact(timeout=0.3).run()


@pytest.mark.feature("1.2: accept_event_subclasses")
async def test_a_step_may_accept_subclasses() -> None:
    assert await Subclasses().run() == "A2"


# -- what a step returns -----------------------------------------------------------------------------------


class Undeclared(Workflow):
    def __init__(self, **options: Any) -> None:
        super().__init__(disable_validation=True, **options)

    @step
    async def begin(self, ev: StartEvent) -> A | None:
        return B(n=7)

    @step
    async def end(self, ev: A | B) -> StopEvent:
        return StopEvent(result=type(ev).__name__)


@pytest.mark.feature("1.2: return annotation")
async def test_the_annotation_does_not_limit_what_is_returned() -> None:
    assert await Undeclared().run() == "B"


class ReturnsText(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return "text"


@pytest.mark.feature("1.2: return annotation")
async def test_a_step_that_returns_no_event_fails() -> None:
    with pytest.raises(
        WorkflowRuntimeError, match="Step function only returned str instead of an Event instance."
    ):
        await ReturnsText().run()


class TimeLimited(Workflow):
    if step.__module__.startswith("stepfleet"):

        @step(timeout=0.1)
        async def limited(self, ev: StartEvent) -> StopEvent:
            await asyncio.sleep(30)
            return StopEvent()


@pytest.mark.feature("1.2: timeout of a step")
@pytest.mark.differs("a step has no time-out there")
async def test_a_step_may_have_a_time_out_of_its_own() -> None:
    with pytest.raises(TimeoutError, match="limited"):
        await TimeLimited().run()
