"""The places where the tests of the programming model run; see README.md."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

import stepfleet

#: Whether `stepfleet` is the model itself in this session: see `on_the_model.py`.
ON_THE_MODEL = stepfleet.__name__ == "workflows"

#: Forms that the model has dropped cannot even be imported there.
collect_ignore = ["test_old_forms.py"] if ON_THE_MODEL else []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On the model itself, leaves the tests out whose mark says how stepfleet differs."""
    if ON_THE_MODEL:
        left_out = [item for item in items if item.get_closest_marker("differs")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs every test in memory, and if it runs a workflow (it is async) on two processes too."""
    if ON_THE_MODEL:
        places = ["model"]
    elif inspect.iscoroutinefunction(metafunc.function) and not _has_mark(metafunc, "one_process"):
        places = ["memory", "processes"]
    else:
        places = ["memory"]
    metafunc.parametrize("place", places, indirect=True)


@pytest.fixture(autouse=True)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes `Workflow.run()` go to the place; returns its name."""
    if request.param == "processes":
        monkeypatch.setenv("STEPFLEET_HISTORY", "on")  # as in memory: what internal events are of
        monkeypatch.setenv("STEPFLEET_REDIS_URL", request.getfixturevalue("server_with_workers"))
    return request.param


@pytest.fixture(scope="session")
def server_with_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Starts a server and two worker processes that load the workflows of every module here."""
    from tests.support.fleet import TestFleet

    directory = tmp_path_factory.mktemp("model")
    with TestFleet(directory, target="tests.model.targets:workflows", lease="15s") as fleet:
        fleet.start(2)
        yield fleet.url


def _has_mark(metafunc: pytest.Metafunc, name: str) -> bool:
    return metafunc.definition.get_closest_marker(name) is not None
