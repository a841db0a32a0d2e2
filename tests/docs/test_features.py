"""The table of features is true: every feature has a test, and the tests pass on the model too."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.features import FEATURES
from tests.model.table import PAGE, page, shown

ROOT = Path(__file__).parents[2]


def test_every_feature_of_the_list_has_a_test_and_every_test_a_feature() -> None:
    listed = {
        f"{section}: {feature}" for section, features in FEATURES.items() for feature in features
    }
    assert {test.feature for test in shown()} == listed


def test_the_page_of_features_is_current() -> None:
    assert PAGE.read_text() == page(), "run: make features"


@pytest.mark.timeout(300)
def test_the_tests_of_the_model_pass_on_the_model_itself() -> None:
    words = (
        "-q -n 0 -p no:cacheprovider -p no:stepfleet -p tests.model.on_the_model "
        "--confcutdir tests/model tests/model"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) > len(shown()) / 2
