"""`make demo`: what it prints is true, and it leaves nothing behind, however it ends."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo"
#: How many files the quick form indexes: enough for every worker to be busy at the kill.
FILES = 300
#: Seconds for the quick form on a loaded machine.
PATIENCE = 90.0


def start(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    settings = {name: value for name, value in os.environ.items() if "STEPFLEET" not in name}
    return subprocess.Popen(
        [sys.executable, DEMO / "run.py", *options],
        env={**settings, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(tmp_path: Path, *options: str) -> tuple[int, str, str]:
    with start(tmp_path, *options) as demo:
        try:
            out, errors = demo.communicate(timeout=PATIENCE)
        finally:
            demo.terminate()
        return demo.returncode, out, errors


def indexing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_indexing", DEMO / "indexing.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def counted_here() -> dict[str, int]:
    """What is in the files, counted in another way than the demo does it."""
    demo = indexing()
    counts = {"lines": 0, "classes": 0, "functions": 0, "unparsed": 0}
    for path in demo.list_files(FILES):
        source = (demo.LIBRARY / path).read_bytes()
        counts["lines"] += len(source.splitlines())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                nodes = list(ast.walk(ast.parse(source)))
        except (SyntaxError, ValueError):
            counts["unparsed"] += 1
            continue
        counts["classes"] += sum(isinstance(node, ast.ClassDef) for node in nodes)
        counts["functions"] += sum(
            isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in nodes
        )
    return counts


def numbers(pattern: str, out: str) -> list[int]:
    found = re.search(pattern, out)
    assert found, f"{pattern} is not in:\n{out}"
    return [int(number.replace(",", "")) for number in found.groups()]


def pids(out: str) -> list[int]:
    return [int(pid) for pid in re.findall(r"\(pid (\d+)\) is ready", out)]


def assert_nothing_is_left(tmp_path: Path, out: str) -> None:
    assert list(tmp_path.iterdir()) == []
    running = subprocess.run(
        ["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True
    )
    assert str(tmp_path) not in running.stdout
    for pid in pids(out):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
def test_the_fleet_loses_a_worker_and_no_file(tmp_path: Path) -> None:
    code, out, errors = run(tmp_path, "--files", str(FILES))
    assert (code, errors) == (0, ""), out

    files, lines = numbers(r"([\d,]+) files with ([\d,]+) lines", out)
    classes, functions, unparsed = numbers(
        r"([\d,]+) classes, ([\d,]+) functions; (\d+) files do not parse", out
    )
    assert files == FILES
    assert counted_here() == {
        "lines": lines,
        "classes": classes,
        "functions": functions,
        "unparsed": unparsed,
    }

    shares = re.findall(
        r"^  worker \d \(pid (\d+)\) +(\d+)(?:  (killed|took over \d+).*)?$", out, re.M
    )
    assert [int(pid) for pid, _, _ in shares] == pids(out)
    assert len(set(pids(out))) == 3
    assert sum(int(share) for _, share, _ in shares) == FILES
    assert all(int(share) > 0 for _, share, _ in shares)

    victim, held = numbers(r"\(pid (\d+)\) is killed \(SIGKILL\) while it holds (\d+) deliver", out)
    assert [int(pid) for pid, _, fate in shares if fate == "killed"] == [victim]
    assert sum(int(taken) for taken in re.findall(r"took over (\d+)", out)) >= held > 0
    recovery = re.search(r"([\d.]+) s from the kill to the commit of the last", out)
    assert recovery
    # Nobody may take over before the lease has run out: 2 s, renewed up to 0.7 s before the kill.
    assert float(recovery[1]) > 1.0

    digests = re.findall(r"sha256 ([0-9a-f]{64})", out)
    assert len(digests) == 2
    assert len(set(digests)) == 1
    tenths = [int(tenth) for tenth in re.findall(r"(\d+) %  ", out)]
    assert tenths == sorted(set(tenths))
    assert tenths[-1] == 100
    assert_nothing_is_left(tmp_path, out)


def test_the_index_answers_when_no_worker_is_killed_too(tmp_path: Path) -> None:
    # However few files are indexed, the first one is __future__.py.
    options = (
        "--no-kill",
        "--workers",
        "2",
        "--files",
        "60",
        "--query",
        "_Feature.getMandatoryRelease",
    )
    code, out, errors = run(tmp_path, *options)
    assert (code, errors) == (0, ""), out
    assert re.search(r"\n  function +_Feature\.getMandatoryRelease +__future__\.py:\d+\n\n", out)
    assert "killed" not in out
    assert len(pids(out)) == 2


def test_a_promise_that_is_not_kept_is_named(tmp_path: Path) -> None:
    # One file is parsed by one worker, and is done before there is anything to kill.
    code, out, errors = run(tmp_path, "--files", "1")
    assert (code, errors) == (1, "")
    assert "  all 3 processes have parsed files\n" in out
    assert "  a worker was killed while it held deliveries\n" in out
    assert "the index equals" not in out
    assert_nothing_is_left(tmp_path, out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_ends_what_it_started(tmp_path: Path, number: signal.Signals) -> None:
    with start(tmp_path) as demo:
        assert demo.stdout is not None
        seen: list[str] = []
        for line in demo.stdout:
            seen.append(line)
            if " 10 %" in line:
                break
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 130
    assert "interrupted" in errors
    assert len(pids("".join(seen))) == 3
    assert_nothing_is_left(tmp_path, "".join(seen))
