"""The dictionary of `Context.to_dict`: its shape, which is that of llama-index-workflows, version 2.

State and pending events stand in it as the model writes them. What a fleet needs beyond that, so
that a run goes on exactly where it was, stands under the key `stepfleet`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from pydantic import BaseModel

from stepfleet.context.serializers import BaseSerializer, JsonSerializer
from stepfleet.errors import ContextSerdeError
from stepfleet.events import Event, StopEvent
from stepfleet.store import DictState

#: The newest form that this code reads and the one that it writes.
VERSION: Final = 2
#: The key of what only stepfleet reads.
EXACT: Final = "stepfleet"
#: Marks a state that is a tree of JSON values (of a checkpoint): `dict` or `model`.
TREE: Final = "_tree"
#: State keys that are skipped, with a warning, when they cannot be written: they hold live objects.
LIVE: Final = frozenset({"memory"})


class UnserializableKeyWarning(Warning):
    """A state key that is known to hold a live object was left out of a snapshot."""


def warn_left_out(key: str) -> None:
    """Warn of a state key that is left out; the warning points at the caller of the caller's caller."""
    warnings.warn(
        f"Skipping serialization of known unserializable key: {key} -- "
        "This is expected but will require this item to be set manually after deserialization.",
        UnserializableKeyWarning,
        stacklevel=4,
    )


def of_tree(tree: Mapping[str, Any], serializer: JsonSerializer) -> Any:
    """Return the state of a tree: a model, or the values of one without declared fields."""
    if tree[TREE] == "dict":
        return {name: serializer.deserialize_value(v) for name, v in tree["_data"].items()}
    return serializer.deserialize_value({k: v for k, v in tree.items() if k != TREE})


class PendingEvent(NamedTuple):
    """An event that a step of the run had still to take."""

    #: The one step that it is for; None: every step that accepts it.
    step: str | None
    event: Event
    #: Attempts that failed.
    attempts: int = 0


class Snapshot(NamedTuple):
    """A dictionary of `Context.to_dict` that was read."""

    values: Mapping[str, Any]
    is_running: bool = False
    #: What stepfleet wrote for itself; None: another library wrote it.
    exact: Mapping[str, Any] | None = None
    pending: Sequence[PendingEvent] = ()
    #: (step, buffer) -> its events.
    buffers: Mapping[tuple[str, str], Sequence[Event]] = {}
    #: What the last step of the run had returned: the next run ends with it at once.
    given: StopEvent | None = None


class StepWork(NamedTuple):
    """What is pending for one step, as text."""

    queue: Sequence[Mapping[str, Any]] = ()
    in_progress: Sequence[Mapping[str, Any]] = ()
    collected_events: Mapping[str, Sequence[str]] = {}
    collected_waiters: Sequence[Mapping[str, Any]] = ()


def compose(
    state: Mapping[str, Any],
    steps: Iterable[str],
    *,
    is_running: bool = False,
    work: Mapping[str, StepWork] | None = None,
    exact: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the dictionary of a context."""
    work = work or {}
    snapshot: dict[str, Any] = {
        "version": VERSION,
        "state": state,
        "is_running": is_running,
        "workers": {step: _worker(work.get(step, StepWork())) for step in steps},
        "stream_seq": 0,
        "work_item_seq": 0,
        "invocation_seq": 0,
        "deliveries": [],
        "streams": {},
        "collection_release_states": {},
        "elapsed_alive": 0.0,
        "last_alive_stamp": None,
        "journal_seq": 0,
    }
    if exact is not None:
        snapshot[EXACT] = exact
    return snapshot


def attempt(event: str, *, failed: int, delivery: str) -> dict[str, Any]:
    """Return an event in a queue."""
    return {
        "event": event,
        "bound_events": None,
        "attempts": failed,
        "first_attempt_at": None,
        "last_exception": None,
        "last_failed_at": None,
        "recovery_counts": {},
        "not_before": None,
        "scope_path": [],
        "collection_release_payload": None,
        "work_item_id": delivery,
    }


def _worker(work: StepWork) -> dict[str, Any]:
    return {
        "queue": list(work.queue),
        "in_progress": list(work.in_progress),
        "collected_events": {name: list(events) for name, events in work.collected_events.items()},
        "collect_generations": {},
        "static_collect_events": [],
        "collected_waiters": list(work.collected_waiters),
    }


def state_of(
    values: Mapping[str, Any], state_type: type[BaseModel] | None, serializer: BaseSerializer
) -> dict[str, Any]:
    """Return the state as it stands in a snapshot.

    Raises:
        ValueError: a value cannot be written.
    """
    cls = state_type or DictState
    missing = [name for name, field in cls.model_fields.items() if field.is_required()]
    state: dict[str, Any] = {
        "store_type": "in_memory",
        "state_type": cls.__name__,
        "state_module": cls.__module__,
    }
    if state_type is not None and not set(missing) - values.keys():
        model = state_type.model_construct(**values)
        return {**state, "state_data": serializer.serialize(model)}
    texts: dict[str, str] = {}
    for key, value in values.items():
        try:
            texts[key] = serializer.serialize(value)
        except Exception as error:
            if key not in LIVE:
                raise ValueError(
                    f"Failed to serialize state value for key {key}: {error}"
                ) from error
            warn_left_out(key)
    return {**state, "state_data": {"_data": texts}}


# -- reading
# -----------------------------------------------------------------------------------------


def read(
    data: Any, serializer: BaseSerializer, steps: Iterable[str], types: Iterable[type]
) -> Snapshot:
    """Return what a dictionary of `to_dict` says: of this library, or of the model's versions 0 to 2.

    Raises:
        ContextSerdeError: it is none, one of a newer version, or has work that cannot be mapped.
    """
    if not isinstance(data, Mapping):
        raise ContextSerdeError(
            f"Context dict specified in an invalid format: it is a {type(data).__name__}, "
            "not the dictionary that to_dict() returns"
        )
    content = cast("Mapping[str, Any]", data)
    version = content.get("version", 0)
    if type(version) is not int or not 0 <= version <= VERSION:
        raise ContextSerdeError(
            "Context dict specified in an invalid format: Cannot load serialized workflow context with "
            f"version={version!r}; this library supports up to version {VERSION}. "
            "The payload was likely written by a newer version."
        )
    if isinstance(serializer, JsonSerializer):
        serializer = serializer.with_types(*types)
    try:
        return _Reading(content, serializer, frozenset(steps)).snapshot(version)
    except ContextSerdeError:
        raise
    except Exception as error:
        raise ContextSerdeError(f"Context dict specified in an invalid format: {error}") from error


class _Reading:
    def __init__(
        self, content: Mapping[str, Any], serializer: BaseSerializer, steps: frozenset[str]
    ) -> None:
        self._content = content
        self._serializer = serializer
        self._steps = steps

    def snapshot(self, version: int) -> Snapshot:
        values = self._values(self._content.get("state") or {})
        is_running = bool(self._content.get("is_running", False))
        exact = self._content.get(EXACT)
        self._check_shape()
        if not is_running:
            return Snapshot(values)
        if exact is not None:
            if not isinstance(exact, Mapping) or cast("Any", exact).get("format") != 1:
                raise ContextSerdeError(
                    "Context dict specified in an invalid format: what stands under 'stepfleet' was "
                    "written by a newer version of stepfleet"
                )
            return Snapshot(values, True, cast("Mapping[str, Any]", exact))
        pending, buffers = self._oldest() if version == 0 else self._workers()
        unknown = {one.step for one in pending if one.step} | {step for step, _ in buffers}
        if unknown - self._steps:
            raise ContextSerdeError(
                "the snapshot has pending work for steps that the workflow does not have: "
                f"{', '.join(sorted(unknown - self._steps))}"
            )
        return Snapshot(values, True, None, pending, buffers)

    def _check_shape(self) -> None:
        for key in ("state", "workers", "queues", "in_progress", "event_buffers"):
            value = self._content.get(key)
            if value is not None and not isinstance(value, Mapping):
                raise ContextSerdeError(
                    f"Context dict specified in an invalid format: '{key}' is no dictionary"
                )

    def _values(self, state: Mapping[str, Any]) -> dict[str, Any]:
        data: Any = state.get("state_data", {})
        whole: Any = None
        if isinstance(data, str):
            whole = self._serializer.deserialize(data)
        elif isinstance(data, dict) and TREE in data:
            whole = self._tree(cast("dict[str, Any]", data))
        if isinstance(whole, BaseModel):
            return {**whole.__dict__, **(whole.__pydantic_extra__ or {})}
        if whole is not None:
            return dict(whole)
        if "store_type" in state and state["store_type"] != "in_memory":
            raise ContextSerdeError(
                f"the state of the snapshot is in the durable state store '{state['store_type']}' of "
                "another library, not in the snapshot"
            )
        tree = cast("dict[str, Any]", data)
        texts: Mapping[str, Any] = tree.get("_data", tree)
        return {
            key: self._serializer.deserialize(text) if isinstance(text, str) else text
            for key, text in texts.items()
        }

    def _tree(self, tree: Mapping[str, Any]) -> Any:
        if not isinstance(self._serializer, JsonSerializer):
            raise ContextSerdeError("the state of a checkpoint is read with a JsonSerializer only")
        return of_tree(tree, self._serializer)

    def _workers(
        self,
    ) -> tuple[list[PendingEvent], dict[tuple[str, str], list[Event]]]:
        if self._content.get("streams") or self._content.get("collection_release_states"):
            raise ContextSerdeError(
                "the snapshot has open fan-outs of another library, which cannot be taken over: "
                "let them end there, or start the run anew with its state"
            )
        pending: list[PendingEvent] = []
        buffers: dict[tuple[str, str], list[Event]] = {}
        workers: dict[str, Any] = self._content.get("workers") or {}
        for step, worker in workers.items():
            # A waiter runs again from its top and then waits as before.
            kinds = ("in_progress", "queue", "collected_waiters")
            for one in (one for kind in kinds for one in worker.get(kind) or ()):
                item = {"event": one} if isinstance(one, str) else one
                if item.get("bound_events") or item.get("collection_release_payload"):
                    raise ContextSerdeError(
                        f"the snapshot has a join of step {step} that cannot be taken over"
                    )
                event = self._event(item["event"])
                pending.append(PendingEvent(step, event, int(item.get("attempts") or 0)))
            collected: dict[str, list[str]] = worker.get("collected_events") or {}
            for name, events in collected.items():
                if events:
                    buffers[step, name] = [self._event(text) for text in events]
        pending += [
            PendingEvent(one.get("step_id"), self._event(one["event"]))
            for one in self._content.get("deliveries") or ()
        ]
        return pending, buffers

    def _oldest(
        self,
    ) -> tuple[list[PendingEvent], dict[tuple[str, str], list[Event]]]:
        buffers: dict[str, Any] = self._content.get("event_buffers") or {}
        if any(buffers.values()):
            raise ContextSerdeError(
                "the snapshot is of version 0 and has collected events, which say nothing of their "
                "step: they cannot be taken over"
            )
        running: Mapping[str, list[str]] = self._content.get("in_progress") or {}
        queues: Mapping[str, Any] = self._content.get("queues") or {}
        pending = [
            PendingEvent(step, self._event(text))
            for step, texts in running.items()
            for text in texts
        ]
        for step, queue in queues.items():
            texts = self._serializer.deserialize(queue) if isinstance(queue, str) else queue
            for one in texts:
                event = self._event(one) if isinstance(one, str) else one
                if step in self._steps:
                    pending.append(PendingEvent(step, event))
        return pending, {}

    def _event(self, text: str) -> Event:
        event = self._serializer.deserialize(text)
        if not isinstance(event, Event):
            raise ContextSerdeError(
                f"the snapshot has a {type(event).__name__} where an event stands"
            )
        return event
