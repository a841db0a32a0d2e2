"""Nothing that is read from Redis or from a snapshot imports, calls, opens or unpickles anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_no_payload_makes_the_decoder_import_call_or_open_anything() -> None:
    decode(10_000, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_none_of_a_hundred_thousand_payloads_does() -> None:
    decode(100_000, seed=2)


def decode(count: int, *, seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.trust.decode_everything", str(count), str(seed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    decoded, values, *heard = done.stdout.splitlines()
    assert heard == []
    assert int(decoded) == count
    # Some of it is readable, so that more than the first look at a payload is tried.
    assert int(values) > count / 10
