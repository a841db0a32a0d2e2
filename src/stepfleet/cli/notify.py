"""What systemd is told about a worker (sd_notify): ready, alive, stopping. Layer: cli."""

from __future__ import annotations

import logging
import os
import socket
from typing import Final

logger = logging.getLogger("stepfleet.worker")

#: Where systemd listens; set for units of `Type=notify`.
_SOCKET: Final = "NOTIFY_SOCKET"


def notify(state: str) -> None:
    """Tell systemd a state such as `READY=1`; does nothing for a process that it did not start."""
    address = os.environ.get(_SOCKET, "")
    if not address:
        return
    if address.startswith("@"):  # a name in Linux' abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.connect(address)
            channel.sendall(state.encode())
    except OSError as error:
        logger.warning("systemd does not listen: state=%s error=%s", state, error)
