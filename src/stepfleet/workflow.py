"""`Workflow`: a named set of steps with its options; `run()` hands a start event to a `Runtime`.

Knows no runtime: one is given to the constructor, set by a worker around a step, or made by the
factory that the composition root installs.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, ClassVar, NamedTuple, Protocol, Self, cast

from pydantic import BaseModel

from stepfleet.context import Context
from stepfleet.decorators import (
    StepFunction,
    WorkflowGraphCheck,
    checked_graph_checks,
    is_positive_int,
    required_step_config,
    seconds_or_none,
    step_config_of,
)
from stepfleet.deprecation import warn_once
from stepfleet.errors import WorkflowRuntimeError, WorkflowValidationError
from stepfleet.events import Event, StartEvent, StopEvent
from stepfleet.graph import GRAPH_CHECKS, Graph, build_graph, check_graph, uses_human_input
from stepfleet.handler import WorkflowHandler
from stepfleet.resource import ResourceManager, config_problems
from stepfleet.stepwise import Stepped, Stepwise

#: Seconds after which a run ends in an error, unless its workflow says otherwise.
DEFAULT_TIMEOUT = 45.0

logger = logging.getLogger("stepfleet.workflow")


class Runtime(Protocol):
    """Where runs are sent to."""

    def submit(
        self,
        workflow: Workflow,
        start_event: StartEvent | None,
        *,
        run_id: str | None,
        ctx: Context[Any] | None,
    ) -> WorkflowHandler:
        """Start a run without blocking and returns its handler; no start event: it goes on from `ctx`."""
        ...


class RuntimeFactory(Protocol):
    """Gives the runtime of a process or an event loop that chose none."""

    def __call__(self) -> Runtime:
        """Return the runtime for the calling code."""
        ...


#: The runtime of the worker that executes the current step.
current_runtime: ContextVar[Runtime | None] = ContextVar("stepfleet.current_runtime", default=None)


class WorkflowOptions(NamedTuple):
    """What a workflow instance was told besides its steps, for runtimes and workers."""

    timeout: float | None
    verbose: bool
    num_concurrent_runs: int | None
    #: The name given by the author, which wins over any derived one.
    explicit_name: str | None
    #: Types that travel in events although no annotation mentions them.
    types: tuple[type, ...]
    #: What the outermost constructor was called with: a worker's instance has to agree.
    constructor_arguments: tuple[tuple[Any, ...], dict[str, Any]]


class Workflow:
    """Steps that pass events to each other; subclass it and decorate methods with `@step`.

    `class Flow(Workflow, types=[Model])` names further types that events carry.

    Raises:
        WorkflowConfigurationError: when there are no steps, or not one start and one stop type.
        WorkflowValidationError: when an argument cannot work.
    """

    _step_functions: ClassVar[dict[str, StepFunction]] = {}
    _declared_types: ClassVar[tuple[type, ...]] = ()
    #: Graphs of this class by name, and the checks that its steps passed; `add_step` empties both.
    _graphs: ClassVar[dict[str, Graph]] = {}
    _passed_checks: ClassVar[set[frozenset[str]]] = set()
    _default_runtime: ClassVar[RuntimeFactory | None] = None

    #: Made by `Workflow(...)` itself: its steps are added to it, and checked when it runs.
    _is_bare: ClassVar[bool] = False

    _constructor_arguments: tuple[tuple[Any, ...], dict[str, Any]]
    #: What `run()` returned last.
    _last_run: WorkflowHandler | None = None
    _stepwise: Stepwise | None = None

    def __init_subclass__(cls, *, types: Iterable[type] = (), **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        inherited = [t for base in cls.__mro__[1:] for t in vars(base).get("_declared_types", ())]
        cls._declared_types = tuple(dict.fromkeys([*inherited, *types]))
        # Steps added to a class are its own: subclasses inherit methods only.
        cls._step_functions = {}
        cls._graphs = {}
        cls._passed_checks = set()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the arguments of the outermost constructor, which are visible only here.

        Every `Workflow(...)` is of a class of its own, which `@step(workflow=...)` adds steps to.
        """
        if cls is Workflow:
            own = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "_is_bare": True}
            self = super().__new__(cast("type[Self]", type(cls.__name__, (cls,), own)))
        else:
            self = super().__new__(cls)
        self._constructor_arguments = (args, kwargs)
        return self

    def __init__(
        self,
        timeout: float | timedelta | None = DEFAULT_TIMEOUT,
        disable_validation: bool = False,
        verbose: bool = False,
        resource_manager: ResourceManager | None = None,
        num_concurrent_runs: int | None = None,
        runtime: Runtime | None = None,
        workflow_name: str | None = None,
        skip_graph_checks: Iterable[WorkflowGraphCheck] | None = None,
        serializer: Any = None,
    ) -> None:
        if num_concurrent_runs is not None and not is_positive_int(num_concurrent_runs):
            raise WorkflowValidationError(
                "num_concurrent_runs must be an integer greater than 0 or None, not "
                f"{num_concurrent_runs!r}"
            )
        self._timeout = seconds_or_none(timeout)
        self._disable_validation = disable_validation
        self._verbose = verbose
        self._resource_manager = resource_manager or ResourceManager()
        self._num_concurrent_runs = num_concurrent_runs
        self._runtime = runtime
        self._workflow_name = workflow_name
        self._skip_graph_checks = checked_graph_checks(skip_graph_checks, valid=GRAPH_CHECKS)
        self._serializer = serializer
        if not self._is_bare:
            self._class_graph(type(self).__name__)

    @classmethod
    def add_step(cls, func: StepFunction) -> None:
        """Add a decorated free function to the steps of this class, not of its subclasses.

        Raises:
            WorkflowValidationError: when the function is not decorated, or its name is taken.
        """
        required_step_config(func)
        if func.__name__ in cls._get_steps():
            raise WorkflowValidationError(
                f"A step {func.__name__} is already part of this workflow, "
                "please choose another name."
            )
        cls._step_functions[func.__name__] = func
        cls._graphs.clear()
        cls._passed_checks.clear()

    @classmethod
    def declared_types(cls) -> tuple[type, ...]:
        """Return the types named by `class Flow(Workflow, types=[...])`."""
        return cls._declared_types

    @property
    def workflow_name(self) -> str:
        """The name given to the constructor, else module and qualified name of the class."""
        return self._workflow_name or f"{type(self).__module__}.{type(self).__qualname__}"

    @property
    def start_event_class(self) -> type[StartEvent]:
        """The type of the event that `run()` sends."""
        return graph_of(self).start_event_class

    @property
    def stop_event_class(self) -> type[StopEvent]:
        """The type of the event that ends a run."""
        return graph_of(self).stop_event_class

    @property
    def state_type(self) -> type[BaseModel] | None:
        """The model that steps declare for their state by `Context[State]`, None without one."""
        return graph_of(self).state_type

    @property
    def events(self) -> list[type[Event]]:
        """Every event type that a step accepts or returns."""
        return list(graph_of(self).event_types)

    @classmethod
    def step_names(cls) -> tuple[str, ...]:
        """Return the names of the steps."""
        return tuple(cls._get_steps())

    @classmethod
    def travelling_types(cls) -> tuple[type, ...]:
        """Return the classes that a snapshot of a run may name: events, state, and those declared."""
        graph = graph_of(cls)
        state = (graph.state_type,) if graph.state_type is not None else ()
        return (*graph.event_types, *state, *cls._declared_types, StartEvent, StopEvent)

    @property
    def serializer(self) -> Any:
        """The serializer given to the constructor."""
        return self._serializer

    @property
    def runtime(self) -> Runtime:
        """Where `run()` sends a run at this moment.

        Raises:
            WorkflowRuntimeError: when there is no runtime.
        """
        chosen = self._runtime if self._runtime is not None else current_runtime.get()
        if chosen is not None:
            return chosen
        if Workflow._default_runtime is None:
            raise WorkflowRuntimeError(
                "There is no runtime for this workflow: pass runtime= to its constructor, "
                "or call install_default_runtime()."
            )
        return Workflow._default_runtime()

    def validate(
        self, *, validate_resource_configs: bool = True, validate_resources: bool = False
    ) -> bool:
        """Check that the steps fit together, and tells whether they need a human's input.

        With `validate_resources` every resource of the steps is made once, and forgotten.
        `disable_validation` turns the check before a run off, not this one.

        Raises:
            WorkflowValidationError: naming what does not fit.
        """
        graph = graph_of(self)
        check_graph(graph, skip=self._skip_graph_checks)
        resources = {spec.name: spec.resources for spec in graph.steps.values() if spec.resources}
        if validate_resource_configs:
            _refuse("Resource config validation failed", config_problems(resources))
            self._passed_checks.add(self._skip_graph_checks)
        if validate_resources:
            _refuse("Resource validation failed", self._resource_manager.problems(resources))
        return uses_human_input(graph)

    def require_valid(self) -> None:
        """Check what a run needs, once: everything, or only `catch_error` steps with `disable_validation`.

        Raises:
            WorkflowValidationError: naming what does not fit.
        """
        if self._disable_validation:
            graph = graph_of(self)
            _ = graph.handlers, graph.state_type  # failures and state are needed all the same
        elif self._skip_graph_checks not in self._passed_checks:
            self.validate()

    def run(
        self, ctx: Context[Any] | None = None, start_event: StartEvent | None = None, **kwargs: Any
    ) -> WorkflowHandler:
        """Start a run, from a start event or from the fields of one, and returns its handler.

        `run_id=` names the run. With the context of a run that was cancelled, or one that was read
        from a dictionary of a run that went on, the run goes on from there: a start event and its
        fields are not used.

        Raises:
            RuntimeError: when no event loop is running.
            ValueError: when `start_event` is no start event.
            WorkflowRuntimeError: when the start event cannot be built, or no step accepts it.
            WorkflowValidationError: when the steps do not fit together.
        """
        run_id: str | None = kwargs.pop("run_id", None)
        self.require_valid()
        event = None
        if ctx is None or not ctx.goes_on:
            event = self._get_start_event_instance(start_event, **kwargs)
        elif start_event is not None or kwargs:
            logger.warning(
                "arguments of run() are not used: the run goes on from its context workflow=%s",
                type(self).__name__,
            )
        asyncio.get_running_loop()  # without one the error names what is missing, before anything is sent
        handler = self._last_run = self.runtime.submit(self, event, run_id=run_id, ctx=ctx)
        return handler

    def _get_start_event_instance(
        self, start_event: StartEvent | None, **kwargs: Any
    ) -> StartEvent:
        """Return the start event of `run()`; subclasses override it to make one of other arguments."""
        return self.start_event_of(start_event, kwargs)

    # -- old forms -------------------------------------------------------------------------------

    def send_event(self, message: Event, step: str | None = None) -> None:
        """Send an event from inside a step; the old name of `ctx.send_event`.

        Raises:
            WorkflowRuntimeError: no step is running here.
        """
        warn_once("self.send_event", "ctx.send_event")
        Context[Any].get_step_context().send_event(message, step)

    def run_step(self, **kwargs: Any) -> Stepped:
        """Let one execution of a step go, in this process; the first call starts the run.

        Await it for what the step returned, or go on: `is_done()` and `get_result()` wait for it.

        Raises:
            WorkflowRuntimeError: `run()` goes to a server.
        """
        if self._stepwise is None or self._stepwise.is_done():
            self._stepwise = Stepwise(lambda: self._run_here(kwargs))
        return self._stepwise.step()

    def is_done(self) -> bool:
        """Whether the run of `run_step()` has ended; it has when there is none."""
        return self._stepwise is None or self._stepwise.is_done()

    def get_result(self) -> Any:
        """Return the result of the run of `run_step()`.

        Raises:
            WorkflowRuntimeError: there is no run, or it goes on.
            Exception: the error that ended the run.
        """
        if self._stepwise is None:
            raise WorkflowRuntimeError("There is no run: call run_step() until is_done().")
        return self._stepwise.result()

    def _run_here(self, fields: dict[str, Any]) -> WorkflowHandler:
        if not getattr(self.runtime, "in_process", False):
            raise WorkflowRuntimeError(
                "run_step() stops before every step, so it runs in this process only: give the "
                "workflow no runtime= and leave STEPFLEET_REDIS_URL empty."
            )
        return self.run(**fields)

    @classmethod
    def start_event_of(cls, given: object, fields: dict[str, Any]) -> StartEvent:
        """Return the start event of a run that is given one, or the fields of one.

        Raises:
            ValueError: when what is given is no start event.
            WorkflowRuntimeError: when the start event cannot be built, or no step accepts it.
        """
        if given is None:
            return cls._built_start_event(fields)
        if not isinstance(given, StartEvent):
            # The programming model fixes this type.
            raise ValueError("The 'start_event' argument must be an instance of 'StartEvent'.")  # noqa: TRY004
        graph = graph_of(cls)
        if not graph.acceptors(type(given)):
            expected = graph.start_event_class.__name__
            raise WorkflowRuntimeError(
                f"The 'start_event' argument is a '{type(given).__name__}', which no step of "
                f"workflow '{cls.__name__}' accepts: pass an instance of '{expected}'."
            )
        if fields:
            logger.warning(
                "Keyword arguments are not supported when 'run()' is invoked with the 'start_event' "
                "parameter, they are ignored: workflow=%s arguments=%s",
                cls.__name__,
                ",".join(fields),
            )
        return given

    @classmethod
    def _built_start_event(cls, fields: dict[str, Any]) -> StartEvent:
        start_event_class = graph_of(cls).start_event_class
        try:
            return start_event_class(**fields)
        except Exception as error:
            # Validators of the user's event may raise anything.
            raise WorkflowRuntimeError(
                f"Failed creating a start event of type '{start_event_class.__name__}' "
                f"with the keyword arguments: {fields}"
            ) from error

    @classmethod
    def _get_steps(cls) -> Mapping[str, StepFunction]:
        """Return methods, where subclasses override their parents, and then added functions."""
        steps: dict[str, StepFunction] = {}
        for owner in reversed(cls.__mro__):
            for name, attribute in vars(owner).items():
                function = attribute.__func__ if isinstance(attribute, staticmethod) else attribute
                if inspect.isfunction(function) and step_config_of(function) is not None:
                    steps[name] = function
                else:
                    steps.pop(name, None)
        return {**steps, **cls._step_functions}

    @classmethod
    def _class_graph(cls, name: str) -> Graph:
        graph = cls._graphs.get(name)
        if graph is None:
            graph = cls._graphs[name] = build_graph(name, cls._get_steps())
        return graph

    def _options(self) -> WorkflowOptions:
        return WorkflowOptions(
            timeout=self._timeout,
            verbose=self._verbose,
            num_concurrent_runs=self._num_concurrent_runs,
            explicit_name=self._workflow_name,
            types=self._declared_types,
            constructor_arguments=self._constructor_arguments,
        )


def graph_of(workflow: Workflow | type[Workflow], *, name: str | None = None) -> Graph:
    """Return the graph of a workflow, named after its class unless told otherwise."""
    cls = workflow if isinstance(workflow, type) else type(workflow)
    return cls._class_graph(name or cls.__name__)  # pyright: ignore[reportPrivateUsage]


def options_of(workflow: Workflow) -> WorkflowOptions:
    """Return what a workflow instance was told besides its steps."""
    return Workflow._options(workflow)  # pyright: ignore[reportPrivateUsage]


def resource_manager_of(workflow: Workflow) -> ResourceManager:
    """Return what makes and keeps the resources of a workflow instance."""
    return workflow._resource_manager  # pyright: ignore[reportPrivateUsage]


def stepwise_of(workflow: Workflow) -> Stepwise | None:
    """Return the run that stops before every step, if the instance has one."""
    return workflow._stepwise  # pyright: ignore[reportPrivateUsage]


def _refuse(what: str, problems: Sequence[str]) -> None:
    if problems:
        raise WorkflowValidationError("\n  - ".join([f"{what}:", *problems]))


def last_run_of(workflow: Workflow) -> WorkflowHandler | None:
    """Return the handler of the run that an instance started last."""
    return workflow._last_run  # pyright: ignore[reportPrivateUsage]


def install_default_runtime(factory: RuntimeFactory | None) -> None:
    """Make `Workflow.run()` use this factory's runtime where no other one is chosen."""
    Workflow._default_runtime = factory  # pyright: ignore[reportPrivateUsage]
