"""Which completed steps of a run keep a checkpoint, and the word that keeps it. Layer: core, pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from stepfleet.core.commit import Remember
from stepfleet.core.delivery import Delivery
from stepfleet.core.outcome import Encoded
from stepfleet.wire import Completed, encode_completed

#: The header of deliveries whose run keeps checkpoints; its value names the steps that keep none.
HEADER: Final = "stepfleet-checkpoints"
#: Checkpoints kept per run.
KEPT: Final = 100


def header(disabled: Iterable[str]) -> dict[str, str]:
    """Return the headers of a run that keeps checkpoints, but none of these steps."""
    return {HEADER: ",".join(sorted(disabled))}


def checkpoint(delivery: Delivery, output: Encoded | None) -> list[Remember]:
    """Return the word that keeps a checkpoint of a step that returned, if its run keeps any."""
    headers, step = delivery.record.headers, delivery.route.step
    disabled = None if headers is None else headers.get(HEADER)
    if disabled is None or step in disabled.split(","):
        return []
    record = delivery.record
    type_id, payload = (output.type_id, output.payload) if output is not None else ("", b"")
    about = Completed(delivery.id, step, record.type_id, record.payload, type_id, payload)
    return [Remember(encode_completed(about), KEPT)]
