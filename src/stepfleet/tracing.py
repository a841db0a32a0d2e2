"""One trace per run over all of its processes: spans of OpenTelemetry, through its API only.

Off unless the program has configured a tracer provider. What starts a run makes a PRODUCER span,
each execution of a step a CONSUMER span below the span that its event came from. The context
travels in the headers of a delivery (W3C), beside whatever else stands there. Layer: below `storage`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from stepfleet.core.delivery import TRACEPARENT, Delivery
from stepfleet.core.outcome import Failed, Outcome, Suspended
from stepfleet.errors import DecodeError, SettingsError
from stepfleet.wire import decode_record

if TYPE_CHECKING:  # an extra
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, Tracer

#: `auto`: when a provider is configured; `on`: it is an error when none is; `off`: never.
Mode = Literal["auto", "on", "off"]

#: The group of every stream (`storage.keys.GROUP` is the same word).
GROUP: Final = "workers"

_EXTRA: Final = "opentelemetry-api, which is an extra: pip install 'stepfleet[otel]'"


def tracing_of(mode: Mode, *, namespace: str, host: str, pid: int) -> Tracing | None:
    """Return what makes spans, None when nobody takes them.

    Raises:
        SettingsError: tracing is on, and OpenTelemetry is not installed or no provider is configured.
    """
    if mode == "off" or (mode == "auto" and "opentelemetry.trace" not in sys.modules):
        return None  # a provider that was never imported is not configured
    try:
        from opentelemetry import trace  # noqa: PLC0415 - an extra
    except ImportError as error:
        if mode == "auto":
            return None
        raise SettingsError(f"tracing = on needs {_EXTRA}") from error
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        if mode == "auto":
            return None
        raise SettingsError(
            "tracing = on, but no tracer provider is configured in this process: call "
            "opentelemetry.trace.set_tracer_provider() where your workflows are defined, or start "
            "it with opentelemetry-instrument"
        )
    return Tracing(provider.get_tracer("stepfleet"), namespace=namespace, worker=f"{host}:{pid}")


class Tracing:
    """Makes the spans of one process."""

    def __init__(self, tracer: Tracer, *, namespace: str, worker: str) -> None:
        # Extras, loaded only for those who trace.
        from opentelemetry.baggage.propagation import W3CBaggagePropagator  # noqa: PLC0415
        from opentelemetry.propagators.composite import CompositePropagator  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
            TraceContextTextMapPropagator,
        )

        self.tracer = tracer
        self.propagator = CompositePropagator(
            [TraceContextTextMapPropagator(), W3CBaggagePropagator()]
        )
        self.about: dict[str, Any] = {
            "messaging.system": "redis",
            "stepfleet.namespace": namespace,
            "stepfleet.worker": worker,
        }

    def headers(self, before: Mapping[str, str] | None = None) -> dict[str, str] | None:
        """Return headers with the current span in them; None when there would be none."""
        carrier = dict(before or {})
        self.propagator.inject(carrier)
        return carrier or None

    def started(
        self, workflow: str, run_id: str, type_id: str, headers: Mapping[str, str] | None
    ) -> dict[str, str] | None:
        """Note the start of a run as a span below the caller's; return the headers of its first events."""
        from opentelemetry.trace import SpanKind  # noqa: PLC0415 - an extra

        attributes = {
            **self.about,
            "messaging.operation.type": "send",
            "messaging.operation.name": "start",
            "messaging.destination.name": workflow,
            "messaging.message.conversation_id": run_id,
            "stepfleet.workflow": workflow,
            "stepfleet.run_id": run_id,
            "stepfleet.event": type_id,
        }
        with self.tracer.start_as_current_span(
            f"start {workflow}", kind=SpanKind.PRODUCER, attributes=attributes
        ):
            return self.headers(headers)

    def execution(self, delivery: Delivery, *, rerun: bool) -> StepSpan:
        """Return the span of one execution, which begins here; `with` makes it the current one."""
        return StepSpan(self, delivery, rerun=rerun)

    def context_of(self, headers: Mapping[str, str] | None) -> Context:
        """Return the context that headers carry."""
        from opentelemetry.context import Context  # noqa: PLC0415 - an extra

        return self.propagator.extract(headers or {}, Context())


class StepSpan:
    """`process <step>`: one execution of a step."""

    def __init__(self, tracing: Tracing, delivery: Delivery, *, rerun: bool) -> None:
        from opentelemetry import context, trace  # noqa: PLC0415 - an extra

        self._tracing = tracing
        self._context_api = context
        route, record = delivery.route, delivery.record
        above = tracing.context_of(record.headers)
        self._linked = {_ids(trace.get_current_span(above))}
        self._span: Span = tracing.tracer.start_span(
            f"process {route.step}",
            context=above,
            kind=trace.SpanKind.CONSUMER,
            attributes={
                **tracing.about,
                "messaging.operation.type": "process",
                "messaging.operation.name": "process",
                "messaging.destination.name": f"{route.workflow}.{route.step}",
                "messaging.consumer.group.name": GROUP,
                "messaging.message.id": delivery.id,
                "messaging.message.conversation_id": delivery.run_id,
                "stepfleet.workflow": route.workflow,
                "stepfleet.run_id": delivery.run_id,
                "stepfleet.step": route.step,
                "stepfleet.event": record.type_id,
                "stepfleet.attempt": max(record.attempt, 1),
                "stepfleet.deliveries": delivery.deliveries,
                # The same attempt once more, as what it relied on had moved.
                "stepfleet.rerun": rerun,
            },
            links=[link for headers in _brought(delivery) for link in self._link(headers)],
        )
        if record.attempt > 1:
            self._span.add_event("retry", {"stepfleet.attempt": record.attempt})
        if delivery.deliveries > 1:
            self._span.add_event("reclaimed", {"stepfleet.deliveries": delivery.deliveries})
        self._context = trace.set_span_in_context(self._span, above)
        self._token: Token[Context] | None = None
        #: What follows from this execution carries them.
        self.headers: dict[str, str] = dict(record.headers or {})
        tracing.propagator.inject(self.headers, self._context)

    def __enter__(self) -> Self:
        self._token = self._context_api.attach(self._context)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            # The run is over, or the delivery belongs to others: no failure of the step.
            self._span.add_event("cancelled")
        self._span.end()
        if self._token is not None:
            self._context_api.detach(self._token)

    def ended(self, outcome: Outcome, joined: Iterable[str]) -> None:
        """Note what became of the execution, and the spans that brought the events which it joined."""
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 - an extra

        for parent in joined:
            for link in self._link({TRACEPARENT: parent}):
                self._span.add_link(link.context)
        if isinstance(outcome, Failed):
            name = type(outcome.error).__qualname__
            self._span.record_exception(outcome.error)
            self._span.set_attribute("error.type", name)
            self._span.set_status(StatusCode.ERROR, f"{name}: {outcome.error}")
        elif isinstance(outcome, Suspended):
            self._span.add_event("suspended", {"stepfleet.awaits": outcome.event_type.__name__})

    def _link(self, headers: Mapping[str, str] | None) -> list[Link]:
        """Return a link to the span that headers carry, unless there is one: each span is linked once."""
        from opentelemetry.trace import Link, get_current_span  # noqa: PLC0415 - an extra

        span = get_current_span(self._tracing.context_of(headers))
        if not span.get_span_context().is_valid or _ids(span) in self._linked:
            return []
        self._linked.add(_ids(span))
        return [Link(span.get_span_context())]


def trace_fields(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return what a log line says of the span that headers carry."""
    parts = (headers or {}).get(TRACEPARENT, "").split("-")
    return {"trace_id": parts[1], "span_id": parts[2]} if len(parts) == 4 else {}


def _brought(delivery: Delivery) -> list[dict[str, str] | None]:
    """Return the headers of the attempt before, and of the events that a joining step takes at once."""
    found: list[dict[str, str] | None] = [
        {TRACEPARENT: span}
        for span in (delivery.record.failure or ())[2:3]
        if isinstance(span, str)
    ]
    for _, data in delivery.batch or ():
        try:
            found.append(decode_record(data).headers)
        except DecodeError:
            continue  # the step will say so
    return found


def _ids(span: Span) -> tuple[int, int]:
    context = span.get_span_context()
    return context.trace_id, context.span_id
