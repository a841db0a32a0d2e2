"""Spans of a run: one trace, right parents, links at joins; nothing where nobody takes them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stepfleet import Context, Event, StartEvent, StopEvent, Workflow, catch_error, step
from stepfleet.collect import Collect
from stepfleet.core.delivery import Delivery, Record
from stepfleet.core.plan import Route
from stepfleet.errors import SettingsError
from stepfleet.events import HumanResponseEvent, StepFailedEvent
from stepfleet.instrumentation import configure_logging
from stepfleet.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from stepfleet.storage.keys import GROUP
from stepfleet.tracing import GROUP as GROUP_OF_SPANS
from stepfleet.tracing import Mode, Tracing, trace_fields, tracing_of
from stepfleet.wire import BufferedEvent, decode_buffered, encode_buffered
from tests.support.wait import eventually

ABOVE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Item(Event):
    number: int


class Done(Event):
    number: int


class Other(Event):
    pass


class Answer(HumanResponseEvent):
    text: str


class Lists(Workflow):
    @step
    async def split(self, ev: StartEvent) -> list[Item]:
        return [Item(number=number) for number in range(3)]

    @step
    async def work(self, ev: Item) -> Done:
        with trace.get_tracer("user").start_as_current_span("inner"):
            return Done(number=ev.number)

    @step
    async def join(self, done: Annotated[list[Done], Collect()]) -> StopEvent:
        return StopEvent(result=len(done))


class Buffers(Workflow):
    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Item | None:
        for number in range(3):
            ctx.send_event(Item(number=number))

    @step
    async def work(self, ev: Item) -> Done:
        return Done(number=ev.number)

    @step
    async def join(self, ctx: Context, ev: Done) -> StopEvent | None:
        done = ctx.collect_events(ev, [Done] * 3)
        return None if done is None else StopEvent(result=len(done))


class Retried(Workflow):
    @step(retry_policy=retry_policy(wait=wait_fixed(0), stop=stop_after_attempt(2)))
    async def fetch(self, ctx: Context, ev: StartEvent) -> Done:
        if ctx.retry_info().retry_number == 0:
            raise OSError("no route")
        return Done(number=1)

    @step
    def finish(self, ev: Done) -> StopEvent:  # in a thread
        span = trace.get_current_span().get_span_context()
        return StopEvent(result=f"{span.span_id:016x}")


class Caught(Workflow):
    @step
    async def attempt(self, ev: StartEvent) -> Done:
        raise OSError("no route")

    @step
    async def finish(self, ev: Done) -> StopEvent:
        return StopEvent()

    @catch_error
    async def recover(self, ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result="tried")


class Asked(Workflow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(Answer)
        return StopEvent(result=answer.text)


class Outer(Workflow):
    @step
    async def delegate(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await Lists().run())


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Configures a provider for one test: opentelemetry itself takes one per process."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    provider.shutdown()


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


def context_of(span: ReadableSpan) -> trace.SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def id_of(span: ReadableSpan) -> int:
    return context_of(span).span_id


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def linked(span: ReadableSpan) -> set[int]:
    return {link.context.span_id for link in span.links}


def traces(exporter: InMemorySpanExporter) -> set[int]:
    return {context_of(span).trace_id for span in exporter.get_finished_spans()}


async def test_a_run_is_one_trace_below_the_caller_s_span(exporter: InMemorySpanExporter) -> None:
    with trace.get_tracer("caller").start_as_current_span("request") as request:
        assert await Lists().run(run_id="r1") == 3
    (start,) = [s for s in exporter.get_finished_spans() if s.name.startswith("start ")]
    (split,) = named(exporter, "process split")
    works = named(exporter, "process work")
    (join,) = named(exporter, "process join")
    assert traces(exporter) == {request.get_span_context().trace_id}
    assert parent_of(start) == request.get_span_context().span_id
    assert start.kind is trace.SpanKind.PRODUCER
    assert parent_of(split) == id_of(start)
    assert [parent_of(work) for work in works] == [id_of(split)] * 3
    assert parent_of(join) == id_of(split)
    assert linked(join) == {id_of(work) for work in works}
    # what a step's own code traces is below the step
    assert {parent_of(one) for one in named(exporter, "inner")} == {id_of(work) for work in works}


async def test_a_span_says_what_it_processes(exporter: InMemorySpanExporter) -> None:
    await Lists().run(run_id="r1")
    (join,) = named(exporter, "process join")
    assert join.kind is trace.SpanKind.CONSUMER
    attributes = dict(join.attributes or {})
    assert attributes.pop("messaging.message.id")
    assert attributes.pop("stepfleet.worker")
    workflow = attributes["stepfleet.workflow"]
    assert attributes == {
        "messaging.system": "redis",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": f"{workflow}.join",
        "messaging.consumer.group.name": GROUP,
        "messaging.message.conversation_id": "r1",
        "stepfleet.namespace": "memory",
        "stepfleet.workflow": workflow,
        "stepfleet.run_id": "r1",
        "stepfleet.step": "join",
        "stepfleet.event": "CollectionReleaseEvent",
        "stepfleet.attempt": 1,
        "stepfleet.deliveries": 1,
        "stepfleet.rerun": False,
    }
    assert GROUP_OF_SPANS == GROUP


async def test_a_join_of_a_buffer_is_linked_to_what_brought_its_events(
    exporter: InMemorySpanExporter,
) -> None:
    assert await Buffers().run() == 3
    (split,) = named(exporter, "process split")
    assert {parent_of(work) for work in named(exporter, "process work")} == {id_of(split)}
    works = {id_of(work) for work in named(exporter, "process work")}
    joins = named(exporter, "process join")
    last = max(joins, key=lambda span: span.end_time or 0)
    assert len(traces(exporter)) == 1
    assert {parent_of(join) for join in joins} == works
    # its own parent is the third
    assert linked(last) == works - {parent_of(last)}
    assert all(not linked(join) for join in joins if join is not last)


async def test_an_attempt_is_a_span_beside_the_one_before_and_linked_to_it(
    exporter: InMemorySpanExporter,
) -> None:
    result = await Retried().run()
    first, second = named(exporter, "process fetch")
    (finish,) = named(exporter, "process finish")
    assert parent_of(first) == parent_of(second)
    assert parent_of(finish) == id_of(second)
    assert first.status.status_code is trace.StatusCode.ERROR
    assert (first.attributes or {})["error.type"] == "OSError"
    assert [event.name for event in first.events] == ["exception"]
    assert second.status.status_code is trace.StatusCode.UNSET
    assert (second.attributes or {})["stepfleet.attempt"] == 2
    assert [event.name for event in second.events] == ["retry"]
    assert (linked(first), linked(second), linked(finish)) == (set(), {id_of(first)}, set())
    assert result == f"{id_of(finish):016x}"


async def test_what_handles_a_failure_is_below_it(exporter: InMemorySpanExporter) -> None:
    assert await Caught().run() == "tried"
    (attempt,), (recover,) = named(exporter, "process attempt"), named(exporter, "process recover")
    assert parent_of(recover) == id_of(attempt)


async def test_a_wait_is_two_spans_of_one_trace(exporter: InMemorySpanExporter) -> None:
    handler = Asked().run()

    await eventually(lambda: named(exporter, "process ask"), 20.0)
    handler.ctx.send_event(Answer(text="yes"))
    assert await handler == "yes"
    before, after = named(exporter, "process ask")
    assert [event.name for event in before.events] == ["suspended"]
    assert parent_of(before) == parent_of(after)


async def test_a_run_that_a_step_starts_is_below_the_step(exporter: InMemorySpanExporter) -> None:
    assert await Outer().run() == 3
    (delegate,) = named(exporter, "process delegate")
    starts = [s for s in exporter.get_finished_spans() if s.name.startswith("start ")]
    assert len(traces(exporter)) == 1
    assert sorted(map(parent_of, starts), key=str) == sorted([None, id_of(delegate)], key=str)


# -- one span -----------------------------------------------------------------------------------------


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    found = tracing_of("on", namespace="n", host="h", pid=7)
    assert found is not None
    return found


def delivery(**more: Any) -> Delivery:
    record = Record("parent", "Item", b"", headers=more.pop("headers", None))
    return Delivery("r", "d", Route("Flow", "Item", "work"), "1-0", record, **more)


def test_a_reclaimed_delivery_is_visible(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with tracing.execution(delivery(deliveries=2, fresh=False), rerun=False):
        pass
    (span,) = exporter.get_finished_spans()
    assert (span.attributes or {})["stepfleet.deliveries"] == 2
    assert (span.attributes or {})["stepfleet.worker"] == "h:7"
    assert [event.name for event in span.events] == ["reclaimed"]


def test_other_headers_travel_on(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    headers = {"traceparent": ABOVE, "checkpoint": "x", "baggage": "tenant=shop"}
    span = tracing.execution(delivery(headers=headers), rerun=False)
    with span:
        pass
    (made,) = exporter.get_finished_spans()
    assert parent_of(made) == int("b7ad6b7169203331", 16)
    assert span.headers["checkpoint"] == "x"
    assert span.headers["baggage"] == "tenant=shop"
    assert span.headers["traceparent"] == (
        f"00-0af7651916cd43dd8448eb211c80319c-{id_of(made):016x}-01"
    )
    assert headers["traceparent"] == ABOVE
    started = tracing.started("Flow", "r", "Item", {"checkpoint": "x"})
    assert started is not None
    assert started["checkpoint"] == "x"


def test_headers_that_are_broken_begin_a_trace(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    with tracing.execution(delivery(headers={"traceparent": "nonsense"}), rerun=False):
        pass
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_a_cancelled_execution_is_no_failure(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    with pytest.raises(asyncio.CancelledError), tracing.execution(delivery(), rerun=False):
        raise asyncio.CancelledError
    (span,) = exporter.get_finished_spans()
    assert [event.name for event in span.events] == ["cancelled"]
    assert span.status.status_code is trace.StatusCode.UNSET


def test_a_buffered_event_without_a_span_is_as_it_was_before_there_were_any() -> None:
    plain = encode_buffered(BufferedEvent("Item", b"x"))
    assert plain == b"\x93\x01\xa4Item\xc4\x01x"
    assert decode_buffered(plain) == BufferedEvent("Item", b"x")
    brought = BufferedEvent("Item", b"x", ABOVE)
    assert decode_buffered(encode_buffered(brought)) == brought


# -- off ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_nothing_is_made_where_no_provider_is_configured(mode: Mode) -> None:
    assert tracing_of(mode, namespace="n", host="h", pid=1) is None


def test_off_is_off(exporter: InMemorySpanExporter) -> None:
    assert tracing_of("auto", namespace="n", host="h", pid=1) is not None
    assert tracing_of("off", namespace="n", host="h", pid=1) is None


def test_on_without_a_provider_says_what_to_configure() -> None:
    with pytest.raises(SettingsError, match="no tracer provider is configured"):
        tracing_of("on", namespace="n", host="h", pid=1)


def test_on_without_opentelemetry_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(SettingsError, match=r"stepfleet\[otel\]"):
        tracing_of("on", namespace="n", host="h", pid=1)


async def test_without_a_provider_no_header_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    encode = Record.__new__

    def noted(cls: type[Record], *fields: Any, **more: Any) -> Record:
        record = encode(cls, *fields, **more)
        seen.append(record.headers)
        return record

    monkeypatch.setattr(Record, "__new__", noted)
    assert await Buffers().run() == 3
    assert len(seen) > 5
    assert set(seen) == {None}


# -- logs ---------------------------------------------------------------------------------------------


async def test_log_lines_name_the_span(exporter: InMemorySpanExporter) -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logging("json", "info", stream=stream)
    try:
        await Retried().run()
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    (failure,) = [line for line in lines if line["msg"].startswith("the step failed")]
    first, _ = named(exporter, "process fetch")
    assert failure["span_id"] == f"{id_of(first):016x}"
    assert failure["trace_id"] == f"{context_of(first).trace_id:032x}"
    assert failure["attempt"] == 1


def test_a_line_of_a_user_s_own_logger_names_the_span_that_is_active(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logging("json", "info", stream=stream)
    try:
        with tracing.execution(delivery(), rerun=False):
            logging.getLogger("shop").info("inside")
        logging.getLogger("shop").info("outside")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    inside, outside = map(json.loads, stream.getvalue().splitlines())
    (span,) = exporter.get_finished_spans()
    assert inside["span_id"] == f"{id_of(span):016x}"
    assert "span_id" not in outside


def test_headers_without_a_span_give_no_fields() -> None:
    assert trace_fields(None) == {}
    assert trace_fields({"other": "x"}) == {}
    assert trace_fields({"traceparent": ABOVE})["span_id"] == "b7ad6b7169203331"
