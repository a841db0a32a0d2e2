"""The image: small, not root, stoppable, and made of files that exist."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTAINERFILE = ROOT / "workers" / "Containerfile"


def instructions(text: str) -> list[tuple[str, str]]:
    """Return (word, rest) per instruction, with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [
        (word.upper(), rest.strip())
        for word, _, rest in (line.strip().partition(" ") for line in joined)
        if word
    ]


STEPS = instructions(CONTAINERFILE.read_text())
LAST_FROM = max(index for index, (word, _) in enumerate(STEPS) if word == "FROM")
FINAL = STEPS[LAST_FROM:]


def only(word: str) -> str:
    (rest,) = [rest for found, rest in FINAL if found == word]
    return rest


def linted(path: Path) -> subprocess.CompletedProcess[str]:
    linter = Path(sys.executable).with_name("hadolint")
    return subprocess.run([linter, "--no-color", path], capture_output=True, text=True, check=False)


def test_hadolint_has_nothing_to_say() -> None:
    done = linted(CONTAINERFILE)

    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "Containerfile"
    wrong.write_text(
        CONTAINERFILE.read_text().replace(
            'ENTRYPOINT ["workflow-worker"]', "ENTRYPOINT workflow-worker"
        )
    )

    assert "DL3025" in linted(wrong).stdout


def test_every_stage_starts_from_a_pinned_image() -> None:
    images = [rest.split()[0] for word, rest in STEPS if word == "FROM"]

    assert len(images) == 2
    assert all(":" in image and not image.endswith(":latest") for image in images)


def test_the_worker_does_not_run_as_root() -> None:
    words = [word for word, _ in FINAL]

    assert only("USER").isdecimal()
    assert int(only("USER")) >= 1000
    assert f"--uid {only('USER')} " in only("RUN")
    assert words.index("RUN") < words.index("USER") < words.index("ENTRYPOINT")


def test_the_worker_is_process_one_and_gets_sigterm() -> None:
    assert json.loads(only("ENTRYPOINT")) == ["workflow-worker"]
    assert only("STOPSIGNAL") == "SIGTERM"


def test_health_is_the_worker_s_own_check() -> None:
    assert only("HEALTHCHECK").endswith('CMD ["workflow-worker", "--check"]')


def sources() -> list[str]:
    copies = [rest.split() for word, rest in STEPS if word in {"COPY", "ADD"}]
    return [name for names in copies if not names[0].startswith("--from=") for name in names[:-1]]


@pytest.mark.parametrize("source", sources())
def test_what_is_copied_exists(source: str) -> None:
    assert (ROOT / source).exists()


def test_the_final_stage_holds_no_build_tools() -> None:
    assert not any("pip" in rest or "apt" in rest for word, rest in FINAL if word == "RUN")
