"""W8: the store of a run, used from a step."""

from __future__ import annotations

from typing import Any

from benchmarks.workloads.measure import WORKFLOW_PEERS, Figures, Measure

TITLE = "W8: the store of a run"

TIMES = 1_000


async def store(peer: Any) -> Figures:
    rates = await (await peer.start("store", TIMES))
    return dict(zip(("sets per second", "gets per second", "edits per second"), rates, strict=True))


MEASURES = (Measure(name="set, get, edit", run=store, peers=WORKFLOW_PEERS),)
