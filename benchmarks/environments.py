"""A virtual environment per peer, `.venv-bench-<peer>`, made when it is missing or its packages changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.peers import PEERS, own_python

ROOT = Path(__file__).resolve().parent.parent
#: Enough for the largest peer on a slow network.
INSTALL_SECONDS = 600


class NotStarted(Exception):
    """A peer could not be installed or does not come up, and why."""


def python_of(peer: str) -> Path:
    """Return the interpreter of the peer's environment, which exists then.

    Raises:
        NotStarted: pip failed.
    """
    packages = PEERS[peer].packages
    if not packages:
        return own_python()
    folder = ROOT / f".venv-bench-{peer.partition('-')[0]}"
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if stamp.exists() and stamp.read_text() == "\n".join(packages):
        return python
    print(f"installing {peer}: {' '.join(packages)}", flush=True)
    if not python.exists():
        run([sys.executable, "-m", "venv", str(folder)])
    run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
    stamp.write_text("\n".join(packages))
    return python


def run(command: list[str]) -> None:
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotStarted(f"not installed after {INSTALL_SECONDS} s") from None
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if "WARNING" not in line]
        raise NotStarted(f"not installed: {' '.join(lines[-2:])[:200]}")


def versions(peer: str) -> str:
    """Return the installed versions of what the peer names, and of its Redis client."""
    names = {package.split("[")[0].split("=")[0].split(">")[0] for package in PEERS[peer].packages}
    command = [str(python_of(peer)), "-m", "pip", "list", "--format", "json"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = {one["name"].lower(): one["version"] for one in json.loads(listed.stdout)}
    wanted = sorted(names | {"redis", "coredis"} if names else {"stepfleet", "redis"})
    return ", ".join(f"{name} {found[name]}" for name in wanted if name in found)
