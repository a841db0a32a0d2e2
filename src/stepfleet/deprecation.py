"""Forms of older releases of the programming model: each says once what to write instead."""

from __future__ import annotations

import functools
import warnings


@functools.cache
def warn_once(old: str, new: str) -> None:
    """Warn, once in this process, that a form is old.

    The warning points at the caller of the function that calls this one.
    """
    warnings.warn(f"{old} is an old form: use {new}", DeprecationWarning, stacklevel=3)


@functools.cache
def warn_always_running() -> None:
    """Warn, once in this process, that a step asks whether its run goes on."""
    warnings.warn(
        "is_running called from within a step: the run always goes on there, do not ask",
        DeprecationWarning,
        stacklevel=3,
    )
