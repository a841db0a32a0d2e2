"""Resources: parameters of steps that a factory makes or a JSON file fills.

A resource lives as long as its workflow instance, so there is one per worker process: two steps
that run on different hosts have each their own.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Generic,
    Protocol,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)

#: A parameter of a factory, the resource it asks for, and its type.
Dependency = tuple[str, "ResourceDescriptor", Any]

#: What identifies a resource: two factories may have the same name, such as two lambdas.
_Key = tuple[object, ...]


@runtime_checkable
class ResourceDescriptor(Protocol):
    """What stands in `Annotated[T, ...]` to have a parameter injected."""

    @property
    def name(self) -> str:
        """How `ResourceManager.set` and error messages name it."""
        ...

    @property
    def cache(self) -> bool:
        """Whether a workflow instance makes it only once."""
        ...

    async def resolve(self, manager: ResourceManager) -> Any:
        """Return the value, with its dependencies from the manager."""
        ...

    def set_type_annotation(self, type_annotation: Any) -> None:
        """Take the `T` of `Annotated[T, ...]`."""
        ...

    def set_localns(self, localns: dict[str, Any] | None) -> None:
        """Take the local names around the step, for annotations that are strings."""
        ...

    def get_dependencies(self) -> list[Dependency]:
        """Return the resources that it is made of."""
        ...


class ResourceDefinition(BaseModel):
    """A parameter of a step that is a resource."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    #: Name of the parameter.
    name: str
    resource: ResourceDescriptor
    type_annotation: Any = None


class FactoryResource(Generic[T]):
    """A resource made by calling a function."""

    def __init__(self, factory: Callable[..., T | Awaitable[T]], cache: bool) -> None:
        self.factory = factory
        self.name: str = getattr(factory, "__qualname__", type(factory).__name__)
        self.cache = cache
        self._localns: dict[str, Any] | None = None
        #: Read once, when everything that the annotations name exists.
        self._dependencies: list[Dependency] | None = None

    @property
    def key(self) -> _Key:
        """The function itself."""
        return (_identity(self.factory),)

    async def resolve(self, manager: ResourceManager) -> T:
        """Call the function with the resources that its parameters ask for."""
        arguments = {
            name: await manager.get(descriptor) for name, descriptor, _ in self.get_dependencies()
        }
        made = self.factory(**arguments)
        return cast(T, await made if inspect.isawaitable(made) else made)

    def set_type_annotation(self, type_annotation: Any) -> None:
        """Ignore the type: what the factory returns is not checked, as in the model."""

    def set_localns(self, localns: dict[str, Any] | None) -> None:
        """Keep the local names around the step."""
        self._localns = localns

    def get_dependencies(self) -> list[Dependency]:
        """Return the resources that the function's parameters ask for."""
        if self._dependencies is None:
            self._dependencies = []
            for name, annotation in _annotations(self.factory, self._localns or {}).items():
                if (asked := resource_in(annotation)) is not None:
                    descriptor = _of_type(*asked)
                    descriptor.set_localns(self._localns)
                    self._dependencies.append((name, descriptor, asked[1]))
        return self._dependencies


class ConfigResource(Generic[ModelT]):
    """A resource read from a JSON file."""

    cache = True

    def __init__(
        self,
        config_file: str,
        path_selector: str | None,
        label: str | None,
        description: str | None,
    ) -> None:
        if Path(config_file).suffix != ".json":
            raise ValueError(
                "Only JSON files can be used to load Pydantic-based resources. "
                f"{config_file!r} has another suffix."
            )
        self._config_file = config_file
        self.path_selector = path_selector
        self.label = label
        self.description = description
        self.cls_factory: type[ModelT] | None = None

    @property
    def given_file(self) -> str:
        """The file as it was given."""
        return self._config_file

    @property
    def config_file(self) -> str:
        """Absolute path of the file.

        Raises:
            FileNotFoundError: there is none.
        """
        path = Path(self._config_file)
        if not path.is_file():
            raise FileNotFoundError(f"No such file: {self._config_file}")
        return str(path.resolve())

    @property
    def name(self) -> str:
        """The file as it was given, and the path inside of it."""
        return ".".join(filter(None, [self._config_file, self.path_selector]))

    @property
    def key(self) -> _Key:
        """File, path inside and model: one file may hold two models."""
        return (self._config_file, self.path_selector, self.cls_factory)

    def data(self) -> dict[str, Any]:
        """Return the part of the file that is selected.

        Raises:
            ValueError: it is no JSON object.
        """
        content: Any = json.loads(Path(self.config_file).read_text(encoding="utf-8"))
        passed: list[str] = []
        for segment in self.path_selector.split(".") if self.path_selector else ():
            passed.append(segment)
            content = cast("dict[str, Any]", content).get(segment)
            if not isinstance(content, dict):
                # The programming model fixes this type.
                raise ValueError(  # noqa: TRY004
                    f"Expected dictionary for configuration from {self.config_file} "
                    f"at path {'.'.join(passed)}, got: {type(content)}"
                )
        return cast("dict[str, Any]", content)

    def call(self) -> ModelT:
        """Return the model with the values of the file.

        Raises:
            ValueError: the parameter's type is no pydantic model, or the values do not fit it.
        """
        cls: Any = self.cls_factory
        if not (isinstance(cls, type) and issubclass(cls, BaseModel)):
            raise ValueError(  # noqa: TRY004 - as every other fault of a configuration
                f"ResourceConfig({self._config_file!r}) needs a pydantic model: "
                "Annotated[Model, ResourceConfig(...)]"
            )
        return cast(ModelT, cls.model_validate(self.data()))

    async def resolve(self, manager: ResourceManager) -> ModelT:
        """Return the model with the values of the file."""
        return self.call()

    def set_type_annotation(self, type_annotation: Any) -> None:
        """Take the model that the values are read into."""
        self.cls_factory = type_annotation

    def set_localns(self, localns: dict[str, Any] | None) -> None:
        """Need no names: a file has no annotations."""

    def get_dependencies(self) -> list[Dependency]:
        """Return nothing: a file needs no other resource."""
        return []


def Resource(factory: Callable[..., Any], cache: bool = True) -> FactoryResource[Any]:  # noqa: N802
    """Have a parameter made by a function, which may be async and may ask for resources itself.

    A cached one is made once for a workflow instance and shared by all its steps and runs in this
    process; one that is not is made for each execution of a step. Only parameters annotated with a
    resource are passed to the function.
    """
    return FactoryResource(factory, cache)


def ResourceConfig(  # noqa: N802
    config_file: str,
    path_selector: str | None = None,
    label: str | None = None,
    description: str | None = None,
) -> ConfigResource[Any]:
    """Have a parameter read from a JSON file into the pydantic model of its annotation.

    `path_selector` is a dotted path to an object inside the file; label and description are for
    drawings. Every host needs the file at this path.

    Raises:
        ValueError: the file is not named `*.json`.
    """
    return ConfigResource(config_file, path_selector, label, description)


class _Resolution:
    """The resources of one execution of a step, while they are made."""

    def __init__(self) -> None:
        self.made: dict[_Key, Any] = {}


#: Resources being made by the calling code, outermost first: one that asks for itself is a circle.
_making: ContextVar[tuple[tuple[_Key, str], ...]] = ContextVar("stepfleet.making", default=())
_resolution: ContextVar[_Resolution | None] = ContextVar("stepfleet.resolution", default=None)


class ResourceManager:
    """Makes and keeps the resources of one workflow instance.

    Two steps that ask for a cached resource at the same moment wait for one and the same.
    """

    def __init__(self) -> None:
        #: Values given by name, which win over what their factories would make.
        self._given: dict[str, Any] = {}
        #: Name and value of what was made; the descriptor keeps what the key names alive.
        self._made: dict[_Key, tuple[ResourceDescriptor, Any]] = {}
        #: A lock belongs to the event loop in which it was first waited for.
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Key, asyncio.Lock]]
        self._locks = WeakKeyDictionary()

    async def set(self, name: str, val: Any) -> None:
        """Give the cached resource of this name a value: its factory is not called any more."""
        self._given[name] = val

    async def get(self, resource: ResourceDescriptor) -> Any:
        """Return a resource, which is made now if it has to be.

        Raises:
            ValueError: it needs itself; the message shows the circle.
            Exception: whatever its factory raises.
        """
        if _resolution.get() is None:
            with self.resolution_scope():
                return await self.get(resource)
        if resource.cache and resource.name in self._given:
            return self._given[resource.name]
        key = _key(resource)
        if resource.cache and key in self._made:
            return self._made[key][1]
        refuse_circle(resource, _making.get())
        return await (self._cached(key, resource) if resource.cache else self._once(key, resource))

    def get_all(self) -> dict[str, Any]:
        """Return the cached resources that were made or given, by name."""
        made = {descriptor.name: value for descriptor, value in self._made.values()}
        return {**made, **self._given}

    def problems(self, steps: Mapping[str, Sequence[ResourceDefinition]]) -> list[str]:
        """Make every resource that steps need, in an event loop that ends, and return what went wrong.

        What was made is forgotten: a client that belongs to an event loop serves no other one.
        """
        trial = ResourceManager()
        trial._given = self._given

        async def made() -> list[str]:
            found: list[str] = []
            for step, definitions in steps.items():
                for one in definitions:
                    try:
                        await trial.get(_annotated(one))
                    except Exception as error:  # noqa: BLE001 - whatever a factory raises is the finding
                        found.append(f"In step '{step}', parameter '{one.name}': {error}")
            return found

        # In a thread, because the caller may be in an event loop.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: asyncio.run(made())).result()

    @contextmanager
    def resolution_scope(self) -> Generator[None]:
        """Share resources that are not cached between everything asked for inside the block."""
        before = _resolution.set(_resolution.get() or _Resolution())
        try:
            yield
        finally:
            _resolution.reset(before)

    async def _once(self, key: _Key, resource: ResourceDescriptor) -> Any:
        resolution = _resolution.get() or _Resolution()
        if key not in resolution.made:
            resolution.made[key] = await self._make(key, resource)
        return resolution.made[key]

    async def _cached(self, key: _Key, resource: ResourceDescriptor) -> Any:
        locks = self._locks.setdefault(asyncio.get_running_loop(), {})
        async with locks.setdefault(key, asyncio.Lock()):
            if key not in self._made:
                self._made[key] = (resource, await self._make(key, resource))
            return self._made[key][1]

    async def _make(self, key: _Key, resource: ResourceDescriptor) -> Any:
        before = _making.set((*_making.get(), (key, resource.name)))
        try:
            return await resource.resolve(self)
        finally:
            _making.reset(before)


def resource_in(annotation: object) -> tuple[ResourceDescriptor, Any] | None:
    """Return the resource and the type in `Annotated[T, resource]`, None for any other annotation."""
    if get_origin(annotation) is not Annotated:
        return None
    type_annotation, *notes = get_args(annotation)
    for note in notes:
        if isinstance(note, ResourceDescriptor):
            return note, type_annotation
    return None


async def resolved(
    manager: ResourceManager, definitions: Sequence[ResourceDefinition]
) -> dict[str, Any]:
    """Return the arguments of one execution of a step that are resources.

    Raises:
        Exception: whatever a factory raises.
    """
    with manager.resolution_scope():
        return {one.name: await manager.get(_annotated(one)) for one in definitions}


def config_problems(steps: Mapping[str, Sequence[ResourceDefinition]]) -> list[str]:
    """Read every configuration file that steps need, directly or not, and return what is wrong."""
    problems: list[str] = []
    seen: set[_Key] = set()

    def look(resource: ResourceDescriptor, where: str, chain: tuple[str, ...]) -> None:
        key = _key(resource)
        if key in seen:
            return
        seen.add(key)
        if isinstance(resource, ConfigResource):
            try:
                cast("ConfigResource[Any]", resource).call()
            except (OSError, ValueError) as error:
                way = f" ({' -> '.join(chain)})" if len(chain) > 1 else ""
                problems.append(f"In {where}{way}: {error}")
        for _, needed, _ in resource.get_dependencies():
            look(needed, where, (*chain, needed.name))

    for step, definitions in steps.items():
        for one in definitions:
            where = f"step '{step}', parameter '{one.name}'"
            look(_annotated(one), where, (one.resource.name,))
    return problems


def refuse_circle(resource: ResourceDescriptor, above: tuple[tuple[_Key, str], ...] = ()) -> None:
    """Make sure that a resource does not need itself.

    Circles are looked for before anything is made: two steps that each make a part of one would
    wait for each other.

    Raises:
        ValueError: it does; the message shows the circle.
    """
    key = _key(resource)
    if key in (passed for passed, _ in above):
        chain = " -> ".join([*(name for _, name in above), resource.name])
        raise ValueError(f"Circular resource dependency detected: {chain}")
    for _, needed, _ in resource.get_dependencies():
        refuse_circle(needed, (*above, (key, resource.name)))


def _annotated(definition: ResourceDefinition) -> ResourceDescriptor:
    return _of_type(definition.resource, definition.type_annotation)


def _of_type(resource: ResourceDescriptor, type_annotation: Any) -> ResourceDescriptor:
    """Return the resource for one annotation: the same file may be read into two models."""
    one = resource
    if isinstance(resource, ConfigResource):
        one = copy.copy(cast("ConfigResource[Any]", resource))
    one.set_type_annotation(type_annotation)
    return one


def _key(resource: ResourceDescriptor) -> _Key:
    if isinstance(resource, FactoryResource | ConfigResource):
        return cast("FactoryResource[Any] | ConfigResource[Any]", resource).key
    return (type(resource), resource.name)


def _identity(factory: Callable[..., Any]) -> object:
    """Return the factory, or its id where it cannot be compared; bound methods of one object are equal."""
    try:
        hash(factory)
    except TypeError:
        return id(factory)
    return factory


def _annotations(factory: Callable[..., Any], localns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the annotations of a factory's parameters; names of its own module go before local ones."""
    module_names = getattr(factory, "__globals__", {})
    around = {name: value for name, value in localns.items() if name not in module_names}
    try:
        parameters = inspect.signature(factory).parameters
        hints = get_type_hints(factory, localns=around, include_extras=True)
    except (NameError, TypeError, ValueError):
        # A type that only a checker knows, or a callable without annotations: it asks for nothing.
        return {}
    return {name: hints[name] for name in parameters if name in hints}
