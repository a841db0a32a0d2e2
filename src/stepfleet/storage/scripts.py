"""Loads the Lua scripts: one name, its parts in order, its SHA. Layer: storage."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

#: Script -> the files it is made of. The prelude comes first, the contract is in the header of the
#: last.
PARTS: Final = {
    "commit": (
        *("prelude", "gather", "batch", "slots", "fences", "expectations"),
        *("emits", "scopes", "further_words", "words", "commit"),
    ),
    "beat": ("prelude", "beat"),
    "read": ("prelude", "read"),
    "reclaim": ("prelude", "reclaim"),
    "audit": ("prelude", "audit"),
    "hand_back": ("prelude", "hand_back"),
    "cut": ("prelude", "gather", "cut"),
    "due": ("prelude", "due"),
    "janitor": ("prelude", "janitor"),
    "erase": ("prelude", "erase"),
}

#: Script -> the part from which on its parts are a function inside of the script. For every name of its own
#: function that a new one refers to, Lua goes through a list of all such names; those from outside are at hand:
#: 17 us instead of 31 for a call of `commit` before its first commit. A function can refer to 60 of these.
INSIDE: Final = {"commit": "slots"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A script as Redis sees it."""

    name: str
    source: str
    sha: str


@cache
def script(name: str) -> Script:
    """Return the script with this name, assembled from its parts."""
    folder = files("stepfleet.storage") / "lua"
    texts: list[str] = []
    for part in PARTS[name]:
        if part == INSIDE.get(name):
            texts.append("return (function()\n")
        texts.append((folder / f"{part}.lua").read_text(encoding="utf-8"))
    if name in INSIDE:
        texts.append("end)()\n")
    source = "\n".join(texts)
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return Script(name=name, source=source, sha=sha)
