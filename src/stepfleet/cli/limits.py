"""What of a run waits for a limit, and who has what it waits for: `stepfleet why`. Layer: cli."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import NamedTuple

from stepfleet.cli.sentences import TOLD, Sentence, is_well, listed, no_sign, waiting
from stepfleet.cli.showing import ago
from stepfleet.storage.inspector import Inspector, Occupant, WorkerRow
from stepfleet.storage.reader import RunRecord


class _Limits(NamedTuple):
    """What workers say of one step."""

    slots: int = 0
    ceiling: int = 0
    types: frozenset[str] = frozenset()


async def turn(inspector: Inspector, run_id: str, record: RunRecord) -> AsyncGenerator[Sentence]:
    """Say which runs are before one that waits under `num_concurrent_runs`."""
    queue = await inspector.queued_for_turn(record.workflow, run_id)
    place = "is the next" if queue.place is None else f"has place {queue.place} in the queue"
    text = (
        f"The run waits for its turn: workflow {record.workflow} has "
        f"num_concurrent_runs={queue.limit or '?'}, and this run {place}."
    )
    if queue.going_on:
        text += (
            f" It goes on when one of these ends: {listed(queue.going_on)} "
            f"(`stepfleet why {queue.going_on[0]}`)."
        )
    yield Sentence("turn", "", text)


async def held(inspector: Inspector, run_id: str, record: RunRecord) -> AsyncGenerator[Sentence]:
    """Say what waits for a slot or for a place over all runs, and who has them."""
    held = await inspector.reader.held(run_id)
    if not held:
        return
    steps = await _steps(inspector, record.workflow)
    counts = await inspector.slots(run_id)
    for step, count in sorted(held.items()):
        limits = steps.get(step, _Limits())
        used = max(0, counts.get(step, count) - count)
        place = await inspector.queued_for_place(record.workflow, step, run_id)
        if place is not None or (limits.ceiling and used < limits.slots):
            text = (
                f"{waiting(count, 'event')}: step {step} has max_concurrency={limits.ceiling or '?'} "
                f"over all runs, and this run has place {place or 1} in its queue."
            )
            yield Sentence(
                "ceiling",
                step,
                text + await _occupied(inspector, record.workflow, step, limits.types),
            )
        else:
            yield Sentence(
                "slots",
                step,
                f"{waiting(count, 'event')} for a slot: step {step} has "
                f"num_workers={limits.slots or '?'}, and {used} of its slots are taken "
                "(by the deliveries above).",
            )


async def _steps(inspector: Inspector, workflow: str) -> Mapping[str, _Limits]:
    """Return the limits of every step as the newest code has them, with the types that any code has."""
    found: dict[str, _Limits] = {}
    for definition in (await inspector.reader.definitions(workflow)).values():
        for route in (route for routes in definition.routes.values() for route in routes):
            types = found.get(route.step, _Limits()).types | {route.type}
            found[route.step] = _Limits(route.limit, route.ceiling, types)
    return found


async def _occupied(inspector: Inspector, workflow: str, step: str, types: frozenset[str]) -> str:
    workers = {row.consumer: row for row in await inspector.workers()}
    occupants = await inspector.occupants(workflow, step, sorted(types), TOLD + 1)
    if not occupants:
        return ""
    names = [_occupant(one, workers) for one in occupants[:TOLD]]
    more = " and others" if len(occupants) > TOLD else ""
    return f" The places are taken by {listed(names)}{more}: `stepfleet why {occupants[0].run_id}`."


def _occupant(one: Occupant, workers: Mapping[str, WorkerRow]) -> str:
    if one.taken is None:
        return f"{one.run_id} (not begun)"
    worker = workers.get(one.taken.consumer)
    if is_well(worker):
        return f"{one.run_id} (for {ago(one.taken.idle_ms)} on {one.taken.consumer})"
    return f"{one.run_id} (on {one.taken.consumer}, which {no_sign(worker)})"
