"""How `stepfleet why` names an error: type and message, and nothing of an event."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from stepfleet.cli.why import named_error
from stepfleet.codec import Codec, TypeRegistry


class Payment(BaseModel):
    amount: int


class Declined(Exception):
    """No class that an operator has."""


def refused() -> ValidationError:
    with pytest.raises(ValidationError) as raised:
        Payment.model_validate({"amount": "4111-1111"})
    return raised.value


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("the floor is wet"), "ValueError: the floor is wet"),
        (ValueError(), "ValueError"),
        (Declined("no cover."), f"{__name__}.Declined: no cover"),
        (ValueError("first\nof several"), "ValueError: first"),
        (ValueError("\x1b[31mred"), "ValueError: \N{REPLACEMENT CHARACTER}[31mred"),
        (ValueError("x" * 200), f"ValueError: {'x' * 120}[…]"),
        (OSError("redis://u:hush@h is away"), "OSError: redis://u:***@h is away"),
        (
            refused(),
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for Payment",
        ),
    ],
)
def test_an_error_is_named_by_type_and_first_line(error: Exception, expected: str) -> None:
    assert named_error(Codec(TypeRegistry()).encode_error(error)) == expected


def test_an_error_that_is_none_is_said() -> None:
    assert named_error(b"\xc1") == "an error that cannot be read"
