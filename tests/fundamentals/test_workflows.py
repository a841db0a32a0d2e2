"""How to write a workflow and run it: one idea per test. All of it runs without a server."""

from __future__ import annotations

from pydantic import BaseModel

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step


class Word(Event):
    text: str


class Length(Event):
    value: int


async def test_a_workflow_is_a_class_with_steps() -> None:
    """The types of a step's parameter and result say which step runs next."""

    class Shout(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Word:
            return Word(text=ev.text)

        @step
        async def end(self, ev: Word) -> StopEvent:
            return StopEvent(result=ev.text.upper())

    assert await Shout().run(text="hello") == "HELLO"


async def test_a_step_may_be_a_plain_function() -> None:
    """It runs in a thread, so that it may block."""

    class Plain(Workflow):
        @step
        def begin(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=ev.n + 1)

    assert await Plain().run(n=1) == 2


async def test_start_and_stop_events_may_have_fields_of_their_own() -> None:
    """Arguments of `run()` build the start event; a stop event of an own type is the result itself."""

    class Order(StartEvent):
        number: int

    class Receipt(StopEvent):
        text: str

    class Shop(Workflow):
        @step
        async def sell(self, ev: Order) -> Receipt:
            return Receipt(text=f"order {ev.number}")

    assert (await Shop().run(number="7")).text == "order 7"


async def test_a_union_is_a_branch() -> None:
    """A step returns one of the types that it declares."""

    class Sort(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Word | Length:
            return Word(text=ev.value) if isinstance(ev.value, str) else Length(value=ev.value)

        @step
        async def word(self, ev: Word) -> StopEvent:
            return StopEvent(result=f"a word: {ev.text}")

        @step
        async def length(self, ev: Length) -> StopEvent:
            return StopEvent(result=f"a length: {ev.value}")

    assert await Sort().run(value="x") == "a word: x"
    assert await Sort().run(value=3) == "a length: 3"


async def test_a_step_that_accepts_what_it_returns_is_a_loop() -> None:
    """It runs until it returns something else."""

    class Count(Workflow):
        @step
        async def begin(self, ev: StartEvent | Length) -> Length | StopEvent:
            value = ev.value + 1 if isinstance(ev, Length) else 1
            return StopEvent(result=value) if value == 5 else Length(value=value)

    assert await Count().run() == 5


async def test_send_event_fans_out_and_collect_events_joins() -> None:
    """Every sent event is a message of its own: any worker may run it."""

    class Measure(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Word | None:
            for text in ev.texts:
                ctx.send_event(Word(text=text))
            await ctx.store.set("count", len(ev.texts))
            return None

        @step(num_workers=8)
        async def measure(self, ev: Word) -> Length:
            return Length(value=len(ev.text))

        @step
        async def add(self, ctx: Context, ev: Length) -> StopEvent | None:
            lengths = ctx.collect_events(ev, [Length] * await ctx.store.get("count"))
            if lengths is None:
                return None
            return StopEvent(result=sum(length.value for length in lengths))

    assert await Measure().run(texts=["a", "bb", "ccc"]) == 6


async def test_steps_share_state_through_the_store() -> None:
    """`Context[State]` gives it a type; `edit_state` changes it as one piece."""

    class Tally(BaseModel):
        total: int = 0

    class Add(Workflow):
        @step
        async def begin(self, ctx: Context[Tally], ev: StartEvent) -> Word:
            async with ctx.store.edit_state() as state:
                state.total += ev.amount
            return Word(text="done")

        @step
        async def end(self, ctx: Context[Tally], ev: Word) -> StopEvent:
            return StopEvent(result=(await ctx.store.get_state()).total)

    assert await Add().run(amount=5) == 5


async def test_a_context_carries_state_from_run_to_run() -> None:
    """Pass it to `run()`; without one every run begins anew."""

    class Visit(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            visits = await ctx.store.get("visits", default=0) + 1
            await ctx.store.set("visits", visits)
            return StopEvent(result=visits)

    flow = Visit()
    ctx = Context(flow)
    assert [await flow.run(ctx=ctx), await flow.run(ctx=ctx), await flow.run()] == [1, 2, 1]


async def test_a_workflow_runs_another_one_inside_a_step() -> None:
    """`run()` in a step starts a run of its own, and awaiting it gives its result."""

    class Inner(Workflow):
        @step
        async def double(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=2 * ev.n)

    class Outer(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=1 + await Inner().run(n=ev.n))

    assert await Outer().run(n=4) == 9
