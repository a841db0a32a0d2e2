"""The tree of errors: one root, branches by who has to act. Lowest layer, imports nothing."""

from __future__ import annotations


class WorkflowError(Exception):
    """The root of every error that stepfleet raises on purpose."""


# -- the author of a workflow acts: raised before anything runs
# -------------------------------------


class DefinitionError(WorkflowError):
    """A workflow, a step or a setting is declared in a way that cannot work."""


class WorkflowValidationError(DefinitionError):
    """The steps and events of a workflow do not fit together."""


class StateTypeError(WorkflowValidationError, ValueError):
    """The state types that the steps of a workflow declare do not extend each other."""


class WorkflowConfigurationError(DefinitionError):
    """A workflow has no steps, or no single start or stop event type."""


class SettingsError(DefinitionError):
    """A setting, a target or a Redis URL is missing or wrong."""


class WorkflowStepDoesNotExistError(DefinitionError):
    """A step name was given that the workflow does not have."""


# -- the caller of a run acts
# ------------------------------------------------------------------------


class RunError(WorkflowError):
    """A run cannot do what its caller asked, or did not end well."""


class WorkflowRuntimeError(RunError):
    """A run was used in a way that its state or its workflow does not allow."""


class WorkflowTimeoutError(RunError):
    """The run's deadline passed before it ended."""


class WorkflowCancelledByUser(RunError):
    """The run was cancelled."""


class WorkflowDone(RunError):
    """The run has already ended."""


class RunNotFound(RunError):
    """No run with this id is recorded: it never started, or its retention has passed."""


class RunConflictError(RunError):
    """A run with this id exists and was started with other arguments."""


class RunFailed(RunError):
    """The run ended in an error that is known here only by its name and message."""


class DeadLettered(RunError):
    """A delivery of the run was given up because its workers died or could not read it."""


class Overloaded(RunError):
    """A limit on pending work is reached: try again later.

    `retry_after` says how many seconds later.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ContextStateError(RunError):
    """A Context method was called from a place where it has no meaning."""


class ContextSerdeError(RunError):
    """A serialized Context cannot be read or written."""


class StaleExecution(RunError):
    """This execution of a step no longer owns its delivery, so its effects are refused."""


# -- values that cannot travel
# -----------------------------------------------------------------------


class EncodeError(WorkflowError, ValueError):
    """A value cannot be sent between processes; the message names event, field path, type and cure."""


class TooLargeError(EncodeError):
    """A value is over a limit on size, depth or count; the message names the limit's setting."""


class DecodeError(WorkflowError, ValueError):
    """Bytes read from Redis are not a value this version can read."""

    def __init__(self, message: str, raw: bytes = b"") -> None:
        super().__init__(message)
        self.raw = raw


class UnknownTypeError(DecodeError):
    """A type id on the wire names no class registered here."""


class NewerVersionError(DecodeError):
    """A record was written by a newer version of stepfleet than this process runs."""


# -- the operator acts
# -------------------------------------------------------------------------------


class StoreError(WorkflowError):
    """Redis did not do what was asked; `__cause__` is the error of the Redis client."""


class ConnectionLost(StoreError):
    """Redis cannot be reached, or did not answer in time: what it was asked for may have been done."""


class StoreRefused(StoreError):
    """Redis answered with an error (out of memory, read-only replica, missing rights, TLS on one side)."""


class IncompatibleServer(StoreError):
    """The Redis server is too old or configured in a way that loses data."""
