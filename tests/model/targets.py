"""What the worker processes load: the workflows of every test module of this folder."""

from __future__ import annotations

import importlib
from pathlib import Path

from llama_index_instrumentation import get_dispatcher

from stepfleet import Workflow
from tests.model.spans import RECORDER

get_dispatcher().add_span_handler(RECORDER)


def workflows() -> dict[str, type[Workflow]]:
    """Returns the workflows that stand at the top of a test module, by class name."""
    found: dict[str, type[Workflow]] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"tests.model.{path.stem}")
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, Workflow) and value is not Workflow:
                if value.__module__ != module.__name__:
                    continue
                assert name not in found, f"two workflows are called {name}"
                found[name] = value
    return found
