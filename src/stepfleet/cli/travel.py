"""What of a workflow does not travel to other hosts, found without running it. Layer: cli.

Three looks: at the types of events and state, at the code of the steps, at the classes themselves.
A look may miss what only a run shows, such as an object in a field that is annotated with `Any`.
"""

from __future__ import annotations

import ast
import collections.abc
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Annotated, Any, Final, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

from stepfleet.codec import Limits
from stepfleet.codec.forms import LEAF_OF_TYPE, SCALARS
from stepfleet.codec.plans import is_registrable
from stepfleet.core.plan import Plan
from stepfleet.errors import DefinitionError, EncodeError
from stepfleet.events import Event, StopEvent
from stepfleet.graph import StepSpec
from stepfleet.planning import arguments_digest, make_plan
from stepfleet.workflow import Workflow, graph_of

#: Methods that change what they are called on.
_CHANGES: Final = frozenset(
    ("add", "append", "clear", "discard", "extend", "insert", "pop", "remove", "setdefault")
) | {"popitem", "sort", "update"}
#: What the codec takes apart by itself.
_CONTAINERS: Final = (dict, frozenset, list, set, tuple)
_FUNCTION: Final[Any] = collections.abc.Callable
#: Expressions whose value belongs to one process.
_LOCAL: Final[dict[type[ast.expr], str]] = {
    ast.Lambda: "a lambda",
    ast.GeneratorExp: "a generator",
}
#: Calls that take an event: its class has to be known.
_TAKES_EVENT: Final = frozenset({"send_event", "write_event_to_stream", "wait_for_event"})


class Finding(NamedTuple):
    """Something that does not travel."""

    file: str
    line: int
    #: What it is in, such as `Flow.step`.
    where: str
    problem: str
    cure: str


def findings(workflow: Workflow, name: str) -> list[Finding]:
    """Return what of a workflow does not travel, in the order of files and lines."""
    graph = graph_of(workflow)
    found: list[Finding] = []
    try:
        plan = make_plan(workflow, name, limits=Limits(), open_types=False)
    except DefinitionError as error:
        cls = type(workflow)
        found.append(_at(cls, _place(cls), str(error), "see the message"))
        plan = None
    models: list[type[BaseModel]] = [*graph.event_types]
    if graph.state_type is not None:
        models.append(graph.state_type)
    found += _of_classes([type(workflow), *models], workflow)
    for cls in models:
        found += _of_fields(cls)
    for spec in graph.steps.values():
        found += _of_step(spec, plan)
    if plan is not None:
        found += _of_arguments(workflow, plan)
    return sorted(dict.fromkeys(found))


# -- classes ---------------------------------------------------------------------------------------


def _of_classes(classes: Iterable[type], workflow: Workflow) -> Iterator[Finding]:
    bare = type(workflow).__mro__[1] is Workflow and type(workflow).__qualname__ == "Workflow"
    for cls in classes:
        if _importable(cls) is cls or (bare and cls is type(workflow)):
            continue
        elif "<locals>" in cls.__qualname__:
            problem = "is defined inside a function, so no other process can import it"
        else:
            problem = f"is not what {cls.__module__}.{cls.__qualname__} names when it is imported"
        yield _at(cls, _place(cls), problem, "define it at the top of a module that workers import")


def _importable(cls: type) -> object:
    found: object = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return found


def _of_arguments(workflow: Workflow, plan: Plan) -> Iterator[Finding]:
    if arguments_digest(workflow, plan.codec) == "?":
        cls = type(workflow)
        yield _at(
            cls,
            _place(cls),
            "is built with arguments that cannot be encoded, so no caller's can be compared with them",
            "build it by a factory without arguments, or ask for what steps need as a Resource",
        )


# -- fields ----------------------------------------------------------------------------------------


def _of_fields(cls: type[BaseModel], inside: frozenset[type] = frozenset()) -> Iterator[Finding]:
    if cls.__module__.startswith("stepfleet.") or cls in inside:
        return
    lines = _lines_of_fields(cls)
    for name, info in cls.model_fields.items():
        where = f"{_place(cls)}.{name}"
        line = lines.get(name)
        if info.exclude and info.is_required():
            yield _at(cls, where, "is excluded and has no default", "give it a default", line)
        if info.exclude:
            continue
        for part in _parts(info.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _of_fields(part, inside | {cls})
            elif (shown := _cannot_travel(part)) is not None:
                cure = "send what it is made of, and make it in the step, such as by a Resource"
                yield _at(cls, where, f"is a {shown}, which cannot be encoded", cure, line)
    for name in getattr(cls, "__private_attributes__", ()):
        if issubclass(cls, Event) and name in lines:
            yield _at(
                cls,
                f"{_place(cls)}.{name}",
                "is a private attribute, which stays behind",
                "make it a field",
                lines[name],
            )


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield the classes that an annotation names."""
    origin = get_origin(annotation)
    if origin is _FUNCTION:
        yield origin
        return
    if origin not in (None, Union, types.UnionType, Annotated, Literal):
        yield origin
    arguments = () if origin is Literal else get_args(annotation)
    if origin is None:
        yield annotation
    for argument in arguments:
        yield from _parts(argument)


def _cannot_travel(part: Any) -> str | None:
    """Return the name of a class none of whose objects travel, None when some may."""
    if part is _FUNCTION:
        return "function"
    if not isinstance(part, type) or part in (object, type(None), Any):
        return None
    return _name_if_local(part)


def _name_if_local(part: type[Any]) -> str | None:
    known = (*SCALARS, *LEAF_OF_TYPE, *_CONTAINERS)
    if any(issubclass(one, part) for one in known) or is_registrable(part) or is_dataclass(part):
        return None
    if (
        inspect.isabstract(part)
        or getattr(part, "_is_protocol", False)
        or hasattr(part, "__total__")
    ):
        return None
    return part.__name__


def _lines_of_fields(cls: type) -> dict[str, int]:
    with suppress(OSError, TypeError, SyntaxError):
        source, first = inspect.getsourcelines(cls)
        (body,) = ast.parse(textwrap.dedent("".join(source))).body
        if isinstance(body, ast.ClassDef):
            return {
                node.target.id: first + node.lineno - 1
                for node in body.body
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            }
    return {}


# -- steps -----------------------------------------------------------------------------------------


def _of_step(spec: StepSpec, plan: Plan | None) -> list[Finding]:
    function = inspect.unwrap(spec.function)
    with suppress(OSError, TypeError, SyntaxError):
        source, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(source)))
        look = _StepLook(function, first, spec.is_method, plan)
        look.visit(tree)
        return look.found
    return []


class _StepLook(ast.NodeVisitor):
    """Walks through the code of one step."""

    def __init__(
        self, function: Callable[..., Any], first: int, is_method: bool, plan: Plan | None
    ) -> None:
        self.found: list[Finding] = []
        self._function = function
        self._first = first
        self._plan = plan
        code = function.__code__
        self._self = code.co_varnames[0] if is_method else None
        self._imported: set[str] = set()
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        self._around: dict[str, Any] = {}
        for name, cell in cells.items():
            with suppress(ValueError):  # a variable that has no value yet
                self._around[name] = cell.cell_contents
        for name, value in self._around.items():
            # Classes and functions around a step are its code; values are this process' alone.
            if name != "__class__" and not (isinstance(value, type) or inspect.isroutine(value)):
                self._add(
                    None,
                    f"uses {name} of the function around it, of which each worker has its own",
                    "keep it in ctx.store, or ask for it as a Resource",
                )

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._target(target)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._target(node.target)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._target(node.target)
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            self._target(target)

    def visit_Global(self, node: ast.Global) -> None:
        self._add(
            node,
            f"changes the global {', '.join(node.names)}, of which each process has its own",
            "keep it in ctx.store",
        )

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self._imported |= {alias.asname or alias.name for alias in node.names}

    visit_ImportFrom = visit_Import  # noqa: N815

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func
        if isinstance(called, ast.Attribute):
            if called.attr in _CHANGES and (name := self._own_attribute(called.value)):
                self._changes(node, name)
            if called.attr in _TAKES_EVENT:
                for argument in node.args[:1]:
                    self._event(argument)
        self._arguments(node)
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None:
            self._event(node.value)
        self.generic_visit(node)

    def _target(self, target: ast.expr) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            for one in target.elts:
                self._target(one)
        elif name := self._own_attribute(target):
            self._changes(target, name)

    def _own_attribute(self, node: ast.expr) -> str | None:
        """Return the attribute of `self` that an expression is, or is a part of."""
        while isinstance(node, ast.Subscript | ast.Attribute):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == self._self
            ):
                return node.attr
            node = node.value
        return None

    def _changes(self, node: ast.AST, name: str) -> None:
        self._add(
            node,
            f"changes self.{name}: self is the worker's, and other steps run on other workers",
            f'await ctx.store.set("{name}", ...), or return it in the event',
        )

    def _event(self, node: ast.expr) -> None:
        named = node.func if isinstance(node, ast.Call) else node
        if not isinstance(named, ast.Name):
            return
        if named.id in self._imported:
            cure = "import it at the top of the module, or class Flow(Workflow, types=[...])"
            self._add(node, f"imports {named.id} itself, so no reader knows the type", cure)
            return
        cls = self._around.get(named.id, self._function.__globals__.get(named.id))
        if self._plan is None or not (isinstance(cls, type) and issubclass(cls, Event)):
            return
        try:
            self._plan.id_of(cls)
        except EncodeError as error:
            self._add(node, str(error), f"class Flow(Workflow, types=[{named.id}])")

    def _arguments(self, node: ast.Call) -> None:
        cls = None
        if isinstance(node.func, ast.Name):
            cls = self._around.get(node.func.id, self._function.__globals__.get(node.func.id))
        if not (isinstance(cls, type) and issubclass(cls, Event)):
            return
        positional = [("result", argument) for argument in node.args if issubclass(cls, StopEvent)]
        for name, value in [*positional, *((one.arg, one.value) for one in node.keywords)]:
            if (shown := _LOCAL.get(type(value))) is not None:
                self._add(
                    value,
                    f"gives {cls.__name__}.{name} {shown}, which cannot be encoded",
                    "send the values that it gives",
                )

    def _add(self, node: ast.AST | None, problem: str, cure: str) -> None:
        line = self._first + getattr(node, "lineno", 1) - 1
        self.found.append(
            Finding(_file(self._function), line, _place(self._function), problem, cure)
        )


# -- places ----------------------------------------------------------------------------------------


def _at(thing: type, where: str, problem: str, cure: str, line: int | None = None) -> Finding:
    if line is None:
        line = 0
        with suppress(OSError, TypeError):
            line = inspect.getsourcelines(thing)[1]
    return Finding(_file(thing), line, where, problem, cure)


def _file(thing: Any) -> str:
    with suppress(OSError, TypeError):
        return inspect.getsourcefile(thing) or "?"
    return "?"


def _place(thing: Any) -> str:
    return thing.__qualname__.rpartition("<locals>.")[2]
