"""Values and names that look like something else stay what they are."""

from __future__ import annotations

import base64
import pickle
import re

import pytest

from stepfleet.codec import Codec, TypeRegistry
from stepfleet.core.plan import type_name
from stepfleet.storage.keys import Keys


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("a pickle was read",)


def test_a_text_that_is_a_pickle_stays_a_text() -> None:
    codec = Codec(TypeRegistry())
    for value in (pickle.dumps(Trap()), base64.b64encode(pickle.dumps(Trap())).decode()):
        assert codec.decode_value(codec.encode_value([value], where="x")) == [value]


NAMES = ["a:b", "../x", "*\n", "{other:0}:run:x", "ä😀", "a b", "x" * 10_000]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:20]))
def test_no_name_reaches_a_key_unescaped(name: str) -> None:
    keys = Keys("mine")
    safe = type_name(name)
    for key in (keys.stream(safe, safe, safe), keys.workflow(safe), keys.gauge(safe, safe)):
        assert re.fullmatch(r"\{mine:0\}:[A-Za-z0-9_.:@-]+", key)


@pytest.mark.parametrize("namespace", ["", "a:b", "{x}", "a b", "ä", "x" * 65, "a\n"])
def test_a_namespace_has_a_fixed_alphabet(namespace: str) -> None:
    with pytest.raises(ValueError, match="is not 1 to 64 characters of A-Z a-z 0-9 _ . -"):
        Keys(namespace)
