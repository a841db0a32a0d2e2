"""Targets: `module:object` on a command line becomes named workflows, or an error that helps.

Layer: cli.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import logging
import pkgutil
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

from stepfleet.errors import DefinitionError, SettingsError
from stepfleet.workflow import Workflow, options_of

logger = logging.getLogger("stepfleet.cli.target")

#: How much of a module is listed in an error: enough to see the right name, short enough to read.
_LISTED: Final = 12


def load_targets(specs: Sequence[str] | Mapping[str, str]) -> dict[str, Workflow]:
    """Import every `module:object` and return the workflows by the name they have in keys.

    The object is a Workflow class, an instance, a `{name: Workflow}` mapping, or a function without
    arguments that returns one of these. A workflow is called by its explicit `workflow_name`, else
    by its key in the mapping (or in `specs`), else by its class.

    Raises:
        SettingsError: a target cannot be imported or is no workflow, or two have the same name.
    """
    _put_working_directory_on_path()
    named = specs if isinstance(specs, Mapping) else {spec: spec for spec in specs}
    given_names = isinstance(specs, Mapping)
    workflows: dict[str, Workflow] = {}
    origins: dict[str, str] = {}
    for key, spec in named.items():
        for inner_key, workflow in _load(spec).items():
            mapping_key = inner_key or (key if given_names else None)
            name = _name(workflow, mapping_key)
            if name in workflows:
                raise SettingsError(
                    f"two workflows are called {name!r}: one of target {origins[name]}, one of "
                    f"target {spec}. Give one of them another workflow_name=, or a key of its own "
                    "in a {name: Workflow} mapping"
                )
            workflows[name], origins[name] = workflow, spec
    return workflows


def _name(workflow: Workflow, mapping_key: str | None) -> str:
    return options_of(workflow).explicit_name or mapping_key or type(workflow).__name__


def _put_working_directory_on_path() -> None:
    # A console script has its own folder on the path instead of the one it is called in.
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()


def _load(spec: str) -> dict[str | None, Workflow]:
    module_name, path = _split(spec)
    module = _imported(module_name, spec)
    value: Any = module
    for name in path.split("."):
        try:
            value = getattr(value, name)
        except AttributeError:
            raise SettingsError(_no_such_object(module, path)) from None
    return _workflows(value, spec)


def _split(spec: str) -> tuple[str, str]:
    """Part a target into module and object; reads `module.Object`, the way arq writes it, too."""
    module_name, colon, path = spec.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise SettingsError(
            f"target {spec}: a target names a module, not a file: say {dotted}:{path or '<object>'}"
        )
    if colon:
        if not module_name or not path:
            raise SettingsError(f"target {spec}: a target is module:object, such as app.flows:A")
        return module_name, path
    if _is_module(module_name, spec):
        module = _imported(module_name, spec)
        raise SettingsError(f"target {spec} names a module but no object in it. {_found(module)}")
    parent, _, name = module_name.rpartition(".")
    if not parent or not _is_module(parent, spec):
        raise SettingsError(_no_such_module(module_name, spec))
    package = _imported(parent, spec)
    if hasattr(package, "__path__") and not hasattr(package, name):
        raise SettingsError(_no_such_module(module_name, spec))
    logger.warning("target %s is read as %s:%s; say it so", spec, parent, name)
    return parent, name


def _is_module(name: str, spec: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        if _is_part(error.name, name):
            return False
        raise SettingsError(_import_chain(error, spec)) from error
    except Exception as error:
        raise SettingsError(_user_traceback(error, f"target {spec}: the import raised")) from error


def _imported(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if _is_part(error.name, name):
            raise SettingsError(_no_such_module(name, spec)) from None
        raise SettingsError(_import_chain(error, spec)) from error
    except DefinitionError:
        raise
    except Exception as error:
        raise SettingsError(_user_traceback(error, f"target {spec}: the import raised")) from error


def _is_part(missing: str | None, name: str) -> bool:
    """Tell whether the module that is missing is the target's own, not one that it imports."""
    return missing is not None and (name == missing or name.startswith(f"{missing}."))


def _workflows(value: object, spec: str) -> dict[str | None, Workflow]:
    """Turn what a target names into workflows; a key of None stands for no mapping key."""
    if isinstance(value, Mapping):
        return _of_mapping(cast("Mapping[object, object]", value), spec)
    if not isinstance(value, type) and not isinstance(value, Workflow) and callable(value):
        value = _called(value, spec, "a factory is called without arguments")
        if isinstance(value, Mapping):
            return _of_mapping(cast("Mapping[object, object]", value), spec)
    return {None: _workflow(value, spec)}


def _of_mapping(value: Mapping[object, object], spec: str) -> dict[str | None, Workflow]:
    if not value:
        raise SettingsError(f"target {spec} is an empty mapping")
    workflows: dict[str | None, Workflow] = {}
    for key, item in value.items():
        if not isinstance(key, str) or not key:
            raise SettingsError(f"target {spec}: the key {key!r} of the mapping is no name")
        workflows[key] = _workflow(item, f"{spec}[{key!r}]")
    return workflows


def _workflow(value: object, spec: str) -> Workflow:
    if isinstance(value, type) and issubclass(value, Workflow):
        value = _called(value, spec, "a class is built without arguments")
    if isinstance(value, Workflow):
        return value
    what = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
    raise SettingsError(
        f"target {spec} is {what}: a target is a Workflow class, an instance, a "
        "{name: Workflow} mapping, or a function without arguments that returns one of these"
    )


def _called(function: Callable[..., object], spec: str, rule: str) -> object:
    needed = _needed_arguments(function)
    if needed:
        raise SettingsError(
            f"target {spec}: {rule}, and this one needs {', '.join(needed)}. Give an instance, or "
            "a function without arguments that builds it"
        )
    try:
        value = function()
    except DefinitionError:
        raise
    except Exception as error:
        raise SettingsError(_user_traceback(error, f"target {spec}: building it raised")) from error
    if inspect.iscoroutine(value):
        value.close()
        raise SettingsError(f"target {spec} is an async function: a factory is a plain one")
    return value


def _needed_arguments(function: Callable[..., object]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _no_such_module(name: str, spec: str) -> str:
    existing, missing = _where_it_ends(name)
    siblings = _modules_in(existing)
    message = f"target {spec}: there is no module {missing}"
    close = difflib.get_close_matches(missing, siblings, n=1)
    if close:
        return f"{message}; did you mean {close[0]}?"
    shown = ", ".join(siblings[:_LISTED]) or "none"
    place = existing or f"{Path.cwd()} (the working directory)"
    return f"{message}. Modules in {place}: {shown}"


def _where_it_ends(name: str) -> tuple[str, str]:
    """Return the longest part of a module name that exists, and the first that does not."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        part = ".".join(parts[:end])
        try:
            module = importlib.import_module(part)
        except ModuleNotFoundError:
            return ".".join(parts[: end - 1]), part
        if not hasattr(module, "__path__"):
            return part, ".".join(parts[: end + 1])
    return ".".join(parts[:-1]), name


def _modules_in(package: str) -> list[str]:
    """List the modules of a package, or of the working directory when `package` is empty."""
    if not package:
        return sorted(found.name for found in pkgutil.iter_modules([str(Path.cwd())]))
    paths = getattr(sys.modules[package], "__path__", ())
    return sorted(f"{package}.{found.name}" for found in pkgutil.iter_modules(paths))


def _no_such_object(module: ModuleType, path: str) -> str:
    message = f"module {module.__name__} has no {path}"
    close = difflib.get_close_matches(path, list(vars(module)), n=1)
    if close:
        return f"{message}; did you mean {module.__name__}:{close[0]}?"
    return f"{message}. {_found(module)}"


def _found(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if _is_target(value)]
    if not names:
        inside = _modules_in(module.__name__)
        if inside and module.__file__ is None:
            return f"{module.__name__} is a folder; its modules are {', '.join(inside[:_LISTED])}"
        return f"{module.__name__} ({module.__file__}) holds no workflow"
    listed = ", ".join(names[:_LISTED])
    return f"Workflows in {module.__name__}: {listed}. Say {module.__name__}:{names[0]}"


def _is_target(value: object) -> bool:
    if isinstance(value, type):
        return issubclass(value, Workflow) and value is not Workflow
    if isinstance(value, dict):
        items = cast("dict[object, object]", value).values()
        return bool(items) and all(_is_target(item) for item in items)
    return isinstance(value, Workflow)


def _import_chain(error: ModuleNotFoundError, spec: str) -> str:
    """Say which import led to a module that is not installed, outermost first."""
    lines = [f"  {frame.filename}:{frame.lineno}: {frame.line}" for frame in _user_frames(error)]
    return "\n".join(
        [f"target {spec} imports a module that is not installed: {error.name}", *lines]
    )


def _user_traceback(error: Exception, message: str) -> str:
    """Format what the user's code raised without the frames of the import machinery and of ours."""
    report = traceback.TracebackException.from_exception(error)
    report.stack = traceback.StackSummary.from_list(_user_frames(error))
    return f"{message}\n{''.join(report.format(chain=False)).rstrip()}"


def _user_frames(error: Exception) -> list[traceback.FrameSummary]:
    machinery = (__file__, importlib.__file__, importlib.util.__file__)
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in machinery and not frame.filename.startswith("<frozen ")
    ]
