"""A cut through a run as the dictionary of a context, and back: what `Context.to_dict` and `run(ctx=)` need."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel

from stepfleet.codec import Codec
from stepfleet.context.serializers import BaseSerializer
from stepfleet.context.snapshot import Snapshot, StepWork, attempt, compose, state_of
from stepfleet.core.commit import End, Route
from stepfleet.core.cut import Cut, Pending, Ticking
from stepfleet.core.delivery import Record, delivery_id
from stepfleet.core.plan import Plan, type_name
from stepfleet.errors import ContextSerdeError, DecodeError
from stepfleet.events import StopEvent
from stepfleet.wire import (
    BufferedEvent,
    PublicEntry,
    decode_buffered,
    decode_record,
    decode_waiter,
    encode_buffered,
    encode_public,
    encode_record,
)

#: Contents of these further keys are of no use to another run.
_LEFT = ("hold:", "stage:", "wait", "inbox", "ops", "store", "checkpoints")


def dictionary_of(
    cut: Cut,
    steps: Iterable[str],
    *,
    codec: Codec,
    serializer: BaseSerializer,
    state_type: type[BaseModel] | None,
    include_state: bool,
) -> dict[str, Any]:
    """Return a cut as the dictionary of a context.

    Raises:
        ValueError: a value of the state cannot be written.
    """
    state = {}
    if include_state:
        values = {name: codec.decode_value(data) for name, data in cut.store.items()}
        state = state_of(values, state_type, serializer)
    if not goes_on(cut):
        return compose(state, steps)
    work = _Work(codec, serializer)
    return compose(state, steps, is_running=True, work=work.of(cut), exact=_exact(cut))


def goes_on(cut: Cut) -> bool:
    """Tell whether a run is under way, or was cancelled and can go on."""
    return cut.text("status") == "running" or (
        cut.text("status") == "cancelled" and not cut.text("continued")
    )


class _Work:
    """Pending events as the model writes them, for readers and for the model itself."""

    def __init__(self, codec: Codec, serializer: BaseSerializer) -> None:
        self._codec = codec
        self._serializer = serializer

    def of(self, cut: Cut) -> dict[str, StepWork]:
        queues: dict[str, list[Mapping[str, Any]]] = {}
        running: dict[str, list[Mapping[str, Any]]] = {}
        waiters: dict[str, list[Mapping[str, Any]]] = {}
        collected: dict[str, dict[str, list[str]]] = {}
        for one in cut.pending:
            self._add(running, one, worker_id=0, invocation_id=one.id, received=[])
        for step in cut.waiting.values():
            for one in step:
                self._add(queues, one)
        for data in cut.waits:
            waiter = decode_waiter(data)
            one = Pending(waiter.delivery, waiter.route.label, waiter.record)
            self._add(
                waiters,
                one,
                # The model's own ids say whose wait it is; here it belongs to its delivery.
                waiter_id=f"{waiter.waiter_id}_{waiter.delivery}",
                waiting_for_event=waiter.type_id,
                has_requirements=bool(self._codec.decode_value(waiter.requirements)),
                resolved_event=None,
            )
        for name, buffer in cut.buffers.items():
            step, _, label = name.partition(":")
            found = [decode_buffered(data) for data in buffer.events]
            events = [self._text(one.type_id, one.payload) for one in found]
            collected.setdefault(step, {})[label] = events
        steps = queues.keys() | running.keys() | waiters.keys() | collected.keys()
        return {
            step: StepWork(
                queues.get(step, ()),
                running.get(step, ()),
                collected.get(step, {}),
                waiters.get(step, ()),
            )
            for step in steps
        }

    def _add(self, found: dict[str, list[Mapping[str, Any]]], one: Pending, **more: Any) -> None:
        step = one.label.partition(":")[2]
        try:
            record = decode_record(one.record)
        except DecodeError:
            return  # newer code can read it; it stands in what only stepfleet reads
        if step:
            text = self._text(record.type_id, record.payload)
            event = attempt(text, failed=max(record.attempt - 1, 0), delivery=one.id)
            found.setdefault(step, []).append({**event, **more})

    def _text(self, type_id: str, payload: bytes) -> str:
        return self._serializer.serialize(self._codec.decode_event(type_id, payload))


def _exact(cut: Cut) -> dict[str, Any]:
    pending = [*cut.pending, *(one for step in cut.waiting.values() for one in step)]
    kept: dict[str, Any] = {}
    for name, content in cut.kept.items():
        if name.startswith(_LEFT):
            continue
        if isinstance(content, Mapping):
            kept[name] = {field: _b64(value) for field, value in content.items()}
        else:
            kept[name] = [_b64(value) for value in content]
    return {
        "format": 1,
        "run_id": cut.run_id,
        "workflow": cut.text("workflow"),
        "open": dict(cut.open),
        "pending": [[one.id, one.label, _b64(one.record)] for one in pending],
        "timers": [[one.member, one.left_ms, _b64(one.data)] for one in cut.timers],
        "waits": [_b64(data) for data in cut.waits],
        "kept": kept,
    }


# -- back
# --------------------------------------------------------------------------------------------


def cut_of(snapshot: Snapshot, plan: Plan, run_id: str) -> Cut:
    """Return what a run with this id begins with.

    Raises:
        ContextSerdeError: what stepfleet wrote is damaged, or no step accepts a pending event.
        EncodeError: an event cannot travel.
    """
    if snapshot.exact is None:
        return _mapped(snapshot, plan, run_id)
    try:
        return _from_exact(snapshot.exact)
    except (KeyError, TypeError, ValueError) as error:
        raise ContextSerdeError(
            f"Context dict specified in an invalid format: what stands under 'stepfleet' is damaged ({error})"
        ) from error


def given(event: StopEvent, plan: Plan) -> End:
    """Return the word by which a run ends with what its last step had returned.

    Raises:
        EncodeError: the event cannot travel.
    """
    return End("completed", encode_public(PublicEntry("end", *plan.codec.encode_event(event))))


def _from_exact(exact: Mapping[str, Any]) -> Cut:
    kept: dict[str, Mapping[str, bytes] | Sequence[bytes]] = {}
    sent: dict[str, Mapping[str, bytes]] = {}
    for name, content in cast("dict[str, Any]", exact["kept"]).items():
        if isinstance(content, dict):
            fields = cast("dict[str, str]", content)
            kept[name] = rows = {field: _bytes(value) for field, value in fields.items()}
            if name.startswith("sent:"):
                sent[name.removeprefix("sent:")] = rows
        else:
            kept[name] = [_bytes(value) for value in content]
    return _empty(exact["run_id"])._replace(
        open=dict(exact["open"]),
        pending=[Pending(name, label, _bytes(data)) for name, label, data in exact["pending"]],
        timers=[Ticking(member, int(left), _bytes(data)) for member, left, data in exact["timers"]],
        waits=[_bytes(data) for data in exact["waits"]],
        sent=sent,
        kept=kept,
    )


def _mapped(snapshot: Snapshot, plan: Plan, run_id: str) -> Cut:
    pending: list[Pending] = []
    for position, one in enumerate(snapshot.pending):
        routes: Sequence[Route] = plan.accepted_by(type(one.event))
        if one.step is not None:
            routes = [route for route in routes if route.step == one.step]
            if not routes:
                raise ContextSerdeError(
                    f"the snapshot has a {type(one.event).__name__} for step {one.step}, "
                    "which does not accept it"
                )
        type_id, payload = plan.codec.encode_event(one.event)
        record = encode_record(Record(run_id, type_id, payload, attempt=one.attempts + 1))
        pending += [
            Pending(delivery_id(run_id, route.step, "snapshot", position), route.label, record)
            for route in routes
        ]
    kept: dict[str, Mapping[str, bytes] | Sequence[bytes]] = {}
    for (step, buffer), events in snapshot.buffers.items():
        encoded = [BufferedEvent(*plan.codec.encode_event(event)) for event in events]
        counts = Counter(type_name(event.type_id) for event in encoded)
        name = f"buf:{step}:{type_name(buffer)}"
        kept[name] = {"version": b"1", **{f"n:{t}": str(n).encode() for t, n in counts.items()}}
        kept[f"{name}:events"] = [encode_buffered(event) for event in encoded]
    return _empty(run_id)._replace(pending=pending, kept=kept)


def _empty(run_id: str) -> Cut:
    return Cut(
        run_id=run_id,
        record={},
        open={},
        pending=(),
        timers=(),
        waits=(),
        store={},
        held={},
        waiting={},
        buffers={},
        sent={},
        names=(),
    )


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
