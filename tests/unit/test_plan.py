"""A workflow's graph as streams."""

from __future__ import annotations

import pytest

from stepfleet.codec import Limits
from stepfleet.core.commit import Route
from stepfleet.core.plan import SYSTEM, Plan, type_name
from stepfleet.decorators import step
from stepfleet.errors import EncodeError
from stepfleet.events import Event, StartEvent, StopEvent
from stepfleet.planning import make_plan
from stepfleet.storage import keys
from stepfleet.workflow import Workflow


class Part(Event):
    pass


class SubPart(Part):
    pass


class Stranger(Event):
    pass


class Example(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Part | SubPart:
        return Part()

    @step(num_workers=7, max_concurrency=3)
    async def exact(self, ev: Part | StartEvent) -> StopEvent:
        return StopEvent()

    @step(accept_event_subclasses=True)
    async def broad(self, ev: Part) -> StopEvent:
        return StopEvent()


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(Example, "Flow", limits=Limits(), open_types=False)


def test_every_accepted_type_of_every_step_has_a_stream(plan: Plan) -> None:
    assert sorted(route.label for route in plan.routes) == [
        "Part:broad",
        "Part:exact",
        "StartEvent:begin",
        "StartEvent:exact",
    ]


def test_a_route_carries_the_limits_and_types_of_its_step(plan: Plan) -> None:
    route = next(route for route in plan.routes if route.label == "Part:exact")
    assert route._replace(types=()) == Route("Flow", "Part", "exact", 7, 3)
    assert set(route.types) == {"Part", "StartEvent"}
    assert next(r for r in plan.routes if r.step == "begin").limit == 4


def test_a_subclass_goes_to_the_stream_of_the_class_that_its_step_accepts(plan: Plan) -> None:
    assert sorted(route.label for route in plan.accepted_by(Part)) == ["Part:broad", "Part:exact"]
    assert [route.label for route in plan.accepted_by(SubPart)] == ["Part:broad"]
    assert plan.accepted_by(StopEvent) == ()


def test_a_stream_leads_back_to_its_step(plan: Plan) -> None:
    for route in plan.routes:
        spec = plan.spec(route)
        assert spec is not None
        assert spec.name == route.step
    assert plan.spec(Route("Flow", "Part", "gone")) is None
    assert plan.spec(plan.system) is None


def test_a_type_that_is_not_of_the_workflow_has_no_name(plan: Plan) -> None:
    with pytest.raises(EncodeError, match="Stranger"):
        plan.name_of(Stranger)
    assert plan.class_of("Stranger") is None
    assert plan.class_of("Part") is Part


def test_names_fit_into_keys() -> None:
    assert type_name("module:Outer.Inner") == "module.x3a.Outer.Inner"
    assert type_name("Plain_1-a.b") == "Plain_1-a.b"
    assert type_name("Fête") == "F.xea.te"
    assert type_name("a:b") != type_name("a_b")


def test_the_system_stream_has_one_name_everywhere(plan: Plan) -> None:
    assert keys.SYSTEM == SYSTEM == plan.system.type
    assert plan.system.label == SYSTEM
