"""The programs on the pages run, and print what the pages say."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, blocks, name_of, pages
from tests.support.servers import RedisServer, available_binaries
from tests.support.wait import wait_until

#: The address that the pages use for the reader's server.
READERS_SERVER = "redis://127.0.0.1:6379/0"

#: seconds for one program of a page, on a loaded machine
PATIENCE_S = 100.0

#: What a worker logs when it takes deliveries.
READY = "worker is ready"


def runs_something(page: Path) -> bool:
    return any(block.language == "python" or block.mark == "run" for block in blocks(page))


#: Pages whose programs need an extra that this environment may not have; see `make test-redis5`.
NEEDS = {"docs/howto/schedule-runs.md": "arq"}

PAGES = [
    page
    for page in pages()
    if runs_something(page) and find_spec(NEEDS.get(name_of(page), "stepfleet"))
]


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    binary = next(iter(available_binaries().values()))
    server = RedisServer(binary, tmp_path_factory.mktemp("server"), appendonly=False)
    server.start()
    yield server.url
    server.stop()


class Reader:
    """Does what a page says, in a folder of its own."""

    def __init__(self, folder: Path, server_url: str, namespace: str) -> None:
        self._folder = folder
        self._server_url = server_url
        self._workers: list[subprocess.Popen[bytes]] = []
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("STEPFLEET_")}
        self._environment = {
            **inherited,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "src"),
            "PYTHONUNBUFFERED": "1",
            "STEPFLEET_NAMESPACE": namespace,
        }

    def save(self, name: str, text: str) -> None:
        (self._folder / name).write_text(self._at_server(text))

    def python(self, text: str) -> str:
        self.save("snippet.py", text)
        return self._finished([sys.executable, "-W", "error", "snippet.py"])

    def shell(self, text: str) -> str:
        return self._finished(["bash", "-euc", self._at_server(text)])

    def start(self, text: str) -> None:
        log = self._folder / f"worker{len(self._workers)}.log"
        with log.open("wb") as output:
            worker = subprocess.Popen(
                ["bash", "-euc", f"exec {self._at_server(text)}"],
                cwd=self._folder,
                env=self._environment,
                stdout=output,
                stderr=output,
            )
        self._workers.append(worker)

        def is_ready() -> bool:
            assert worker.poll() is None, log.read_text()
            return READY in log.read_text()

        wait_until(is_ready, PATIENCE_S)

    def leave(self) -> list[int]:
        for worker in self._workers:
            worker.send_signal(signal.SIGTERM)
        codes: list[int] = []
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(PATIENCE_S)
            worker.kill()
            codes.append(worker.wait())
        return codes

    def _at_server(self, text: str) -> str:
        return text.replace(READERS_SERVER, self._server_url)

    def _finished(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        # A step that fails on purpose is logged there; nothing else belongs there.
        assert "Warning" not in done.stderr
        assert "Exception ignored" not in done.stderr
        return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_programs_of_a_page_run_and_print_what_it_says(
    page: Path, tmp_path: Path, server_url: str
) -> None:
    reader = Reader(tmp_path, server_url, namespace=name_of(page).replace("/", "-"))
    codes: list[int] = []
    try:
        for chain in chains(page):
            follow(chain, reader)
    finally:
        codes = reader.leave()
    assert [code for code in codes if code] == []


def follow(chain: list[Block], reader: Reader) -> None:
    first = chain[0]
    text = "\n".join(block.text for block in chain if block.mark != "output")
    printed = "".join(block.text for block in chain if block.mark == "output")
    if first.mark == "file":
        reader.save(first.argument, text)
        compile(text, first.argument, "exec")
    elif first.mark == "background":
        reader.start(text)
    elif first.language == "python":
        assert reader.python(text) == printed
    else:
        assert reader.shell(text) == printed


def chains(page: Path) -> list[list[Block]]:
    """Join what belongs together: a program, its continuations and what they print."""
    found: list[list[Block]] = []
    for block in blocks(page):
        if block.mark in ("continued", "output"):
            assert found, f"{name_of(page)}:{block.line} goes on from nothing"
            found[-1].append(block)
        elif block.language == "python" or block.mark in ("run", "background", "file"):
            found.append([block])
    return found


def test_every_page_with_a_program_is_run() -> None:
    assert {"README.md", "docs/tutorial.md"} <= {name_of(page) for page in PAGES}


def test_a_program_that_prints_something_else_is_found(tmp_path: Path, server_url: str) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint('one')\n```\n\n<!-- output -->\n```text\ntwo\n```\n")
    (chain,) = chains(page)

    with pytest.raises(AssertionError):
        follow(chain, Reader(tmp_path, server_url, namespace="other"))


def test_a_continued_block_sees_what_the_block_before_it_defined(
    tmp_path: Path, server_url: str
) -> None:
    page = tmp_path / "page.md"
    parts = ("```python\nx = 1\n```", "<!-- continued -->\n```python\nprint(x)\n```")
    page.write_text("\n\n".join([*parts, "<!-- output -->\n```text\n1\n```\n"]))
    (chain,) = chains(page)

    follow(chain, Reader(tmp_path, server_url, namespace="other"))


def test_the_readme_s_example_is_short() -> None:
    example = next(block for block in blocks(ROOT / "README.md") if block.language == "python")
    body = list(itertools.filterfalse(str.isspace, example.text.splitlines()))

    assert len([line for line in body if line]) <= 20
