"""A TCP proxy in front of a Redis server that loses replies and leaves connections half open."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from typing import Literal

_NAME = re.compile(rb"SETNAME\r\n\$\d+\r\n([^\r]+)\r\n")
#: The reply of a blocking read that found nothing.
_NOTHING = b"*-1\r\n"


class Proxy:
    """Forwards bytes, until it is told to lose a reply of the connections with a name."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}"
        self._sockets: set[socket.socket] = set()
        self._mutex = threading.Lock()
        self._orders: dict[str, Literal["close", "silence"]] = {}
        #: Names of the connections that lost a reply.
        self.lost: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_next_reply(self, name: str, then: Literal["close", "silence"]) -> None:
        """Loses the next reply with content to a connection of this name, and all that follow on it.

        The connection is then closed, or stays open and silent as one does whose peer is gone.
        """
        with self._mutex:
            self._orders[name] = then

    def close(self) -> None:
        """Ends every connection."""
        with self._mutex:
            for end in (self._listener, *self._sockets):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._upstream))
                with self._mutex:
                    self._sockets |= {client, server}
                _Pair(self, client, server)

    def order_for(self, name: str, reply: bytes) -> Literal["close", "silence", "forward"]:
        """Returns what to do with a reply."""
        if not reply.startswith(b"*") or reply == _NOTHING:
            return "forward"
        with self._mutex:
            order = self._orders.pop(name, None)
            if order is None:
                return "forward"
            self.lost.append(name)
            return order


class _Pair:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._name = ""
        self._silent = False
        for source, target, pass_on in (
            (client, server, self._asked),
            (server, client, self._answered),
        ):
            threading.Thread(target=self._pump, args=(source, target, pass_on), daemon=True).start()

    def _pump(
        self, source: socket.socket, target: socket.socket, pass_on: Callable[[bytes], bool | None]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                wanted = pass_on(data)
                if wanted is None:
                    break
                if wanted:
                    target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _asked(self, data: bytes) -> bool:
        if found := _NAME.search(data):
            self._name = found[1].decode()
        return not self._silent

    def _answered(self, data: bytes) -> bool | None:
        """Tells whether to forward: None closes the connection."""
        if self._silent:
            return False
        order = self._proxy.order_for(self._name, data)
        if order == "close":
            return None
        self._silent = order == "silence"
        return not self._silent
