"""The example of a trace: three processes, one trace, and a picture of it; the docs show such a picture."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from examples.tracing.spans import FILE, read_spans

ROOT = Path(__file__).parents[2]
SHOWN = ROOT / "docs" / "howto" / "trace.svg"
SVG = "{http://www.w3.org/2000/svg}"

Span = dict[str, Any]


def id_of(span: Span) -> str:
    return span["context"]["span_id"]


def pid_of(span: Span) -> int:
    return span["resource"]["attributes"]["process.pid"]


def test_the_spans_of_three_processes_are_one_trace(tmp_path: Path) -> None:
    picture, path = tmp_path / "trace.svg", tmp_path / "spans.jsonl"
    own = {name: value for name, value in os.environ.items() if "STEPFLEET" not in name}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "examples.tracing.run", picture],
        cwd=ROOT,
        env={**own, FILE: str(path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "page 1, page 2, page 3\n1 trace, 8 spans, 4 processes\n"
    spans = read_spans(path)

    def named(name: str) -> list[Span]:
        return [span for span in spans if span["name"] == name]

    (request,), (start,) = named("GET /digest"), named("start DigestFlow")
    (split,), (bind,) = named("process split"), named("process bind")
    reads = named("process read")
    assert len({span["context"]["trace_id"] for span in spans}) == 1
    assert len({pid_of(span) for span in (split, bind, *reads)}) == 3
    assert pid_of(request) == pid_of(start) not in {pid_of(split), pid_of(bind), pid_of(reads[0])}
    assert start["parent_id"] == id_of(request)
    assert split["parent_id"] == id_of(start)
    assert [read["parent_id"] for read in reads] == [id_of(split)] * 4
    assert bind["parent_id"] == id_of(split)
    (failed,) = [read for read in reads if read["status"]["status_code"] == "ERROR"]
    (again,) = [read for read in reads if read["attributes"]["stepfleet.attempt"] == 2]
    assert [link["context"]["span_id"] for link in again["links"]] == [id_of(failed)]
    good = [read for read in reads if read is not failed]
    assert (
        again["attributes"]["messaging.message.id"] == failed["attributes"]["messaging.message.id"]
    )
    linked = {link["context"]["span_id"] for link in bind["links"]}
    assert linked == {id_of(read) for read in good}
    check_picture(picture.read_text())


def check_picture(text: str) -> None:
    tree = ET.fromstring(text)
    assert len([one for one in tree.iter(f"{SVG}rect") if one.get("class") == "span"]) == 8
    assert len([one for one in tree.iter(f"{SVG}path") if one.get("class") == "link"]) == 4
    title = tree.findtext(f"{SVG}title") or ""
    assert re.fullmatch(r"One trace: 8 spans of 4 processes, \d+ ms", title)
    words = " ".join(one.text or "" for one in tree.iter(f"{SVG}text"))
    for word in ("process split", "process read, attempt 2", "process bind", "TimeoutError"):
        assert word in words


def test_the_picture_in_the_docs_is_such_a_picture() -> None:
    check_picture(SHOWN.read_text())
