"""What the log says of a delivery whose commit was answered."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from stepfleet.core.commit import Answer, End, SetTimer, Word
from stepfleet.core.delivery import Delivery
from stepfleet.core.outcome import Failed, Lost, Outcome, Returned
from stepfleet.instrumentation import step_log_context
from stepfleet.storage.run_store import APPLIED
from stepfleet.tracing import trace_fields
from stepfleet.worker.held import log_fields

logger = logging.getLogger("stepfleet.worker.processor")


def log_settled(
    delivery: Delivery, outcome: Outcome, words: Sequence[Word], answer: Answer
) -> None:
    """Say what became of a delivery, unless all went well."""
    if answer is APPLIED and isinstance(outcome, Returned):
        return
    level, error = logging.WARNING, None
    if answer.word == "gone":
        text = "settled elsewhere, this result is dropped"
    elif answer.word == "broken":
        level, text = logging.ERROR, "a key of the run has a wrong type or content"
    elif answer.word == "applied" and isinstance(outcome, Failed):
        text, error = f"the step failed, {_consequence(words)}", outcome.error
    elif answer.word == "applied" and isinstance(outcome, Lost):
        level, text = logging.ERROR, "dead letter: the workers that ran this died"
    else:
        return
    with step_log_context(*log_fields(delivery)):
        logger.log(level, text, exc_info=error, extra=trace_fields(delivery.trace))


def _consequence(words: Sequence[Word]) -> str:
    """Say what a commit does about a failure."""
    delay_ms = next((word.delay_ms for word in words if isinstance(word, SetTimer)), None)
    if delay_ms is not None:
        return f"next attempt in {delay_ms / 1000:g} s"
    if any(isinstance(word, End) for word in words):
        return "and the run with it"
    return "the run goes on"
