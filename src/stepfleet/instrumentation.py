"""Logging: who is logging (run, step, attempt) on every line, and two formats for the commands.

The library itself only creates loggers; `configure_logging` is for the programs that own the
process. Nothing here or in the library logs what an event carries. Layer: above `core`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Sequence
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, TextIO, cast

from pydantic import BaseModel

from stepfleet.address import mask_url


class StepLog(NamedTuple):
    """Whose line it is; the names are the keys in the log."""

    workflow: str
    run_id: str
    step: str
    delivery: str
    attempt: int


#: Set once per execution of a step; a task and a thread that a step starts inherit it.
_current: ContextVar[StepLog | None] = ContextVar("stepfleet_step_log", default=None)

_URL: Final = re.compile(r"\w+://\S+")
#: How pydantic's errors show a value, which often is an event's.
_REFUSED: Final = re.compile(r"input_value=.*?, input_type=", re.DOTALL)

#: What every LogRecord has: everything beyond it was given as `extra`.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def enter_step_log(workflow: str, run_id: str, step: str, delivery: str, attempt: int) -> None:
    """Put workflow, run, step, delivery and attempt on every line that this task logs from now on."""
    _current.set(StepLog(workflow, run_id, step, delivery, attempt))


class step_log_context:  # noqa: N801 - used as a function: `with step_log_context(...)`
    """Puts workflow, run, step, delivery and attempt on every line logged inside."""

    __slots__ = ("_record", "_token")

    def __init__(self, workflow: str, run_id: str, step: str, delivery: str, attempt: int) -> None:
        self._record = StepLog(workflow, run_id, step, delivery, attempt)

    def __enter__(self) -> None:
        self._token: Token[StepLog | None] = _current.set(self._record)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _current.reset(self._token)


class StepLogFilter(logging.Filter):
    """Copies the step's names onto a record, for a handler with a format of its own.

    Fields given as `extra` win. Outside of a step there are none. While a span of OpenTelemetry is
    active, `trace_id` and `span_id` are added.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields and keep the record."""
        current = _current.get()
        if current is not None:
            vars(record).update(current._asdict() | vars(record))
        span = _span_fields()
        if span:
            vars(record).update(span | vars(record))
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts, level, logger, msg, then the fields, then an error if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "ts": _timestamp(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": masked(record.getMessage()),
        }
        line |= {name: _plain(value) for name, value in _fields(record).items()}
        if record.exc_info and record.exc_info[0]:
            line["error.type"] = record.exc_info[0].__qualname__
            line["traceback"] = masked(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, ensure_ascii=False)


class ConsoleFormatter(logging.Formatter):
    """One line for people: time, level, logger, message, `key=value` fields; tracebacks follow."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = _timestamp(record).astimezone().strftime("%H:%M:%S.%f")[:-3]
        fields = "".join(f" {name}={_plain(value)}" for name, value in _fields(record).items())
        message = masked(record.getMessage()) + (" " if fields else "")
        lines = [f"{time} {record.levelname:<8} {record.name}: {message}{fields}"]
        if record.exc_info and record.exc_info[0]:
            lines.append(masked(self.formatException(record.exc_info)))
        if record.stack_info:
            lines.append(record.stack_info)
        return "\n".join(lines)


def configure_logging(
    log_format: Literal["auto", "console", "json"], level: str, *, stream: TextIO | None = None
) -> None:
    """Send every log line of this process to stdout; `auto` is console on a terminal, else json.

    For programs only. A second call replaces what the first one set up.
    """
    target = stream or sys.stdout
    is_console = log_format == "console" or (log_format == "auto" and target.isatty())
    handler = logging.StreamHandler(target)
    handler.setFormatter(ConsoleFormatter() if is_console else JsonFormatter())
    handler.addFilter(StepLogFilter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old.formatter, ConsoleFormatter | JsonFormatter):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


def _span_fields() -> dict[str, str]:
    trace: Any = sys.modules.get("opentelemetry.trace")  # an extra: who has a span has imported it
    if trace is None:
        return {}
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return {}
    return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}


def _timestamp(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Return what is on a record beyond logging's own: the step's names first."""
    given = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    first = {name: given[name] for name in StepLog._fields if name in given}
    return first | given


def _plain(value: object) -> object:
    """Return what a log may show of a value: of an event or another model only its type."""
    match value:
        case BaseModel():
            return f"<{type(value).__name__}>"
        case str():
            return masked(value)
        case None | bool() | int() | float():
            return value
        case list() | tuple():
            return [_plain(item) for item in cast("Sequence[object]", value)]
        case dict():
            items = cast("dict[object, object]", value).items()
            return {str(key): _plain(item) for key, item in items}
        case _:
            return masked(str(value))


def masked(text: str) -> str:
    """Return `text` with `***` for the passwords of URLs and for values that pydantic refused."""
    if "input_value=" in text:
        text = _REFUSED.sub("input_value=***, input_type=", text)
    return _URL.sub(lambda url: mask_url(url[0]), text) if "://" in text else text
