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
        *("prelude", "batch", "plain", "gather", "at_hand", "slots", "fences", "expectations"),
        *("emits", "scopes", "further_words", "words", "apply", "commit"),
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

#: Script -> part -> lines in front of it. What `commit` needs for commits that are not plain is a function, so
#: that Lua makes its functions only then. For every name of its own function that a new one refers to, Lua
#: goes through a list of all such names; those from outside are at hand (17 us instead of 31 for what is
#: made), so most of them are in a function inside of that one. A function can refer to 60 of these.
_IN_FRONT: Final = {
    "commit": {
        "gather": "local function interpreter()\n",
        "slots": "return (function()\n",
        "commit": "end)()\nend\n",
    }
}


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
    lines = _IN_FRONT.get(name, {})
    texts = [
        lines.get(part, "") + (folder / f"{part}.lua").read_text(encoding="utf-8")
        for part in PARTS[name]
    ]
    source = "\n".join(texts)
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return Script(name=name, source=source, sha=sha)
