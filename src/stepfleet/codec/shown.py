"""Events as people and other languages see them: the name of the type, and the fields."""

from __future__ import annotations

from typing import Any

from stepfleet.codec.generic import GenericEvent
from stepfleet.events import DYNAMIC_FIELDS_KEY, Event


def type_of(event: Event) -> str:
    """Return the name of an event's type, also of one whose class is not known here."""
    return event.type_id if isinstance(event, GenericEvent) else type(event).__name__


def fields_of(event: Event) -> dict[str, Any]:
    """Return the fields of an event, declared and undeclared ones alike."""
    fields = event.model_dump()
    dynamic = fields.pop(DYNAMIC_FIELDS_KEY, {})
    return fields | dynamic
