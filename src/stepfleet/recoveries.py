"""Which `@catch_error` step handles the failures of which step. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stepfleet.decorators import CatchErrorHandler
from stepfleet.errors import WorkflowValidationError


def handlers_by_step(
    steps: Iterable[str], handlers: Sequence[CatchErrorHandler]
) -> dict[str, CatchErrorHandler]:
    """Return the handler of each step that has one: the one that names it, else the one for all.

    Raises:
        WorkflowValidationError: listing everything that does not fit.
    """
    names = set(steps)
    own = {handler.step_name for handler in handlers}
    everything = [handler for handler in handlers if handler.for_steps is None]
    problems: list[str] = []
    if len(everything) > 1:
        problems.append(
            "Only one wildcard @catch_error handler is allowed per workflow, "
            f"found {len(everything)}: {', '.join(sorted(h.step_name for h in everything))}"
        )
    found: dict[str, CatchErrorHandler] = {}
    for handler in handlers:
        for step in handler.for_steps or ():
            subject = f"@catch_error handler '{handler.step_name}'"
            if step not in names:
                problems.append(f"{subject} lists unknown step '{step}' in for_steps.")
            elif step in own:
                problems.append(f"{subject} cannot cover another handler step '{step}'.")
            elif step in found:
                first, second = sorted((found[step].step_name, handler.step_name))
                problems.append(
                    f"Step '{step}' is claimed by two @catch_error handlers: '{first}' and '{second}'."
                )
            else:
                found[step] = handler
    if problems:
        raise WorkflowValidationError("\n".join(problems))
    rest = everything[0] if everything else None
    return found if rest is None else {**dict.fromkeys(names - own, rest), **found}
