"""What a log line says, and what it never says."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from stepfleet.instrumentation import StepLogFilter, configure_logging, step_log_context

logger = logging.getLogger("tests.unit.logging")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def root() -> Iterator[logging.Logger]:
    """The root logger, set back at the end."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def output() -> io.StringIO:
    """What the process prints with JSON lines at level info."""
    stream = io.StringIO()
    configure_logging("json", "info", stream=stream)
    return stream


def only_line(output: io.StringIO) -> dict[str, Any]:
    (line,) = output.getvalue().splitlines()
    return json.loads(line)


def test_a_json_line_has_the_stable_keys(output: io.StringIO) -> None:
    logger.info("hello %s", "world")

    line = only_line(output)

    assert list(line) == ["ts", "level", "logger", "msg"]
    assert line["ts"].endswith("Z")
    assert (line["level"], line["logger"], line["msg"]) == ("info", logger.name, "hello world")


def test_a_user_s_line_inside_a_step_says_whose_it_is(output: io.StringIO) -> None:
    with step_log_context("Jokes", "r1", "tell", "d1", 2):
        logger.info("thinking")

    line = only_line(output)
    assert list(line)[4:] == ["workflow", "run_id", "step", "delivery", "attempt"]
    assert list(line.values())[4:] == ["Jokes", "r1", "tell", "d1", 2]


def test_after_a_step_its_names_are_gone(output: io.StringIO) -> None:
    with step_log_context("Jokes", "r1", "tell", "d1", 1):
        with (
            contextlib.suppress(ZeroDivisionError),
            step_log_context("Child", "r2", "ask", "d2", 1),
        ):
            logger.info("inner")
            _ = 1 / 0
        logger.info("outer")
    logger.info("outside")

    inner, outer, outside = map(json.loads, output.getvalue().splitlines())
    assert (inner["run_id"], outer["run_id"]) == ("r2", "r1")
    assert "run_id" not in outside


async def test_steps_that_run_at_once_do_not_mix(output: io.StringIO) -> None:
    both_inside = asyncio.Barrier(2)

    async def run(run_id: str) -> None:
        with step_log_context("Jokes", run_id, "tell", "d", 1):
            await both_inside.wait()
            await asyncio.to_thread(logger.info, run_id)

    await asyncio.gather(run("r1"), run("r2"))

    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    assert sorted(line["run_id"] for line in lines) == ["r1", "r2"]
    assert all(line["msg"] == line["run_id"] for line in lines)


def test_a_thread_without_context_logs_plainly(output: io.StringIO) -> None:
    with step_log_context("Jokes", "r1", "tell", "d1", 1):
        thread = threading.Thread(target=logger.info, args=("alone",))
        thread.start()
        thread.join()

    assert "run_id" not in only_line(output)


def test_extra_fields_follow_and_win(output: io.StringIO) -> None:
    with step_log_context("Jokes", "r1", "tell", "d1", 1):
        logger.info("x", extra={"duration_ms": 1.5, "step": "other", "key": UUID(int=1)})

    line = only_line(output)
    assert (line["duration_ms"], line["step"], line["key"]) == (1.5, "other", str(UUID(int=1)))


def test_an_error_is_one_line_with_its_type_and_traceback(output: io.StringIO) -> None:
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logger.exception("failed")

    line = only_line(output)
    assert line["error.type"] == "ZeroDivisionError"
    assert line["traceback"].startswith("Traceback (most recent call last)")


class Secret(BaseModel):
    card: str


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_the_content_of_an_event_is_not_shown(log_format: Any) -> None:
    output = io.StringIO()
    configure_logging(log_format, "info", stream=output)

    logger.info("x", extra={"one": Secret(card="4242"), "many": [Secret(card="4242")]})

    assert "<Secret>" in output.getvalue()
    assert "4242" not in output.getvalue()


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_the_password_of_a_url_is_masked_everywhere(log_format: Any) -> None:
    output = io.StringIO()
    configure_logging(log_format, "info", stream=output)
    url = "redis://:hush@host:6379/0"

    error = OSError(f"cannot reach {url}, gave up")
    logger.error("from %s to %s", url, url, extra={"servers": [url], "own": url}, exc_info=error)

    assert "hush" not in output.getvalue()
    assert output.getvalue().count("redis://:***@host:6379/0") == 5


def test_the_console_has_one_readable_line() -> None:
    output = Terminal()
    configure_logging("auto", "info", stream=output)

    with step_log_context("Jokes", "r1", "tell", "d1", 2):
        logger.warning("slow")

    time, _, rest = output.getvalue().partition(" ")
    assert len(time) == len("12:34:56.789")
    assert rest == (
        "WARNING  tests.unit.logging: slow"
        "  workflow=Jokes run_id=r1 step=tell delivery=d1 attempt=2\n"
    )


def test_auto_is_json_when_nobody_watches() -> None:
    output = io.StringIO()
    configure_logging("auto", "info", stream=output)

    logger.info("x")

    assert only_line(output)["msg"] == "x"


def test_lines_below_the_level_are_left_out(output: io.StringIO) -> None:
    logger.debug("x")

    assert output.getvalue() == ""


def test_configuring_again_replaces_and_leaves_other_handlers(root: logging.Logger) -> None:
    other = logging.NullHandler()
    root.addHandler(other)
    first, second = io.StringIO(), io.StringIO()
    configure_logging("json", "info", stream=first)
    configure_logging("console", "debug", stream=second)

    logger.debug("x")

    assert first.getvalue() == ""
    assert "x" in second.getvalue()
    assert other in root.handlers


def test_a_handler_of_the_user_s_own_gets_the_names_by_the_filter(root: logging.Logger) -> None:
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.setFormatter(logging.Formatter("%(run_id)s/%(step)s: %(message)s"))
    handler.addFilter(StepLogFilter())
    root.addHandler(handler)

    with step_log_context("Jokes", "r1", "tell", "d1", 1):
        logger.warning("x")

    assert output.getvalue() == "r1/tell: x\n"


def test_importing_the_library_configures_nothing(root: logging.Logger) -> None:
    assert logging.getLogger("stepfleet").handlers == []
    assert logging.getLogger("stepfleet").level == logging.NOTSET
