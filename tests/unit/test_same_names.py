"""The modules of the programming model are here, with their names and what one may pass: checked against it.

What differs stands in a list with its reason, and a difference that is gone has to leave the list.
"""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

import pytest

#: Modules of `llama-index-workflows`, and their names that users import.
MODULES: dict[str, str] = {
    "": "Workflow Context step catch_error",
    "workflow": "Workflow",
    "decorators": "step catch_error StepConfig StepFunction CatchErrorHandler WorkflowGraphCheck "
    "StepGraphCheck StepRole make_step_function",
    "handler": "WorkflowHandler",
    "events": "DictLikeModel Event StartEvent StopEvent InputRequiredEvent HumanResponseEvent "
    "StepFailedEvent WorkflowTimedOutEvent WorkflowCancelledEvent WorkflowFailedEvent "
    "IdleReleasedEvent CollectionReleaseEvent InternalDispatchEvent WorkflowIdleEvent "
    "UnhandledEvent StepState StepStateChanged UnreconstructedException EventType "
    "SerializableEvent SerializableOptionalEvent SerializableException "
    "SerializableOptionalException SerializableEventType",
    "errors": "WorkflowValidationError WorkflowTimeoutError WorkflowRuntimeError WorkflowDone "
    "WorkflowCancelledByUser WorkflowStepDoesNotExistError WorkflowConfigurationError "
    "ContextSerdeError ContextStateError",
    "context": "Context BaseSerializer JsonSerializer PickleSerializer",
    "context.serializers": "BaseSerializer JsonSerializer PickleSerializer JsonPickleSerializer",
    "context.state_store": "DictState StateStore InMemoryStateStore InMemorySerializedState "
    "StateCheckpoint apply_state_patch deserialize_state_from_dict parse_in_memory_state "
    "encode_state decode_state copy_state_for_edit get_by_path set_by_path set_by_path_copy "
    "create_cleared_state merge_state infer_state_type UnserializableKeyWarning MAX_DEPTH",
    "context.utils": "get_qualified_name import_module_from_qualified_name",
    "collect": "Collect Cardinality All Take",
    "resource": "Resource ResourceConfig ResourceManager ResourceDefinition ResourceDescriptor",
    "representation": "get_workflow_representation WorkflowGraph WorkflowGraphNode "
    "WorkflowGraphEdge WorkflowNodeBase WorkflowStepNode WorkflowEventNode WorkflowExternalNode "
    "WorkflowResourceNode WorkflowResourceConfigNode WorkflowGenericNode",
    "testing": "WorkflowTestRunner",
    "testing.runner": "WorkflowTestRunner WorkflowTestResult",
    "types": "StopEventT RunResultT",
    "retry_policy": "",
}

#: Names that are not here, and why.
ABSENT = {}

#: Parameters that are not here, as `name` or `Class.method`, and why.
DIFFERENT = {
    "StepConfig.__init__": "what a signature says is one record of our own",
    "WorkflowHandler.__init__": "handlers are made by run() and attach()",
}

OPEN = "still open: docs/roadmap.md"
OF_HANDLER = "the handler does it: `await handler`, `handler.stream_events()`"

#: Methods and fields that are not here, and why.
WITHOUT = {
    "Context.streaming_queue": OF_HANDLER,
    "DictLikeModel.custom_model_dump": "the name of a serializer that pydantic calls",
    "InMemorySerializedState.default_store_type": "the name of a validator that pydantic calls",
    "StateStore.to_dict": "the state of a run is saved with its context",
    "StepConfig.bare_return_types": "named `bare`",
    "StepConfig.collect_params": "named `slots`",
    "StepConfig.collection_param": "named `collects`",
    "StepConfig.collection_policy": "named `collects`",
    "StepConfig.is_fan_out": "named `listed`",
    "StopEvent.custom_model_dump": "the name of a serializer that pydantic calls",
}


def modules(name: str) -> tuple[ModuleType, ModuleType]:
    suffix = f".{name}" if name else ""
    theirs = importlib.import_module(f"workflows{suffix}")
    return theirs, importlib.import_module(f"stepfleet{suffix}")


def names_of(module: str) -> list[str]:
    theirs, _ = modules(module)
    return MODULES[module].split() or [
        name
        for name, value in vars(theirs).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == theirs.__name__
    ]


NAMES = [(module, name) for module in MODULES for name in names_of(module)]


def positional(function: Any) -> list[str]:
    """Returns the names one may pass; positional-only ones by their place."""
    own = ("self", "cls", "data", "fields", "params", "kwargs", "args", "types")
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.name not in own and p.kind is not p.VAR_KEYWORD]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_name_of_the_model_is_here(module: str, name: str) -> None:
    _, ours = modules(module)
    assert hasattr(ours, name) is (name not in ABSENT)


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_what_one_may_pass_may_be_passed_here(module: str, name: str) -> None:
    theirs, ours = (getattr(one, name, None) for one in modules(module))
    if ours is None or not callable(theirs) or isinstance(theirs, type(list[int])):
        return
    methods: dict[str, tuple[Any, Any]] = {"": (theirs, ours)}
    if inspect.isclass(theirs):
        public = {k: v for k, v in vars(theirs).items() if not k.startswith("_")}
        missing = {k for k in public if not hasattr(ours, k) and k not in annotated(ours)}
        listed = {entry.partition(".")[2] for entry in WITHOUT if entry.startswith(f"{name}.")}
        assert missing == listed
        methods = {
            f".{k}": (v, getattr(ours, k))
            for k, v in {**public, "__init__": theirs.__init__}.items()
            if callable(v) and k not in missing and hasattr(ours, k)
        }
    for suffix, (one, other) in methods.items():
        try:
            wanted, given = positional(one), positional(other)
        except (TypeError, ValueError):
            continue
        lacking = [parameter for parameter in wanted if parameter not in given]
        assert bool(lacking) is (f"{name}{suffix}" in DIFFERENT), (suffix, lacking)


def annotated(cls: type) -> set[str]:
    return {name for base in cls.__mro__ for name in vars(base).get("__annotations__", {})}
