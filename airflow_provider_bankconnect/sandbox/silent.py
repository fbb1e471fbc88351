"""A silent address of ``localhost``: no connection to it is ever made, as behind a firewall that drops packets."""

from __future__ import annotations

import errno
import ipaddress
import select
import socket
from typing import Final

from .wire import bind, listen

_OURS: Final = ("127.0.0.1", "::1")
# On loopback a connection is there at once; without an answer to its first packet this much time passes.
_UNANSWERED_SECONDS: Final = 0.25
_MOST_WAITING: Final = 16


class SilentAddress:
    """An address on which the first packet of a connection (SYN) gets no answer.

    Its socket listens with the smallest backlog, which is filled at once and never accepted from: Linux then drops
    further SYNs. Accepting without speaking TLS would be another fault: the client would have its connection.

    :raises ValueError: the address is not on loopback, or the host has no further address.
    """

    def __init__(self, address: str, host: str) -> None:
        try:
            self.address = str(ipaddress.ip_address(address))
            is_loopback = ipaddress.ip_address(address).is_loopback
        except ValueError:
            is_loopback = False
        if not is_loopback:
            raise ValueError(f"silent_address: {address!r} is no loopback address; give ::1 or 127.0.0.1")
        if host != "localhost":
            raise ValueError(f"silent_address needs host 'localhost', a name with several addresses, not {host!r}")
        self._sockets: list[socket.socket] = []

    def listen(self, port: int) -> list[socket.socket]:
        """Open the sockets of the other addresses of localhost, and fill the backlog of this one.

        :raises OSError: an address is missing on this machine, or localhost does not have it, or the port is in use.
        """
        needed = _OURS if self.address in _OURS else (self.address,)
        named = {str(found[4][0]) for found in socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)}
        for address in needed:
            _check_address(address, named)
        answering = [address for address in needed if address != self.address]
        opened = [bind(answering[0], port)] if answering else listen("localhost", port)
        try:
            self._fill(opened[0].getsockname()[1])
        except OSError:
            for one in opened:
                one.close()
            self.close()
            raise
        return opened

    def close(self) -> None:
        """Close the address; clients that still try are refused."""
        while self._sockets:
            self._sockets.pop().close()

    def _fill(self, port: int) -> None:
        self._sockets.append(bind(self.address, port, backlog=0))
        for _ in range(_MOST_WAITING):
            waiting = socket.socket(self._sockets[0].family, socket.SOCK_STREAM)
            self._sockets.append(waiting)
            waiting.settimeout(0)
            waiting.connect_ex((self.address, port))
            if not select.select([], [waiting], [], _UNANSWERED_SECONDS)[1]:
                return
        raise OSError(f"silent_address: this system answers connections to {self.address} even with a full backlog")


def _check_address(address: str, named: set[str]) -> None:
    try:
        bind(address, 0).close()
    except OSError as error:
        what = "IPv6 is missing" if ":" in address else "the address is missing"
        if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
            raise OSError(f"silent_address needs {address} on this machine: {what}") from None
        raise
    if address not in named:
        raise OSError(
            f"silent_address needs {address} as an address of localhost, which has only {', '.join(sorted(named))} "
            f"on this machine: add the line '{address} localhost' to its hosts file"
        )
