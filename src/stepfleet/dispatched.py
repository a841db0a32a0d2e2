"""Spans and events of `llama_index_instrumentation`, in programs that have imported it.

What starts a run has a span `Workflow.run-...`, from the start until its end is seen there. Each
execution of a step has a span `Workflow.step-...` below it, on whatever host it runs: the context
of the caller (tags, and what span handlers pass on) travels in the headers of deliveries. Layer:
below `storage`.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import sys
import uuid
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast

from stepfleet.errors import WorkflowCancelledByUser
from stepfleet.events import Event, StopEvent

if TYPE_CHECKING:  # an extra
    from llama_index_instrumentation.dispatcher import Dispatcher

logger = logging.getLogger("stepfleet.dispatched")

#: Header with the span of the run and the context of its caller, as JSON.
HEADER: Final = "llamaindex"
#: The tag that every span of a run has.
RUN_ID: Final = "llamaindex.run_id"
#: Characters of an event, and of one value in it, that a tag shows.
SHOWN, SHOWN_VALUE = 200, 50
#: Items that are shown of a list or dictionary; of a longer one only their number.
SHOWN_ITEMS: Final = 3

_MODULE: Final = "llama_index_instrumentation"


def is_used() -> bool:
    """Whether this program has imported the instrumentation: who listens has."""
    return _MODULE in sys.modules


class RunSpan:
    """The span of one run in the program that starts it, and what its deliveries carry."""

    def __init__(self, workflow: str, instance: Any, event: Event | None, run_id: str) -> None:
        # An extra, loaded only where it is used.
        from llama_index_instrumentation.dispatcher import (  # noqa: PLC0415
            active_instrument_tags,
            instrument_tags,
        )
        from llama_index_instrumentation.span import active_span_id  # noqa: PLC0415

        self._dispatcher = _dispatcher()
        self._is_heard = _is_heard(self._dispatcher)
        self._instance = instance
        self._arguments = inspect.signature(_run).bind(event)
        parent = active_span_id.get()
        self._id = f"{workflow}.run-{uuid.uuid4()}" if self._is_heard else parent
        tags = {**active_instrument_tags.get(), RUN_ID: run_id}
        with instrument_tags(tags):
            carried = self._dispatcher.capture_propagation_context()
        if self._is_heard:
            shown = {"llamaindex.start_event": summary(event)} if event is not None else {}
            with instrument_tags({**tags, **shown}):
                self._dispatcher.span_enter(
                    id_=str(self._id),
                    bound_args=self._arguments,
                    instance=instance,
                    parent_id=parent,
                    tags={**tags, **shown},
                )
        said = {"span": self._id, "context": carried}
        #: None: there is nothing that a worker does not know.
        self.header: str | None = None
        if self._id is not None or carried != {"instrument_tags": {RUN_ID: run_id}}:
            self.header = json.dumps(said, default=str)

    @property
    def is_open(self) -> bool:
        """Whether somebody listens, so that the end of the run has to be told."""
        return self._is_heard

    def headers(self, before: Mapping[str, str] | None = None) -> dict[str, str] | None:
        """Return headers with what the deliveries of the run carry; None when there would be none."""
        own = {} if self.header is None else {HEADER: self.header}
        return {**(before or {}), **own} or None

    def ended(self, event: StopEvent) -> None:
        """Tell that the run has ended with this event."""
        _tell(self._dispatcher, str(self._id), "workflow.output", output=summary(event))
        self._exit(event)

    def failed(self, error: BaseException) -> None:
        """Tell that the run has ended in an error, or was not recorded."""
        if not self._is_heard:
            return
        if isinstance(error, WorkflowCancelledByUser):
            reason = "workflow cancelled by user"
            _tell(self._dispatcher, str(self._id), "SpanCancelledEvent", reason=reason)
            self._exit(None)
            return
        _drop(self._dispatcher, str(self._id), self._arguments, self._instance, error)

    def _exit(self, result: object) -> None:
        self._dispatcher.span_exit(
            id_=str(self._id), bound_args=self._arguments, instance=self._instance, result=result
        )


class StepSpan:
    """One execution of a step: a context manager around the call of its function.

    Must be entered in a task of its own, whose context it changes.
    """

    def __init__(
        self,
        headers: Mapping[str, str] | None,
        run_id: str,
        step: str,
        instance: Any,
        function: Callable[..., Any],
        arguments: Mapping[str, Any],
    ) -> None:
        self._dispatcher = _dispatcher()
        self._is_heard = _is_heard(self._dispatcher)
        self._carried = _carried(headers)
        self._run_id = run_id
        self._step = step
        self._instance = instance
        self._function = function
        self._given = arguments
        self._result: object = None

    def __enter__(self) -> Self:
        from llama_index_instrumentation.dispatcher import active_instrument_tags  # noqa: PLC0415
        from llama_index_instrumentation.span import active_span_id  # noqa: PLC0415

        self._dispatcher.restore_propagation_context(self._carried.get("context") or {})
        tags = {**active_instrument_tags.get(), RUN_ID: self._run_id}
        parent = self._carried.get("span")
        active_span_id.set(parent)
        if self._is_heard:
            events = [value for value in self._given.values() if _is_input(value)]
            tags["llamaindex.step.input_event"] = ", ".join(type(one).__name__ for one in events)
            tags["llamaindex.step.input_summary"] = ", ".join(map(summary, events))
            self._id = f"{type(self._instance).__name__}.{self._step}-{uuid.uuid4()}"
            self._arguments = _bound(self._function, self._instance, **self._given)
            self._dispatcher.span_enter(
                id_=self._id,
                bound_args=self._arguments,
                instance=self._instance,
                parent_id=parent,
                tags=tags,
            )
            active_span_id.set(self._id)
        active_instrument_tags.set(tags)
        return self

    def returned(self, value: object) -> None:
        """Note what the step returned."""
        self._result = value
        if self._is_heard and isinstance(value, Event):
            _tell(self._dispatcher, self._id, "step.output", output=summary(value))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._is_heard:
            return
        if isinstance(error, Exception):
            _drop(self._dispatcher, self._id, self._arguments, self._instance, error)
            return
        if isinstance(error, CancelledError):
            _tell(self._dispatcher, self._id, "SpanCancelledEvent", reason="step cancelled")
        # A wait, too, ends an execution well: the step runs again with the answer.
        self._dispatcher.span_exit(
            id_=self._id,
            bound_args=self._arguments,
            instance=self._instance,
            result=self._result,
        )


def summary(value: object) -> str:
    """Return a value as one short line."""
    if isinstance(value, Event):
        fields = {**value.__dict__, **(value.__pydantic_extra__ or {})}
        if type(value) is StopEvent and value.result is None:
            fields.pop("result", None)
        parts = ", ".join(f"{name}={_shortened(item)}" for name, item in fields.items())
        text = f"{type(value).__name__}({parts})"
    else:
        text = _shortened(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _is_input(value: object) -> bool:
    """Tell whether an argument is the event of a step, or the events that it collects."""
    if isinstance(value, list):
        return all(isinstance(item, Event) for item in cast("list[object]", value))
    return isinstance(value, Event)


def _shortened(value: object) -> str:
    if isinstance(value, str) and len(value) > SHOWN_VALUE:
        return repr(f"{value[:SHOWN_VALUE]}...")
    size = len(cast("list[object]", value)) if isinstance(value, list | dict) else 0
    if size > SHOWN_ITEMS:
        return f"<{size} {'items' if isinstance(value, list) else 'keys'}>"
    return repr(cast("object", value))


def _dispatcher() -> Dispatcher:
    from llama_index_instrumentation import get_dispatcher  # noqa: PLC0415 - an extra

    return get_dispatcher("stepfleet")


def _is_heard(dispatcher: Dispatcher) -> bool:
    from llama_index_instrumentation.event_handlers import NullEventHandler  # noqa: PLC0415
    from llama_index_instrumentation.span_handlers import NullSpanHandler  # noqa: PLC0415

    silent = (NullSpanHandler, NullEventHandler)
    asked: Any = dispatcher
    while True:
        handlers: list[object] = [*asked.event_handlers, *asked.span_handlers]
        if not all(isinstance(handler, silent) for handler in handlers):
            return True
        if not asked.propagate:
            return False
        asked = asked.parent


def _carried(headers: Mapping[str, str] | None) -> dict[str, Any]:
    text = (headers or {}).get(HEADER)
    if text is None:
        return {}
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError):
        logger.warning(
            "a header with the context of a trace cannot be read: %s=%.100s", HEADER, text
        )
        return {}


def _run(start_event: Event | None) -> None:
    """Stand for the run where span handlers ask for the arguments of a call."""


def _bound(function: Callable[..., Any], *args: Any, **kwargs: Any) -> inspect.BoundArguments:
    """Return arguments as span handlers take them; a free function has no instance in front."""
    signature = inspect.signature(function)
    try:
        return signature.bind(*args, **kwargs)
    except TypeError:
        return signature.bind_partial(**kwargs)


def _tell(dispatcher: Dispatcher, span_id: str, name: str, **fields: str) -> None:
    dispatcher.event(_event_class(name, *fields)(span_id=span_id, **fields))


@functools.cache
def _event_class(name: str, *fields: str) -> Any:
    from llama_index_instrumentation.base import BaseEvent  # noqa: PLC0415 - an extra

    def class_name(cls: type) -> str:
        return name

    own = {"__module__": __name__, "__annotations__": dict.fromkeys(fields, str)}
    return type(name, (BaseEvent,), {**own, "class_name": classmethod(class_name)})


def _drop(
    dispatcher: Dispatcher,
    span_id: str,
    arguments: inspect.BoundArguments,
    instance: Any,
    error: BaseException,
) -> None:
    from llama_index_instrumentation.events.span import SpanDropEvent  # noqa: PLC0415 - an extra

    dispatcher.event(SpanDropEvent(span_id=span_id, err_str=str(error)))
    dispatcher.span_drop(id_=span_id, bound_args=arguments, instance=instance, err=error)
