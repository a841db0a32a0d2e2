"""How a run goes on from the pending work of one that was cancelled or dead-lettered. Layer: core, pure.

The rules:
- The new run takes over everything, by one commit: what is in streams, parked or held, back-offs,
waits,
  buffers, effects that must not be repeated, and the store.
- Ids of deliveries stay: what a delivery has sent before is not sent again. What it published is,
since the
  new run has a public stream of its own.
- A wait and the run begin their time-outs anew; a back-off goes on with what was left of it.
- There is one continuation: both runs name each other, and the commit expects that nothing has
moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Final

from stepfleet.core.commit import (
    Adopt,
    Commit,
    Deadline,
    DropTimer,
    Emit,
    Expectation,
    Expunge,
    Fill,
    LetGo,
    Located,
    NewRunFence,
    Note,
    Pile,
    Place,
    Recorded,
    Route,
    SetTimer,
    Succeed,
    Wait,
    Withdraw,
    Withheld,
    Word,
    Write,
)
from stepfleet.core.cut import Cut
from stepfleet.errors import DecodeError, RunNotFound, WorkflowRuntimeError
from stepfleet.wire import (
    Expiry,
    Promotion,
    Waiter,
    decode_record,
    decode_timer,
    decode_waiter,
    encode_record,
    encode_timer,
    encode_waiter,
)

#: Further keys that a continuation does not take over as they are: it has own ones, or no use for them.
_NOT_ADOPTED: Final = (
    *("hold:", "stage:", "wait", "inbox", "ops", "store", "lock", "events", "children"),
    "checkpoints",
    "history",
)


def origin_of(run_id: str) -> str:
    """Return the id of the run that a continuation goes back to, or the id itself."""
    origin, separator, number = run_id.rpartition("~")
    return origin if separator and number.isdigit() else run_id


def next_id(run_id: str) -> str:
    """Return the id of the continuation of a run: `<id>~1`, then `<id>~2`."""
    origin = origin_of(run_id)
    number = int(run_id[len(origin) + 1 :]) if origin != run_id else 0
    return f"{origin}~{number + 1}"


def revival(
    cut: Cut,
    run_id: str,
    workflow: str,
    routes: Mapping[str, Route],
    *,
    digest: str,
    values: Mapping[str, bytes],
    timeout_ms: int | None,
    limit: int | None = None,
) -> Commit:
    """Return the commit that makes a run of what a snapshot has: a copy, which leaves its origin alone.

    It waits for its turn as any other run; `limit` is that of `endings.start`.

    Raises:
        WorkflowRuntimeError: work is pending for a step that the workflow does not have.
    """
    _check_steps(cut, routes)
    held = [one for step in cut.waiting.values() for one in step]
    cut = cut._replace(pending=[*cut.pending, *held])
    words: list[Word] = [] if limit is None else [Place(workflow, limit)]
    words += [Write(name, value) for name, value in values.items()]
    words += _emitted(cut, run_id, routes)
    for name, content in cut.kept.items():
        if name.startswith(_NOT_ADOPTED):
            continue
        if isinstance(content, Mapping):
            lasting = _unpublished(content) if name.startswith("sent:") else content
            words += [Fill(name, lasting)] if lasting else []
        elif content:
            words.append(Pile(name, content))
    words += [word for word in _waits(cut, run_id, routes) if not isinstance(word, DropTimer)]
    words += [word for word in _timers(cut, run_id, routes) if not isinstance(word, DropTimer)]
    if not cut.pending:
        words.append(Deadline(0))
    fields = ["status", "running", "workflow", workflow, *_budget(timeout_ms)]
    return Commit(run_id, NewRunFence(digest, fields), words)


def _unpublished(sent: Mapping[str, bytes]) -> dict[str, bytes]:
    # A number is the place of something published in the old run's stream.
    return {field: value for field, value in sent.items() if not value.isdigit()}


def _budget(timeout_ms: int | None) -> list[str]:
    if timeout_ms is None:
        return []
    return ["deadline", f"?{timeout_ms}", "timeout", str(timeout_ms)]


def check_continuable(cut: Cut) -> None:
    """Make sure that a run has ended in a way that leaves work to go on from.

    Raises:
        RunNotFound: it is not recorded. WorkflowRuntimeError: it goes on still, or left nothing.
    """
    status = cut.text("status")
    if not status:
        raise RunNotFound(
            f"no run {cut.run_id!r} is recorded in this namespace: it was never started here, "
            "or its retention has passed"
        )
    if status == "running":
        raise WorkflowRuntimeError(
            f"run {cut.run_id} cannot be resumed: it goes on still; cancel it first"
        )
    if cut.text("parks") != "1":
        raise WorkflowRuntimeError(
            f"run {cut.run_id} cannot be resumed: it is {status.replace('_', ' ')}, and only a run that "
            "was cancelled or dead-lettered keeps its pending work; start a new run"
        )


def continuation(
    cut: Cut, run_id: str, workflow: str, routes: Mapping[str, Route], *, timeout_ms: int | None
) -> Commit:
    """Return the commit that makes a run of what another one left.

    Args:
        cut: the run that ended.
        workflow: the name of the workflow in keys.
        routes: label -> stream of that workflow.

    Raises:
        WorkflowRuntimeError: work is left for a step that the workflow does not have.
    """
    _check_steps(cut, routes)
    limit = cut.text("limit")
    words: list[Word] = [Place(workflow, int(limit))] if limit else []
    words += [Write(name, value) for name, value in cut.store.items()]
    words += [
        Withdraw(_old_route(cut, routes[one.label]), one.entry) for one in cut.pending if one.entry
    ]
    words += _emitted(cut, run_id, routes)
    words += [LetGo(cut.run_id, _of_step(routes, step), n) for step, n in cut.held.items()]
    words += [Adopt(cut.run_id, name) for name in cut.names if not name.startswith(_NOT_ADOPTED)]
    for delivery, fields in cut.sent.items():
        words += [Expunge(delivery, field) for field in fields.keys() - _unpublished(fields).keys()]
    words += _waits(cut, run_id, routes)
    words += _timers(cut, run_id, routes)
    if not cut.pending and not any(cut.held.values()):
        words.append(Deadline(0))
    words.append(Succeed(cut.run_id))
    return Commit(run_id, _fence(cut, run_id, workflow, timeout_ms), words, _expectations(cut))


def _fence(cut: Cut, run_id: str, workflow: str, timeout_ms: int | None) -> NewRunFence:
    earlier = cut.run_id
    fields = ["status", "running", "workflow", workflow, "continues", earlier]
    if cut.text("history"):
        fields += ["history", cut.text("history")]
    fields += _budget(timeout_ms)
    digest = hashlib.blake2b(f"{earlier}\0{run_id}".encode(), digest_size=16).hexdigest()
    return NewRunFence(digest, fields)


def _expectations(cut: Cut) -> list[Expectation]:
    record = {"status": cut.text("status"), "parks": "1", "continued": ""}
    held = [Withheld(cut.run_id, step, length) for step, length in cut.held.items()]
    return [Recorded(cut.run_id, record), Located(cut.run_id, cut.open), *held]


def _check_steps(cut: Cut, routes: Mapping[str, Route]) -> None:
    steps = {route.step for route in routes.values()}
    unknown = {one.label.partition(":")[2] for one in cut.pending if one.label not in routes}
    unknown |= {step for step in cut.held if step not in steps}
    if unknown:
        raise WorkflowRuntimeError(
            f"run {cut.run_id} cannot go on: work is left for "
            f"{', '.join(f'step {step!r}' for step in sorted(unknown))}, which the workflow does not "
            "have any more; start workers whose code has it, then resume"
        )


def _emitted(cut: Cut, run_id: str, routes: Mapping[str, Route]) -> Iterator[Word]:
    for label, group in groupby(cut.pending, key=lambda one: one.label):
        deliveries = tuple(
            (one.id, _renewed(one.record, run_id, begun=one.id in cut.sent)) for one in group
        )
        yield Emit(routes[label], deliveries, awaitable=False)


def _renewed(data: bytes, run_id: str, *, begun: bool = False) -> bytes:
    """Return a record as one of the run's first: its execution begins the budget of the run.

    One that has begun says so in its journal, so that its execution looks at what was sent before.
    """
    try:
        record = decode_record(data)
    except DecodeError:
        return data  # whoever can read it does; the next delivery begins the budget
    journal = [*(record.journal or ()), ["resumed"]] if begun else record.journal
    return encode_record(record._replace(parent=run_id, journal=journal))


def _waits(cut: Cut, run_id: str, routes: Mapping[str, Route]) -> Iterator[Word]:
    for data in cut.waits:
        old = decode_waiter(data)
        waiter, timer = rewritten(old, run_id, routes)
        if old.timer:
            yield DropTimer(old.timer)
        yield Wait(waiter.name, waiter.type, encode_waiter(waiter))
        if timer is not None:
            yield timer
        yield Note(waiter.delivery, f"waiting {waiter.type} {waiter.route.label}")


def rewritten(
    waiter: Waiter, run_id: str, routes: Mapping[str, Route]
) -> tuple[Waiter, SetTimer | None]:
    """Return a waiter as one of another run, with its time-out as it was at first."""
    route = routes.get(waiter.route.label, waiter.route)
    if not waiter.timer:
        return waiter._replace(route=route), None
    delay_ms = int(waiter.timer.rpartition("/")[2])
    member = f"{run_id}/{waiter.name}/wait/{delay_ms}"
    timer = SetTimer(member, delay_ms, encode_timer(Expiry(waiter.name)))
    return waiter._replace(route=route, timer=member), timer


def _timers(cut: Cut, run_id: str, routes: Mapping[str, Route]) -> Iterator[Word]:
    for timer in cut.timers:
        promotion = decode_timer(timer.data)
        if not isinstance(promotion, Promotion):
            continue
        route = routes.get(promotion.route.label, promotion.route)
        member = run_id + timer.member[len(cut.run_id) :]
        renewed = Promotion(route, promotion.delivery, _renewed(promotion.record, run_id))
        yield DropTimer(timer.member)
        yield SetTimer(member, timer.left_ms, encode_timer(renewed))
        yield Note(promotion.delivery, cut.open[promotion.delivery])


def _of_step(routes: Mapping[str, Route], step: str) -> Route:
    return next(route for route in routes.values() if route.step == step)


def _old_route(cut: Cut, route: Route) -> Route:
    """Return the stream that an entry is in: in memory the name of the workflow differs by instance."""
    return route._replace(workflow=cut.text("workflow"))
