"""Names of classes, as other implementations of the programming model write them into snapshots.

stepfleet itself never imports what data names.
"""

from __future__ import annotations

import importlib
from typing import Any


def get_qualified_name(value: Any) -> str:
    """Return module and class of an object.

    Raises:
        AttributeError: it has none.
    """
    try:
        return f"{value.__module__}.{value.__class__.__name__}"
    except AttributeError as error:
        raise AttributeError(f"Object {value} does not have required attributes: {error}") from None


def import_module_from_qualified_name(qualified_name: str) -> Any:
    """Return what a dotted name names; only for names that your own code wrote.

    Raises:
        ValueError: it has no dot.
        ImportError: there is no such module.
        AttributeError: the module has no such name.
    """
    module, _, name = qualified_name.rpartition(".")
    if not module:
        raise ValueError("Qualified name must be in format 'module.attribute'")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ImportError(f"Failed to import module {module}: {error}") from error
    except AttributeError as error:
        text = f"Attribute {name} not found in module {module}: {error}"
        raise AttributeError(text) from None
