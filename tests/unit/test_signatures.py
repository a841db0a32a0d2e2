"""Signatures with lists and several events: what they say, and which of them are refused."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any

import pytest

from stepfleet.collect import All, Cardinality, Collect, Take
from stepfleet.errors import WorkflowValidationError
from stepfleet.events import Event
from stepfleet.signatures import Signature, read_signature, require_plain_function


class A(Event):
    pass


class B(Event):
    pass


def read(function: Any) -> Signature:
    require_plain_function(function)
    return read_signature(function, {})


def refused(function: Any) -> str:
    with pytest.raises(WorkflowValidationError) as caught:
        read(function)
    return str(caught.value)


def with_parameter(annotation: Any) -> Any:
    async def collect(evs: Any) -> None: ...

    collect.__annotations__["evs"] = annotation
    return collect


def with_return(annotation: Any) -> Any:
    async def many(ev: A) -> Any: ...

    many.__annotations__["return"] = annotation
    return many


@pytest.mark.parametrize(
    ("annotation", "accepts", "collects"),
    [
        (list[A], (A,), Collect(All())),
        (list[A | B], (A, B), Collect(All())),
        (list[A] | None, (A,), Collect(All())),
        (Annotated[list[A], "of one batch"], (A,), Collect(All())),
        (Annotated[list[A], Collect()], (A,), Collect(All())),
        (Annotated[list[A], "first", Collect(Take(2))], (A,), Collect(Take(2))),
        (A | B, (A, B), None),
    ],
)
def test_a_list_parameter_collects(annotation: Any, accepts: Any, collects: Any) -> None:
    signature = read(with_parameter(annotation))
    assert (signature.accepts, signature.collects) == (accepts, collects)
    assert signature.event_param == "evs"
    assert signature.slots == ()


@pytest.mark.parametrize(
    ("annotation", "bare", "listed"),
    [
        (list[A], (), (A,)),
        (list[A | B], (), (A, B)),
        (list[A] | B | None, (B,), (A,)),
        (list[A] | A, (A,), (A,)),
        (A | B, (A, B), ()),
    ],
)
def test_a_returned_list_is_told_from_single_events(
    annotation: Any, bare: Any, listed: Any
) -> None:
    signature = read(with_return(annotation))
    assert (signature.bare, signature.listed) == (bare, listed)
    assert signature.returns == tuple(dict.fromkeys((*bare, *listed)))


def test_several_event_parameters_are_slots() -> None:
    async def join(first: A, note: B, second: A) -> None: ...

    signature = read(join)
    assert signature.slots == (("first", A), ("note", B), ("second", A))
    assert signature.accepts == (A, B)


def test_one_event_parameter_is_no_slot() -> None:
    async def one(ev: A) -> None: ...

    assert read(one).slots == ()


def test_a_slot_has_one_type() -> None:
    async def join(a: A | B, b: B) -> None: ...

    assert refused(join) == (
        "Collect-mode steps (more than one event parameter) require each event parameter to "
        "declare a single event type, but parameter 'a' declares 2. Union-typed collect parameters "
        "are not supported."
    )


def test_there_is_one_list_parameter_at_most() -> None:
    async def collect(a: list[A], b: list[B]) -> None: ...

    assert refused(collect) == (
        "A step may declare at most one list[E] collection parameter, but found both 'a' and 'b'. "
        "Multi-slot collects are not supported."
    )


def test_a_list_parameter_stands_alone() -> None:
    async def collect(a: list[A], b: B) -> None: ...

    assert refused(collect) == (
        "A list[E] collection parameter cannot be combined with other event parameters. Use a "
        "single list[E] parameter, or multiple single-event parameters for a multi-slot join."
    )


@pytest.mark.parametrize("annotation", [A, int, list[int]])
def test_a_marker_stands_on_a_list_of_events(annotation: Any) -> None:
    assert refused(with_parameter(Annotated[annotation, Collect()])) == (
        "Parameter 'evs' carries a Collect marker but is not annotated as list[E] of an Event "
        "subclass. Collect markers apply only to collection fan-in (list[Event]) parameters."
    )


def test_the_cardinality_is_all_or_take() -> None:
    assert refused(with_parameter(Annotated[list[A], Collect(Cardinality())])) == (
        "Collect cardinality on 'evs' must be All() or Take(n). "
        "Other cardinalities are not supported."
    )


def test_a_cardinality_without_collect_is_not_ignored() -> None:
    assert refused(with_parameter(Annotated[list[A], Take(2)])) == (
        "Parameter 'evs' is marked with Take(n=2): write Collect(Take(n=2))."
    )


@pytest.mark.parametrize("n", [0, -1, 1.5, "2"])
def test_take_wants_an_integer_above_zero(n: Any) -> None:
    with pytest.raises(ValueError, match=r"^Take\(n\) requires an integer n >= 1$"):
        Take(n)


@pytest.mark.parametrize("annotation", [list[int], list[A | int], list])
def test_a_list_of_something_else_is_no_event_parameter(annotation: Any) -> None:
    assert refused(with_parameter(annotation)) == (
        "Step signature must have at least one parameter annotated as type Event"
    )


NO_ITERATORS = (
    "Async-iterator fan-out (AsyncIterator[E] / AsyncGenerator[E, None] / async generator steps) "
    "is not supported. Return list[E] for a static collection, or emit incrementally with "
    "ctx.send_event."
)


def test_steps_that_yield_are_refused() -> None:
    async def stream(ev: A) -> AsyncIterator[B]:
        yield B()

    def batch(ev: A) -> Any:
        yield B()

    assert refused(stream) == NO_ITERATORS
    assert refused(batch) == NO_ITERATORS


@pytest.mark.parametrize("annotation", [AsyncIterator[A], AsyncGenerator[A, None]])
def test_async_iterators_are_not_returned(annotation: Any) -> None:
    assert refused(with_return(annotation)) == NO_ITERATORS
