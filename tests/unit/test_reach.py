"""Commands that destroy something ask first, and say that nothing was done when the answer is no."""

from __future__ import annotations

from types import SimpleNamespace

import click
import pytest

from stepfleet.cli import reach


@pytest.mark.parametrize(("answer", "said"), [("n", "Nothing was done.\n"), ("y", "")])
def test_no_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str, said: str
) -> None:
    monkeypatch.setattr(reach.sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(click, "confirm", lambda _: answer == "y")
    aborted = False
    try:
        reach.confirm("Delete it?", yes=False)
    except click.Abort:
        aborted = True
    assert aborted is (answer == "n")
    assert capsys.readouterr().err == said
