"""A delivery knows whether it belongs to the start of its run, and ids say what it comes from."""

from __future__ import annotations

from stepfleet.core.commit import Route
from stepfleet.core.delivery import Delivery, Record, delivery_id

ROUTE = Route("Flow", "Work", "step")


def delivery(parent: str) -> Delivery:
    return Delivery("run", "id", ROUTE, "1-0", Record(parent, "Work", b""))


def test_a_delivery_of_the_start_arms_the_deadline_and_no_other() -> None:
    assert delivery("run").is_first
    assert not delivery("run/operation").is_first
    assert not delivery("D" * 22).is_first


def test_a_delivery_counts_as_fresh_and_delivered_once_until_something_else_is_known() -> None:
    assert (delivery("run").fresh, delivery("run").deliveries) == (True, 1)


def test_an_id_depends_on_each_part_of_where_it_comes_from() -> None:
    base = ("parent", "step", "return", 0)
    others = [
        ("other", *base[1:]),
        ("parent", "b", "return", 0),
        (*base[:2], "send", 0),
        (*base[:3], 1),
    ]
    ids = {delivery_id(*base), *(delivery_id(*other) for other in others)}
    assert len(ids) == 5
    assert delivery_id(*base) == delivery_id(*base)


def test_ids_do_not_grow_with_their_parents() -> None:
    name = "parent"
    for _ in range(100):
        name = delivery_id(name, "step", "return", 0)
    assert len(name) == 22
