"""A workflow's class as a plan: which classes may travel, under which names."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, step
from stepfleet.codec import Limits
from stepfleet.core.plan import Plan
from stepfleet.errors import EncodeError
from stepfleet.planning import arguments_digest, cluster_name, make_plan


class Detail(BaseModel):
    text: str


class Progress(Event):
    detail: Detail


class Result(BaseModel):
    value: int


class OwnError(Exception):
    pass


class Unused(Event):
    pass


class Flow(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
        def inner() -> Event:
            return Progress(detail=Detail(text="x"))

        ctx.write_event_to_stream(inner())
        return self.finish()

    def finish(self) -> StopEvent:
        if not self.workflow_name:
            raise OwnError
        return StopEvent(result=Result(value=1))


def plan_of(workflow: type[Workflow] | Workflow) -> Plan:
    return make_plan(workflow, "Flow", limits=Limits(), open_types=False)


@pytest.mark.parametrize("cls", [Progress, Detail, Result, OwnError])
def test_a_class_that_the_code_of_the_workflow_names_may_travel(cls: type) -> None:
    assert plan_of(Flow)._registry.id_of(cls) == cls.__name__


def test_a_class_that_nothing_names_may_not() -> None:
    with pytest.raises(EncodeError, match=r"types=\[Unused\]"):
        plan_of(Flow).codec.encode_event(Unused())


def test_types_of_the_workflow_name_the_rest() -> None:
    class Typed(Flow, types=[Unused]):
        pass

    assert plan_of(Typed).codec.encode_event(Unused())[0] == "Unused"


def test_a_named_class_never_changes_the_name_of_a_declared_one() -> None:
    declared = type("Progress", (Event,), {"__module__": "elsewhere"})

    class Clash(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> declared | None:  # type: ignore[valid-type]
            ctx.write_event_to_stream(Progress(detail=Detail(text="x")))

        @step
        async def end(self, ev: declared) -> StopEvent:  # type: ignore[valid-type]
            return StopEvent()

    plan = plan_of(Clash)
    assert plan.id_of(declared) == "Progress"
    with pytest.raises(EncodeError):
        plan.codec.encode_event(Progress(detail=Detail(text="x")))


def test_a_workflow_is_called_by_its_explicit_name_or_its_class() -> None:
    assert cluster_name(Flow) == cluster_name(Flow()) == "Flow"
    assert cluster_name(Flow(workflow_name="other one")) == "other.x20.one"


class Configured(Workflow):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(timeout=kwargs.get("timeout", 1))

    @step
    async def begin(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


def digest(workflow: Workflow) -> str:
    return arguments_digest(workflow, plan_of(workflow).codec)


def test_constructor_arguments_are_compared_by_content() -> None:
    assert (
        digest(Configured(1, a=[2])) == digest(Configured(1, a=[2])) != digest(Configured(1, a=[3]))
    )
    assert digest(Configured()) == digest(Flow(timeout=5)) == ""
    assert digest(Configured(timeout=3)) == ""
    assert digest(Configured(print)) == "?"
