"""A pytest plugin that makes `stepfleet` a name of llama-index-workflows, the model that it follows.

`pytest -p tests.model.on_the_model --confcutdir tests/model tests/model` runs the tests of this folder
on it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != "stepfleet":
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module("workflows" + spec.name.removeprefix("stepfleet"))
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has just put the alias there.
        module.__spec__ = self._own_spec


sys.meta_path.insert(0, _Alias())
