"""Runs the workflow over three workers, collects the spans of all processes and draws the trace.

python -m examples.tracing.run [PICTURE.svg]
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from opentelemetry import trace

from examples.tracing.picture import draw
from examples.tracing.spans import FILE, read_spans
from stepfleet import Client
from stepfleet.embedded.server import embedded_server

ROOT = Path(__file__).parents[2]
TARGET = "examples.tracing.workflow:DigestFlow"
STEPS = ("split", "read", "bind")
#: Seconds for workers to start, and to leave.
PATIENCE = 30.0


async def digest(url: str) -> str:
    # Imported here: the module configures tracing, which needs the name of the file.
    from examples.tracing.workflow import DigestFlow  # noqa: PLC0415

    async with Client(url) as client:
        with trace.get_tracer("caller").start_as_current_span("GET /digest"):
            handler = await client.start(DigestFlow, count=3)
            return str(await handler)


@contextlib.contextmanager
def workers(url: str) -> Iterator[None]:
    """Starts a worker for each step, and waits until all of them read."""
    command = (sys.executable, "-m", "stepfleet.cli.worker", TARGET, "--redis-url", url)
    processes = [
        subprocess.Popen([*command, "--steps", name], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for name in STEPS
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            while "worker is ready" not in (line := process.stdout.readline()):
                if not line:
                    raise RuntimeError(f"a worker ended with {process.wait(PATIENCE)}")
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.communicate(timeout=PATIENCE)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(os.environ.setdefault(FILE, str(Path(folder) / "spans.jsonl")))
        with embedded_server(Path(folder)) as url, workers(url):
            print(asyncio.run(digest(url)))
        spans = read_spans(path)
    traces = {span["context"]["trace_id"] for span in spans}
    processes = {span["resource"]["attributes"]["process.pid"] for span in spans}
    print(f"{len(traces)} trace, {len(spans)} spans, {len(processes)} processes")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(draw(spans))


if __name__ == "__main__":
    main()
