"""What a TARGET may name, what the workflow is called, and what a mistake says."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stepfleet.cli.target import load_targets
from stepfleet.errors import DefinitionError, SettingsError

FLOWS = """
from __future__ import annotations
from stepfleet.decorators import step
from stepfleet.events import StartEvent, StopEvent
from stepfleet.workflow import Workflow

class A(Workflow):
    @step
    async def only(self, event: StartEvent) -> StopEvent:
        return StopEvent()

class B(A):
    pass

class NeedsModel(A):
    def __init__(self, model: str, **options: object) -> None:
        super().__init__(**options)
        self.model = model

class Empty(Workflow):
    pass

class Holder:
    flow = A()

instance = A(timeout=3)
titled = A(workflow_name="titled")
both = {"first": A, "second": B(), "third": A(workflow_name="mine")}
nothing = {}
number = 3

def make() -> A:
    return A()

def make_both() -> dict[str, A]:
    return both

def make_with(model: str) -> A:
    return A()

async def make_later() -> A:
    return A()

def make_trouble() -> A:
    raise OSError("the key file is missing")
"""

Write = Callable[[str, str], Path]


@pytest.fixture(autouse=True)
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Files of a project in the working directory; its modules are forgotten at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    known = set(sys.modules)

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    write("app/__init__.py", "")
    write("app/flows.py", FLOWS)
    yield write
    for name in set(sys.modules) - known:
        if name.split(".")[0] in {"app", "broken", "single"}:
            del sys.modules[name]


def error_of(*specs: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_targets(specs)
    return str(caught.value)


def test_a_class_is_built_and_called_by_its_class() -> None:
    workflows = load_targets(["app.flows:A"])

    assert {name: type(flow).__name__ for name, flow in workflows.items()} == {"A": "A"}


def test_an_instance_is_taken_as_it_is() -> None:
    workflows = load_targets(["app.flows:instance"])

    assert workflows == {"A": sys.modules["app.flows"].instance}


@pytest.mark.parametrize("target", ["both", "make_both"])
def test_a_mapping_names_its_workflows_unless_they_have_an_explicit_name(target: str) -> None:
    assert list(load_targets([f"app.flows:{target}"])) == ["first", "second", "mine"]


def test_a_factory_is_called() -> None:
    assert list(load_targets(["app.flows:make"])) == ["A"]


def test_an_attribute_of_an_object_is_found() -> None:
    assert list(load_targets(["app.flows:Holder.flow"])) == ["A"]


def test_several_targets_make_one_worker() -> None:
    assert list(load_targets(["app.flows:A", "app.flows:titled"])) == ["A", "titled"]


def test_the_table_of_pyproject_names_workflows_like_a_mapping() -> None:
    targets = {"joker": "app.flows:A", "ignored": "app.flows:titled"}

    assert list(load_targets(targets)) == ["joker", "titled"]


def test_a_single_module_in_the_working_directory_is_found(write: Write) -> None:
    write("single.py", FLOWS)

    assert list(load_targets(["single:A"])) == ["A"]


def test_the_dotted_form_is_read_with_a_hint(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert list(load_targets(["app.flows.B"])) == ["B"]

    assert caplog.messages == ["target app.flows.B is read as app.flows:B; say it so"]


def test_two_workflows_of_one_name_are_an_error_that_names_both_targets() -> None:
    message = error_of("app.flows:A", "app.flows:make")

    assert "called 'A': one of target app.flows:A, one of target app.flows:make" in message


def test_a_module_without_an_object_lists_its_workflows() -> None:
    message = error_of("app.flows")

    assert "Workflows in app.flows: A, B, NeedsModel, Empty, instance, titled, both." in message
    assert "Say app.flows:A" in message


def test_a_module_without_workflows_says_so() -> None:
    assert "holds no workflow" in error_of("app")


def test_a_folder_names_its_modules(write: Write) -> None:
    write("place/inner.py", FLOWS)

    assert error_of("place:A").endswith("place is a folder; its modules are place.inner")


def test_a_misspelt_object_names_the_nearest() -> None:
    assert error_of("app.flows:instanc").endswith("did you mean app.flows:instance?")


def test_a_call_in_a_target_names_the_object() -> None:
    assert error_of("app.flows:make()").endswith("did you mean app.flows:make?")


def test_an_object_like_nothing_lists_the_workflows() -> None:
    assert "has no zzzz. Workflows in app.flows: A, B" in error_of("app.flows:zzzz")


@pytest.mark.parametrize("spec", ["app.flow:A", "app.flow"])
def test_a_misspelt_module_names_the_nearest(spec: str) -> None:
    assert error_of(spec).endswith("there is no module app.flow; did you mean app.flows?")


def test_a_misspelt_package_names_the_nearest() -> None:
    assert error_of("apps.flows:A").endswith("there is no module apps; did you mean app?")


def test_a_module_like_nothing_lists_what_is_there(tmp_path: Path) -> None:
    message = error_of("zzzz:A")

    assert f"no module zzzz. Modules in {tmp_path} (the working directory): app" in message


def test_a_module_below_a_plain_module_does_not_exist() -> None:
    assert "there is no module app.flows.deep" in error_of("app.flows.deep:A")


def test_a_file_is_turned_into_its_module() -> None:
    assert error_of("./app/flows.py:A").endswith("say app.flows:A")
    assert error_of("flows.py").endswith("say flows:<object>")


@pytest.mark.parametrize("spec", [":A", "app.flows:", ""])
def test_half_a_target_shows_a_whole_one(spec: str) -> None:
    assert f"target {spec}: " in error_of(spec)


def test_a_missing_dependency_shows_the_chain_of_imports(write: Write) -> None:
    write("broken/__init__.py", "")
    flows = write("broken/flows.py", "import broken.tools\n")
    tools = write("broken/tools.py", "\nimport not_installed_here\n")

    lines = error_of("broken.flows:A").splitlines()

    assert lines == [
        "target broken.flows:A imports a module that is not installed: not_installed_here",
        f"  {flows}:1: import broken.tools",
        f"  {tools}:2: import not_installed_here",
    ]


@pytest.mark.parametrize("spec", ["broken:A", "broken.A"])
def test_an_import_that_raises_shows_only_the_user_s_traceback(write: Write, spec: str) -> None:
    path = write("broken.py", "limit = 1 / 0\n")

    lines = error_of(spec).splitlines()

    assert lines[0] == f"target {spec}: the import raised"
    assert [line for line in lines if "File" in line] == [f'  File "{path}", line 1, in <module>']
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_a_syntax_error_shows_its_line(write: Write) -> None:
    write("broken.py", "class A(:\n")

    assert "class A(:" in error_of("broken:A")


def test_a_class_that_needs_arguments_asks_for_an_instance_or_a_factory() -> None:
    message = error_of("app.flows:NeedsModel")

    assert "this one needs model. Give an instance, or a function" in message


def test_a_factory_that_needs_arguments_is_refused() -> None:
    assert "this one needs model" in error_of("app.flows:make_with")


def test_a_factory_that_raises_shows_the_user_s_traceback() -> None:
    message = error_of("app.flows:make_trouble")

    assert message.startswith("target app.flows:make_trouble: building it raised\nTraceback")
    assert message.endswith("OSError: the key file is missing")
    assert "target.py" not in message


def test_an_async_factory_is_refused() -> None:
    assert "is an async function" in error_of("app.flows:make_later")


@pytest.mark.parametrize(
    ("target", "what"),
    [("number", "is a int"), ("Holder", "is the class Holder"), ("nothing", "an empty mapping")],
)
def test_what_is_no_workflow_is_named(target: str, what: str) -> None:
    assert what in error_of(f"app.flows:{target}")


def test_a_workflow_that_is_declared_wrong_keeps_its_own_error() -> None:
    with pytest.raises(DefinitionError) as caught:
        load_targets(["app.flows:Empty"])

    assert not isinstance(caught.value, SettingsError)
