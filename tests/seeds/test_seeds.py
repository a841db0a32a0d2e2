"""Every code block of the four pages runs with other import lines, or says clearly what is wrong with it."""

from __future__ import annotations

import asyncio
import builtins
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from stepfleet import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from stepfleet.errors import WorkflowConfigurationError, WorkflowTimeoutError
from tests.seeds.blocks import (
    PAGES,
    SOURCES,
    awaited,
    blocks,
    compiled,
    in_class,
    moved,
    of,
    program,
    tested,
)
from tests.seeds.conftest import Memory, OpenAI

#: What the pages have imported before a block that imports nothing.
IMPORTED = {
    "Context": Context,
    "Event": Event,
    "HumanResponseEvent": HumanResponseEvent,
    "InputRequiredEvent": InputRequiredEvent,
    "OpenAI": OpenAI,
    "StartEvent": StartEvent,
    "StopEvent": StopEvent,
    "Workflow": Workflow,
    "step": step,
    "asyncio": asyncio,
}

JOKE = (
    "answer to <Give a thorough analysis and critique of the following joke: "
    "answer to <Write your best joke about pirates.>>"
)


class SecondEvent(Event):
    msg: str = ""


class Small(Workflow):
    """Stands where a page writes `MyWorkflow(...)`, with dots for whatever one passes."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    @step
    async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
        number = await ctx.store.get("number", 0) + 1
        await ctx.store.set("number", number)
        return StopEvent(result=number)

    def run(self, *_: Any, **arguments: Any) -> Any:
        return super().run(**arguments)


class OneAtATime(random.Random):
    """Chance as a test needs it: each choice once, in turn, and no waiting."""

    def __init__(self, *choices: int) -> None:
        super().__init__()
        self._choices = list(choices)

    def randint(self, a: int, b: int) -> int:
        return self._choices.pop(0) if self._choices else 0


def test_every_block_has_a_test() -> None:
    there = {(page, number) for page in PAGES for number in range(len(blocks(page)))}
    assert there == tested


def test_the_blocks_that_lost_their_indentation_have_the_lines_of_their_page() -> None:
    page = [line.strip() for line in (SOURCES / "tutorial.txt").read_text().splitlines()]
    for number, block in enumerate(blocks("tutorial")):
        lines = [line.strip() for line in block.splitlines()]
        assert lines in [page[at : at + len(lines)] for at in range(len(page))], number


@of(introduction=[0], workflows_0_10=[0])
def test_a_program_has_one_async_entry(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    program(code, MyWorkflow=Small)
    assert capsys.readouterr().out == "1\n"


@of(introduction=[1], workflows_0_10=[1], compendium=[10])
async def test_the_joke_flow(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (await awaited(code))["result"] == JOKE
    assert capsys.readouterr().out == f"{JOKE}\n"


@of(introduction=[2], workflows_0_10=[2])
async def test_an_event_is_a_model(code: str) -> None:
    joke = (await awaited(code, **IMPORTED))["JokeEvent"]
    assert joke(joke="ha").joke == "ha"


class JokeEvent(Event):
    joke: str


@of(introduction=[3, 4, 5], workflows_0_10=[3, 4, 5])
async def test_a_part_of_a_workflow_is_a_class_that_says_what_it_lacks(code: str) -> None:
    flow = (await awaited(code, **IMPORTED, JokeEvent=JokeEvent))["JokeFlow"]
    with pytest.raises(
        WorkflowConfigurationError, match="has no configured steps|has no @step that"
    ):
        flow()


async def joke_flow() -> Any:
    return (await awaited(moved(blocks("introduction")[1])))["JokeFlow"]


@of(introduction=[6], workflows_0_10=[6])
async def test_running_it_gives_the_result(code: str) -> None:
    assert (await awaited(code, JokeFlow=await joke_flow()))["result"] == JOKE


@of(workflows_0_10=[8])
async def test_context_data_is_global_state(code: str) -> None:
    class QueryEvent(Event):
        pass

    rest = """
        @step
        async def first(self, ctx: Context, ev: StartEvent) -> QueryEvent:
            await ctx.store.set("query", ev.query)
            return QueryEvent()

    """
    names = await awaited(
        in_class(code, rest), **IMPORTED, QueryEvent=QueryEvent, run_query=str.upper
    )
    handler = names["Flow"]().run(query="fleet")
    assert await handler == "FLEET"
    assert await handler.ctx.store.get("key") == "val"


@of(workflows_0_10=[9])
async def test_a_block_with_a_slip_of_the_pen_names_it(code: str) -> None:
    # `evm[...]` stands for `ev, [...]`: see docs/migration.md.
    class QueryEvent(Event):
        pass

    class RetrieveEvent(Event):
        pass

    rest = """
        @step
        async def first(self, ev: StartEvent) -> QueryEvent | RetrieveEvent:
            return QueryEvent()

    """
    known = {**IMPORTED, "QueryEvent": QueryEvent, "RetrieveEvent": RetrieveEvent}
    flow = (await awaited(in_class(code, rest), **known))["Flow"]
    with pytest.raises(NameError, match="name 'evm' is not defined"):
        await flow().run()
    assert "ctx.collect_events(evm[QueryEvent, RetrieveEvent])" in code


@of(workflows_0_10=[10])
def test_a_workflow_runs_step_by_step(code: str) -> None:
    flow = program(moved(blocks("introduction")[1]).rpartition("w = ")[0])["JokeFlow"]

    class WithDots(flow):
        def __init__(self, *_: Any) -> None:
            super().__init__()

    assert program(code, JokeFlow=WithDots)["result"] == JOKE.replace("pirates", "Pirates")


@of(workflows_0_10=[11])
async def test_functions_are_steps_of_a_bare_workflow(code: str) -> None:
    flow = (await awaited(code, llm=OpenAI()))["joke_flow"]
    assert await flow.run(topic="pirates") == JOKE


# -- the tutorial ----------------------------------------------------------------------------------


@of(tutorial=[0], compendium=[0])
async def test_the_names_are_there(code: str) -> None:
    names = await awaited(code)
    assert {"Workflow", "Context", "step"} <= set(names)


@of(tutorial=[1])
def test_a_first_workflow(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    program(code)
    question = "Answer this question: What is retrieval-augmented generation?"
    assert capsys.readouterr().out.splitlines()[-1] == f"answer to <{question}>"


@of(tutorial=[2])
def test_retrieve_rerank_synthesize(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    program(code)
    lines = capsys.readouterr().out.splitlines()
    shown = "\n".join(line for line in lines if not line.startswith("["))  # those are `verbose`
    assert "page 4 of data/" in shown
    assert "page 5 of data/" not in shown
    assert "Question: How do I configure the API rate limits?" in shown


@of(tutorial=[3])
async def test_a_step_takes_one_of_two_ways(code: str) -> None:
    names = await awaited(code, Settings=SimpleNamespace(llm=OpenAI()))
    flow = names["QueryRoutingWorkflow"]()
    assert await flow.run(query="one two") == "[simple] answer to <one two>"
    assert (await flow.run(query="one two three four five")).startswith("[complex] answer")


@of(tutorial=[4])
async def test_collecting_three_of_one_says_what_the_run_waited_for(code: str) -> None:
    # One start event makes one result, whatever num_workers is: see docs/migration.md.
    flow = (await awaited(code))["ParallelSearchWorkflow"]
    with pytest.raises(
        WorkflowTimeoutError,
        match="step merge_results has collected 1 SearchResultEvent and waits for more",
    ):
        await flow(timeout=1).run(query="fleet")


@of(tutorial=[5])
def test_results_are_streamed(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    program(code, asyncio=asyncio)
    assert capsys.readouterr().out.splitlines() == [
        "Progress: Step 1: Retrieving documents...",
        "Progress: Step 2: Generating answer...",
        "Result: Final answer here",
    ]


@of(tutorial=[6])
async def test_steps_share_data_by_set_and_get(code: str) -> None:
    class MyEvent(Event):
        def __init__(self, *_: Any) -> None:
            super().__init__()

    flow = (await awaited(in_class(code), **IMPORTED, MyEvent=MyEvent))["Flow"]
    assert await flow().run() == "value"


@of(tutorial=[7])
async def test_a_web_application_runs_a_workflow(code: str) -> None:
    class QueryRequest(BaseModel):
        query: str

    class Echo(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=ev.query)

    names = await awaited(code, QueryRequest=QueryRequest, workflow=Echo())
    answer = await names["app"].routes["/query"](QueryRequest(query="fleet"))
    assert answer == {"answer": "fleet"}


@of(tutorial=[8])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_step_falls_back_on_an_error(code: str, fails: bool) -> None:
    class SuccessEvent(Event):
        data: str

    class FallbackEvent(Event):
        error: str

    async def do_risky_thing() -> str:
        if fails:
            raise ConnectionError("no server")
        return "done"

    rest = """
        @step
        async def last(self, ev: SuccessEvent | FallbackEvent) -> StopEvent:
            return StopEvent(result=ev.model_dump())

    """
    known = {"SuccessEvent": SuccessEvent, "FallbackEvent": FallbackEvent}
    more = {"Union": __import__("typing").Union, "do_risky_thing": do_risky_thing}
    flow = (await awaited(in_class(code, rest), **IMPORTED, **known, **more))["Flow"]
    assert await flow().run() == ({"error": "no server"} if fails else {"data": "done"})


# -- the compendium --------------------------------------------------------------------------------


@of(compendium=[1])
async def test_events_of_each_kind(code: str) -> None:
    names = await awaited(code)
    event = names["GreetingEvent"](greeting="hello", is_formal=True, time=1)
    assert (event.greeting, event.time) == ("hello", 1.0)
    assert names["OutputEvent"](output=["a"]).output == ["a"]
    assert names["CustomStartEvent"](message="hi").message == "hi"


@of(compendium=[2])
async def test_an_event_may_be_changed(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    await awaited(code)
    assert capsys.readouterr().out == "hello universe\n"


@of(compendium=[3, 4])
async def test_state_is_edited_typed_or_not(code: str) -> None:
    # The model refuses a typed state whose fields have no defaults; here the first edit fills it.
    names = await awaited(code, **IMPORTED, SecondEvent=SecondEvent)
    example = names["ExampleWorkflow"]

    class Whole(example):
        @step
        async def modify_state(
            self,
            ev: StartEvent,
            ctx: Context[names.get("WorkflowState", Any)],  # pyright: ignore[reportInvalidTypeForm]
        ) -> SecondEvent:
            await super().modify_state(ev, ctx)
            return SecondEvent()

        @step
        async def rest(self, ev: SecondEvent, ctx: Context) -> StopEvent:
            state = await ctx.store.get_state()
            return StopEvent(result=[type(state).__name__, state.age, state.username, state.email])

    result = await Whole().run(age=3, username="u", email="e")
    assert result[1:] == [3, "u", "e"]
    assert result[0] == ("WorkflowState" if "WorkflowState" in names else "DictState")


@of(compendium=[5])
async def test_a_store_that_is_not_awaited_says_so(code: str) -> None:
    names = await awaited(code, **IMPORTED, SecondEvent=SecondEvent)

    class Whole(names["ExampleWorkflow"]):
        @step
        async def rest(self, ev: SecondEvent) -> StopEvent:
            return StopEvent()

    with pytest.raises(TypeError, match=re.escape("write `await ctx.store.get(...)`")):
        await Whole().run()


@of(compendium=[6])
async def test_a_step_sends_an_event(code: str) -> None:
    class StepTwoEvent(Event):
        query: str

    names = await awaited(code, **IMPORTED, StepTwoEvent=StepTwoEvent, random=OneAtATime())
    assert await names["ParallelFlow"]().run() == "Query 1"


@of(compendium=[7])
async def test_a_step_sends_three_events_and_one_collects_them(code: str) -> None:
    class Query(Event):
        query: str

    class Complete(Event):
        result: str

    kinds = {
        name: type(name, (base,), {"__module__": __name__})
        for base, suffix in ((Query, "Event"), (Complete, "CompleteEvent"))
        for name in (f"Step{letter}{suffix}" for letter in "ABC")
    }
    names = await awaited(code, **IMPORTED, **kinds)
    assert await names["ConcurrentFlow"]().run() == "Done"


@of(compendium=[9])
async def test_a_resource_is_shared_by_steps(code: str) -> None:
    class ChatMessage(BaseModel):
        role: str
        content: str

    known = {"SecondEvent": SecondEvent, "ChatMessage": ChatMessage, "Annotated": Annotated}
    names = await awaited(code, **IMPORTED, **known)
    memory = Memory()
    names["Memory"].from_defaults = lambda *_, **__: memory
    try:
        assert await names["WorkflowWithResource"]().run() == "Messages stored"
    finally:
        del names["Memory"].from_defaults
    assert [message.content for message in memory.messages] == [
        "First step",
        "Input for step 2",
    ]


@of(compendium=[11])
def test_a_stop_event_in_the_stream_ends_the_reader_only(
    code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program(code)
    joke = "answer to <Write your best joke about pirates.>"
    assert capsys.readouterr().out.splitlines() == [f"Produced joke: {joke}", JOKE]


def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def answered(prompt: str) -> str:
        asked.append(prompt)
        return "42"

    monkeypatch.setattr(builtins, "input", answered)
    return asked


@of(compendium=[12])
async def test_a_human_answers(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch)
    names = await awaited(code, **IMPORTED)
    assert (names["final_result"], asked) == ("42", ["Enter a number: "])


@of(compendium=[13])
async def test_a_human_answers_after_a_pause(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch)
    flow = (await awaited(moved(blocks("compendium")[12]), **IMPORTED))["workflow"]
    names = await awaited(code, **IMPORTED, workflow=flow)
    assert names["final_result"] == "42"


@of(compendium=[14])
async def test_a_step_loops(code: str) -> None:
    rest = """
        @step
        async def last(self, ev: FirstEvent) -> StopEvent:
            return StopEvent(result=ev.first_output)

    """

    class FirstEvent(Event):
        first_output: str

    event, _, loop = code.partition("@step")
    code = event + in_class(f"@step{loop}", rest)
    known = {"FirstEvent": FirstEvent, "random": OneAtATime(0, 0, 1)}
    names = await awaited(code, **IMPORTED, **known)
    assert await names["Flow"]().run() == "First step complete."


@of(compendium=[15])
@pytest.mark.parametrize("branch", ["A", "B"])
async def test_a_workflow_branches(code: str, branch: str) -> None:
    names = await awaited(code, **IMPORTED, random=OneAtATime("AB".index(branch)))
    assert await names["BranchWorkflow"]().run() == f"Branch {branch} complete."


@of(compendium=[16])
def test_await_in_a_plain_function_is_refused_by_python(code: str) -> None:
    # Steps that await are `async def`: see docs/migration.md.
    with pytest.raises(SyntaxError, match="'await' outside async function"):
        compiled(code)


@of(workflows_0_10=[7])
async def test_it_is_drawn_and_so_is_its_last_run(code: str) -> None:
    await awaited(code, JokeFlow=await joke_flow())
    for page in ("joke_flow_all.html", "joke_flow_recent.html"):
        assert "generate_joke" in await asyncio.to_thread(Path(page).read_text)


@of(compendium=[8])
async def test_a_context_is_used_again_and_travels_as_a_dict(code: str) -> None:
    assert (await awaited(code, MyWorkflow=Small))["result"] == 3
